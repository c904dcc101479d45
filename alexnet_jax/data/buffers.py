"""Memory for batches, used again as soon as nobody holds an array of it.

A fresh array of a batch costs a page fault for every page that is written, and
the kernel clears each one first: 5 % of the time of decoding JPEGs into it. An
array may not simply be overwritten when its batch is on the devices, though: on
CPU a `jax.Array` can be the very same memory.
"""

from __future__ import annotations

import collections
import math
import weakref

import numpy as np

# JAX takes over arrays from here on as they are, on CPU.
_ALIGNMENT = 64


class Buffers:
  """Arrays of one shape, as many as are held at the same time.

  Args:
    shape: of the arrays, u8.
  """

  def __init__(self, shape: tuple[int, ...]):
    self._shape = shape
    self._free: collections.deque[np.ndarray] = collections.deque()

  def take(self) -> np.ndarray:
    """An array with any content; threads may not call it at once."""
    size = math.prod(self._shape)
    if self._free:
      memory = self._free.pop()
    else:
      memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    # Not of `memory` itself: that would be the base, and live on in the list.
    array = np.frombuffer(memoryview(memory), np.uint8, size, start)
    # All views of the array, and what JAX makes of them, hold its base.
    weakref.finalize(array.base, self._free.append, memory).atexit = False
    return array.reshape(self._shape)
