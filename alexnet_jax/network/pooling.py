"""Max pooling by strided slices, one direction of the map after the other.

The largest value of a window is the largest of what its columns have in each
row. In either direction the gradient of a window goes to one of a few slices
of the map, and these are put together by interleaving, which is one pass over
memory. XLA's own gradient searches every window once more.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

ROWS, COLUMNS = 1, 2


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def max_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
  """As `ops.max_pool`: of equal values too, the first, row by row, is taken.

  Args:
    x: f32[n, h, w, c].
    size: side of the window, in pixels.
    stride: distance between windows, in pixels.

  Returns:
    f32[n, (h - size) // stride + 1, (w - size) // stride + 1, c].
  """
  return _forward(x, size, stride)[0]


def _forward(x, size, stride):
  # The first column of each row, then the first row: the order of a window.
  row = functools.reduce(jnp.maximum, _taps(x, COLUMNS, size, stride))
  # A reduction, which XLA keeps: a maximum it would compute again in every
  # operation that reads it.
  window, strides = [1] * x.ndim, [1] * x.ndim
  window[ROWS], strides[ROWS] = size, stride
  y = lax.reduce_window(row, -jnp.inf, lax.max, window, strides, "VALID")
  return y, (x, row, y)


def _backward(size, stride, residuals, gradient):
  x, row, y = residuals
  gradient = _spread(row, y, gradient, ROWS, size, stride)
  return (_spread(x, row, gradient, COLUMNS, size, stride),)


max_pool.defvjp(_forward, _backward)


def _taps(x: jax.Array, axis: int, size: int, stride: int) -> list[jax.Array]:
  """First values of all windows along an axis, their second ones, and so on."""
  windows = (x.shape[axis] - size) // stride + 1
  return [
    lax.slice_in_dim(x, tap, tap + (windows - 1) * stride + 1, stride, axis)
    for tap in range(size)
  ]


def _spread(
  x: jax.Array,
  y: jax.Array,
  gradient: jax.Array,
  axis: int,
  size: int,
  stride: int,
) -> jax.Array:
  """Gives the gradient of each window along an axis to its largest value.

  Args:
    x: what the windows are over.
    y: the largest values.
    gradient: of these.

  Returns:
    The gradient of x.
  """
  windows = y.shape[axis]
  # Tap t of window w is value w + t // stride of those that lie t % stride
  # behind a multiple of the stride.
  length = windows + (size - 1) // stride
  phases = [jnp.zeros((), x.dtype)] * stride
  is_free = jnp.ones_like(y, bool)
  for tap, values in enumerate(_taps(x, axis, size, stride)):
    is_here = is_free & (values == y)
    is_free &= ~is_here
    part = jnp.where(is_here, gradient, jnp.zeros_like(gradient))
    before = tap // stride
    part = _pad(part, axis, before, length - windows - before)
    phases[tap % stride] += part
  shape = list(y.shape)
  shape[axis] = length
  phases = [jnp.broadcast_to(phase, shape) for phase in phases]
  shape[axis] *= stride
  whole = jnp.stack(phases, axis + 1).reshape(shape)
  behind = x.shape[axis] - shape[axis]
  return _pad(whole, axis, 0, behind)  # less than 0: cut off


def _pad(x: jax.Array, axis: int, before: int, after: int) -> jax.Array:
  sides = [(0, 0, 0)] * x.ndim
  sides[axis] = (before, after, 0)
  return lax.pad(x, jnp.zeros((), x.dtype), sides)
