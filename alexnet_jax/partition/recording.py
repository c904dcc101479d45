"""Summarizes the input of every layer while a mapped network runs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from alexnet_jax.partition import exchange as exchange_lib

# What the first layer reads, by the name under which it is recorded.
IMAGES = "images"


class RecordingExchange:
  """An exchange that summarizes all inputs of layers and of the loss.

  Attributes:
    summaries: {the layer that computed it: f32[1, 2], see `summarize`}, of the
      values on this device, in the order of the network, the images first.
  """

  def __init__(self, exchange: exchange_lib.MeshExchange):
    self.summaries: dict[str, jax.Array] = {}
    self._exchange = exchange
    self._computed_by = IMAGES

  def multiply(self, layer, product, x, kernel) -> jax.Array:
    self._record(layer, x)
    return self._exchange.multiply(layer, product, x, kernel)

  def reshard_input(self, layer: str, x: jax.Array) -> jax.Array:
    self._record(layer, x)
    return self._exchange.reshard_input(layer, x)

  def _record(self, reader: str, x: jax.Array) -> None:
    self.summaries[self._computed_by] = summarize(x)[None]
    self._computed_by = reader

  def __getattr__(self, name: str) -> Any:
    """Delegates everything else."""
    return getattr(self._exchange, name)


def summarize(x: jax.Array) -> jax.Array:
  """Returns f32[2]: the count of non-finite values, the largest finite |x|."""
  x = lax.stop_gradient(x).astype(jnp.float32)
  finite = jnp.isfinite(x)
  return jnp.stack(
    [
      jnp.sum(~finite, dtype=jnp.float32),
      jnp.max(jnp.where(finite, jnp.abs(x), 0.0)),
    ]
  )


def summary_spec(mesh: jax.sharding.Mesh) -> PartitionSpec:
  """Returns the spec of summaries, f32[devices, 2]; it needs no exchange."""
  return PartitionSpec(mesh.axis_names)
