"""Every way to compute a network gives the same numbers on every layout."""

import dataclasses

import jax
import numpy as np
import pytest

from alexnet_jax.checkpoints import checkpoint
from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog
from tests import build
from tests.partition.test_placement import check_layouts

pytestmark = pytest.mark.slow

# Dropout after a convolution, stochastic pooling: both draw for maps.
DRAWS = wirings.rewire(
  wirings.DROPOUT_AFTER_CONV4,
  "draws",
  conv2={"pool": wiring.Pool(kind="stochastic")},
)


# A shift that the next batch normalization removes has a gradient of 0 but for
# the rounding of the sum that it is.
ATOL = 1e-14


@pytest.mark.parametrize(
  ("table", "options", "layouts"),
  [
    (
      *(wirings.ALEXNET_2012, {"normalization": "batch"}),
      (catalog.TWO_COLUMN, catalog.DATA_PARALLEL, catalog.ONE_WEIRD_TRICK),
    ),
    (
      *(DRAWS, {"normalization": "across", "dropout_scaling": "train"}),
      (catalog.TWO_COLUMN_DATA,),
    ),
  ],
  ids=["batch", "across"],
)
def test_variant_matches_one_device(
  table, options, layouts, tiny_batch, tmp_path
):
  network = build.make_network(table, **options)
  check_layouts(layouts, tiny_batch, network, atol=ATOL)
  # A state on the last layout, restored onto it; checkpoints are in float32.
  parts = build.make_program(layouts[-1], network)
  state = parts.init(jax.random.key(0))
  checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=1)
  checkpoints.save(3, state)
  checkpoints.close()
  checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=1)
  restored = checkpoints.restore(parts.abstract_state)
  checkpoints.close()
  jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_lenet_of_one_channel_matches_one_device(tiny_augmentation):
  network = wiring.make_network(wirings.LENET5, image_size=28, num_classes=10)
  augmentation = dataclasses.replace(
    tiny_augmentation, stored_size=30, image_size=28
  )
  layouts, batch = [catalog.DATA_PARALLEL], build.make_batch(30)
  check_layouts(layouts, batch, network, augmentation, atol=ATOL)
