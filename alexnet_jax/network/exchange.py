"""What the network asks of whoever knows where its arrays lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

# Of an input and a kernel, the convolution or product of all they have here.
Product = Callable[[jax.Array, jax.Array], jax.Array]


class Exchange(Protocol):
  """Brings a device what other devices hold; see `partition/exchange.py`."""

  def multiply(
    self, layer: str, product: Product, x: jax.Array, kernel: jax.Array
  ) -> jax.Array:
    """The product of all that `layer` reads, given what this device has.

    Brings what else it reads, and completes the sums of a layer whose input is
    split over devices.
    """
    ...

  def neighbors(self, layer: str, x: jax.Array, reach: int) -> jax.Array:
    """Adds `reach` maps on each side of a layer's maps: zeros at the ends."""
    ...

  def average(self, layer: str, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Averages what devices have found of their own images of a layer.

    Returns:
      The average as one array of all devices, and as this device's own, whose
      gradients are added.
    """
    ...


class NoExchange:
  """The exchange of a single device: everything is here already."""

  def multiply(
    self, layer: str, product: Product, x: jax.Array, kernel: jax.Array
  ) -> jax.Array:
    del layer
    return product(x, kernel)

  def neighbors(self, layer: str, x: jax.Array, reach: int) -> jax.Array:
    del layer
    return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((reach, reach),))

  def average(self, layer: str, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    del layer
    return x, x
