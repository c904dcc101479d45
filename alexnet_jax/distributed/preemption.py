"""Stops a run on SIGTERM, SIGINT or SIGHUP, in all processes at one step.

SIGINT is Ctrl-C, SIGHUP the end of the terminal.

Python runs signal handlers in its main thread, between two Python instructions:
not while that thread compiles or waits for devices. So the signals are blocked
in every thread, and a thread that does nothing else waits for them.

As long as nothing can be lost, the first signal ends the process at once; after
that it is a request, which the loop checks. A second signal always ends it.

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

# Exit code, after sysexits.h: a temporary failure; try again.
STOPPED = 75
# Signals so close to the first count as one: `timeout` and some launchers send
# one to a process and once more to its group.
SAME_SECONDS = 0.5


class Signals:
  """The signals that ask this process to stop.

  Attributes:
    received: set by the first signal that did not end the process.
    name: of that signal, as SIGTERM.
  """

  def __init__(self):
    self.received = threading.Event()
    self.name = ""
    self._defers = False
    self._lock = threading.Lock()
    self._exit_early: Callable[[str], None] = _exit_early

  def set_exit_early(self, exit_early: Callable[[str], None]) -> None:
    """Sets what the first signal calls before `start_deferring`.

    Args:
      exit_early: ends the process; gets the name of the signal, in another
        thread.
    """
    self._exit_early = exit_early

  def start_deferring(self) -> None:
    """Makes the first signal a request, from here on."""
    with self._lock:
      self._defers = True

  def receive(self, number: int) -> None:
    """Handles the first signal."""
    name = signal.Signals(number).name
    with self._lock:
      if not self._defers:
        self._exit_early(name)  # `start_deferring` waits for it
    self.request(name)

  def request(self, name: str) -> None:
    """Asks the run to stop, also without a signal; the first name counts."""
    with self._lock:
      self.name = self.name or name
      self.received.set()


def handle_signals() -> Signals:
  """Handles the signals from now on, for all threads that start after this.

  A signal that the parent process has set to be ignored stays ignored: shells
  do that with SIGINT for what they start in the background, `nohup` does it
  with SIGHUP.
  """
  numbers = {
    number
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    if signal.getsignal(number) != signal.SIG_IGN
  }
  signals = Signals()
  signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
  listener = threading.Thread(
    target=_listen, args=(signals, numbers), daemon=True, name="signals"
  )
  listener.start()

  def forward(number: int, _) -> None:
    signal.pthread_kill(listener.ident, number)

  # A thread that existed before, as of a program that wraps `main`, blocks
  # neither of them.
  for number in numbers:
    signal.signal(number, forward)
  return signals


def _listen(signals: Signals, numbers: set[int]) -> None:
  """Waits for one signal, and then for another."""
  # In a thread of its own, because it may wait for other processes.
  threading.Thread(
    target=signals.receive, args=(signal.sigwait(numbers),), daemon=True
  ).start()
  time.sleep(SAME_SECONDS)
  while same := signal.sigpending() & numbers:
    signal.sigwait(same)
  number = signal.sigwait(numbers)
  if os.isatty(1):
    with contextlib.suppress(OSError):
      os.write(1, b"\x1b[?25h")  # the cursor, which a progress bar hides
  os._exit(128 + number)  # the code that shells give for a signal


def _exit_early(name: str) -> None:
  print_early_stop(f"stopped by {name} before the first step")
  os._exit(STOPPED)


def print_early_stop(reason: str) -> None:
  """Prints that the process stops before anything was done."""
  write_stderr(f"{reason}; nothing is lost, the same command starts it again.")


def write_stderr(line: str) -> None:
  """Writes to standard error just before the process ends.

  Takes no lock, and ignores errors as of a broken pipe or a full disk, so that
  the process ends in any case.
  """
  with contextlib.suppress(OSError):  # Ctrl-C ends the reader of a pipe, too
    os.write(2, f"{line}\n".encode(errors="backslashreplace"))


# A process learns of a signal to another one within this time.
NOTICE_SECONDS = 1.0
_RETRY_SECONDS = 0.05

_NOTICES, _COUNTS = "agreement/notice/", "agreement/count/"


class StopAgreement:
  """Stops all processes of a run before the same boundary.

  A boundary is where a run may stop: between two steps, or two batches of a
  validation. All processes reach the same boundaries, but not at the same time.
  So a process that gets a signal posts a notice; each process then posts how
  many boundaries it has reached, and waits at the next one until all have
  posted. No process has reached the boundary after the highest count: all stop
  there.

  JAX's preemption service does the same for SIGTERM. But it waits at a boundary
  with Python's lock held, for up to three minutes, so that neither the
  heartbeat nor a second signal is handled.

  Args:
    store: that all processes share.
    index: of this process.
    count: of all processes.
    signals: of this process.
    on_end: called where the store does not answer, in a thread, with a sentence
      on that and True: process 0, which has the store, is lost. It has to end
      this process, because the others wait for its count.
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
    self._stopped = threading.Event()
    # Held while the processes post their counts.
    self._lock = threading.Lock()
    self._boundary = 0
    self._last: int | None = None
    self.name = ""  # of the signal that one of the processes has received

  def start(self) -> None:
    threading.Thread(target=self._listen, daemon=True, name="stop").start()

  def stop(self) -> None:
    """Stops listening; does not wait for the thread."""
    self._stopped.set()

  def should_stop(self) -> bool:
    """Whether all processes stop here; every process calls it at every one."""
    with self._lock:
      self._boundary += 1
      return self._last is not None and self._boundary >= self._last

  def _listen(self) -> None:
    while not (name := self._retry(self._find_notice)):
      self._signals.received.wait(NOTICE_SECONDS)
      if self._stopped.is_set():
        return
    self.name = name
    with self._lock:
      self._agree()

  def _retry(self, ask: Callable[[], Any]) -> Any:
    """Returns what `ask` reads from the store; None once this has stopped."""
    # Counts turns: a process that is suspended meanwhile has none.
    for _ in range(round(heartbeat.LOST_SECONDS / NOTICE_SECONDS)):
      try:
        return ask()
      except Exception as error:
        if self._stopped.is_set():
          return None
        reason = " ".join(str(error).split())[:200]
      self._stopped.wait(NOTICE_SECONDS)
    if not self._stopped.is_set():
      self._on_end(
        f"the processes cannot agree where to stop: process 0 is lost, it does "
        f"not answer ({reason})",
        True,
      )
    self.stop()
    return None

  def _find_notice(self) -> str:
    """Returns the name of a signal that any process has received, or ""."""
    if self._signals.received.is_set():
      self._set(_NOTICES, self._signals.name)
      return self._signals.name
    notices = self._store.key_value_dir_get(_NOTICES)
    return notices[0][1] if notices else ""

  def _agree(self) -> None:
    """Settles the boundary; this process waits at its own meanwhile."""
    self._retry(lambda: self._set(_COUNTS, str(self._boundary)))
    # The heartbeat finds a process that is lost meanwhile.
    while not self._stopped.is_set():
      counts = self._retry(lambda: self._store.key_value_dir_get(_COUNTS)) or ()
      if len(counts) == self._count:
        self._last = max(int(boundary) for _, boundary in counts) + 1
        return
      time.sleep(_RETRY_SECONDS)

  def _set(self, key: str, value: str) -> None:
    # Overwrites: a retry comes here again if only the answer was lost.
    self._store.key_value_set(
      f"{key}{self._index}", value, allow_overwrite=True
    )
