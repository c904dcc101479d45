"""A validation: the whole validation split, between two steps of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import numpy as np

from alexnet_jax.data import pipeline
from alexnet_jax.program import eval_step, metrics, step
from alexnet_jax.training import run as run_lib

# As the steps in `loop.py`.
_BATCHES_AHEAD = 2


def validate(
  run: run_lib.Run,
  state: step.TrainState,
  batches: Iterator[pipeline.Batch],
  *,
  compiles: bool,
) -> tuple[np.ndarray, int] | None:
  """Goes through the whole split, with averaged parameters if there are any.

  Args:
    run: from `run.prepare`.
    state: after some step.
    batches: of the split; closed at the end.
    compiles: whether the first batch takes the time of a compilation.

  Returns:
    `metrics.NAMES` summed over it, f32[4], or f32[members, 4] of several
    members of an ensemble, and the images of this process whose own record
    could not be read. None where a signal has ended it before its end.

  Raises:
    source.RecordError: a record cannot be read.
  """
  totals, replaced = [], 0
  variables = eval_step.find_variables(state)
  with contextlib.closing(batches):
    for images, labels, lost in batches:
      if run.group.is_stopping():
        return None
      if compiles and not totals:
        run.group.rest_clock()
      totals.append(run.program.evaluate(variables, images, labels))
      jax.block_until_ready(totals[-_BATCHES_AHEAD - 1 : -_BATCHES_AHEAD])
      replaced += lost
  return np.sum(jax.device_get(totals), axis=0), replaced


def heed(
  run: run_lib.Run, state: step.TrainState, totals: np.ndarray
) -> step.TrainState:
  """Tells the plateau rule the error of a validation."""
  error = metrics.to_means(totals)["top1_error"]
  return state._replace(optimizer=run.plateau.advance(state.optimizer, error))
