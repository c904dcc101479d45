"""The rate drops when the validation error stops improving."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.checkpoints import checkpoint
from alexnet_jax.optim import optimizer, plateau
from alexnet_jax.program import step as step_lib

RULE = plateau.Plateau(factor=0.1, patience=2, min_change=0.01, max_drops=2)
ERRORS = [0.9, 0.8, 0.8, 0.795, 0.7, 0.7, 0.71, 0.6, 0.6, 0.6, 0.6, 0.6, 0.3]


def make_state(rule):
  parameters = {"conv1": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
  return step_lib.TrainState(
    step=jnp.zeros((), jnp.int32),
    parameters=parameters,
    optimizer=rule.init(parameters),
    statistics={},
  )


@pytest.fixture
def rule():
  return optimizer.make_optimizer(
    optax.constant_schedule(0.1),
    optax.constant_schedule(0.2),
    momentum=0.5,
    weight_decay=0.0,
    plateau=RULE,
  )


def test_rule_matches_numpy_and_multiplies_the_rate_before_momentum(rule):
  state = make_state(rule)
  gradient = jax.tree.map(jnp.ones_like, state.parameters)
  lowest, waited, drops, velocity = np.inf, 0, 0, 0.0
  scales = []
  for error in ERRORS:
    updates, moved = rule.update(gradient, state.optimizer, state.parameters)
    velocity = 0.5 * velocity - 0.1 * 0.1**drops
    np.testing.assert_allclose(updates["conv1"]["kernel"], velocity, rtol=1e-5)
    state = state._replace(optimizer=RULE.advance(moved, error))
    if error < lowest - 0.01:
      lowest, waited = error, 0
    else:
      waited += 1
    if waited == 2:
      drops, waited = min(drops + 1, 2), 0
    scales.append(plateau.find_scale(state.optimizer))
    # Products of 0.1 in float32.
    np.testing.assert_allclose(scales[-1], 0.1**drops, rtol=1e-6)
  # By hand: two drops are made, and the third is not.
  assert [round(scale, 3) for scale in scales] == (
    [1.0] * 3 + [0.1] * 3 + [0.01] * 7
  )


def test_state_comes_back_from_a_checkpoint(rule, tmp_path):
  state = make_state(rule)
  for error in (0.5, 0.6, 0.6, 0.6):
    state = state._replace(optimizer=RULE.advance(state.optimizer, error))
  checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=1)
  checkpoints.save(1, state)
  checkpoints.close()
  checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=1)
  restored = checkpoints.restore(
    jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state,
    )
  )
  checkpoints.close()
  assert plateau.find_scale(restored.optimizer) == np.float32(0.1)
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  # One more without improvement makes the second drop.
  for each in (state, restored):
    after = RULE.advance(each.optimizer, 0.6)
    np.testing.assert_allclose(plateau.find_scale(after), 0.01, rtol=1e-6)
