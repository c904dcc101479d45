"""What the devices can do at most: large products, and a pass over memory.

Each works on all devices of a mesh at once, each device on arrays of its own,
and nothing is exchanged. Simulated devices share the cores of one machine; all
of them together are then the peak of these cores, whether a device computes on
one thread or on all. Each is compiled when it is made, with XLA's own options.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

# Side of the matrices: a product takes milliseconds, and three matrices fit.
_SIDES = {"cpu": 2048}
_SIDE = 8192
# Products that wait for each other, so that starting them costs nothing.
_PRODUCTS = 3
# Of a CPU, over all simulated devices: more than its caches hold. Of others,
# on each.
_CPU_BYTES, _BYTES = 2**29, 2**30
# What a float32 product is computed with unless more is asked for, as a step
# does not. Source: JAX, jax.default_matmul_precision.
_DEFAULT_PRECISIONS = {
  "cpu": "float32",
  "gpu": "float32, at JAX's default precision: TF32 where the GPU has it",
  "tpu": "float32, at JAX's default precision: rounded to bfloat16 before",
}


def describe_precision(platform: str, dtype: str) -> str:
  """How a product of a type is computed, in words."""
  if dtype == "float32":
    return _DEFAULT_PRECISIONS.get(platform, dtype)
  return f"{dtype}, added in float32 where the platform does so"


class Product:
  """Products of square matrices.

  Args:
    devices: of one platform.
    dtype: of the matrices, `float32` or `bfloat16`.
  """

  def __init__(self, devices: Sequence[jax.Device], dtype: str):
    side = _SIDES.get(devices[0].platform, _SIDE)
    self._flops = _PRODUCTS * len(devices) * 2 * side**3
    # Of all 1 / side: products stay finite, whatever they are multiplied by.
    factors = [
      jnp.full((side, side), 1 / side, dtype, device=device)
      for device in devices
    ]
    self._xs, self._factors = factors, factors
    self._multiply = _compile(jnp.matmul, [(x, x) for x in factors])

  def measure(self) -> float:
    """FLOP/s of all devices together."""

    def multiply() -> list[jax.Array]:
      xs = self._xs
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
  """A pass over memory: every element is read, and written where it was.

  In place, so that no fresh memory has to be brought in by the system.

  Args:
    devices: of one platform.
  """

  def __init__(self, devices: Sequence[jax.Device]):
    held = _BYTES
    if devices[0].platform == "cpu":
      held = _CPU_BYTES // len(devices)
    size = held // jnp.dtype(jnp.float32).itemsize
    self._bytes = 2 * size * 4 * len(devices)
    self._xs = [jnp.zeros(size, jnp.float32, device=d) for d in devices]
    self._add = _compile(
      lambda x: x + 1, [(x,) for x in self._xs], donate_argnums=0
    )
    self.measure()  # the first brings the memory in

  def measure(self) -> float:
    """Bytes a second, read and written, of all devices together."""

    def add() -> list[jax.Array]:
      self._xs = [add(x) for add, x in zip(self._add, self._xs, strict=True)]
      return self._xs

    return self._bytes / _time(add)


def _compile(
  operation: Callable[..., jax.Array], arguments: Sequence[tuple], **options
) -> list[jax.stages.Compiled]:
  """For the device of each tuple of arguments."""
  jitted = jax.jit(operation, **options)
  return [jitted.lower(*given).compile() for given in arguments]


def _time(work: Callable[[], list[jax.Array]]) -> float:
  begin = time.perf_counter()
  jax.block_until_ready(work())
  return time.perf_counter() - begin
