import dataclasses

import jax
import numpy as np
import pytest

from alexnet_jax.partition import catalog
from alexnet_jax.program import compiled_step
from tests import build, runs


@pytest.fixture(scope="module")
def short():
  parts = build.make_short_program("two_column")
  return parts, parts.trace().lower().compile()


@pytest.fixture
def two_column(short, key):
  """A program of two columns, and step(state) with a batch and a key."""
  parts, train_step = short
  batch = build.put(parts, build.make_batch(36))
  with jax.set_mesh(parts.mesh):
    yield parts, lambda state: train_step(state, key, *batch)


def test_steps_draw_anew_and_a_repeated_step_draws_the_same(two_column, key):
  parts, train_step = two_column
  losses = []
  for steps_before in (0, 0, 1):
    state = parts.init(key)
    _, totals = train_step(state._replace(step=state.step + steps_before))
    losses.append(float(totals[0]))
  assert losses[0] == losses[1] != losses[2]


def test_step_whose_loss_is_not_finite_changes_nothing(two_column, key):
  parts, train_step = two_column
  state = parts.init(key)
  fc8 = state.parameters["fc8"]
  # Products of float32 overflow: infinity less infinity is no number.
  huge = {**fc8, "kernel": fc8["kernel"] * 1e38}
  state = state._replace(
    step=state.step + 3, parameters=state.parameters | {"fc8": huge}
  )
  before = jax.device_get(state)
  state, totals = train_step(state)
  assert not np.isfinite(totals[0])
  kept = jax.device_get(state)
  # A later step with a finite loss changes nothing either.
  later = parts.init(key)._replace(step=state.step, is_finite=state.is_finite)
  later, totals = train_step(later)
  assert np.isfinite(totals[0])
  assert before.is_finite and not kept.is_finite and not later.is_finite
  assert later.step == 3
  for found, expected in (
    (kept._replace(is_finite=before.is_finite), before),
    (later.parameters, parts.init(key).parameters),
  ):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_fresh_network_evaluates_near_chance(tiny_batch):
  parts = build.make_program(catalog.ONE_DEVICE)
  images, labels = build.put(parts, tiny_batch)
  state = parts.init(jax.random.key(0))
  evaluated = np.asarray(
    parts.evaluate(state.parameters, images, labels).totals
  )
  assert evaluated[3] == 8
  assert 0 <= evaluated[2] <= evaluated[1] <= 8
  # ln 10 nats an image, within a factor of two.
  assert 0.5 < evaluated[0] / 8 / np.log(10) < 2


@pytest.mark.slow
def test_two_batches_that_accumulate_are_one_of_twice_the_size():
  network = build.SHORT_NETWORK  # which has no dropout
  plain = dataclasses.replace(
    build.SHORT_AUGMENTATION, stored_size=35, flip=False, color_noise=0.0
  )
  images, labels = build.make_batch(35, size=16)
  parameters = []
  for layout, batches in ((catalog.ONE_DEVICE, 1), (catalog.FULLY_SHARDED, 2)):
    size = 16 // batches
    parts = build.make_program(
      *(layout, network, plain),
      compute_dtype="float64",
      batch_size=size,
      accumulate=batches,
    )
    compiled, audit = compiled_step.compile_step(parts)
    assert audit.agrees
    state = parts.init(jax.random.key(0))
    for first in [*range(0, 16, size)] * 2:  # two updates
      rows = slice(first, first + size)
      batch = build.put(parts, (images[rows], labels[rows]))
      state, _ = compiled(state, jax.random.key(1), *batch)
    parameters.append(jax.device_get(state.parameters))
  runs.assert_same_norms(*parameters)
