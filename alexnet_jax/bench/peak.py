"""The peak of the devices: large products, and a pass over memory.

All devices work at once, each on its own arrays, without communication.
Simulated devices share the cores of one machine; together they show the peak of
these cores, with one thread for each device or with many. Programs are compiled
when an object is made, with XLA's default options.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

# Side of the matrices: a product takes milliseconds, and three matrices fit.
_SIDES = {"cpu": 2048}
_SIDE = 8192
# Products in a chain, so that the start of a product is hidden.
_PRODUCTS = 3
# Bytes of a CPU, for all simulated devices together: more than its caches hold.
# Bytes on each device of another platform.
_CPU_BYTES, _BYTES = 2**29, 2**30
# The precision of a float32 product by default, which a step does not change.
# Source: JAX, jax.default_matmul_precision.
_DEFAULT_PRECISIONS = {
  "cpu": "float32",
  "gpu": "float32, at JAX's default precision: TF32 where the GPU has it",
  "tpu": "float32, at JAX's default precision: rounded to bfloat16 before",
}


def describe_precision(platform: str, dtype: str) -> str:
  """Describes how a product of a dtype is computed."""
  if dtype == "float32":
    return _DEFAULT_PRECISIONS.get(platform, dtype)
  return f"{dtype}, added in float32 where the platform does so"


def choose_side(platform: str) -> int:
  """Side of matrices whose product reaches the peak of a platform."""
  return _SIDES.get(platform, _SIDE)


class Product:
  """Products of square matrices, on devices of one platform."""

  def __init__(self, devices: Sequence[jax.Device], dtype: str):
    side = choose_side(devices[0].platform)
    self._flops = _PRODUCTS * len(devices) * 2 * side**3
    # Factors of 1 / side keep all products finite.
    self._factors = [
      jnp.full((side, side), 1 / side, dtype, device=device)
      for device in devices
    ]
    self._multiply = _compile(jnp.matmul, [(x, x) for x in self._factors])

  def measure(self) -> float:
    """FLOP/s of all devices together."""

    def multiply() -> list[jax.Array]:
      xs = self._factors
      for _ in range(_PRODUCTS):
        xs = [
          operation(x, factor)
          for operation, x, factor in zip(
            self._multiply, xs, self._factors, strict=True
          )
        ]
      return xs

    return self._flops / _time(multiply)


class Copy:
  """A pass over memory: every element is read and written in place.

  In place, so that the system need not map fresh memory.
  """

  def __init__(self, devices: Sequence[jax.Device]):
    is_cpu = devices[0].platform == "cpu"
    size = (_CPU_BYTES // len(devices) if is_cpu else _BYTES) // 4  # of float32
    self._bytes = 2 * size * 4 * len(devices)
    self._xs = [jnp.zeros(size, jnp.float32, device=d) for d in devices]
    self._add = _compile(
      lambda x: x + 1, [(x,) for x in self._xs], donate_argnums=0
    )
    self.measure()  # the first pass maps the memory

  def measure(self) -> float:
    """Bytes per second, read and written, of all devices together."""

    def add() -> list[jax.Array]:
      self._xs = [add(x) for add, x in zip(self._add, self._xs, strict=True)]
      return self._xs

    return self._bytes / _time(add)


def _compile(
  operation: Callable[..., jax.Array], arguments: Sequence[tuple], **options
) -> list[jax.stages.Compiled]:
  """Compiles for the device of each tuple of arguments."""
  jitted = jax.jit(operation, **options)
  return [jitted.lower(*given).compile() for given in arguments]


def _time(work: Callable[[], list[jax.Array]]) -> float:
  begin = time.perf_counter()
  jax.block_until_ready(work())
  return time.perf_counter() - begin
