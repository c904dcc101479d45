"""The paper's schedule: a lower rate when the validation error stops improving.

The rule and its state are optax's. The state lies inside the optimizer's, so
that checkpoints keep it, but moves on with each validation, not each update.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import optax
from optax import contrib


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
