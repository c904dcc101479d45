"""Training steps of a program, taken by themselves on a batch of noise.

What images show does not matter for the time of a step. Whoever measures
compiles first, and takes a few steps before the clock counts.
"""

from __future__ import annotations

import time

import jax
import numpy as np

from alexnet_jax.program import program as program_lib
from alexnet_jax.program import step as step_lib
from alexnet_jax.training import loop


class Steps:
  """A compiled step with the state and the batch that it takes.

  Args:
    program: of the step.
    compiled: the step, from `compiled_step.compile_step`.
  """

  def __init__(
    self, program: program_lib.Program, compiled: jax.stages.Compiled
  ):
    self._compiled = compiled
    init_key, self._key = program.make_keys(0)
    self._state = program.init(init_key)
    rng = np.random.default_rng(0)
    n, side = program.batch_size, program.augmentation.stored_size
    classes = program.network.layer("fc8").features
    self._batch = jax.device_put(
      (
        rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8),
        rng.integers(0, classes, n, dtype=np.int32),
      ),
      program.batch_shardings,
    )

  def start(self) -> tuple[step_lib.TrainState, jax.Array]:
    """Starts a step; the state after it, and the totals."""
    self._state, totals = self._compiled(self._state, self._key, *self._batch)
    return self._state, totals

  def take(self) -> float:
    """Takes one step and waits for it; its seconds."""
    return self.take_ahead(1)

  def take_ahead(self, count: int) -> float:
    """Starts steps as the loop does, and waits for the last; seconds of all."""
    jax.block_until_ready((self._state, self._batch))
    totals: list[jax.Array] = []
    begin = time.perf_counter()
    for _ in range(count):
      totals.append(self.start()[1])
      ahead = loop.STEPS_AHEAD
      jax.block_until_ready(totals[-ahead - 1 : -ahead])
    jax.block_until_ready((self._state, totals))
    return time.perf_counter() - begin
