"""The product with the local shard reads nothing that is sent."""

import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.partition import exchange
from tests import build
from tests.partition.test_placement import OVERLAPPED


@pytest.mark.parametrize("devices", [2, 3, 4])
def test_local_shard_is_not_read_from_what_was_gathered(devices):
  rng = np.random.default_rng(0)
  x = rng.integers(-4, 5, (5, 2, 3 * devices)).astype(np.float32)
  kernel = rng.integers(-4, 5, (2, 3 * devices, 7)).astype(np.float32)
  expected = np.einsum("npc,pcu->nu", x, kernel)  # whole numbers: exact
  for index in range(devices):
    local = slice(3 * index, 3 * index + 3)
    gathered = x.copy()
    gathered[..., local] = np.nan
    found = exchange.multiply_overlapped(
      lambda x, kernel: jnp.tensordot(x, kernel, axes=2),
      jnp.asarray(x[..., local]),
      jnp.asarray(gathered),
      jnp.asarray(kernel),
      index=jnp.asarray(index),
      devices=devices,
    )
    np.testing.assert_array_equal(found, expected)


def test_layers_that_gather_all_columns_and_no_others_overlap():
  parts = build.make_program(OVERLAPPED)
  # All that read all columns, except fc8, which is split by its inputs.
  overlapped = {
    name for name, load in parts.device_loads.items() if load.overlaps
  }
  assert overlapped == {"conv3", "fc6", "fc7"}
  text = str(parts.trace().jaxpr)
  # Of five convolutions, conv3 has two: each forward, by kernel, and by input
  # but for conv1, with its one column on a device.
  assert text.count("conv_general_dilated[") == 3 * 6 - 1
