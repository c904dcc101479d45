"""One save: how long the training waits for it, and how it ends."""

from __future__ import annotations

import dataclasses
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from alexnet_jax.checkpoints import metadata

# Of TensorStore: "...: No space left on device [os_error_code='28']".
_OS_ERROR = re.compile(r": ([^:]+) \[os_error_code=")


class Response(Protocol):
  """What Orbax answers to a save that goes on in the background."""

  def result(self, timeout: float | None = None) -> bool: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saved:
  """A save that has ended well.

  Attributes:
    step: of the checkpoint.
    blocked_seconds: for which the training waited.
    seconds: until it was on disk.
    num_bytes: there; 0 where its files could not be asked.
  """

  step: int
  blocked_seconds: float
  seconds: float
  num_bytes: int


def add_up(saved: Sequence[Saved]) -> Saved:
  """Saves of one step, one after the other, as one."""
  return Saved(
    step=saved[0].step,
    blocked_seconds=sum(one.blocked_seconds for one in saved),
    seconds=max(one.seconds for one in saved),
    num_bytes=sum(one.num_bytes for one in saved),
  )


class Saving:
  """A save that has begun.

  Args:
    folder: of the checkpoint.
    step: of it.
    began: when the training stopped for it, of `time.monotonic`.
    response: of Orbax.
  """

  def __init__(self, folder: str, step: int, began: float, response: Response):
    self.step = step
    self._folder, self._began, self._response = folder, began, response
    self._ended, self._num_bytes = began, 0
    self._error: BaseException | None = None
    # A thread of its own tells an end by TimeoutError from one to come.
    self._noted = threading.Event()
    threading.Thread(target=self._note_end, daemon=True).start()
    self._blocked = time.monotonic() - began

  def _note_end(self) -> None:
    """Waits until the folder has its name, or it is clear that it gets none."""
    try:
      self._response.result()
      self._ended = time.monotonic()
      self._num_bytes = _find_size(self._folder)
    except BaseException as error:
      self._error = error
    finally:
      self._noted.set()

  def finish(self, timeout_seconds: float | None) -> Saved | None:
    """What came of it; None if it goes on after that time.

    Raises:
      Exception: that of Orbax; it has failed.
    """
    if not self._noted.wait(timeout_seconds):
      return None
    if self._error is not None:
      raise self._error
    return Saved(
      step=self.step,
      blocked_seconds=self._blocked,
      seconds=self._ended - self._began,
      num_bytes=self._num_bytes,
    )


def _find_size(folder: str) -> int:
  """The bytes of all files; 0 where one cannot be asked."""
  try:
    return sum(
      os.path.getsize(os.path.join(place, name))
      for place, _, names in os.walk(folder)
      for name in names
    )
  except OSError:
    return 0  # only reported; the checkpoint itself is there


def failure(
  error: Exception, folder: str, step: int, kept: int | None
) -> metadata.CheckpointError:
  """The error for a save that has failed, in one line.

  Args:
    error: of Orbax.
    folder: of the checkpoint that is not there now.
    step: of it.
    kept: the step of the newest checkpoint that is there.
  """
  text = " ".join(str(error).split())
  if isinstance(error, OSError) and error.strerror:
    text = error.strerror
  elif found := _OS_ERROR.search(text):
    text = found[1]
  left = (
    "there is no earlier one"
    if kept is None
    else f"that of step {kept} is kept"
  )
  return metadata.CheckpointError(
    f"the checkpoint of step {step} cannot be written to {folder!r}: "
    f"{text[:300]}; {left}. Make room there or set --workdir; the same command "
    "goes on from the last checkpoint."
  )


def find_kept(
  steps: Sequence[int],
  errors: Mapping[int, float],
  *,
  newest: int,
  best: int,
  every: int | None,
) -> set[int]:
  """The steps whose checkpoints are to stay.

  Args:
    steps: of all checkpoints.
    errors: step -> top-1 error of its validation; of two that are equal the
      later one is better. Steps that were saved without one have none.
    newest: how many of the newest stay, 1 or more.
    best: how many of lowest error stay.
    every: steps of which each multiple stays; None: none does for that.
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


class Policy:
  """`find_kept`, as Orbax asks for it.

  Orbax's own policy for the best reads their metrics from an item of its own,
  and a damaged one would keep it from opening.
  """

  def __init__(self, *, newest: int, best: int, every: int | None):
    self.errors: dict[int, float] = {}
    self._options = {"newest": newest, "best": best, "every": every}

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Whether each of the checkpoints stays."""
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = find_kept(steps, self.errors, **self._options)
    return [step in kept for step in steps]
