"""A running average of the parameters, which validations then use.

An exponential moving average: `average <- decay * average + (1 - decay) *
parameters` after each update, from the initial parameters on. Nothing corrects
for these: their weight is decay^updates, so a training should be many times
1 / (1 - decay) updates long. The running statistics of batch normalizations
are averaged alike: those of the newest parameters do not fit averaged ones.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class AverageState(NamedTuple):
  """The averages, of the same trees and splits as what they are of."""

  average: optax.Params
  statistics: dict[str, dict[str, jax.Array]]


def average_parameters(decay: float) -> optax.GradientTransformationExtraArgs:
  """Leaves updates as they are, and averages the parameters they lead to.

  To be the last of a chain. The update takes `statistics`, of a `TrainState`,
  where there are batch normalizations.

  Args:
    decay: of what the average was before, 0 <= decay < 1.

  Source: Polyak and Juditsky 1992; with a decay as in Szegedy et al. 2016,
  "Rethinking the Inception architecture", section 8.
  """

  def init(parameters):
    return AverageState(
      average=jax.tree.map(jnp.copy, parameters),
      statistics={
        name: {
          "mean": jnp.zeros_like(layer["scale"]),
          "variance": jnp.ones_like(layer["scale"]),
        }
        for name, layer in parameters.items()
        if "scale" in layer
      },
    )

  def update(updates, state, parameters=None, *, statistics=None, **extra):
    del extra
    after = optax.apply_updates(parameters, updates)
    return updates, AverageState(
      average=optax.incremental_update(after, state.average, 1 - decay),
      statistics=optax.incremental_update(
        statistics or {}, state.statistics, 1 - decay
      ),
    )

  return optax.GradientTransformationExtraArgs(init, update)


def find_average(optimizer_state: optax.OptState) -> AverageState | None:
  """The averages that an optimizer keeps; None where it keeps none."""
  for leaf in jax.tree.leaves(optimizer_state, is_leaf=_is_state):
    if _is_state(leaf):
      return leaf
  return None


def _is_state(leaf) -> bool:
  return isinstance(leaf, AverageState)
