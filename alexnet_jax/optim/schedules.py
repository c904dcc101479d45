"""Learning rates over a training, from optax's parts.

A schedule is a function of the number of updates so far. The plateau rule is no
such function, its drops follow the validations: see `plateau.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

NAMES = ("steps", "plateau", "exponential", "polynomial", "cosine")


def make_steps(
  rate: float, *, drop_steps: Sequence[int], drop_factor: float
) -> optax.Schedule:
  """A rate that is multiplied by `drop_factor` at each of the given updates.

  Args:
    rate: at update 0.
    drop_steps: the first update at each lower rate, increasing.
    drop_factor: 0.1 in the paper.

  Returns:
    update -> rate.
  """
  rates = [rate * drop_factor**drops for drops in range(len(drop_steps) + 1)]
  return replace_rates(
    optax.constant_schedule(rate), list(zip(drop_steps, rates[1:], strict=True))
  )


def make_exponential(
  rate: float, *, num_updates: int, factor: float, steps: int | None
) -> optax.Schedule:
  """A rate that falls exponentially, smoothly or in steps.

  Args:
    rate: at update 0.
    num_updates: of the whole training.
    factor: by which the rate is divided in all.
    steps: rates of equal length, the first is `rate` and the last is
      `rate / factor`; None: smoothly, to `rate / factor` at the end.

  Returns:
    update -> rate.

  Source: cuda-convnet2, `dexp[base=...;tgtFactor=250;numSteps=4]`, three drops
  by 250^(1/3) at 25, 50 and 75 % of the training; and `exp[...]`.
  """
  if steps is None:
    return optax.exponential_decay(rate, num_updates, 1 / factor)
  return make_steps(
    rate,
    drop_steps=[-(-num_updates * step // steps) for step in range(1, steps)],
    drop_factor=factor ** (-1 / (steps - 1)),
  )


def make_polynomial(
  rate: float, *, num_updates: int, power: float, end_rate: float
) -> optax.Schedule:
  """`(1 - progress)^power`, from `rate` to `end_rate * rate` at the end."""
  return optax.polynomial_schedule(rate, end_rate * rate, power, num_updates)


def make_cosine(
  rate: float, *, num_updates: int, end_rate: float
) -> optax.Schedule:
  """Half a cosine, from `rate` to `end_rate * rate` at the end.

  Source: Loshchilov and Hutter 2017, "SGDR", without restarts.
  """
  cosine = optax.cosine_decay_schedule(rate, num_updates, alpha=end_rate)

  def schedule(count):
    # optax multiplies the count by pi; exact up to 2^24 updates.
    return cosine(jnp.asarray(count, jnp.float32))

  return schedule


def shift(schedule: optax.Schedule, updates: int) -> optax.Schedule:
  """The schedule that begins after so many updates; until then its start."""
  start = optax.constant_schedule(schedule(0))
  return optax.join_schedules([start, schedule], [updates])


def warm_up(schedule: optax.Schedule, updates: int) -> optax.Schedule:
  """Multiplies the schedule by a share that rises linearly from 0 to 1.

  Args:
    schedule: any.
    updates: until the share is 1; 0: the schedule as it is.

  Source: Goyal et al. 2017, "Accurate, large minibatch SGD", section 2.2.
  """
  if not updates:
    return schedule
  share = optax.linear_schedule(0.0, 1.0, updates)
  return lambda count: share(count) * schedule(count)


def replace_rates(
  schedule: optax.Schedule, rates: Sequence[tuple[int, float]]
) -> optax.Schedule:
  """The schedule, and from certain updates on constant rates in its place.

  Args:
    schedule: before the first of them.
    rates: (first update, rate), in this order; where two have the same first
      update, the later one counts.
  """
  return optax.join_schedules(
    [schedule, *(optax.constant_schedule(rate) for _, rate in rates)],
    [first for first, _ in rates],
  )


# The paper's schedule: a lower rate when the validation error stops improving.
#
# The rule and its state are optax's. The state lies inside the optimizer's, so
# that checkpoints keep it, but moves on with each validation, not each update.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plateau:
  """When the rate drops, and by how much.

  Attributes:
    factor: of each drop, above 0 and below 1; 0.1 in the paper.
    patience: validations in a row without improvement that make a drop.
    min_change: by how much the error, 0..1, must fall below the lowest so far
      to be an improvement, above 0.
    max_drops: after which the rate stays; 3 in the paper.

  Source: Krizhevsky et al. 2012, section 5: "divide the learning rate by 10
  when the validation error rate stopped improving with the current learning
  rate", done by hand, three times.
  """

  factor: float
  patience: int
  min_change: float
  max_drops: int

  def __post_init__(self):
    if not 0 < self.factor < 1:  # under the other schedules it may be 1
      raise ValueError(
        f"optimizer.drop_factor is {self.factor}, expected 0 < factor < 1 with "
        "optimizer.schedule=plateau. Set config.optimizer.drop_factor."
      )

  @property
  def _rule(self) -> optax.GradientTransformationExtraArgs:
    return contrib.reduce_on_plateau(
      factor=self.factor,
      patience=self.patience,
      rtol=0.0,
      atol=self.min_change,
      min_scale=self.factor**self.max_drops,
    )

  def scale_by_plateau(self) -> optax.GradientTransformation:
    """Multiplies updates by the share of the rate that is left."""

    def update(updates, state, parameters=None):
      del parameters
      return jax.tree.map(lambda x: state.scale * x, updates), state

    return optax.GradientTransformation(self._rule.init, update)

  def advance(self, optimizer_state: optax.OptState, error: float):
    """The optimizer's state after one more validation.

    Args:
      optimizer_state: with the state of `scale_by_plateau` in it.
      error: top-1 error of the validation, 0..1, the same in every process.

    Returns:
      The same tree; nothing but the state of the rule has changed.
    """

    def advance(leaf):
      if not _is_state(leaf):
        return leaf
      return self._heed(leaf, np.float32(error))

    return jax.tree.map(advance, optimizer_state, is_leaf=_is_state)

  @functools.partial(jax.jit, static_argnames="self")
  def _heed(self, state, error):
    # optax multiplies a count and a value.
    with jax.numpy_dtype_promotion("standard"):
      _, state = self._rule.update({}, state, value=error)
    return state


def find_scale(optimizer_state: optax.OptState) -> float:
  """The share of the rate that is left; 1 where there is no plateau rule."""
  for leaf in jax.tree.leaves(optimizer_state, is_leaf=_is_state):
    if _is_state(leaf):
      return float(leaf.scale)
  return 1.0


def _is_state(leaf) -> bool:
  return isinstance(leaf, contrib.ReduceLROnPlateauState)
