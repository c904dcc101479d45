"""The normalisation of a layer: by neighbouring maps, or by the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.network import exchange as exchange_lib
from alexnet_jax.network import ops, wiring

if TYPE_CHECKING:
  from alexnet_jax.network import model


def by_neighbours(
  network: wiring.Network,
  layer: wiring.Layer,
  x: jax.Array,
  exchange: exchange_lib.Exchange,
  *,
  form: str = "window",
) -> jax.Array:
  """Local response normalisation, where there is any: f32[n, h, w, maps]."""
  sizes = {
    "size": wiring.LRN_SIZE,
    "k": network.lrn_k,
    "alpha": network.lrn_alpha,
    "form": form,
  }
  if layer.normalise == "column":
    columns_here = x.shape[-1] * network.columns // layer.features
    return ops.local_response_norm(x, groups=columns_here, **sizes)
  if layer.normalise == "across":
    wide = exchange.neighbours(layer.name, x, layer.reach)
    return ops.local_response_norm(x, groups=1, wide=wide, **sizes)
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
  """Batch normalisation over the whole batch: f32[n, h, w, maps], [n, units].

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
  distance = x.astype(jnp.float32) - ops.for_each(lax.stop_gradient(around), x)
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
  centred = x.astype(jnp.float32) - ops.for_each(mean, x)
  y = centred * ops.for_each(factor, x) + ops.for_each(bias, x)
  return y.astype(x.dtype)
