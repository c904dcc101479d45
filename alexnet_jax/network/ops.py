"""Operations on arrays: activation, normalization, bias, dropout.

They know neither the network's table nor other devices; `model.py` puts them
together. Pooling is in `pooling.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Keeps the result of a batch normalization finite for a constant channel.
BATCH_NORM_EPSILON = 1e-5


def widen(x: jax.Array) -> jax.Array:
  """Converts bfloat16 to float32; leaves float32 and float64 as they are."""
  return x.astype(np.promote_types(x.dtype, np.float32))


def activate(x: jax.Array, name: str) -> jax.Array:
  """Applies one of `wiring.ACTIVATIONS`, or `linear`, the identity."""
  if name == "linear":
    return x
  activations = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
  }
  return activations[name](x)


def local_response_norm(
  x: jax.Array,
  *,
  groups: int,
  size: int = 5,
  k: float = 2.0,
  alpha: float = 2e-5,
  beta: float = 0.75,
  with_halo: jax.Array | None = None,
) -> jax.Array:
  """Divides each value by a power of its neighbors' energy across channels.

  y[i] = x[i] / (k + alpha * sum of x[j]^2 over |j - i| <= size // 2) ^ beta.
  The sum ends at the first and last channel of a column.

  Args:
    x: f32[n, h, w, c], the channels on this device. bfloat16 is converted to
      float32 for the computation.
    groups: columns on this device; neighbors never cross a column.
    size: channels in the window, odd.
    alpha: factor of the plain sum. The paper's 1e-4 was divided by the window
      of 5 in the released code, which gives the 2e-5 used here.
    with_halo: f32[n, h, w, c + 2 * (size // 2)], x with its neighboring
      channels on both sides, for one group. None: zeros on both sides.

  Returns:
    f32[n, h, w, c], in the type of x.

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
  grouped = widen(grouped)
  if with_halo is None:
    y = _normalize(grouped, _CHANNELS, size, k, alpha, beta)
  else:
    window = widen(with_halo[..., None, :])
    energy = _window_sum(lax.square(window), _CHANNELS, size=size, padding=0)
    y = grouped / _power(k + alpha * energy, beta)
  return y.reshape(x.shape).astype(x.dtype)


def same_map_norm(
  x: jax.Array, *, size: int, k: float, alpha: float, beta: float
) -> jax.Array:
  """Divides each value by a power of its neighbors' energy in the same map.

  y = x / (k + alpha * sum of x^2 over size x size neighbors) ^ beta, with zeros
  around the map.

  Args:
    x: f32[n, h, w, c]; bfloat16 is converted to float32 for the computation.
    size: side of the window in pixels, odd.
    k, alpha, beta: as of `local_response_norm`; alpha is not divided by the
      number of neighbors.

  Returns:
    f32[n, h, w, c], in the type of x.

  Source: `rnorm` of cuda-convnet, layer.py and layers-145.cfg.
  """
  return _normalize(widen(x), _MAP, size, k, alpha, beta).astype(x.dtype)


# Axes of a window over channels, and in a map, of f32[n, h, w, c].
_CHANNELS, _MAP = (-1,), (1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _normalize(
  x: jax.Array,
  axes: tuple[int, ...],
  size: int,
  k: float,
  alpha: float,
  beta: float,
) -> jax.Array:
  """Normalizes over windows along some axes of x, with zeros around it.

  The custom gradient is again one sum over windows, and reuses the forward
  result: a third of the passes over memory.
  """
  return _normalize_forward(x, axes, size, k, alpha, beta)[0]


def _normalize_forward(x, axes, size, k, alpha, beta):
  energy = _window_sum(lax.square(x), axes, size=size, padding=size // 2)
  denominator = k + alpha * energy
  y = x / _power(denominator, beta)
  return y, (x, y, denominator)


def _normalize_backward(axes, size, k, alpha, beta, residuals, gradient):
  del k
  x, y, denominator = residuals
  # Over all values that have x in their window, which is as wide on both sides.
  from_neighbors = _window_sum(
    gradient * y / denominator, axes, size=size, padding=size // 2
  )
  own = gradient / _power(denominator, beta)
  return (own - 2.0 * beta * alpha * x * from_neighbors,)


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _power(x: jax.Array, beta: float) -> jax.Array:
  """x^beta, to divide by; XLA does not compute it twice.

  NaN where it overflows: a division by infinity would hide that as a 0.
  """
  if beta != 0.75:
    power = x**beta
    return jnp.where(power < jnp.inf, power, jnp.nan)
  # From square roots: several times faster than pow. The outer one comes last,
  # so that XLA multiplies by its reciprocal.
  cube = x * lax.sqrt(x)
  return lax.sqrt(jnp.where(cube < jnp.inf, cube, jnp.nan))


def _window_sum(
  x: jax.Array, axes: tuple[int, ...], *, size: int, padding: int
) -> jax.Array:
  """Sums over `size` neighbors, with `padding` zeros at both ends.

  Along one axis after the other.
  """
  for axis in axes:
    window, pads = [1] * x.ndim, [(0, 0)] * x.ndim
    window[axis], pads[axis] = size, (padding, padding)
    x = lax.reduce_window(x, 0.0, lax.add, window, (1,) * x.ndim, pads)
  return x


def batch_norm(
  x: jax.Array,
  *,
  mean: jax.Array,
  variance: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  vary: Callable[[jax.Array], jax.Array] | None = None,
  epsilon: float = BATCH_NORM_EPSILON,
) -> jax.Array:
  """scale * (x - mean) / sqrt(variance + epsilon) + bias, in float32.

  Args:
    x: [n, ..., c], of any type.
    mean, scale, bias: f32[c].
    variance: f32[c], without Bessel's correction.
    vary: in training: f32[2, c] -> the same values, whose gradients are summed
      over all images. The gradients of mean, variance, scale and bias follow
      from these two.
    epsilon: added to the variance.

  Returns:
    [n, ..., c], in the type of x.

  Source: Ioffe and Szegedy 2015, "Batch normalization", algorithm 1.
  """
  # A division by a variance that overflows would make every value a 0.
  variance = jnp.where(variance < jnp.inf, variance, jnp.nan)
  factor = scale * lax.rsqrt(variance + epsilon)
  # The difference is 0 and carries the gradient of the mean.
  center = lax.stop_gradient(mean)
  shift = bias - (mean - center) * factor
  if vary is not None:
    factor, shift = vary(jnp.stack([factor, shift]))
  centered = widen(x) - _per_channel(center, x)
  y = centered * _per_channel(factor, x) + _per_channel(shift, x)
  return y.astype(x.dtype)


def moments(
  x: jax.Array,
  *,
  center: jax.Array,
  average: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
  """Mean and variance of a batch by channel, in two passes.

  In one pass, around a center that is not near the mean, the variance would be
  a small difference of large numbers.

  Args:
    x: [n, ..., c], of any type: a device's part of the batch.
    center: f32[c], near the mean if possible, so that the mean keeps its
      digits.
    average: f32[c] -> f32[c], the average over parts of equal size.

  Returns:
    f32[c] each; the variance is without Bessel's correction.
  """
  mean = center + average(_mean_distance(x, center))
  # The variance does not depend on the mean to first order, so its gradient
  # need not either.
  squares = _mean_distance(x, lax.stop_gradient(mean), lax.square)
  return mean, average(squares)


def _mean_distance(
  x: jax.Array,
  center: jax.Array,
  function: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
  """Mean of x - center, or of a function of it, by channel: f32[c]."""
  distance = widen(x) - _per_channel(center, x)
  if function is not None:
    distance = function(distance)
  # Each image first: one long sum of float32 would lose digits.
  return distance.mean(tuple(range(1, x.ndim - 1))).mean(0)


def add_bias(
  x: jax.Array, bias: jax.Array, *, implementation: str = "sum"
) -> jax.Array:
  """Adds a bias, in float32: its gradient is a sum over all positions.

  Args:
    x: [n, ..., c], of any type.
    bias: f32[c].
    implementation: of the gradient, see `implementations.Implementations.bias`.

  Returns:
    [n, ..., c], in the type of x.
  """
  if implementation == "product":
    return _add_bias(x, bias)
  return (widen(x) + _per_channel(bias, x)).astype(x.dtype)


@jax.custom_vjp
def _add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
  return add_bias(x, bias)


def _add_bias_forward(x, bias):
  return add_bias(x, bias), None


def _add_bias_backward(_, gradient):
  rows = gradient.reshape(-1, gradient.shape[-1])
  ones = jnp.ones((1, rows.shape[0]), rows.dtype)
  total = jnp.matmul(
    ones, rows, preferred_element_type=np.promote_types(rows.dtype, np.float32)
  )
  return gradient, total.reshape(-1)


_add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def _per_channel(values: jax.Array, x: jax.Array) -> jax.Array:
  """Expands f32[c] to f32[1, ..., c], of the rank of x."""
  return jnp.expand_dims(values, tuple(range(x.ndim - 1)))


def dropout(
  x: jax.Array, mask: jax.Array | None, *, keep: float, scaling: str
) -> jax.Array:
  """Applies dropout with a given mask.

  Args:
    x: f32[...].
    mask: bool[...], False where a value is dropped; None in evaluation.
    keep: probability of True in the mask, in (0, 1].
    scaling: one of `wiring.DROPOUT_SCALINGS`: `test` multiplies by `keep` in
      evaluation, as in Krizhevsky et al. 2012, section 4.2; `train` divides by
      it in training. Both have the same expectation.
  """
  if mask is None:
    return x * keep if scaling == "test" else x
  x = x * mask.astype(x.dtype)
  return x / keep if scaling == "train" else x
