"""Every way to compute a network gives the same numbers on every layout."""

import dataclasses

import jax
import numpy as np
import pytest

from alexnet_jax.checkpoints import checkpoint
from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog
from alexnet_jax.program import compiled_step
from tests import build

pytestmark = pytest.mark.slow

# Dropout after a convolution, stochastic pooling: both draw for maps.
DRAWS = wirings.rewire(
  wirings.DROPOUT_AFTER_CONV4,
  "draws",
  conv2={"pool": wiring.Pool(kind="stochastic")},
)


def run(parts, batch, steps=3):
  """Losses, the state, an evaluation; the step sends what is planned."""
  compiled, found = compiled_step.compile_step(parts)
  assert found.agrees and sorted(found.traced) == sorted(found.plan)
  assert sorted(found.compiled) == sorted(found.plan)
  init_key, step_key = jax.random.split(jax.random.key(0))
  state = parts.init(init_key)
  images, labels = build.put(parts, batch)
  losses = []
  for _ in range(steps):
    state, totals = compiled(state, step_key, images, labels)
    losses.append(float(totals[0]))
  evaluated = np.asarray(parts.evaluate(state.variables, images, labels))
  return losses, state, evaluated


def check_same(found, expected):
  # Sums in another order, in float32, carried through three steps.
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
  np.testing.assert_allclose(found[2], expected[2], rtol=1e-5)
  variables, same = found[1].variables, expected[1].variables
  assert len(set(expected[0])) == 3  # it does train
  for layer, blocks in same.items():
    for name, block in blocks.items():
      block = np.asarray(block)
      difference = np.linalg.norm(np.asarray(variables[layer][name]) - block)
      # A shift that the next batch normalization takes away again has a
      # gradient of 0 but for the rounding of the sum that it is.
      assert difference <= 1e-5 * np.linalg.norm(block) + 2e-6, (layer, name)


@pytest.mark.parametrize(
  ("table", "options", "layouts"),
  [
    (
      wirings.ALEXNET_2012,
      {"normalization": "batch"},
      (catalog.TWO_COLUMN, catalog.DATA_PARALLEL, catalog.ONE_WEIRD_TRICK),
    ),
    (
      DRAWS,
      {"normalization": "across", "dropout_scaling": "train"},
      (catalog.TWO_COLUMN_DATA,),
    ),
  ],
  ids=["batch", "across"],
)
def test_variant_matches_one_device(
  table, options, layouts, tiny_augmentation, tiny_batch, tmp_path
):
  network = wiring.make_network(
    table, width=1 / 8, image_size=67, num_classes=10, init="he", **options
  )
  results = []
  for layout in (catalog.ONE_DEVICE, *layouts):
    parts = build.make_program(network, layout, tiny_augmentation, batch_size=8)
    results.append(run(parts, tiny_batch))
    check_same(results[-1], results[0])
  # The state of the last layout, restored onto it.
  checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=1)
  state = results[-1][1]
  checkpoints.save(3, state)
  checkpoints.close()
  checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=1)
  restored = checkpoints.restore(parts.abstract_state)
  checkpoints.close()
  for saved, read in zip(
    jax.tree.leaves(state), jax.tree.leaves(restored), strict=True
  ):
    np.testing.assert_array_equal(saved, read)


def test_lenet_of_one_channel_matches_one_device(tiny_augmentation):
  network = wiring.make_network(wirings.LENET5, image_size=28, num_classes=10)
  augmentation = dataclasses.replace(
    tiny_augmentation, stored_size=30, image_size=28
  )
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (8, 30, 30, 3), dtype=np.uint8)
  batch = images, rng.integers(0, 10, 8, dtype=np.int32)
  expected, found = (
    run(build.make_program(network, layout, augmentation, batch_size=8), batch)
    for layout in (catalog.ONE_DEVICE, catalog.DATA_PARALLEL)
  )
  check_same(found, expected)
