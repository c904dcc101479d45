"""What a layer does beside its product: activations, pooling, LRN, dropout."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.network import exchange as exchange_lib
from alexnet_jax.network import pooling, wiring


def local_response_norm(
  x: jax.Array,
  *,
  groups: int,
  size: int = 5,
  k: float = 2.0,
  alpha: float = 2e-5,
  beta: float = 0.75,
  wide: jax.Array | None = None,
  form: str = "window",
) -> jax.Array:
  """Divides each value by a power of its neighbors' energy across channels.

  y[i] = x[i] / (k + alpha * sum of x[j]^2 over |j - i| <= size // 2) ^ beta.
  The sum ends at the first and last channel of a column.

  Args:
    x: f32[n, h, w, c], the channels on this device; of another type, it is
      computed in float32 nevertheless.
    groups: columns on this device; neighbors never cross a column.
    size: channels in the window, odd.
    k: what the energy is added to.
    alpha: factor of the plain sum. The paper's 1e-4 was divided by the window
      of 5 in the released code, which gives the 2e-5 used here.
    beta: the power.
    wide: f32[n, h, w, c + 2 * (size // 2)], x between the channels that stand
      on either side of it; with one group. None: nothing does.
    form: of the energy, see `implementations.Forms.norm`.

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
  if wide is None and beta == 0.75:
    y = _normalize(grouped, size, k, alpha, form)
  else:
    read, padding = grouped, size // 2
    if wide is not None:
      read, padding = wide[..., None, :].astype(jnp.float32), 0
    energy = _energy(lax.square(read), size=size, padding=padding, form=form)
    y = grouped / _power(k + alpha * energy, beta)
  return y.reshape(x.shape).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _normalize(
  x: jax.Array, size: int, k: float, alpha: float, form: str
) -> jax.Array:
  """Over the channels of x, f32[..., c], to the power of 3/4.

  With a gradient of its own, which is again one sum over windows, and for which
  what was normalized serves as it is: a third of the passes over memory.
  """
  return _normalize_forward(x, size, k, alpha, form)[0]


def _normalize_forward(x, size, k, alpha, form):
  window = {"size": size, "padding": size // 2, "form": form}
  denominator = k + alpha * _energy(lax.square(x), **window)
  y = x / _power(denominator, 0.75)
  return y, (x, y, denominator)


def _normalize_backward(size, k, alpha, form, residuals, gradient):
  del k
  x, y, denominator = residuals
  window = {"size": size, "padding": size // 2, "form": form}
  # Of all values that have x in their window, which is as wide on both sides.
  shared = _energy(gradient * y / denominator, **window)
  own = gradient / _power(denominator, 0.75)
  return (own - 2.0 * 0.75 * alpha * x * shared,)


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _power(x: jax.Array, beta: float) -> jax.Array:
  """x^beta, for a division by it, which XLA does not compute twice."""
  if beta == 0.75:  # from square roots: several times faster than pow
    return lax.sqrt(x * lax.sqrt(x))
  return x**beta


def _energy(
  squares: jax.Array, *, size: int, padding: int, form: str
) -> jax.Array:
  """Sums over `size` channels in a row, `padding` zeros beside the outer ones.

  Args:
    squares: f32[..., c], or whatever is to be added up.
    form: see `implementations.Forms.norm`.

  Returns:
    f32[..., c + 2 * padding - size + 1].
  """
  channels = squares.shape[-1] + 2 * padding - size + 1
  sides = ((0, 0),) * (squares.ndim - 1) + ((padding, padding),)
  if form == "slices":
    padded = jnp.pad(squares, sides)
    return sum(padded[..., at : at + channels] for at in range(size))
  if form == "product":
    reads = jnp.arange(squares.shape[-1])[:, None] + padding
    skipped = reads - jnp.arange(channels)[None]
    band = ((skipped >= 0) & (skipped < size)).astype(jnp.float32)
    # Accelerators would round to fewer digits.
    return jnp.matmul(squares, band, precision=lax.Precision.HIGHEST)
  ones = (1,) * (squares.ndim - 1)
  return lax.reduce_window(
    squares,
    0.0,
    lax.add,
    window_dimensions=(*ones, size),
    window_strides=(*ones, 1),
    padding=sides,
  )


def activate(x: jax.Array, name: str) -> jax.Array:
  """One of `wiring.ACTIVATIONS`, or `linear`, which is nothing."""
  if name == "linear":
    return x
  return {"relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}[
    name
  ](x)


def pool(
  x: jax.Array,
  row: wiring.Pool,
  points: jax.Array | None = None,
  *,
  form: str = "window",
) -> jax.Array:
  """The pooling of a row of the table.

  Args:
    x: f32[n, h, w, c].
    row: its window, its stride, and its kind.
    points: what stochastic pooling draws; None in evaluation.
    form: of max pooling, see `implementations.Forms.pool`.

  Returns:
    f32[n, (h - window) // stride + 1, (w - window) // stride + 1, c].
  """
  if row.kind == "stochastic":
    return stochastic_pool(x, points, size=row.window, stride=row.stride)
  if row.kind == "max" and form == "slices":
    return pooling.max_pool(x, row.window, row.stride)
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


def stochastic_pool(
  x: jax.Array, points: jax.Array | None, *, size: int, stride: int
) -> jax.Array:
  """One value of each window, drawn in proportion to the values.

  Args:
    x: f32[n, h, w, c], 0 or more.
    points: f32[n, h', w', c], uniform in [0, 1), the place in the running sum
      of a window, row by row, whose value is taken and receives the gradient;
      None: the average of the window, weighted by its values.
    size: side of the window, in pixels.
    stride: distance between windows, in pixels.

  Returns:
    f32[n, (h - size) // stride + 1, (w - size) // stride + 1, c]; 0 where a
    window has nothing else.

  Source: Zeiler and Fergus 2013, "Stochastic pooling for regularization of
  deep convolutional neural networks", section 3.
  """
  ends = [(side - size) // stride * stride + 1 for side in x.shape[1:3]]
  windows = jnp.stack(
    [
      x[:, top : top + ends[0] : stride, left : left + ends[1] : stride]
      for top in range(size)
      for left in range(size)
    ]
  ).astype(jnp.float32)  # f32[size * size, n, h', w', c]
  sums = jnp.cumsum(lax.stop_gradient(windows), axis=0)
  if points is None:
    total = jnp.where(sums[-1] > 0.0, sums[-1], 1.0)
    return (lax.square(windows).sum(axis=0) / total).astype(x.dtype)
  passed = jnp.sum(sums <= (points * sums[-1])[None], axis=0)
  chosen = jnp.minimum(passed, size * size - 1)
  places = jnp.arange(size * size).reshape(-1, 1, 1, 1, 1)
  drawn = jnp.where(places == chosen[None], windows, 0.0)
  return drawn.sum(axis=0).astype(x.dtype)


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


def shift(x: jax.Array, bias: jax.Array, *, form: str = "sum") -> jax.Array:
  """Adds a bias, in float32: its gradient is a sum over all positions.

  Args:
    x: [n, ..., c], of any type.
    bias: f32[c].
    form: of the gradient, see `implementations.Forms.bias`.

  Returns:
    [n, ..., c], in the type of x.
  """
  if form == "product":
    return _shift(x, bias)
  return (x.astype(jnp.float32) + for_each(bias, x)).astype(x.dtype)


@jax.custom_vjp
def _shift(x: jax.Array, bias: jax.Array) -> jax.Array:
  return shift(x, bias)


def _shift_forward(x, bias):
  return shift(x, bias), None


def _shift_backward(_, gradient):
  rows = gradient.reshape(-1, gradient.shape[-1])
  ones = jnp.ones((1, rows.shape[0]), rows.dtype)
  total = jnp.matmul(ones, rows, preferred_element_type=jnp.float32)
  return gradient, total.reshape(-1)


_shift.defvjp(_shift_forward, _shift_backward)


def for_each(values: jax.Array, x: jax.Array) -> jax.Array:
  """Values of channels, f32[c], so that they go with x: f32[1, ..., c]."""
  return jnp.expand_dims(values, tuple(range(x.ndim - 1)))


if TYPE_CHECKING:
  from alexnet_jax.network import model


def by_neighbors(
  network: wiring.Network,
  layer: wiring.Layer,
  x: jax.Array,
  exchange: exchange_lib.Exchange,
  *,
  form: str = "window",
) -> jax.Array:
  """Local response normalization, where there is any: f32[n, h, w, maps]."""
  sizes = {
    "size": wiring.LRN_SIZE,
    "k": network.lrn_k,
    "alpha": network.lrn_alpha,
    "form": form,
  }
  if layer.normalize == "column":
    columns_here = x.shape[-1] * network.columns // layer.features
    return local_response_norm(x, groups=columns_here, **sizes)
  if layer.normalize == "across":
    wide = exchange.neighbors(layer.name, x, layer.reach)
    return local_response_norm(x, groups=1, wide=wide, **sizes)
  return x


def by_batch(
  layer: wiring.Layer,
  weights: model.Weights,
  x: jax.Array,
  exchange: exchange_lib.Exchange,
  *,
  trains: bool,
  momentum: float,
) -> jax.Array:
  """Batch normalization over the whole batch: f32[n, h, w, maps], [n, units].

  Sums and sums of squares are exchanged together, once. Their difference would
  lose digits where the mean is far from 0, so both are taken around the running
  mean, which every device has.
  """
  mean, variance = weights.mean[...], weights.variance[...]
  if trains:
    whole, here = exchange.average(layer.name, moments(x, around=mean))
    found = to_statistics(whole, around=mean)
    mean, variance = to_statistics(here, around=mean)
    for running, new in zip(
      (weights.mean, weights.variance), found, strict=True
    ):
      running[...] = momentum * running[...] + (1.0 - momentum) * new
  return batch_norm(
    x,
    mean=mean,
    variance=variance,
    scale=weights.scale[...],
    bias=weights.bias[...],
  )


def moments(x: jax.Array, *, around: jax.Array) -> jax.Array:
  """Means of the distances from a value, and of their squares, by channel.

  Args:
    x: [n, ..., c], of any type.
    around: f32[c].

  Returns:
    f32[2, c]. The average of those of several blocks of one size is that of
    them all.
  """
  distance = x.astype(jnp.float32) - for_each(lax.stop_gradient(around), x)
  places = tuple(range(1, x.ndim - 1))
  # First of each image: one long sum of float32 would lose digits.
  return jnp.stack(
    [values.mean(places).mean(0) for values in (distance, lax.square(distance))]
  )


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
  centered = x.astype(jnp.float32) - for_each(mean, x)
  y = centered * for_each(factor, x) + for_each(bias, x)
  return y.astype(x.dtype)
