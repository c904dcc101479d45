"""The product with the own share reads nothing that is sent."""

import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.partition import exchange
from tests.partition.test_placement import OWN_FIRST


@pytest.mark.parametrize("devices", [2, 3, 4])
def test_own_share_is_not_read_from_what_was_gathered(devices):
  rng = np.random.default_rng(0)
  x = rng.integers(-4, 5, (5, 2, 3 * devices)).astype(np.float32)
  kernel = rng.integers(-4, 5, (2, 3 * devices, 7)).astype(np.float32)
  expected = np.einsum("npc,pcu->nu", x, kernel)  # whole numbers: exact
  for place in range(devices):
    own = slice(3 * place, 3 * place + 3)
    arrived = x.copy()
    arrived[..., own] = np.nan
    found = exchange.multiply(
      lambda x, kernel: jnp.tensordot(x, kernel, axes=2),
      jnp.asarray(x[..., own]),
      jnp.asarray(arrived),
      jnp.asarray(kernel),
      place=jnp.asarray(place),
      devices=devices,
    )
    np.testing.assert_array_equal(found, expected)


def test_layers_that_gather_all_columns_and_no_others_start_with_their_own(
  program,
):
  parts, traced, _ = program(OWN_FIRST)
  arrive = {name: share.arrive for name, share in parts.shares.items()}
  # All that read all columns, but fc8, which arrives as a sum.
  starts = {name for name, how in arrive.items() if how.endswith("own first")}
  assert starts == {"conv3", "fc6", "fc7"}
  text = str(traced.jaxpr)
  # Of five convolutions, conv3 has two: each forward, by kernel, and by input
  # but for conv1, with its one column on a device.
  assert text.count("conv_general_dilated[") == 3 * 6 - 1
