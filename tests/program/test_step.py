import dataclasses
import re

import jax
import numpy as np
import pytest

from alexnet_jax.partition import catalog
from alexnet_jax.program import compiled_step
from tests import build


def test_state_is_donated_to_the_step(layout, program):
  parts, _, compiled = program(layout)
  leaves = len(jax.tree.leaves(parts.abstract_state))
  header = compiled.as_text().partition("\n")[0]
  aliases = re.search(r"input_output_alias=\{(.*?)\}, \w+=", header)[1]
  # Parameters, velocity, and the counts of steps: each in its own place.
  assert len(re.findall(r"\(\d+, \{\}", aliases)) == leaves


def test_steps_draw_anew_and_a_repeated_step_draws_the_same(
  program, tiny_batch
):
  parts, _, train_step = program(catalog.TWO_COLUMN)
  key = jax.random.key(5)
  losses = []
  with jax.set_mesh(parts.mesh):
    batch = build.put(parts, tiny_batch)
    for steps_before in (0, 0, 1):
      state = parts.init(key)
      state = state._replace(step=state.step + steps_before)
      _, totals = train_step(state, key, *batch)
      losses.append(float(totals[0]))
  assert losses[0] == losses[1] != losses[2]


def test_step_whose_loss_is_not_finite_changes_nothing(program, tiny_batch):
  parts, _, train_step = program(catalog.TWO_COLUMN)
  key = jax.random.key(5)
  batch = build.put(parts, tiny_batch)
  with jax.set_mesh(parts.mesh):
    state = parts.init(key)
    fc7 = state.parameters["fc7"]
    # Products of float32 overflow: infinity less infinity is no number.
    huge = {**fc7, "kernel": fc7["kernel"] * 1e38}
    sick = state._replace(parameters=state.parameters | {"fc7": huge})
    before = jax.device_get(sick)
    sick, totals = train_step(sick, key, *batch)
    assert not np.isfinite(totals[0])
    kept = jax.device_get(sick)
    # A later step with a finite loss changes nothing either.
    later = parts.init(key)._replace(step=sick.step)
    later, totals = train_step(later, key, *batch)
    assert np.isfinite(totals[0])
  assert kept.step == later.step == ~before.step
  jax.tree.map(np.testing.assert_array_equal, kept[1:], before[1:])
  sound = jax.device_get(parts.init(key).parameters)
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(later.parameters), sound
  )


def test_fresh_network_evaluates_near_chance(program, tiny_batch):
  parts, _, _ = program(catalog.ONE_DEVICE)
  images, labels = build.put(parts, tiny_batch)
  state = parts.init(jax.random.key(0))
  evaluated = np.asarray(parts.evaluate(state.parameters, images, labels))
  assert evaluated[3] == 8
  assert 0 <= evaluated[2] <= evaluated[1] <= 8
  # ln 10 nats an image, within a factor of two.
  assert 0.5 < evaluated[0] / 8 / np.log(10) < 2


@pytest.mark.slow
def test_two_batches_that_accumulate_are_one_of_twice_the_size(
  tiny_network, tiny_augmentation
):
  network = dataclasses.replace(tiny_network, dropout_rate=0.0)
  plain = dataclasses.replace(
    tiny_augmentation, stored_size=67, flip=False, color_noise=0.0
  )
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (16, 67, 67, 3), dtype=np.uint8)
  labels = rng.integers(0, 10, 16, dtype=np.int32)
  parameters = []
  for layout, batches in (
    (catalog.ONE_DEVICE, 1),
    (catalog.FULLY_SHARDED, 2),
  ):
    size = 16 // batches
    parts = build.make_program(
      network, layout, plain, batch_size=size, accumulate=batches
    )
    compiled, audit = compiled_step.compile_step(parts)
    assert audit.agrees
    state = parts.init(jax.random.key(0))
    for first in [*range(0, 16, size)] * 2:  # two updates
      rows = slice(first, first + size)
      batch = build.put(parts, (images[rows], labels[rows]))
      state, _ = compiled(state, jax.random.key(1), *batch)
    parameters.append(jax.device_get(state.parameters))
  # Means of 16 in another order, in float32, carried through two updates.
  jax.tree.map(
    lambda a, b: np.testing.assert_array_less(
      np.linalg.norm(a - b), 1e-5 * np.linalg.norm(b) + 1e-12
    ),
    *parameters,
  )
