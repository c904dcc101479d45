"""One save in the background, and which checkpoints are kept after it."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from alexnet_jax.checkpoints import metadata


class Response(Protocol):
  """What Orbax returns for a save that continues in the background."""

  def result(self, timeout: float | None = None) -> bool: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saved:
  """A save that has succeeded.

  Attributes:
    step: of the checkpoint.
    blocked_seconds: for which the training waited.
    seconds: until it was on disk.
    num_bytes: on disk; 0 where the sizes of its files could not be read.
  """

  step: int
  blocked_seconds: float
  seconds: float
  num_bytes: int


def combine_saves(saved: Sequence[Saved]) -> Saved:
  """Returns saves of one step, one after the other, as one."""
  return Saved(
    step=saved[0].step,
    blocked_seconds=sum(one.blocked_seconds for one in saved),
    seconds=max(one.seconds for one in saved),
    num_bytes=sum(one.num_bytes for one in saved),
  )


class PendingSave:
  """A save that has begun.

  Args:
    folder: of the checkpoint.
    step: of the checkpoint.
    began: when the training stopped for it, by `time.monotonic`.
    response: from Orbax.
    check: raises if the complete folder is not as it was written.
  """

  def __init__(
    self,
    folder: str,
    step: int,
    began: float,
    response: Response,
    check: Callable[[str], None] | None = None,
  ):
    self.step = step
    self._folder, self._began, self._response = folder, began, response
    self._check = check
    self._finished, self._num_bytes = began, 0
    self._error: BaseException | None = None
    # A thread of its own waits: `result` with a time limit raises the same
    # TimeoutError for a save that has failed with one as for one under way.
    self._done = threading.Event()
    threading.Thread(target=self._wait, daemon=True).start()
    self._blocked = time.monotonic() - began

  def _wait(self) -> None:
    """Waits until the folder has its final name, or the save has failed."""
    try:
      self._response.result()
      if self._check is not None:
        self._check(self._folder)
      self._finished = time.monotonic()
      self._num_bytes = _find_size(self._folder)
    except BaseException as error:
      self._error = error
    finally:
      self._done.set()

  def finish(self, timeout_seconds: float | None) -> Saved | None:
    """Returns the result; None if the save continues after that time.

    Raises:
      Exception: Orbax's; the save has failed.
    """
    if not self._done.wait(timeout_seconds):
      return None
    if self._error is not None:
      raise self._error
    return Saved(
      step=self.step,
      blocked_seconds=self._blocked,
      seconds=self._finished - self._began,
      num_bytes=self._num_bytes,
    )


def _find_size(folder: str) -> int:
  """Returns the bytes of all files; 0 where a size cannot be read."""
  try:
    return sum(
      os.path.getsize(os.path.join(parent, name))
      for parent, _, names in os.walk(folder)
      for name in names
    )
  except OSError:
    return 0  # only reported; the checkpoint itself exists


def make_save_error(
  error: Exception, folder: str, step: int, latest: int | None
) -> metadata.CheckpointError:
  """Returns the error for a save that has failed, in one line.

  Args:
    error: from Orbax.
    folder: of the checkpoint that does not exist now.
    step: of that checkpoint.
    latest: the step of the newest checkpoint that exists.
  """
  reason = metadata.find_system_error(error) or metadata.summarize_error(error)
  left = (
    "there is no earlier one"
    if latest is None
    else f"that of step {latest} is kept"
  )
  return metadata.CheckpointError(
    f"the checkpoint of step {step} cannot be written to {folder!r}: {reason}; "
    f"{left}. Make room there or set --workdir; the same command resumes from "
    "the last checkpoint."
  )


def make_deletion_error(
  error: Exception, folder: str, saved: int
) -> metadata.CheckpointError:
  """Returns the error for an old checkpoint that stays, in one line.

  Args:
    error: from Orbax.
    folder: of the old checkpoint.
    saved: the step of the new one, which exists.
  """
  reason = metadata.find_system_error(error) or metadata.summarize_error(error)
  return metadata.CheckpointError(
    f"the checkpoint of step {saved} is saved, but the old one {folder!r} "
    f"cannot be deleted: {reason}. Delete it, or set --workdir; the same "
    f"command resumes after step {saved}."
  )


def find_steps_to_keep(
  steps: Sequence[int],
  errors: Mapping[int, float],
  *,
  newest: int,
  best: int,
  every: int | None,
) -> set[int]:
  """Returns the steps whose checkpoints are kept.

  Args:
    steps: of all checkpoints.
    errors: step -> top-1 error of its validation; of two that are equal the
      later one is better. Steps that were saved without one have none.
    newest: how many of the newest are kept, 1 or more.
    best: how many of the lowest error are kept.
    every: steps whose multiples are all kept; None: none are for that.
  """
  rising = sorted(steps)
  validated = sorted(
    (step for step in rising if step in errors),
    key=lambda step: (errors[step], -step),
  )
  return {
    *rising[-newest:],
    *validated[:best],
    *(step for step in rising if every and step % every == 0),
  }


class PreservationPolicy:
  """`find_steps_to_keep`, in the form that Orbax calls.

  Orbax's own policy for the best reads the errors from a file of its own for
  each checkpoint, and a damaged one would keep Orbax from opening.
  """

  def __init__(self, *, newest: int, best: int, every: int | None):
    self.errors: dict[int, float] = {}
    self._options = {"newest": newest, "best": best, "every": every}

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Whether each of the checkpoints is kept."""
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = self.find_steps_to_keep(steps)
    return [step in kept for step in steps]

  def find_steps_to_keep(self, steps: Sequence[int]) -> set[int]:
    """Returns those of the steps whose checkpoints are kept."""
    return find_steps_to_keep(steps, self.errors, **self._options)
