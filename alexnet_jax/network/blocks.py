"""A strided convolution as one with a stride of 1, on blocks of pixels.

Blocks of stride x stride pixels become channels, "space to depth". An image of
3 channels, which leaves most of a matrix unit idle, becomes one of 48.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def convolve(
  x: jax.Array, kernel: jax.Array, *, stride: int, padding: tuple[int, int]
) -> jax.Array:
  """The convolution of an image, on blocks.

  Args:
    x: f32[n, h, h, c].
    kernel: f32[window, window, c, maps].
    stride: in pixels.
    padding: zeros (before, after), in both directions.

  Returns:
    f32[n, h', h', maps]; h' = (h + before + after - window) // stride + 1.
  """
  window = kernel.shape[0]
  side = (x.shape[1] + sum(padding) - window) // stride + 1
  # In blocks: of the kernel, and of the image that its windows cover.
  reach = -(-window // stride)
  blocks = side + reach - 1
  before = padding[0]
  after = blocks * stride - x.shape[1] - before
  x = lax.pad(
    x,
    jnp.zeros((), x.dtype),
    [(0, 0, 0), (before, after, 0), (before, after, 0), (0, 0, 0)],
  )
  more = reach * stride - window
  kernel = jnp.pad(kernel, ((0, more), (0, more), (0, 0), (0, 0)))
  return lax.conv_general_dilated(
    _to_blocks(x, stride),  # f32[n, blocks, blocks, stride * stride * c]
    jnp.moveaxis(_to_blocks(jnp.moveaxis(kernel, -1, 0), stride), 0, -1),
    window_strides=(1, 1),
    padding="VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _to_blocks(x: jax.Array, size: int) -> jax.Array:
  """f32[n, h, h, c] -> f32[n, h / size, h / size, size * size * c]."""
  n, side, _, channels = x.shape
  blocks = side // size
  x = x.reshape(n, blocks, size, blocks, size, channels)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, blocks, blocks, -1)
