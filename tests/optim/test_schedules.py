"""Learning rates by update, and what a config makes of its epochs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.checkpoints import checkpoint, workdir
from alexnet_jax.optim import optimizer, schedules
from alexnet_jax.program import step as step_lib
from alexnet_jax.settings import build, fields, settings
from configs import default


def rates(schedule, updates):
  return np.asarray(schedule(jnp.arange(updates, dtype=jnp.int32)))


def test_rate_drops_at_the_update_named():
  schedule = schedules.make_steps(0.5, drop_steps=[2, 4], drop_factor=0.1)
  np.testing.assert_allclose(
    rates(schedule, 6), [0.5, 0.5, 0.05, 0.05, 0.005, 0.005], rtol=1e-6
  )


def test_exponential_steps_are_those_of_the_source():
  schedule = schedules.make_exponential(
    0.01, num_updates=102, factor=250.0, steps=4
  )
  found = rates(schedule, 102)
  # "dexp[tgtFactor=250,numSteps=4]": x 250^(-1/3) at 25, 50, 75 %.
  drops = np.repeat([0, 1, 2, 3], 2)
  np.testing.assert_allclose(
    found[[0, 25, 26, 50, 51, 76, 77, 101]],
    0.01 * 250 ** (-drops / 3),
    rtol=1e-6,
  )
  np.testing.assert_allclose(found[-1], 4e-5, rtol=1e-6)


PROGRESS = np.arange(9) / 8


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("exponential", 50.0**-PROGRESS),
    ("polynomial", 0.1 + 0.9 * (1 - PROGRESS) ** 2),
    ("cosine", 0.1 + 0.9 * (1 + np.cos(np.pi * PROGRESS)) / 2),
  ],
)
def test_smooth_rates_follow_their_formulas(name, expected):
  options = {"exponential_factor": 50.0, "exponential_steps": None}
  options |= {"end_rate": 0.1, "polynomial_power": 2.0}
  sizes = {"num_updates": 8, "warmup_updates": 0, "drop_steps": ()}
  schedule = schedules.make_schedule(name, 0.1, options=options, **sizes)
  # Powers and cosines in float32.
  np.testing.assert_allclose(rates(schedule, 9), 0.1 * expected, rtol=1e-5)


@pytest.fixture
def config():
  """20 epochs of 64 images, two batches of 8 an update: four an epoch."""
  config = default.get_config("digits")
  config.num_epochs = 20.0
  config.batch_size = 8
  config.grad_accumulation_steps = 2
  config.optimizer.learning_rate = 0.1
  return config


def make(config, **fields):
  """Rates of the kernels and of the biases in each of 80 updates."""
  config.optimizer.update(fields)
  settings.check(config)
  return [rates(each, 80) for each in build.make_schedules(config, 64)]


def test_default_rates_are_those_of_the_source():
  config = default.get_config("imagenet")
  kernels, biases = build.make_schedules(config, 128)  # a step is an epoch
  steps = jnp.array([0, 24, 25, 50, 51, 78, 79, 89])
  np.testing.assert_allclose(
    kernels(steps), [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-6
  )
  np.testing.assert_allclose(biases(steps), 0.02, rtol=1e-6)


def test_epochs_count_updates_of_several_batches(config):
  kernels, biases = make(config, drop_epochs=(5.0,), bias_drop_epochs=(10.0,))
  reported = build.make_reported_schedule(config, 64)
  for found in (
    kernels[[19, 20]],
    biases[[39, 40]] / 2,
    [reported(step) for step in (39, 40)],
  ):
    np.testing.assert_allclose(found, [0.1, 0.01], rtol=1e-6)


def test_exponential_has_drops_of_its_own_for_biases(config):
  options = {"schedule": "exponential", "exponential_steps": 4}
  kernels, biases = make(config, **options, bias_drop_epochs=(10.0,))
  np.testing.assert_allclose(
    kernels[[19, 20, 60]], 0.1 * 250 ** (-np.array([0, 1, 3]) / 3), rtol=1e-6
  )
  np.testing.assert_allclose(biases[[39, 40]], [0.2, 0.02], rtol=1e-6)


def test_warm_up_rises_from_0_and_the_schedule_ends_with_the_run(config):
  options = {"schedule": "polynomial", "polynomial_power": 1.0}
  kernels, biases = make(config, **options, warmup_epochs=4.0)
  rise, fall = np.arange(16) / 16, 1 - np.arange(64) / 64
  expected = 0.1 * np.concatenate([rise, fall])
  # A few roundings in float32.
  np.testing.assert_allclose(kernels, expected, rtol=1e-5)
  np.testing.assert_allclose(biases, 2 * expected, rtol=1e-5)


def test_rates_of_a_layer_take_part_in_no_other_schedule(config):
  config.optimizer.layers.conv1 = {"rates": ((5.0, 1e-5), (6.0, 0.0))}
  settings.check(config)
  config.optimizer.schedule = "plateau"
  with pytest.raises(ValueError, match="Set config.*layers.conv1.rates=None"):
    settings.check(config)


def test_rates_of_a_layer_follow_the_schedule_of_all_in_epochs(config):
  config.optimizer.drop_epochs = (10.0,)
  config.optimizer.layers.conv3 = {
    "lr_multiplier": 0.5,
    "rates": ((5.0, 1e-3), (15.0, 0.0)),
  }
  settings.check(config)
  config.batch_size, config.grad_accumulation_steps = 16, 1
  config.optimizer.momentum = 0.0
  rule = build.make_optimizer(config, 64)
  ones = {"kernel": jnp.ones(()), "bias": jnp.ones(())}
  gradients = {"conv3": ones, "fc6": ones}
  zeros = jax.tree.map(jnp.zeros_like, gradients)

  def update(state, _):
    updates, state = rule.update(gradients, state, zeros)
    return state, updates

  _, updates = jax.lax.scan(update, rule.init(zeros), length=80)
  # Four updates an epoch.
  expected = {
    "conv3": {
      "kernel": [0.05] * 20 + [1e-3] * 40 + [0.0] * 20,
      "bias": [0.1] * 20 + [2e-3] * 40 + [0.0] * 20,
    },
    "fc6": {"kernel": [0.1] * 40 + [0.01] * 40, "bias": [0.2] * 80},
  }
  for layer, rates_of_layer in expected.items():
    for name, of_step in rates_of_layer.items():
      # A few roundings in float32.
      np.testing.assert_allclose(-updates[layer][name], of_step, rtol=1e-6)


def test_num_epochs_is_free_only_where_rates_do_not_end_with_the_run(config):
  def resume(schedule, **changes):
    config.optimizer.schedule = schedule
    earlier = workdir.flatten_config(config.to_dict(), {})
    workdir.check_same_config(
      "here",
      earlier,
      earlier | changes,
      may_change=fields.find_changeable(schedule),
    )

  resume("steps", num_epochs=30.0, eval_every_steps=7)
  resume("plateau", num_epochs=30.0)
  resume("cosine", eval_every_steps=7)
  for schedule in ("exponential", "polynomial", "cosine"):
    with pytest.raises(ValueError, match="num_epochs: 20.0 in the workdir, 30"):
      resume(schedule, num_epochs=30.0)
  with pytest.raises(ValueError, match="eval_every_steps: 200 in the"):
    resume("plateau", eval_every_steps=7)


RULE = schedules.Plateau(factor=0.1, patience=2, min_change=0.01, max_drops=2)
ERRORS = [0.9, 0.8, 0.8, 0.795, 0.7, 0.7, 0.71, 0.6, 0.6, 0.6, 0.6, 0.6, 0.3]


def make_state(rule):
  parameters = {"conv1": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
  return step_lib.TrainState(
    step=jnp.zeros((), jnp.int32),
    is_finite=jnp.ones((), jnp.bool),
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
  _, _, parameters, state, _ = make_state(rule)
  gradient = jax.tree.map(jnp.ones_like, parameters)
  lowest, waited, drops, velocity = np.inf, 0, 0, 0.0
  scales = []
  for error in ERRORS:
    updates, state = rule.update(gradient, state, parameters)
    velocity = 0.5 * velocity - 0.1 * 0.1**drops
    np.testing.assert_allclose(updates["conv1"]["kernel"], velocity, rtol=1e-5)
    state = RULE.advance(state, error)
    if error < lowest - 0.01:
      lowest, waited = error, 0
    else:
      waited += 1
    if waited == 2:
      drops, waited = min(drops + 1, 2), 0
    scales.append(schedules.find_plateau_scale(state))
    # Products of 0.1 in float32.
    np.testing.assert_allclose(scales[-1], 0.1**drops, rtol=1e-6)
  # By hand: two drops are made, and the third is not.
  assert [round(scale, 3) for scale in scales] == (
    [1.0] * 3 + [0.1] * 3 + [0.01] * 7
  )


def test_state_is_restored_from_a_checkpoint(rule, tmp_path):
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
  assert schedules.find_plateau_scale(restored.optimizer) == np.float32(0.1)
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  # One more without improvement makes the second drop.
  for each in (state, restored):
    after = RULE.advance(each.optimizer, 0.6)
    np.testing.assert_allclose(
      schedules.find_plateau_scale(after), 0.01, rtol=1e-6
    )
