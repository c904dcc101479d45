"""Max pooling in two implementations, average and stochastic pooling.

XLA's own gradient of a maximum over windows searches every window once more.
`max_pool_by_slices` takes one direction of the map after the other: the largest
value of a window is the largest of the maxima of its rows. In either direction
the gradient of a window goes to one of a few strided slices of the map, and
these are interleaved, which is one pass over memory.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.network import ops, wiring

ROWS, COLUMNS = 1, 2


def pool(
  x: jax.Array,
  row: wiring.Pool,
  uniforms: jax.Array | None = None,
  *,
  implementation: str = "window",
) -> jax.Array:
  """Pools a map as a row of the table says; the kinds have functions below.

  Args:
    x: f32[n, h, w, c], or bf16.
    uniforms: f32[n, h', w', c] in [0, 1), for stochastic pooling in training;
      else None.
    implementation: of max pooling, see `implementations.Implementations.pool`.

  Returns:
    f32[n, h', w', c], in the type of x.
  """
  sides = x.shape[1:3]
  if any(row.padding):
    # Never the largest value, and never drawn.
    x = _pad_map(x, row.padding, -jnp.inf if row.kind == "max" else 0.0)
  if row.kind == "stochastic":
    return stochastic_pool(x, uniforms, size=row.window, stride=row.stride)
  if row.kind == "average":
    if not any(row.padding):
      return average_pool(x, size=row.window, stride=row.stride)
    sums = _reduce_windows(x, 0.0, lax.add, row.window, row.stride)
    return sums / _count_pixels(row, sides).astype(x.dtype)
  if implementation == "slices":
    return max_pool_by_slices(x, row.window, row.stride)
  return max_pool(x, size=row.window, stride=row.stride)


def _pad_map(x: jax.Array, padding: tuple[int, int], value: float) -> jax.Array:
  """Pads a map with a value, (before, after), in both directions."""
  around = (*padding, 0)
  fill = jnp.asarray(value, x.dtype)
  return lax.pad(x, fill, ((0, 0, 0), around, around, (0, 0, 0)))


def _count_pixels(row: wiring.Pool, sides: Sequence[int]) -> np.ndarray:
  """Counts the pixels of each window that are no padding: int[1, h', w', 1].

  Args:
    sides: height and width of the map without padding.
  """
  counts = []
  for side in sides:
    is_real = np.pad(np.ones(side, int), row.padding)
    windows = np.lib.stride_tricks.sliding_window_view(is_real, row.window)
    counts.append(windows[:: row.stride].sum(axis=1))
  return np.multiply.outer(*counts)[None, :, :, None]


def max_pool(x: jax.Array, *, size: int = 3, stride: int = 2) -> jax.Array:
  """Returns the maximum of each window; windows overlap where size > stride.

  Among equal values the first one, row by row, receives the gradient.

  Args:
    x: f32[n, h, w, c].
    size: side of the window, in pixels.
    stride: distance between windows, in pixels.

  Returns:
    f32[n, (h - size) // stride + 1, (w - size) // stride + 1, c].

  Source: Krizhevsky et al. 2012, section 3.4.
  """
  return _reduce_windows(x, -jnp.inf, lax.max, size, stride)


def average_pool(x: jax.Array, *, size: int, stride: int) -> jax.Array:
  """Returns the mean of each window; arguments and result as of `max_pool`."""
  return _reduce_windows(x, 0.0, lax.add, size, stride) / size**2


def _reduce_windows(x, initial, function, size, stride):
  return lax.reduce_window(
    x,
    initial,
    function,
    window_dimensions=(1, size, size, 1),
    window_strides=(1, stride, stride, 1),
    padding="VALID",
  )


def stochastic_pool(
  x: jax.Array, uniforms: jax.Array | None, *, size: int, stride: int
) -> jax.Array:
  """Samples one value of each window, in proportion to the values.

  Args:
    x: f32[n, h, w, c], 0 or more.
    uniforms: f32[n, h', w', c], random numbers in [0, 1). The first value, row
      by row, whose cumulative probability is above the number is taken, and
      receives the gradient. None: the average of the window, weighted by its
      values.
    size, stride: as of `max_pool`.

  Returns:
    f32[n, h', w', c], of the shape of `max_pool`'s; 0 for a window of zeros.

  Source: Zeiler and Fergus 2013, "Stochastic pooling for regularization of
  deep convolutional neural networks", section 3.
  """
  ends = [(side - size) // stride * stride + 1 for side in x.shape[1:3]]
  windows = ops.widen(
    jnp.stack(
      [
        x[:, top : top + ends[0] : stride, left : left + ends[1] : stride]
        for top in range(size)
        for left in range(size)
      ]
    )
  )  # f32[size * size, n, h', w', c]
  sums = jnp.cumsum(lax.stop_gradient(windows), axis=0)
  if uniforms is None:
    total = jnp.where(sums[-1] > 0.0, sums[-1], 1.0)
    return (lax.square(windows).sum(axis=0) / total).astype(x.dtype)
  passed = jnp.sum(sums <= (uniforms * sums[-1])[None], axis=0)
  chosen = jnp.minimum(passed, size * size - 1)
  indices = jnp.arange(size * size).reshape(-1, 1, 1, 1, 1)
  sampled = jnp.where(indices == chosen[None], windows, 0.0).sum(axis=0)
  # Otherwise a NaN, or a sum that overflows, would be dropped unseen.
  sampled = jnp.where(sums[-1] < jnp.inf, sampled, jnp.nan)
  return sampled.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def max_pool_by_slices(x: jax.Array, size: int, stride: int) -> jax.Array:
  """Same result and gradient as `max_pool`, also among equal values."""
  return _forward(x, size, stride)[0]


def _forward(x, size, stride):
  # The first column of each row, then the first row: the order of a window.
  row = functools.reduce(jnp.maximum, _taps(x, COLUMNS, size, stride))
  # As a reduction, which XLA stores; it would compute a maximum again in every
  # operation that reads it.
  window, strides = [1] * x.ndim, [1] * x.ndim
  window[ROWS], strides[ROWS] = size, stride
  y = lax.reduce_window(row, -jnp.inf, lax.max, window, strides, "VALID")
  return y, (x, row, y)


def _backward(size, stride, residuals, gradient):
  x, row, y = residuals
  gradient = _spread(row, y, gradient, ROWS, size, stride)
  return (_spread(x, row, gradient, COLUMNS, size, stride),)


max_pool_by_slices.defvjp(_forward, _backward)


def _taps(x: jax.Array, axis: int, size: int, stride: int) -> list[jax.Array]:
  """Slices of the first values of all windows along an axis, the second, ..."""
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
  """Gradient of x, where y is the maximum of windows of x along an axis.

  Each window's gradient goes to the first value that equals the maximum.
  """
  windows = y.shape[axis]
  # Tap t of window w is value w + t // stride of the phase t % stride, which
  # has every `stride`-th value of x.
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
  interleaved = jnp.stack(phases, axis + 1).reshape(shape)
  # Less than 0: cut off.
  return _pad(interleaved, axis, 0, x.shape[axis] - shape[axis])


def _pad(x: jax.Array, axis: int, before: int, after: int) -> jax.Array:
  padding = [(0, 0, 0)] * x.ndim
  padding[axis] = (before, after, 0)
  return lax.pad(x, jnp.zeros((), x.dtype), padding)
