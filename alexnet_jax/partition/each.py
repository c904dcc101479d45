"""One device's work on every device of a mesh at once, each with its own data.

Nothing is exchanged. Simulated devices share the cores of a machine, and those
of a host its links and its power: what one device takes for its part of a step
is measured while the others are busy with theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def on_each(mesh: jax.sharding.Mesh, function: Callable) -> Callable:
  """A function of one device's blocks, as one of all devices'.

  Args:
    mesh: the devices.
    function: of pytrees of blocks, to a pytree of blocks.

  Returns:
    The same of arrays with a first dimension of devices.
  """
  split = jax.P(mesh.axis_names)

  def on_device(*blocks):
    result = function(*jax.tree.map(lambda x: x[0], blocks))
    return jax.tree.map(lambda x: x[None], result)

  return jax.shard_map(on_device, mesh=mesh, in_specs=split, out_specs=split)


def fill(mesh: jax.sharding.Mesh, blocks: Any, *, seed: int = 0) -> Any:
  """Noise for `on_each`, the same on every device.

  Args:
    mesh: the devices.
    blocks: a pytree of `jax.ShapeDtypeStruct`, of one device.
    seed: of the noise.

  Returns:
    The same with a first dimension of devices: normal, but for bool, where
    half is True, and whole numbers, which are 0.
  """
  rng = np.random.default_rng(seed)
  split = jax.sharding.NamedSharding(mesh, jax.P(mesh.axis_names))

  def place(block):
    noise = _draw(rng, block.shape, block.dtype)
    return jax.device_put(
      np.broadcast_to(noise, (mesh.size, *noise.shape)), split
    )

  return jax.tree.map(place, blocks)


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype):
  if dtype == jnp.bool:
    return rng.integers(0, 2, shape).astype(dtype)
  if jnp.issubdtype(dtype, jnp.integer):
    return np.zeros(shape, dtype)
  return rng.standard_normal(shape, np.float32).astype(dtype)
