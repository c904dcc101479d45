"""A run in which nothing gets done any more ends, and says where it waits.

A file system that does not answer, a driver that hangs, a library that waits
for itself: such a run waits for ever, and no scheduler sees it. So a thread
watches whether boundaries (see `agreement.py`) are still reached.

It counts its own turns, and not what a clock says: a process that is itself
held up, as by SIGSTOP, a suspended job or a closed laptop, has no turns.
"""

from __future__ import annotations

import faulthandler
import os
import tempfile
import threading
import time
from collections.abc import Callable

from alexnet_jax.distributed import preemption

# Of sysexits.h: an internal software error.
STUCK = 70
_TURNS = 20  # within the time that is allowed
_LONGEST_TURN_SECONDS = 1.0
# For the file of the stacks: the file system may be what does not answer.
_WRITE_SECONDS = 5.0


class Watchdog:
  """Counts the time without a boundary, from `start` on.

  Args:
    seconds: without a boundary, after which the process is stuck; 0: never.
    path: of a file for the stacks.
    label: of this process where there are several, else empty.
    exit: ends the process; is given its exit code.
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
    self._end = threading.Event()
    self._boundaries = 0
    self._rests = False
    self._step: int | None = None

  def start(self) -> None:
    """Begins to count, also what comes before the first boundary."""
    if self._seconds:
      threading.Thread(target=self._count, daemon=True, name="clock").start()

  def tick(self, step: int | None = None) -> None:
    """A boundary is reached.

    Args:
      step: that begins there; None: a batch of a validation.
    """
    self._boundaries += 1
    self._rests = False
    self._step = self._step if step is None else step

  def rest(self) -> None:
    """Does not count until the next boundary: something compiles."""
    self._rests = True

  def stop(self) -> None:
    """Counts no longer; does not wait for the thread."""
    self._end.set()

  def _count(self) -> None:
    turn = min(self._seconds / _TURNS, _LONGEST_TURN_SECONDS)
    quiet, seen, last = 0.0, 0, time.monotonic()
    while not self._end.wait(turn):
      now = time.monotonic()
      # What a turn takes beyond that, this process itself was held up.
      quiet += min(now - last, 2 * turn)
      last = now
      if self._rests or self._boundaries != seen:
        quiet, seen = 0.0, self._boundaries
      if quiet > self._seconds:
        self._give_up()
        return

  def _give_up(self) -> None:
    teller = threading.Thread(target=self._tell, daemon=True, name="stacks")
    teller.start()
    teller.join(_WRITE_SECONDS)
    last = "" if self._step is None else f" (last begun: step {self._step})"
    preemption.write(
      f"error: {self._label}no step finished for {self._seconds:g} seconds"
      f"{last}; the stacks of all threads are above and in {self._path}. The "
      "same command goes on from the last checkpoint; --hang_timeout_seconds "
      "waits longer."
    )
    self._exit(STUCK)

  def _tell(self) -> None:
    # Python's lock is held while stacks are written: not to what may block.
    with tempfile.TemporaryFile() as file:
      faulthandler.dump_traceback(file, all_threads=True)
      file.seek(0)
      stacks = file.read().decode()
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    told = f"{self._label}the stacks of all threads at {when}:\n{stacks}"
    preemption.write(told)
    with open(self._path, "a") as file:
      file.write(f"{told}\n")
