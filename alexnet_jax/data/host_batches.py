"""Rows of batches, read and decoded in background threads, in order.

Grain's threads of this process each do a part of the rows of a block: nearly
all of their work is in libraries that let other threads run meanwhile. Worker
processes would copy every batch from one process to the other; docs/design.md
has the figures.

At most four blocks are in memory at a time, whatever the number of threads:
the one that is asked for and three that are being read or wait.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from alexnet_jax.data import records as records_lib

# The label of a row that is no image: it fills up a last batch.
PADDING = -1
_BLOCKS_AHEAD = 3
# More threads would wait for each other: without the decoder, one process comes
# to 44,000 images/s, and 14 cores decode as many.
_MAX_THREADS = 16


def train_blocks(
  records: records_lib.Records,
  *,
  rows: Sequence[int],
  batch_size: int,
  seed: int,
  steps: range,
  threads: int | None,
) -> Iterator[records_lib.Block]:
  """Yields rows of the training batches of some steps.

  Args:
    records: the split.
    rows: of each batch, ascending.
    batch_size: images in a batch.
    seed: of the permutations of the records, one for each epoch.
    steps: whose batches.
    threads: that read; None: one for each core, up to 16.

  Raises:
    source.RecordError: see `Records.fill`.
  """
  order = Order(len(records), seed)

  def find(step: int) -> np.ndarray:
    return order.find(step * batch_size + np.asarray(rows))

  return _read(records, find, steps, rows=len(rows), threads=threads)


def validation_blocks(
  records: records_lib.Records,
  *,
  rows: Sequence[int],
  batch_size: int,
  threads: int | None,
) -> Iterator[records_lib.Block]:
  """Yields rows of the batches of a split in order.

  In the last batch, rows behind the end of the split are blank, with the label
  `PADDING`. Arguments and errors are those of `train_blocks`.
  """

  def find(step: int) -> np.ndarray:
    indices = step * batch_size + np.asarray(rows)
    return indices[indices < len(records)]

  steps = range(-(-len(records) // batch_size))
  return _read(records, find, steps, rows=len(rows), threads=threads)


def find_cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):  # not on every system
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def find_threads(sharing: int = 1) -> int:
  """Threads that read where a config does not say.

  Args:
    sharing: processes on this host. They share its cores, where a launcher has
      not given each its own.
  """
  share = (os.cpu_count() or 1) // sharing
  return max(1, min(find_cores(), share, _MAX_THREADS))


def _read(
  records: records_lib.Records,
  find: Callable[[int], np.ndarray],
  steps: range,
  *,
  rows: int,
  threads: int | None,
) -> Iterator[records_lib.Block]:
  """Yields the blocks of some steps.

  Args:
    records: the split.
    find: step -> the records of its block, at most `rows`; the rows behind
      them stay blank.
    steps: of the blocks.
    rows: in a block.
    threads: as for `train_blocks`.
  """
  threads = threads or find_threads()
  side = records.stored_size
  memory = Buffers((rows, side, side, 3))
  ends = [rows * part // threads for part in range(threads + 1)]
  begun, lock = {}, threading.Lock()

  def begin(step: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    with lock:
      if step not in begun:
        images, indices = memory.take(), find(step).tolist()
        images[len(indices) :] = 0
        labels = np.full(rows, PADDING, np.int32)
        begun[step] = images, labels, indices
      return begun[step]

  def fill(number: int) -> list[int]:
    step, part = divmod(number, threads)
    images, labels, indices = begin(step)
    span = slice(ends[part], min(ends[part + 1], len(indices)))
    replaced = records.fill(indices[span], images[span], labels[span])
    return [ends[part] + row for row in replaced]

  parts = grain.MapDataset.range(steps.start * threads, steps.stop * threads)
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=_BLOCKS_AHEAD * threads
  )
  with contextlib.closing(
    iter(parts.map(fill).to_iter_dataset(options))
  ) as filled:
    for step in steps:
      replaced = [row for _ in range(threads) for row in next(filled)]
      yield records_lib.Block(*begun.pop(step)[:2], replaced)


# Memory for batches, used again as soon as nobody holds an array of it.
#
# A fresh array of a batch costs a page fault for every page that is written,
# and the kernel clears each one first: 5 % of the time of decoding JPEGs into
# it. An array may not simply be overwritten when its batch is on the devices,
# though: on CPU a `jax.Array` can be the very same memory.

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


# Which record stands where in an endless stream of epochs.
#
# Every epoch is a permutation of the records, a function of (seed, epoch)
# alone, so any place of the stream can be looked up without those before it.


class Order:
  """The stream of one seed.

  Args:
    count: records in an epoch.
    seed: 0 to 2^32 - 1.
  """

  def __init__(self, count: int, seed: int):
    self._count = count
    self._seed = seed
    # A batch that runs across the end of an epoch takes from two of them.
    self._permute = functools.lru_cache(maxsize=2)(self._make_permutation)

  def find(self, places: np.ndarray) -> np.ndarray:
    """The records at some places of the stream.

    Args:
      places: i64[n], 0 or more.

    Returns:
      i64[n], 0..count-1.
    """
    epochs, within = np.divmod(places, self._count)
    records = np.empty_like(within)
    for epoch in np.unique(epochs):
      rows = epochs == epoch
      records[rows] = self._permute(int(epoch))[within[rows]]
    return records

  def _make_permutation(self, epoch: int) -> np.ndarray:
    # NumPy promises that the numbers of a RandomState never change.
    return np.random.RandomState((self._seed, epoch)).permutation(self._count)
