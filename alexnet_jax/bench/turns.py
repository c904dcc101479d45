"""Calls that are timed in turns, so that what slows one slows all of them.

Also the call that most of them have in common: the training step of a program
on a batch of noise. The time of a step does not depend on what images show.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from alexnet_jax.program import program as program_lib
from alexnet_jax.program import step as step_lib
from alexnet_jax.training import loop

# Shorter calls are repeated, so that the clock and the start do not count.
SHORTEST_SECONDS = 0.005
MOST_REPEATS = 50


def take_turns(
  calls: Mapping[str, Callable[[], object]], *, rounds: int, in_order: bool
) -> dict[str, list[float]]:
  """Returns the seconds of each call, round by round, after two warm-up calls.

  Args:
    calls: each returns its arrays.
    rounds: in each one every call has a turn; the order alternates.
    in_order: whether devices run one call after the other by themselves, as
      GPUs and TPUs do. Then repeats are started ahead, and the host's time for
      a start is hidden as it is in a step.
  """
  repeats = {}
  for name, call in calls.items():
    jax.block_until_ready(call())
    wanted = math.ceil(SHORTEST_SECONDS / max(_time(call, 1, in_order), 1e-9))
    repeats[name] = min(wanted, MOST_REPEATS)
  seconds = {name: [] for name in calls}
  for number in range(rounds):
    for name in reversed(calls) if number % 2 else calls:
      seconds[name].append(_time(calls[name], repeats[name], in_order))
  return seconds


def _time(call: Callable[[], object], repeats: int, in_order: bool) -> float:
  """Seconds of one of several calls."""
  begin = time.perf_counter()
  for _ in range(repeats):
    result = call()
    if not in_order:
      jax.block_until_ready(result)
  jax.block_until_ready(result)
  return (time.perf_counter() - begin) / repeats


class StepRunner:
  """Runs a compiled step, from `compile_step`, on a batch of noise.

  Attributes:
    take_step: the compiled step; a recorder may wrap it.
    state: after the step that was started last.
  """

  def __init__(
    self, program: program_lib.Program, compiled: jax.stages.Compiled
  ):
    self.take_step: Callable[..., object] = compiled
    init_key, self._key = program.make_keys(0)
    self.state = program.init(init_key)
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

  def start(self) -> tuple[step_lib.TrainState, jax.Array]:
    """Starts a step; returns the state after it, and its totals."""
    self.state, totals = self.take_step(self.state, self._key, *self._batch)
    return self.state, totals

  def run(
    self, count: int = 1, *, after_first: Callable[[], None] | None = None
  ) -> float:
    """Starts steps ahead, as the training loop does; returns their seconds.

    Args:
      count: of steps; the last one is waited for.
      after_first: is called when the first step has been started.
    """
    jax.block_until_ready((self.state, self._batch))
    totals: list[jax.Array] = []
    begin = time.perf_counter()
    for number in range(count):
      totals.append(self.start()[1])
      jax.block_until_ready(totals[-loop.STEPS_AHEAD - 1 : -loop.STEPS_AHEAD])
      if after_first is not None and number == 0:
        after_first()
    jax.block_until_ready((self.state, totals))
    return time.perf_counter() - begin
