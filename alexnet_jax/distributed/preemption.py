"""SIGTERM and SIGINT (Ctrl-C) of a run, heeded from its first line on.

Python runs handlers of signals in its main thread, between two instructions of
Python: not while that thread compiles, or waits for devices. So both signals
are blocked in every thread, and a thread that does nothing else waits for them.

The first one ends the process at once as long as nothing can be lost; after
that it is a wish, which the loop asks for. A second one always ends it at once.

Standard library only: `main.py` starts this before the imports that take
seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable

# Of sysexits.h: a temporary failure; try again.
STOPPED = 75
# Signals so close to the first are the same one: `timeout` and some launchers
# send one to a process and once more to its group.
SAME_SECONDS = 0.5


class Signals:
  """The signals that ask this process to stop.

  Attributes:
    came: set with the first signal that did not end the process.
    name: of that signal, as SIGTERM.
  """

  def __init__(self):
    self.came = threading.Event()
    self.name = ""
    self._guards = False
    self._lock = threading.Lock()
    self._leave: Callable[[str], None] = _leave

  def set_leave(self, leave: Callable[[str], None]) -> None:
    """Sets how a first signal ends the process, as long as it does.

    Args:
      leave: is told the name of the signal, in another thread; ends the
        process.
    """
    self._leave = leave

  def guard(self) -> None:
    """From here on there is something to lose: the first signal is a wish."""
    with self._lock:
      self._guards = True

  def hear(self, number: int) -> None:
    """Heeds the first signal."""
    name = signal.Signals(number).name
    with self._lock:
      if not self._guards:
        self._leave(name)  # which `guard` waits for
      self.name = name
      self.came.set()


def heed() -> Signals:
  """Heeds both signals from now on, for all threads that start after this.

  A signal that whoever started the process has it ignore stays so: shells do
  that with SIGINT of what they start in the background.
  """
  numbers = {
    number
    for number in (signal.SIGTERM, signal.SIGINT)
    if signal.getsignal(number) != signal.SIG_IGN
  }
  signals = Signals()
  signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
  listener = threading.Thread(
    target=_listen, args=(signals, numbers), daemon=True, name="signals"
  )
  listener.start()

  def pass_on(number: int, _) -> None:
    signal.pthread_kill(listener.ident, number)

  # A thread that was there before, as of what wraps `main`, blocks neither.
  for number in numbers:
    signal.signal(number, pass_on)
  return signals


def _listen(signals: Signals, numbers: set[int]) -> None:
  """Waits for one signal, and then for another."""
  # In a thread of its own, for it may wait for other processes.
  threading.Thread(
    target=signals.hear, args=(signal.sigwait(numbers),), daemon=True
  ).start()
  time.sleep(SAME_SECONDS)
  while same := signal.sigpending() & numbers:
    signal.sigwait(same)
  number = signal.sigwait(numbers)
  if os.isatty(1):
    with contextlib.suppress(OSError):
      os.write(1, b"\x1b[?25h")  # the cursor, which a progress bar hides
  os._exit(128 + number)  # what a shell says of one that a signal has ended


def _leave(name: str) -> None:
  say(f"stopped by {name} before the first step")
  os._exit(STOPPED)


def say(what: str) -> None:
  """Says how the process is stopped where nothing was done."""
  write(f"{what}; nothing is lost, the same command goes on.")


def write(line: str) -> None:
  """Writes to standard error where the process is about to end.

  Past all locks; and without an error where nobody can read it any longer: a
  broken pipe, a full disk. The end must come.
  """
  with contextlib.suppress(OSError):  # Ctrl-C ends who reads it, too
    os.write(2, f"{line}\n".encode(errors="backslashreplace"))
