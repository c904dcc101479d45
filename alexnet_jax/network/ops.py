"""The operations of 2012 that libraries no longer bring along."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.network import wiring


def local_response_norm(
  x: jax.Array,
  *,
  groups: int,
  size: int = 5,
  k: float = 2.0,
  alpha: float = 2e-5,
  beta: float = 0.75,
  wide: jax.Array | None = None,
) -> jax.Array:
  """Divides each value by a power of its neighbours' energy across channels.

  y[i] = x[i] / (k + alpha * sum of x[j]^2 over |j - i| <= size // 2) ^ beta.
  The sum ends at the first and last channel of a column.

  Args:
    x: f32[n, h, w, c], the channels on this device; of another type, it is
      computed in float32 nevertheless.
    groups: columns on this device; neighbours never cross a column.
    size: channels in the window, odd.
    k: what the energy is added to.
    alpha: factor of the plain sum. The paper's 1e-4 was divided by the window
      of 5 in the released code, which gives the 2e-5 used here.
    beta: the power.
    wide: f32[n, h, w, c + 2 * (size // 2)], x between the channels that stand
      on either side of it; with one group. None: nothing does.

  Returns:
    f32[n, h, w, c], or the type of x.

  Raises:
    ValueError: size is even, or groups does not divide c.

  Source: Krizhevsky et al. 2012, section 3.3; constants as in cuda-convnet,
  layer-params-145.cfg.
  """
  channels = x.shape[-1]
  if size % 2 == 0:
    raise ValueError(f"size is {size}, expected an odd number of channels.")
  if channels % groups:
    raise ValueError(f"{groups} groups do not divide {channels} channels.")
  grouped = x.reshape(*x.shape[:-1], groups, channels // groups)
  grouped = grouped.astype(jnp.float32)
  read, padding = grouped, size // 2
  if wide is not None:
    read, padding = wide[..., None, :].astype(jnp.float32), 0
  energy = lax.reduce_window(
    lax.square(read),
    0.0,
    lax.add,
    window_dimensions=(1, 1, 1, 1, size),
    window_strides=(1, 1, 1, 1, 1),
    padding=((0, 0),) * 4 + ((padding, padding),),
  )
  denominator = k + alpha * energy
  if beta == 0.75:  # d^-3/4 from square roots: several times faster than pow
    root = lax.rsqrt(denominator)
    scale = root * lax.sqrt(root)
  else:
    scale = denominator**-beta
  return (grouped * scale).reshape(x.shape).astype(x.dtype)


def activate(x: jax.Array, name: str) -> jax.Array:
  """One of `wiring.ACTIVATIONS`, or `linear`, which is nothing."""
  if name == "linear":
    return x
  return {"relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}[
    name
  ](x)


def pool(x: jax.Array, row: wiring.Pool) -> jax.Array:
  """The pooling of a row of the table.

  Args:
    x: f32[n, h, w, c].
    row: its window, its stride, and its kind.

  Returns:
    f32[n, (h - window) // stride + 1, (w - window) // stride + 1, c].
  """
  pools = {"max": max_pool, "average": average_pool}
  return pools[row.kind](x, size=row.window, stride=row.stride)


def average_pool(x: jax.Array, *, size: int, stride: int) -> jax.Array:
  """The mean of each window; arguments and result as of `max_pool`."""
  total = lax.reduce_window(
    x,
    0.0,
    lax.add,
    window_dimensions=(1, size, size, 1),
    window_strides=(1, stride, stride, 1),
    padding="VALID",
  )
  return total / size**2


def max_pool(x: jax.Array, *, size: int = 3, stride: int = 2) -> jax.Array:
  """The largest value of each window; windows overlap where size > stride.

  Of equal values the first one, row by row, receives the gradient.

  Args:
    x: f32[n, h, w, c].
    size: side of the window, in pixels.
    stride: distance between windows, in pixels.

  Returns:
    f32[n, (h - size) // stride + 1, (w - size) // stride + 1, c].

  Source: Krizhevsky et al. 2012, section 3.4.
  """
  return lax.reduce_window(
    x,
    -jnp.inf,
    lax.max,
    window_dimensions=(1, size, size, 1),
    window_strides=(1, stride, stride, 1),
    padding="VALID",
  )


def drop(
  x: jax.Array, mask: jax.Array | None, *, keep: float, scaling: str
) -> jax.Array:
  """Dropout, by a mask that was drawn elsewhere.

  Args:
    x: f32[...].
    mask: bool[...], False where a value is dropped; None in evaluation.
    keep: probability of True in the mask, in (0, 1].
    scaling: of `wiring.DROPOUT_SCALINGS`: `test`, as in Krizhevsky et al. 2012,
      section 4.2, values are multiplied by `keep` in evaluation; `train`, what
      is left is divided by it in training. Both have the same expectation.

  Returns:
    f32[...].
  """
  if mask is None:
    return x * keep if scaling == "test" else x
  x = x * mask.astype(x.dtype)
  return x / keep if scaling == "train" else x


def shift(x: jax.Array, bias: jax.Array) -> jax.Array:
  """Adds a bias, in float32: its gradient is a sum over all positions.

  Args:
    x: [n, ..., c], of any type.
    bias: f32[c].

  Returns:
    [n, ..., c], in the type of x.
  """
  return (x.astype(jnp.float32) + _for_each(bias, x)).astype(x.dtype)


def moments(x: jax.Array, *, around: jax.Array) -> jax.Array:
  """Means of the distances from a value, and of their squares, by channel.

  Args:
    x: [n, ..., c], of any type.
    around: f32[c].

  Returns:
    f32[2, c]. The average of those of several blocks of one size is that of
    them all.
  """
  distance = x.astype(jnp.float32) - _for_each(lax.stop_gradient(around), x)
  places = tuple(range(x.ndim - 1))
  return jnp.stack([distance.mean(places), lax.square(distance).mean(places)])


def to_statistics(
  found: jax.Array, *, around: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Mean and variance, f32[c] each, from what `moments` returns."""
  mean, square = found
  return mean + around, jnp.maximum(square - lax.square(mean), 0.0)


def batch_norm(
  x: jax.Array,
  *,
  mean: jax.Array,
  variance: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  epsilon: float = 1e-5,
) -> jax.Array:
  """scale * (x - mean) / sqrt(variance + epsilon) + bias, in float32.

  Args:
    x: [n, ..., c], of any type.
    mean: f32[c].
    variance: f32[c], without Bessel's correction.
    scale: f32[c].
    bias: f32[c].
    epsilon: keeps a channel that is constant finite.

  Returns:
    [n, ..., c], in the type of x.

  Source: Ioffe and Szegedy 2015, "Batch normalization", algorithm 1.
  """
  factor = scale * lax.rsqrt(variance + epsilon)
  centred = x.astype(jnp.float32) - _for_each(mean, x)
  y = centred * _for_each(factor, x) + _for_each(bias, x)
  return y.astype(x.dtype)


def _for_each(values: jax.Array, x: jax.Array) -> jax.Array:
  """Values of channels, f32[c], so that they go with x: f32[1, ..., c]."""
  return jnp.expand_dims(values, tuple(range(x.ndim - 1)))
