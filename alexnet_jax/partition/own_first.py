"""A product that starts with what is here, while the rest is on its way.

The input of a layer is gathered by features. The product with this device's own
share reads nothing that is sent; what the others' shares add to it is a product
of its own. So a compiler can run the first beside the gather, and beside the
reduce-scatter of the gradients that of the own share.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.network import exchange

# Of an input and of a kernel: what is summed over.
FEATURES, INPUTS = -1, -2


def multiply(
  product: exchange.Product,
  own: jax.Array,
  whole: jax.Array,
  kernel: jax.Array,
  *,
  place: jax.Array,
  devices: int,
) -> jax.Array:
  """The product of the whole input, as the sum of two.

  Args:
    product: the convolution or product of an input and a kernel.
    own: f32[n, ..., c / devices], what was here of the input.
    whole: f32[n, ..., c], that of all devices, in their order.
    kernel: f32[..., c, out].
    place: i32[], of this device among those that have a share.
    devices: that have one.

  Returns:
    f32[n, ..., out].
  """
  size = own.shape[FEATURES]
  rows = kernel.ndim + INPUTS
  own_rows = lax.dynamic_slice_in_dim(kernel, place * size, size, rows)
  others = _take_others(whole, place, size, devices, whole.ndim + FEATURES)
  other_rows = _take_others(kernel, place, size, devices, rows)
  return product(own, own_rows) + product(others, other_rows)


def _take_others(
  x: jax.Array, place: jax.Array, size: int, devices: int, axis: int
) -> jax.Array:
  """The shares of all other devices, from the next one on."""
  if devices > 2:  # behind the last comes the first
    again = lax.slice_in_dim(x, 0, (devices - 2) * size, axis=axis)
    x = jnp.concatenate([x, again], axis)
  start = (place + 1) % devices * size
  return lax.dynamic_slice_in_dim(x, start, (devices - 1) * size, axis)
