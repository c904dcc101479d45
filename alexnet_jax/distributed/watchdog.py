"""Ends a run that hangs, after writing the stacks of all its threads.

A file system that does not answer, a driver that hangs, or a deadlock in a
library makes a run wait for ever, and no scheduler sees it. A thread watches
whether the run still reaches boundaries (see `preemption.StopAgreement`).

It counts its own turns rather than the time of a clock: a process that is
stopped itself, as by SIGSTOP, a suspended job or a closed laptop, has no turns.
"""

from __future__ import annotations

import faulthandler
import os
import tempfile
import threading
import time
from collections.abc import Callable

from alexnet_jax.distributed import preemption

# Exit code, after sysexits.h: an internal software error.
HUNG = 70
_TURNS = 20  # within the time that is allowed
_LONGEST_TURN_SECONDS = 1.0
# For the file with the stacks: the file system may be what hangs.
_WRITE_SECONDS = 5.0


class Watchdog:
  """Measures the time without a boundary, from `start` on.

  Args:
    seconds: without a boundary, after which the process ends; 0: never.
    path: of a file for the stacks.
    label: of this process if there are several, else empty.
    exit: ends the process with an exit code.
  """

  def __init__(
    self,
    seconds: float,
    *,
    path: str,
    label: str = "",
    exit: Callable[[int], None] = os._exit,
  ):
    self._seconds = seconds
    self._path = path
    self._label = f"{label}: " if label else ""
    self._exit = exit
    self._stopped = threading.Event()
    self._boundaries = 0
    self._is_paused = False
    self._step: int | None = None

  def start(self) -> None:
    """Starts to count; the time before the first boundary counts too."""
    if self._seconds:
      threading.Thread(target=self._count, daemon=True, name="watchdog").start()

  def reset(self, step: int | None = None) -> None:
    """Notes that a boundary is reached.

    Args:
      step: that begins there; None: a batch of a validation.
    """
    self._boundaries += 1
    self._is_paused = False
    self._step = self._step if step is None else step

  def pause(self) -> None:
    """Stops counting until the next boundary, as for a compilation."""
    self._is_paused = True

  def stop(self) -> None:
    """Stops counting; does not wait for the thread."""
    self._stopped.set()

  def _count(self) -> None:
    turn = min(self._seconds / _TURNS, _LONGEST_TURN_SECONDS)
    quiet, seen, last = 0.0, 0, time.monotonic()
    while not self._stopped.wait(turn):
      now = time.monotonic()
      # In the time beyond two turns this process itself was stopped.
      quiet += min(now - last, 2 * turn)
      last = now
      if self._is_paused or self._boundaries != seen:
        quiet, seen = 0.0, self._boundaries
      if quiet > self._seconds:
        self._end_process()
        return

  def _end_process(self) -> None:
    writer = threading.Thread(
      target=self._write_stacks, daemon=True, name="stacks"
    )
    writer.start()
    writer.join(_WRITE_SECONDS)
    last = "" if self._step is None else f" (last begun: step {self._step})"
    preemption.write_stderr(
      f"error: {self._label}no step finished for {self._seconds:g} seconds"
      f"{last}; the stacks of all threads are above and in {self._path}. The "
      "same command resumes from the last checkpoint; --hang_timeout_seconds "
      "waits longer."
    )
    self._exit(HUNG)

  def _write_stacks(self) -> None:
    # faulthandler holds Python's lock while it writes: to no file that blocks.
    with tempfile.TemporaryFile() as file:
      faulthandler.dump_traceback(file, all_threads=True)
      file.seek(0)
      stacks = file.read().decode()
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    text = f"{self._label}the stacks of all threads at {when}:\n{stacks}"
    preemption.write_stderr(text)
    with open(self._path, "a") as file:
      file.write(f"{text}\n")
