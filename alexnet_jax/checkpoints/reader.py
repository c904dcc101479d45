"""Finds checkpoints on disk, reads them and checks them against their records.

Works on any run, also on one that is training meanwhile; writes nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import tensorstore
from absl import logging as absl_logging
from orbax.checkpoint import v1 as ocp

from alexnet_jax.checkpoints import metadata
from alexnet_jax.program import step as step_lib

State = TypeVar("State")


def find_folder(workdir: str, step: int | None = None) -> str:
  """Returns the folder of all checkpoints of a run, or of one."""
  folder = os.path.abspath(os.path.join(workdir, "checkpoints"))
  return folder if step is None else os.path.join(folder, str(step))


def find_steps(workdir: str) -> list[int]:
  """Returns the steps of the complete checkpoints of a run, rising."""
  mute_orbax()  # a read of a damaged checkpoint reports it
  folder = find_folder(workdir)
  if not list_names(folder):
    return []
  names = ocp.path.step.standard_name_format()
  return sorted(checkpoint.step for checkpoint in names.find_all(folder))


def list_names(folder: str) -> list[str]:
  """Returns the names in a folder; none where there is no folder.

  Raises:
    CheckpointError: it cannot be read now.
  """
  try:
    return os.listdir(folder)
  except (FileNotFoundError, NotADirectoryError):
    return []
  except OSError as error:
    raise metadata.CheckpointError(
      f"the folder {folder!r} cannot be read now: {error.strerror}. Start "
      "again once that is repaired, or set --workdir."
    ) from error


def find_latest_step(workdir: str) -> int | None:
  """Returns the step of the newest complete checkpoint; None without one."""
  return max(find_steps(workdir), default=None)


def load(
  workdir: str, step: int, like: step_lib.TrainState
) -> step_lib.TrainState:
  """Reads a checkpoint.

  Args:
    workdir: of the run, which may be training meanwhile.
    step: from `find_steps`.
    like: `jax.ShapeDtypeStruct`s with the shardings to restore onto, which
      need not be those that the checkpoint was written under.

  Raises:
    DamagedError: it is not what was saved, in one line.
    CheckpointError: it is of another state, or cannot be read now.
  """
  folder = find_folder(workdir, step)
  if "\\" in folder:  # TensorStore takes it for a slash
    raise metadata.CheckpointError(
      f"the checkpoint {folder!r} cannot be read, because its path has a "
      "backslash. Rename that folder."
    )
  record = metadata.read(folder)
  metadata.check_shapes(folder, record, like)
  mute_orbax()
  try:
    state = step_lib.TrainState(**ocp.load(folder, like._asdict()))
  except jax.errors.JaxRuntimeError:
    raise  # of the devices, or of another process
  except Exception as error:
    reason = metadata.summarize_error(error)
    raise metadata.make_read_error(
      folder, error, f"it cannot be read: {reason}"
    ) from error
  metadata.check_checksums(folder, record, state)
  if "step" not in record:  # of an earlier version
    metadata.check_step(folder, int(np.asarray(state.step)))
  return state


def read_facts(workdir: str, step: int) -> dict[str, Any]:
  """Returns the facts that a checkpoint was saved with.

  Raises:
    DamagedError: it is not what was saved.
    CheckpointError: it cannot be read now.
  """
  return metadata.read(find_folder(workdir, step))["facts"]


def check_newest_fits(workdir: str, like: step_lib.TrainState) -> None:
  """Refuses a run whose newest undamaged checkpoint is of another state.

  Raises:
    CheckpointError: see `metadata.check_shapes`.
  """
  for step in reversed(find_steps(workdir)):
    folder = find_folder(workdir, step)
    with contextlib.suppress(metadata.DamagedError):
      metadata.check_shapes(folder, metadata.read(folder), like)
      return


def load_alone(
  workdir: str, step: int, like: step_lib.TrainState
) -> step_lib.TrainState:
  """Reads a checkpoint in this process, whatever the others do.

  If several processes read another one together later, all have to call this:
  Orbax counts in each process what it has read.

  Args:
    like: shapes and types; see `load`.

  Returns:
    NumPy arrays.

  Raises:
    DamagedError, CheckpointError: see `load`.
  """
  alone, index = ocp.Context(), jax.process_index()
  alone.multiprocessing.primary_host = index
  alone.multiprocessing.active_processes = {index}
  alone.multiprocessing.barrier_sync_key_prefix = f"process_{index}"
  local = jax.tree.map(
    # Takes no memory; NumPy arrays are read as such.
    lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape),
    like,
  )
  with alone:
    return load(workdir, step, local)


def find_damage(
  workdir: str, step: int, like: step_lib.TrainState
) -> str | None:
  """Returns what is wrong with a checkpoint, as `load_alone` finds it.

  Raises:
    CheckpointError: it is of another state, or cannot be read now.
  """
  try:
    load_alone(workdir, step, like)
  except metadata.DamagedError as error:
    return str(error)
  return None


def find_intact_before(
  workdir: str, step: int, like: step_lib.TrainState
) -> int | None:
  """Returns the newest intact step before a step; None if there is none.

  One that cannot be read now does not count.
  """
  for earlier in sorted(find_steps(workdir), reverse=True):
    with contextlib.suppress(metadata.CheckpointError):
      if earlier < step and find_damage(workdir, earlier, like) is None:
        return earlier
  return None


def advise_intact(
  workdir: str,
  step: int,
  like: step_lib.TrainState,
  *,
  step_name: str,
  workdir_name: str,
) -> str:
  """Says what to set where the checkpoint of a step is damaged.

  Args:
    like: shapes and types; see `load_alone`.
    step_name, workdir_name: the flags or fields that chose it.
  """
  intact = find_intact_before(workdir, step, like)
  if intact is None:
    return f"No earlier one is intact. Set {workdir_name} to another run."
  return f"Set {step_name}={intact}, which is intact."


def check_complete(folder: str) -> None:
  """Refuses a checkpoint that lacks a part of an array of its record.

  Reads what is stored, not the arrays themselves: it takes milliseconds.

  Raises:
    DamagedError: names the array.
    CheckpointError: it cannot be read now.
  """
  record = metadata.read(folder)
  try:
    store = tensorstore.KvStore.open(
      {
        "driver": "ocdbt",
        "base": {"driver": "file", "path": f"{folder}/state/"},
      }
    ).result()
    names = {name.decode() for name in store.list().result()}
    for array, (_, shape, _) in record["arrays"].items():
      found = store.read(f"{array}/zarr.json").result()
      if found.state != "value":
        raise metadata.make_damaged_error(folder, f"it lacks {array}")
      grid = json.loads(found.value)["chunk_grid"]["configuration"]
      ranges = [
        range(-(-size // chunk))
        for size, chunk in zip(shape, grid["chunk_shape"], strict=True)
      ]
      for place in itertools.product(*ranges):
        if "/".join((array, "c", *map(str, place))) not in names:
          what = f"it lacks a part of {array}"
          raise metadata.make_damaged_error(folder, what)
  except (OSError, ValueError, LookupError) as error:
    if isinstance(error, metadata.CheckpointError):
      raise
    reason = metadata.summarize_error(error)
    raise metadata.make_read_error(
      folder, error, f"it cannot be read: {reason}"
    ) from error


def read_newest_intact(
  folder: str,
  steps: Sequence[int],
  read: Callable[[int], State],
  move_aside: Callable[[int], str],
  log: Callable[[str], None],
) -> tuple[int, State] | None:
  """Reads checkpoints, the newest first, until one is intact.

  Args:
    folder: of the checkpoints, for messages.
    steps: of all checkpoints.
    read: reads the checkpoint of a step.
    move_aside: renames the checkpoint of a step; returns its new path.
    log: prints a line.

  Returns:
    The step and what was read; None if there are no steps.

  Raises:
    CheckpointError: none of them is intact; names them all. None is moved.
  """
  problems: dict[int, str] = {}
  for step in sorted(steps, reverse=True):
    try:
      state = read(step)
    except metadata.DamagedError as error:
      problems[step] = str(error)
      continue
    for damaged, problem in problems.items():
      log(f"{problem} It is now {move_aside(damaged)!r}.")
    return step, state
  if problems:
    raise metadata.CheckpointError(
      f"none of the checkpoints in {folder!r} is intact: "
      f"{' '.join(problems.values())} Restore one of them, or set --workdir to "
      "start another run."
    )
  return None


def move_aside(folder: str, *, why: str = "broken") -> str:
  """Gives a checkpoint a new name, which Orbax ignores; returns its path.

  Args:
    folder: of the checkpoint.
    why: begins the name, `WHY-STEP`: "broken", or "later" for an intact one
      that no earlier step could be saved beside.
  """
  parent, name = os.path.split(folder)
  number = 1
  while True:
    suffix = "" if number == 1 else f"-{number}"
    path = os.path.join(parent, f"{why}-{name}{suffix}")
    if not os.path.lexists(path):
      break
    number += 1
  try:
    os.rename(folder, path)
  except OSError as error:
    raise metadata.CheckpointError(
      f"the checkpoint {folder!r} is {why}, and cannot be moved to {path!r}: "
      f"{error.strerror}. Move it away, or set --workdir."
    ) from error
  return path


def has_moved_damaged(folder: str) -> bool:
  """Whether a folder has a checkpoint that was moved aside as damaged."""
  return any(name.startswith("broken-") for name in list_names(folder))


def mute_orbax() -> None:
  """Drops what Orbax and its threads print about errors that it raises too.

  It prints them with tracebacks, several times. A read that fails leaves others
  behind, which may fail at any time later; so this is for good. What ends a
  thread of ours is shown. --verbosity=1 shows what is logged.
  """
  if getattr(sys.unraisablehook, "mutes_orbax", False):
    return
  show = sys.unraisablehook

  def show_unless_orbax(unraisable):
    code = getattr(unraisable.object, "cr_code", None)
    is_orbax = code is not None and "orbax" in code.co_filename
    if not is_orbax and not _is_late_answer(unraisable):
      show(unraisable)

  def is_shown(line: logging.LogRecord) -> bool:
    return absl_logging.get_verbosity() > 0 or not (
      "orbax" in line.pathname
      or "exception was never retrieved" in line.getMessage()
    )

  show_unless_orbax.mutes_orbax = True
  sys.unraisablehook = show_unless_orbax
  for name in ("absl", "asyncio", None):
    logging.getLogger(name).addFilter(is_shown)
  warnings.filterwarnings(
    "ignore", message="coroutine .* was never awaited", category=RuntimeWarning
  )


def _is_late_answer(unraisable: Any) -> bool:
  """Whether TensorStore has answered a read whose event loop is closed."""
  trace = unraisable.exc_traceback
  return (
    isinstance(unraisable.exc_value, RuntimeError)
    and str(unraisable.exc_value) == "Event loop is closed"
    # Its own threads call this; no Python code calls them.
    and trace is not None
    and trace.tb_frame.f_code.co_name.endswith("call_soon_threadsafe")
  )
