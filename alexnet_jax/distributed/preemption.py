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
from typing import Any

from alexnet_jax.distributed import heartbeat

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


def handle_signals() -> Signals:
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


# All processes of a run stop before the same boundary.
#
# A boundary is where a run may stop: between two steps, or two batches of a
# validation. All processes come to the same boundaries, but not at the same
# time. So whoever is asked to stop gives notice; each process then says how
# many boundaries it has reached, and stays at the next one until all have said
# it. One after the highest count is a boundary that nobody has reached yet:
# there all stop.
#
# JAX has the same for SIGTERM, as its preemption service. That waits at a
# boundary with Python's lock held, so that neither the watch nor a second
# signal gets through, if need be for three minutes.

# Until a process hears of a notice of another one.
NOTICE_SECONDS = 1.0
_RETRY_SECONDS = 0.05

_NOTICES, _COUNTS = "agreement/notice/", "agreement/count/"


class Agreement:
  """What one process does so that all stop before the same boundary.

  Args:
    store: that all processes share.
    index: of this process.
    count: of all.
    signals: of this process.
    on_end: called where the store does not answer, in a thread, with a sentence
      on that and True: whoever keeps it is lost. It is to end this process: the
      others wait for its word.
  """

  def __init__(
    self,
    store: heartbeat.Store,
    *,
    index: int,
    count: int,
    signals: Signals,
    on_end: Callable[[str, bool], None],
  ):
    self._store = store
    self._index = index
    self._count = count
    self._signals = signals
    self._on_end = on_end
    self._end = threading.Event()
    # Held while the processes tell each other where they are.
    self._lock = threading.Lock()
    self._boundary = 0
    self._last: int | None = None
    self._name = ""

  @property
  def name(self) -> str:
    """Of the signal that one of the processes has had."""
    return self._name

  def start(self) -> None:
    threading.Thread(target=self._listen, daemon=True, name="stop").start()

  def stop(self) -> None:
    """Listens no longer; does not wait for the thread."""
    self._end.set()

  def is_stopping(self) -> bool:
    """Whether all stop here; to be asked at every boundary, in all."""
    with self._lock:
      self._boundary += 1
      return self._last is not None and self._boundary >= self._last

  def _listen(self) -> None:
    while not (name := self._ask(self._find_notice)):
      self._signals.came.wait(NOTICE_SECONDS)
      if self._end.is_set():
        return
    self._name = name
    with self._lock:
      self._agree()

  def _ask(self, ask: Callable[[], Any]) -> Any:
    """What the store says; None where this has come to its end."""
    # Counted, for a process that is held up meanwhile has no turns.
    for _ in range(round(heartbeat.LOST_SECONDS / NOTICE_SECONDS)):
      try:
        return ask()
      except Exception as error:
        if self._end.is_set():
          return None
        reason = " ".join(str(error).split())[:200]
      self._end.wait(NOTICE_SECONDS)
    if not self._end.is_set():
      self._on_end(
        f"the processes cannot agree where to stop: process 0 is lost, it does "
        f"not answer ({reason})",
        True,
      )
    self.stop()
    return None

  def _find_notice(self) -> str:
    """The name of a signal that any process has had; empty if none."""
    if self._signals.came.is_set():
      self._set(_NOTICES, self._signals.name)
      return self._signals.name
    notices = self._store.key_value_dir_get(_NOTICES)
    return notices[0][1] if notices else ""

  def _agree(self) -> None:
    """Settles the boundary; this process stays at its own meanwhile."""
    self._ask(lambda: self._set(_COUNTS, str(self._boundary)))
    # A process that is lost meanwhile is the watch's to find.
    while not self._end.is_set():
      said = self._ask(lambda: self._store.key_value_dir_get(_COUNTS)) or ()
      if len(said) == self._count:
        self._last = max(int(boundary) for _, boundary in said) + 1
        return
      time.sleep(_RETRY_SECONDS)

  def _set(self, key: str, value: str) -> None:
    # Again, where the answer to the first time was lost.
    self._store.key_value_set(
      f"{key}{self._index}", value, allow_overwrite=True
    )
