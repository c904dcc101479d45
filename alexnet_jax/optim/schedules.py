"""Learning-rate schedules, built from optax's.

A schedule is a function of the number of updates so far. `Plateau` is an
exception: validations drive it, so it has a state. A new schedule needs a name
in `NAMES` and a case in `make_schedule`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

# Values of `config.optimizer.schedule`.
NAMES = ("steps", "plateau", "exponential", "polynomial", "cosine")


def make_schedule(
  name: str,
  rate: float,
  *,
  num_updates: int,
  warmup_updates: int,
  drop_steps: Sequence[int],
  options: Mapping[str, Any],
) -> optax.Schedule:
  """Makes one of the schedules of `NAMES`, after a linear warm-up.

  Args:
    name: that of `plateau` is constant, see `Plateau`.
    rate: from which the schedule starts.
    warmup_updates: updates over which a factor rises from 0 to 1. Polynomial
      and cosine begin after them.
    drop_steps: updates at which the rate drops, for `steps`.
    options: the fields of `config.optimizer`.

  Returns:
    update -> rate.

  Source of the warm-up: Goyal et al. 2017, "Accurate, large minibatch SGD",
  section 2.2.
  """
  remaining = max(1, num_updates - warmup_updates)
  end_rate = options["end_rate"]
  match name:
    case "steps":
      schedule = make_steps(
        rate, drop_steps=drop_steps, drop_factor=options["drop_factor"]
      )
    case "plateau":
      schedule = optax.constant_schedule(rate)
    case "exponential":
      schedule = make_exponential(
        rate,
        num_updates=num_updates,
        factor=options["exponential_factor"],
        steps=options["exponential_steps"],
      )
    case "polynomial":
      schedule = optax.polynomial_schedule(
        rate, end_rate * rate, options["polynomial_power"], remaining
      )
      schedule = _delay(schedule, warmup_updates)
    case "cosine":
      schedule = _make_cosine(rate, num_updates=remaining, end_rate=end_rate)
      schedule = _delay(schedule, warmup_updates)
  if not warmup_updates:
    return schedule
  warmup = optax.linear_schedule(0.0, 1.0, warmup_updates)
  return lambda count: warmup(count) * schedule(count)


def make_steps(
  rate: float, *, drop_steps: Sequence[int], drop_factor: float
) -> optax.Schedule:
  """Makes a rate that is multiplied by `drop_factor` at each drop.

  Args:
    drop_steps: the first update at each lower rate, increasing.
    drop_factor: 0.1 in the paper.
  """
  rates = [rate * drop_factor**drops for drops in range(len(drop_steps) + 1)]
  return with_constant_rates(
    optax.constant_schedule(rate), list(zip(drop_steps, rates[1:], strict=True))
  )


def with_constant_rates(
  schedule: optax.Schedule, rates: Sequence[tuple[int, float]]
) -> optax.Schedule:
  """Replaces a schedule by constant rates from certain updates on.

  Args:
    schedule: before the first of them.
    rates: (first update, rate), in this order; of two with the same first
      update, the later one counts.
  """
  return optax.join_schedules(
    [schedule, *(optax.constant_schedule(rate) for _, rate in rates)],
    [first for first, _ in rates],
  )


def make_exponential(
  rate: float, *, num_updates: int, factor: float, steps: int | None
) -> optax.Schedule:
  """Makes a rate that falls exponentially, smoothly or in steps.

  Args:
    factor: by which the rate is divided in all.
    steps: rates of equal length, from `rate` to `rate / factor`; None:
      smoothly, to `rate / factor` at the end.

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


def _make_cosine(
  rate: float, *, num_updates: int, end_rate: float
) -> optax.Schedule:
  """Makes half a cosine, from `rate` to `end_rate * rate` at the end.

  Source: Loshchilov and Hutter 2017, "SGDR", without restarts.
  """
  cosine = optax.cosine_decay_schedule(rate, num_updates, alpha=end_rate)
  # optax multiplies the count by pi, which strict dtype promotion allows for
  # floats only; float32 is exact up to 2^24 updates.
  return lambda count: cosine(jnp.asarray(count, float))


def _delay(schedule: optax.Schedule, updates: int) -> optax.Schedule:
  """Starts a schedule after some updates, with its first rate until then."""
  start = optax.constant_schedule(schedule(0))
  return optax.join_schedules([start, schedule], [updates])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plateau:
  """The paper's schedule: drops the rate when the error stops improving.

  The rule and its state are optax's. The state is part of the optimizer's, so
  that checkpoints have it, but `advance` updates it with each validation.

  Attributes:
    factor: of each drop, above 0 and below 1; 0.1 in the paper.
    patience: validations in a row without improvement before a drop.
    min_change: how far the error, 0..1, must fall below the lowest so far to be
      an improvement, above 0.
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
    """Multiplies updates by the product of the drops so far."""

    def update(updates, state, parameters=None):
      del parameters
      return jax.tree.map(lambda x: state.scale * x, updates), state

    return optax.GradientTransformation(self._rule.init, update)

  def advance(self, optimizer_state: optax.OptState, error: float):
    """Returns the optimizer's state after one more validation.

    Args:
      optimizer_state: of an optimizer with `scale_by_plateau`.
      error: top-1 error of the validation, 0..1, the same in every process.
    """

    def advance(leaf):
      if not _is_state(leaf):
        return leaf
      return self._advance_rule(leaf, np.float32(error))

    return jax.tree.map(advance, optimizer_state, is_leaf=_is_state)

  @functools.partial(jax.jit, static_argnames="self")
  def _advance_rule(self, state, error):
    # optax multiplies a count and a value.
    with jax.numpy_dtype_promotion("standard"):
      _, state = self._rule.update({}, state, value=error)
    return state


def find_plateau_scale(optimizer_state: optax.OptState) -> float:
  """Returns the product of the drops so far; 1 without a plateau rule."""
  name = contrib.ReduceLROnPlateauState.__name__
  state = optax.tree.get(optimizer_state, name)
  return 1.0 if state is None else float(state.scale)


def _is_state(leaf) -> bool:
  return isinstance(leaf, contrib.ReduceLROnPlateauState)
