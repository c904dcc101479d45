"""Checksums of arrays, equal under every layout and in any number of processes.

A checksum is two sums, modulo 2^32, over the elements of an array. Each term
mixes the bits of an element with its position in the global array. Integers
have the same sum in any order. A change of one element always changes the
checksum; any other change goes unnoticed with a probability of about 2^-64. A
program of its own computes it on the devices where the arrays are.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# 2^32 over the golden ratio, and a prime of xxHash: any odd numbers that spread
# the bits of an index would do.
_SPREAD, _MIX = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


class Checksum(NamedTuple):
  """The checksum of one array.

  Attributes:
    dtype: its name.
    shape: global.
    sums: 16 hexadecimal digits.
    not_finite: how many elements are infinite or nan; 0 for integers.
  """

  dtype: str
  shape: tuple[int, ...]
  sums: str
  not_finite: int


def compute(tree: Any) -> dict[str, Checksum]:
  """Returns the checksum of each array of a tree, by its path: `a.0.b`.

  Args:
    tree: of global arrays; all processes that hold a part of them call this.

  Raises:
    TypeError: an array has elements of 8 bytes.
  """
  named = [
    (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
    for path, leaf in jax.tree.leaves_with_path(tree)
  ]
  for name, leaf in named:
    if leaf.dtype.itemsize not in _WORDS:
      raise TypeError(
        f"{name} is of type {leaf.dtype}, expected one of at most 4 bytes."
      )
  sums = jax.device_get(_sum([leaf for _, leaf in named]))
  return {
    name: Checksum(
      str(leaf.dtype), leaf.shape, f"{first:08x}{second:08x}", int(bad)
    )
    for (name, leaf), (first, second, bad) in zip(named, sums, strict=True)
  }


@jax.jit
def _sum(leaves: list[jax.Array]) -> list[tuple[jax.Array, ...]]:
  return [_sum_of_one(leaf) for leaf in leaves]


def _sum_of_one(x: jax.Array) -> tuple[jax.Array, ...]:
  """Returns the two sums and the number of not finite elements: u32[] each."""
  bits = x
  if x.dtype != jnp.bool:
    bits = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize])
  bits = bits.astype(jnp.uint32)
  if math.prod(x.shape) == 0:
    return (jnp.uint32(0),) * 3
  position = _mix(_index(x))
  bad = jnp.zeros_like(bits)
  if jnp.issubdtype(x.dtype, jnp.floating):
    bad = (~jnp.isfinite(x)).astype(jnp.uint32)
  # Both are bijections of the bits of an element at a given position.
  numbers = _mix(bits ^ position), _mix(bits * _MIX + position)
  # One pass compiles in half the time of three sums.
  return jax.lax.reduce(
    (*numbers, bad),
    (np.uint32(0),) * 3,
    lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
    tuple(range(x.ndim)),
  )


def _index(x: jax.Array) -> jax.Array:
  """Returns the row-major index of each element, modulo 2^32."""
  index = jnp.zeros_like(x, jnp.uint32)
  for axis, size in enumerate(x.shape):
    along = jax.lax.broadcasted_iota(
      jnp.uint32, x.shape, axis, out_sharding=jax.typeof(x).sharding
    )
    index = index * np.uint32(size) + along
  return index


def _mix(x: jax.Array) -> jax.Array:
  """Maps each number to another one that looks random: u32 -> u32."""
  mixed = x * _SPREAD
  mixed = (mixed ^ (mixed >> np.uint32(15))) * _MIX
  return mixed ^ (mixed >> np.uint32(13))
