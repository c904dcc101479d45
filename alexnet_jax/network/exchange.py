"""The communication that the network needs, as an interface.

The network does not know where its arrays are; what implements this does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

# (input, kernel) -> their convolution or product, on this device.
Product = Callable[[jax.Array, jax.Array], jax.Array]


class Exchange(Protocol):
  """Brings what other devices hold; implemented in `partition/exchange.py`."""

  def multiply(
    self, layer: str, product: Product, x: jax.Array, kernel: jax.Array
  ) -> jax.Array:
    """Applies `product` to the complete input of a layer.

    Brings the part of the input that other devices hold, and completes the sums
    of a layer whose input is split over devices.
    """
    ...

  def add_halo(self, layer: str, x: jax.Array, width: int) -> jax.Array:
    """Adds `width` neighboring maps on each side of a layer's maps.

    Zeros stand beside the first and the last map of the network.
    """
    ...

  def average(self, layer: str, x: jax.Array) -> jax.Array:
    """Averages per-device statistics of a layer over all images."""
    ...

  def vary(self, layer: str, x: jax.Array) -> jax.Array:
    """Returns x, the same on all devices; its gradient is summed over them."""
    ...


class NoExchange:
  """The exchange of a single device, which holds everything."""

  def multiply(
    self, layer: str, product: Product, x: jax.Array, kernel: jax.Array
  ) -> jax.Array:
    return product(x, kernel)

  def add_halo(self, layer: str, x: jax.Array, width: int) -> jax.Array:
    return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((width, width),))

  def average(self, layer: str, x: jax.Array) -> jax.Array:
    return x

  def vary(self, layer: str, x: jax.Array) -> jax.Array:
    return x
