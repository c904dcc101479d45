"""A running average of the parameters, which validations then use.

An exponential moving average: `average <- decay * average + (1 - decay) *
parameters` after each update, from the initial parameters on. Nothing corrects
for these: their weight is decay^updates, so a training should be many times
1 / (1 - decay) updates long.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from alexnet_jax import step as step_lib
from alexnet_jax.network import model


class AverageState(NamedTuple):
  """The average, of the same tree and split as the parameters."""

  average: optax.Params


def average_parameters(decay: float) -> optax.GradientTransformation:
  """Leaves updates as they are, and averages the parameters they lead to.

  To be the last of a chain.

  Args:
    decay: of what the average was before, 0 <= decay < 1.

  Source: Polyak and Juditsky 1992; with a decay as in Szegedy et al. 2016,
  "Rethinking the Inception architecture", section 8.
  """

  def init(parameters):
    return AverageState(average=jax.tree.map(jnp.copy, parameters))

  def update(updates, state, parameters=None):
    after = optax.apply_updates(parameters, updates)
    average = optax.incremental_update(after, state.average, 1 - decay)
    return updates, AverageState(average=average)

  return optax.GradientTransformation(init, update)


def averaged(
  optimizer_state: optax.OptState, parameters: optax.Params
) -> optax.Params:
  """The parameters to validate with.

  Args:
    optimizer_state: of a step.
    parameters: of the same step.

  Returns:
    The average, where the optimizer keeps one; otherwise the parameters.
  """
  for leaf in jax.tree.leaves(optimizer_state, is_leaf=_is_state):
    if _is_state(leaf):
      return leaf.average
  return parameters


def find_variables(state: step_lib.TrainState) -> dict:
  """Parameters, averaged where they are, and statistics: to evaluate with."""
  parameters = averaged(state.optimizer, state.parameters)
  return model.join(parameters, state.statistics)


def _is_state(leaf) -> bool:
  return isinstance(leaf, AverageState)
