"""A fingerprint of arrays: what is read back is what was saved, bit for bit.

Two sums over the elements of an array, modulo 2^32: of numbers made of the
bits of each and of its place in the global array. Whole numbers add up to the
same in any order, so an array has one fingerprint under every layout and in any
number of processes. At its place, each element has a number of its own, so a
change of any one of them always shows; other changes stay hidden with a chance
of about 2^-64. It is computed on the devices where the arrays are, by a program
of its own.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# 2^32 over the golden ratio, and a prime of xxHash: any odd numbers that
# spread the bits of an index.
_SPREAD, _MIX = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


class Checksum(NamedTuple):
  """Of one array.

  Attributes:
    dtype: its name.
    shape: global.
    sums: 16 hexadecimal digits.
    not_finite: elements that are infinite or no number; 0 of whole numbers.
  """

  dtype: str
  shape: tuple[int, ...]
  sums: str
  not_finite: int


def take(tree: Any) -> dict[str, Checksum]:
  """The fingerprint of each array of a tree, under its path: `a.0.b`.

  Args:
    tree: of global arrays; all processes that hold a part of them ask at once.

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
  """The two sums and the elements that are not finite: u32[] each."""
  bits = x
  if x.dtype != jnp.bool:
    bits = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize])
  bits = bits.astype(jnp.uint32)
  if math.prod(x.shape) == 0:
    return (jnp.uint32(0),) * 3
  place = _mix(_index(x))
  bad = jnp.zeros_like(bits)
  if jnp.issubdtype(x.dtype, jnp.floating):
    bad = (~jnp.isfinite(x)).astype(jnp.uint32)
  # Both without loss: from the sum of one element follows the element.
  numbers = _mix(bits ^ place), _mix(bits * _MIX + place)
  # One pass for all three: half the time to compile of three sums.
  return jax.lax.reduce(
    (*numbers, bad),
    (np.uint32(0),) * 3,
    lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
    tuple(range(x.ndim)),
  )


def _index(x: jax.Array) -> jax.Array:
  """The place of each element in the global array, row by row, mod 2^32."""
  index = jnp.zeros_like(x, jnp.uint32)
  for axis, size in enumerate(x.shape):
    along = jax.lax.broadcasted_iota(
      jnp.uint32, x.shape, axis, out_sharding=jax.typeof(x).sharding
    )
    index = index * np.uint32(size) + along
  return index


def _mix(x: jax.Array) -> jax.Array:
  """Numbers that look random, another one for each: u32 -> u32."""
  mixed = x * _SPREAD
  mixed = (mixed ^ (mixed >> np.uint32(15))) * _MIX
  return mixed ^ (mixed >> np.uint32(13))
