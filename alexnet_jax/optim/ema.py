"""An exponential moving average (EMA) of the parameters, for validations.

`average <- decay * average + (1 - decay) * parameters` after each update, from
the initial parameters on. Without a correction these have the weight
decay^updates, so a run should be many times 1 / (1 - decay) updates long. The
running statistics of batch normalization are averaged likewise: those of the
newest parameters do not fit averaged ones.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class EmaState(NamedTuple):
  """Averages of parameters and statistics, of the same trees and shardings."""

  average: optax.Params
  statistics: dict[str, dict[str, jax.Array]]


def track_ema(decay: float) -> optax.GradientTransformationExtraArgs:
  """Averages the parameters that updates lead to, and passes the updates on.

  To be the last of a chain. `update` takes `statistics`, of a `TrainState`, if
  the network has batch normalization.

  Args:
    decay: weight of the previous average, 0 <= decay < 1.

  Source: Polyak and Juditsky 1992; with a decay as in Szegedy et al. 2016,
  "Rethinking the Inception architecture", section 8.
  """

  def init(parameters):
    return EmaState(
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
    return updates, EmaState(
      average=optax.incremental_update(after, state.average, 1 - decay),
      statistics=optax.incremental_update(
        statistics or {}, state.statistics, 1 - decay
      ),
    )

  return optax.GradientTransformationExtraArgs(init, update)


def find_ema(optimizer_state: optax.OptState) -> EmaState | None:
  """Returns the averages of an optimizer; None if it tracks none."""
  return optax.tree.get(optimizer_state, EmaState.__name__)
