"""Checkpoints as they are stored: found, read and held against their records.

Of any run, whether it trains meanwhile or not; writes nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging as absl_logging
from orbax.checkpoint import v1 as ocp

from alexnet_jax import record
from alexnet_jax import step as step_lib


def find_latest_step(workdir: str) -> int | None:
  """As `Checkpoints.latest_step`, of a run that is not open; writes nothing."""
  return max(find_steps(workdir), default=None)


def find_steps(workdir: str) -> list[int]:
  """Of the complete checkpoints of a run, rising; writes nothing."""
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
    CheckpointError: it is of another state.
  """
  folder = find_folder(workdir, step)
  found = record.read(folder)
  if found is not None:
    record.check_fits(folder, found, like)
  try:
    with muted():
      state = step_lib.TrainState(**ocp.load(folder, like._asdict()))
  except (jax.errors.JaxRuntimeError, MemoryError):
    raise  # of the devices, or of another process
  except Exception as error:
    raise record.damaged(folder, f"it cannot be read: {error}") from error
  if found is not None:
    record.check(folder, found, state)
  return state


def find_problem(
  workdir: str, step: int, like: step_lib.TrainState
) -> str | None:
  """What is wrong with a checkpoint, found out by this process alone."""
  alone = ocp.options.MultiprocessingOptions(
    primary_host=jax.process_index(), active_processes={jax.process_index()}
  )
  here = jax.tree.map(
    # Takes no memory; NumPy arrays are read as such.
    lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape),
    like,
  )
  try:
    with ocp.Context(multiprocessing_options=alone):
      load(workdir, step, here)
  except record.DamagedError as error:
    return str(error)
  return None


def read_facts(workdir: str, step: int) -> dict[str, Any]:
  """What was said of a checkpoint when it was saved.

  Raises:
    DamagedError: it is not what was saved.
  """
  found = record.read(find_folder(workdir, step))
  return {} if found is None else found["facts"]


def find_folder(workdir: str, step: int | None = None) -> str:
  """Of all checkpoints of a run, or of one."""
  folder = os.path.abspath(os.path.join(workdir, "checkpoints"))
  return folder if step is None else os.path.join(folder, str(step))


@contextlib.contextmanager
def muted() -> Iterator[None]:
  """Drops what Orbax logs, as of errors that it raises too.

  With their traceback, and from threads of its own. --verbosity=1 shows it.
  """

  def keep(line: logging.LogRecord) -> bool:
    return absl_logging.get_verbosity() > 0 or "orbax" not in line.pathname

  logger = absl_logging.get_absl_logger()
  logger.addFilter(keep)
  try:
    yield
  finally:
    logger.removeFilter(keep)
