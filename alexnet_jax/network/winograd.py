"""Convolutions with windows of 3 in 16 multiplications instead of 36.

Winograd's minimal filtering: two neighboring outputs of a window of 3 read four
values. As polynomials, these have to be multiplied at four points only. In both
directions of a map, tiles of 4 x 4 inputs give tiles of 2 x 2 outputs,

    y = A^T [(G k G^T) * (B^T x B)] A,

where B and A add and subtract a few values, and G transforms the kernel. At
each of the 16 pairs of points (row, column) the product is an ordinary matrix
product, tiles by channels. It sums over the channels alone, not over nine times
as many values, so rounding errors are smaller.

Source: Lavin and Gray 2016, "Fast algorithms for convolutional neural
networks", section 4.1, F(2 x 2, 3 x 3).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

WINDOW = 3
# Outputs of a tile, in either direction.
_OUTPUTS = 2

Matrix = Sequence[Sequence[float]]
_B_T: Matrix = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_G: Matrix = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_A_T: Matrix = ((1, 1, 1, 0), (0, 1, -1, -1))
_G_T, _A = tuple(zip(*_G, strict=True)), tuple(zip(*_A_T, strict=True))

# The arrays at each pair of points: [row][column].
Pairs = list[list[jax.Array]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(
  x: jax.Array, kernel: jax.Array, padding: tuple[int, int]
) -> jax.Array:
  """Convolves with a stride of 1.

  The custom gradient of x is again a convolution; the transposed one would add
  up overlapping tiles.

  Args:
    x: f32[n, h, w, c].
    kernel: f32[3, 3, c, maps].
    padding: zeros (before, after), in both directions.

  Returns:
    f32[n, h', w', maps]; h' = h + before + after - 2.
  """
  sides = [side + sum(padding) - WINDOW + 1 for side in x.shape[1:3]]
  products = _map_pairs(_multiply, _cut(x, padding, sides), _expand(kernel))
  outputs = _transform(_A_T, products)
  # f32[n, tiles, 2, tiles, 2, maps]
  y = jnp.stack([jnp.stack(row, 3) for row in outputs], 2)
  n, rows, _, columns, _, maps = y.shape
  y = y.reshape(n, rows * _OUTPUTS, columns * _OUTPUTS, maps)
  return y[:, : sides[0], : sides[1]]


def count_multiplications(side: int) -> int:
  """Counts those for a map of `side` x `side` outputs, per pair of channels."""
  tiles = -(-side // _OUTPUTS)
  return (tiles * (_OUTPUTS + WINDOW - 1)) ** 2


def _forward(x, kernel, padding):
  return convolve(x, kernel, padding), (x, kernel)


def _backward(padding, residuals, gradient):
  x, kernel = residuals
  turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  before, after = padding
  x_gradient = convolve(
    gradient, turned, (WINDOW - 1 - before, WINDOW - 1 - after)
  )
  sides = gradient.shape[1:3]
  products = _map_pairs(
    _multiply_transposed, _cut(x, padding, sides), _spread(gradient)
  )
  kernel_gradient = _transform(_G_T, products)
  return x_gradient, jnp.stack([jnp.stack(row) for row in kernel_gradient])


convolve.defvjp(_forward, _backward)


def _cut(x: jax.Array, padding: tuple[int, int], sides: Sequence[int]) -> Pairs:
  """Transforms overlapping tiles of the input: f32[n, tiles, tiles, c] each.

  `sides` are the height and width of the output.
  """
  tiles = [-(-side // _OUTPUTS) for side in sides]
  read = [count * _OUTPUTS + WINDOW - 1 for count in tiles]
  before, _ = padding
  x = _pad(x, before, read)
  return _transform(_B_T, _taps(x, tiles, size=len(_B_T)))


def _spread(gradient: jax.Array) -> Pairs:
  """Transforms the gradient of the output to that of the products."""
  tiles = [-(-side // _OUTPUTS) for side in gradient.shape[1:3]]
  gradient = _pad(gradient, 0, [count * _OUTPUTS for count in tiles])
  return _transform(_A, _taps(gradient, tiles, size=_OUTPUTS))


def _expand(kernel: jax.Array) -> Pairs:
  """Transforms a kernel, f32[3, 3, c, maps]: f32[c, maps] each."""
  return _transform(_G, [list(row) for row in kernel])


def _multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """f32[n, tiles, tiles, c], f32[c, maps] -> f32[n, tiles, tiles, maps].

  A convolution of one pixel is 1.2 times as fast as the product on x86, where
  this implementation is chosen.
  """
  return lax.conv_general_dilated(
    x,
    kernel[None, None],
    window_strides=(1, 1),
    padding="VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _multiply_transposed(x: jax.Array, gradient: jax.Array) -> jax.Array:
  """The gradient of a kernel of `_multiply`: f32[c, maps]."""
  rows = x.reshape(-1, x.shape[-1])
  return rows.T @ gradient.reshape(-1, gradient.shape[-1])


def _transform(matrix: Matrix, pairs: Pairs) -> Pairs:
  """Multiplies by a matrix from the left, and its transpose from the right."""
  rows = zip(
    *(_combine(matrix, column) for column in zip(*pairs, strict=True)),
    strict=True,
  )
  return [_combine(matrix, row) for row in rows]


def _combine(matrix: Matrix, values: Sequence[jax.Array]) -> list[jax.Array]:
  """Multiplies a matrix by values, without the terms that are 0."""
  return [
    functools.reduce(
      jnp.add,
      (
        value if factor == 1 else factor * value
        for factor, value in zip(row, values, strict=True)
        if factor
      ),
    )
    for row in matrix
  ]


def _map_pairs(function: Callable, *pairs: Pairs) -> Pairs:
  """Applies a function at each pair of points."""
  return [
    [function(*values) for values in zip(*rows, strict=True)]
    for rows in zip(*pairs, strict=True)
  ]


def _taps(x: jax.Array, tiles: Sequence[int], *, size: int) -> Pairs:
  """Slices of the first values of all tiles, the second, ..., both ways."""
  ends = [(count - 1) * _OUTPUTS + 1 for count in tiles]
  return [
    [
      x[:, row : row + ends[0] : _OUTPUTS, column : column + ends[1] : _OUTPUTS]
      for column in range(size)
    ]
    for row in range(size)
  ]


def _pad(x: jax.Array, before: int, sides: Sequence[int]) -> jax.Array:
  """Pads with zeros, or cuts off at the end: f32[n, *sides, c]."""
  padding = [
    (before, side - here - before, 0)
    for side, here in zip(sides, x.shape[1:3], strict=True)
  ]
  return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *padding, (0, 0, 0)])
