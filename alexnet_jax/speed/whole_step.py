"""A compiled step with the state and the batch that it takes."""

from __future__ import annotations

import jax
import numpy as np

from alexnet_jax import program as program_lib
from alexnet_jax import step as step_lib


class WholeStep:
  """Takes one step after the other, on noise.

  Args:
    program: of the step.
    compiled: the step.
  """

  def __init__(
    self, program: program_lib.Program, compiled: jax.stages.Compiled
  ):
    self._compiled = compiled
    self._state = program.init(jax.random.key(0))
    self._key = jax.random.key(1)
    rng = np.random.default_rng(0)
    n, side = program.batch_size, program.augmentation.stored_size
    classes = program.network.layers[-1].features
    self._batch = jax.device_put(
      (
        rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8),
        rng.integers(0, classes, n, dtype=np.int32),
      ),
      program.batch_shardings,
    )

  def take(self) -> tuple[step_lib.TrainState, jax.Array]:
    """Takes a step; the state after it, and the totals."""
    self._state, totals = self._compiled(self._state, self._key, *self._batch)
    return self._state, totals
