"""Checkpoints as they are stored: found, read and held against their records.

Of any run, whether it trains meanwhile or not; writes nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging as absl_logging
from orbax.checkpoint import v1 as ocp

from alexnet_jax.checkpoints import metadata
from alexnet_jax.program import step as step_lib


def find_latest_step(workdir: str) -> int | None:
  """As `Checkpoints.latest_step`, of a run that is not open; writes nothing."""
  return max(find_steps(workdir), default=None)


def find_steps(workdir: str) -> list[int]:
  """Of the complete checkpoints of a run, rising; writes nothing."""
  mute()  # what is wrong with one of them is said when it is read
  names = ocp.path.step.standard_name_format()
  found = names.find_all(find_folder(workdir))
  return sorted(checkpoint.step for checkpoint in found)


def load(
  workdir: str, step: int, like: step_lib.TrainState
) -> step_lib.TrainState:
  """As `Checkpoints.restore`, of a run that is not open; writes nothing.

  Args:
    workdir: of the run, which may be training meanwhile.
    step: of `find_steps`.
    like: as for `Checkpoints.restore`.

  Raises:
    DamagedError: it is not what was saved, in one line.
    CheckpointError: it is of another state, or cannot be read now.
  """
  folder = find_folder(workdir, step)
  found = metadata.read(folder)
  if found is not None:
    metadata.check_fits(folder, found, like)
  mute()
  try:
    state = step_lib.TrainState(**ocp.load(folder, like._asdict()))
  except jax.errors.JaxRuntimeError:
    raise  # of the devices, or of another process
  except Exception as error:
    raise metadata.unread(
      folder, error, f"it cannot be read: {_summarize(error)}"
    ) from error
  if found is not None:
    metadata.check(folder, found, state)
  return state


def check_fits(workdir: str, like: step_lib.TrainState) -> None:
  """Refuses a run whose newest checkpoint is of another state.

  Damaged ones are left out.

  Raises:
    CheckpointError: see `metadata.check_fits`.
  """
  for step in reversed(find_steps(workdir)):
    folder = find_folder(workdir, step)
    with contextlib.suppress(metadata.DamagedError):
      if (found := metadata.read(folder)) is not None:
        metadata.check_fits(folder, found, like)
      return


def find_problem(
  workdir: str, step: int, like: step_lib.TrainState
) -> str | None:
  """What is wrong with a checkpoint, found out by this process alone.

  Of several that read another one together later, all are to ask: Orbax counts
  in each process what it has read.

  Raises:
    CheckpointError: it is of another state, or cannot be read now.
  """
  alone, index = ocp.Context(), jax.process_index()
  alone.multiprocessing.primary_host = index
  alone.multiprocessing.active_processes = {index}
  alone.multiprocessing.barrier_sync_key_prefix = f"process_{index}"
  here = jax.tree.map(
    # Takes no memory; NumPy arrays are read as such.
    lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape),
    like,
  )
  try:
    with alone:
      load(workdir, step, here)
  except metadata.DamagedError as error:
    return str(error)
  return None


def read_facts(workdir: str, step: int) -> dict[str, Any]:
  """What was said of a checkpoint when it was saved.

  Raises:
    DamagedError: it is not what was saved.
    CheckpointError: it cannot be read now.
  """
  found = metadata.read(find_folder(workdir, step))
  return {} if found is None else found["facts"]


def find_folder(workdir: str, step: int | None = None) -> str:
  """Of all checkpoints of a run, or of one."""
  folder = os.path.abspath(os.path.join(workdir, "checkpoints"))
  return folder if step is None else os.path.join(folder, str(step))


def find_sound_before(
  workdir: str, step: int, like: step_lib.TrainState
) -> int | None:
  """The newest sound checkpoint before that of a step; None: there is none.

  One that cannot be read now does not count.
  """
  for earlier in sorted(find_steps(workdir), reverse=True):
    with contextlib.suppress(metadata.CheckpointError):
      if earlier < step and find_problem(workdir, earlier, like) is None:
        return earlier
  return None


def _summarize(error: BaseException) -> str:
  """The cause of an error of TensorStore, which says all that it was doing."""
  while error.__cause__ is not None:
    error = error.__cause__
  text = " ".join(str(error).split())
  for rest in ("[tensorstore_spec", "See full TensorStore details"):
    text = text.split(rest)[0].strip()
  return text if len(text) < 200 else f"... {text[-200:]}"


def mute() -> None:
  """Drops what Orbax and its threads print of errors that it raises too.

  With their traceback, several times. A read that fails leaves others that
  nobody waits for any more, which say so at any time later; so it is for good.
  Whatever ends a thread of ours is shown. --verbosity=1 shows what is logged.
  """
  if getattr(sys.unraisablehook, "mutes_orbax", False):
    return
  show = sys.unraisablehook

  def show_ignored(found):
    code = getattr(found.object, "cr_code", None)
    of_orbax = code is not None and "orbax" in code.co_filename
    if not of_orbax and not _is_late_answer(found):
      show(found)

  def keep(line: logging.LogRecord) -> bool:
    return absl_logging.get_verbosity() > 0 or not (
      "orbax" in line.pathname
      or "exception was never retrieved" in line.getMessage()
    )

  show_ignored.mutes_orbax = True
  sys.unraisablehook = show_ignored
  for name in ("absl", "asyncio", None):
    logging.getLogger(name).addFilter(keep)
  warnings.filterwarnings(
    "ignore", message="coroutine .* was never awaited", category=RuntimeWarning
  )


def _is_late_answer(found: Any) -> bool:
  """Whether TensorStore has answered a read whose event loop is gone.

  Args:
    found: of `sys.unraisablehook`.
  """
  trace = found.exc_traceback
  return (
    isinstance(found.exc_value, RuntimeError)
    and str(found.exc_value) == "Event loop is closed"
    # Its own threads call this, and nothing of Python calls them.
    and trace is not None
    and trace.tb_frame.f_code.co_name.endswith("call_soon_threadsafe")
  )


State = TypeVar("State")


def find_sound(
  place: str,
  steps: Sequence[int],
  read: Callable[[int], State],
  move_aside: Callable[[int], str],
  say: Callable[[str], None],
) -> tuple[int, State] | None:
  """Reads checkpoints, the newest first, until one is sound.

  Args:
    place: where they are.
    steps: of all.
    read: reads that of a step.
    move_aside: takes away that of a step; returns where it is now.
    say: prints a line.

  Returns:
    The step and what was read; None if there are no steps.

  Raises:
    CheckpointError: none of them is sound; names them all. None is moved.
  """
  problems: dict[int, str] = {}
  for step in sorted(steps, reverse=True):
    try:
      state = read(step)
    except metadata.DamagedError as error:
      problems[step] = str(error)
      continue
    for damaged, problem in problems.items():
      say(f"{problem} It is now {move_aside(damaged)!r}.")
    return step, state
  if problems:
    raise metadata.CheckpointError(
      f"none of the checkpoints in {place!r} is sound: "
      f"{' '.join(problems.values())} Restore one of them, or set --workdir to "
      "start another run."
    )
  return None


def move_aside(folder: str, *, why: str = "broken") -> str:
  """Gives a checkpoint a name that none has; returns its path.

  Orbax reads no folder of such a name.

  Args:
    folder: of the checkpoint.
    why: begins the name, `WHY-STEP`: "broken", or "later" of a sound one that
      nothing could be saved below.
  """
  above, name = os.path.split(folder)
  number = 1
  while True:
    suffix = "" if number == 1 else f"-{number}"
    path = os.path.join(above, f"{why}-{name}{suffix}")
    if not os.path.lexists(path):
      os.rename(folder, path)
      return path
    number += 1


def has_damaged(place: str) -> bool:
  """Whether a folder of checkpoints has one that was moved aside as damaged."""
  found = os.listdir(place) if os.path.isdir(place) else []
  return any(name.startswith("broken-") for name in found)
