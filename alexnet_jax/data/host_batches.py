"""Batches in the memory of this process: shuffled, read in threads, in order.

Grain's threads each decode a part of the rows of a batch; nearly all of their
work is in libraries that release the GIL. Worker processes would copy every
batch between processes; docs/design.md has the figures.

At most four batches are in memory at a time, however many threads there are:
the current one, and three that are being read or wait.
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

from alexnet_jax.data import cores as cores_lib
from alexnet_jax.data import records as records_lib
from alexnet_jax.data import source

# The label of a row without an image; such rows fill up a last batch.
PADDING = -1
_BATCHES_AHEAD = 3
# More threads would wait for each other: without the decoder, one process comes
# to 44,000 images/s, and 14 cores decode as many.
_MAX_THREADS = 16
# On CPU, JAX uses arrays with this alignment without copying them.
_ALIGNMENT = 64


def train_batches(
  records: records_lib.Records,
  *,
  rows: Sequence[int],
  batch_size: int,
  seed: int,
  steps: range,
  threads: int | None,
) -> Iterator[records_lib.HostBatch]:
  """Yields some rows of the training batch of each step.

  `rows` are ascending. The other arguments, and errors, are those of
  `pipeline.train_batches`.
  """
  stream = ShuffledStream(len(records), seed)

  def find_records(step: int) -> np.ndarray:
    return stream.records_at(step * batch_size + np.asarray(rows))

  return _read(records, find_records, steps, rows=len(rows), threads=threads)


def validation_batches(
  records: records_lib.Records,
  *,
  rows: Sequence[int],
  batch_size: int,
  threads: int | None,
  chosen: Sequence[int] | None = None,
  on_error: Callable[[Exception], None] | None = None,
) -> Iterator[records_lib.HostBatch]:
  """Yields some rows of the batches of a split, unshuffled.

  Rows past the end of the split are blank, with the label `PADDING`, and all
  rows from the batch on that cannot be read, if `on_error` gets the error.

  Args:
    chosen: records that are read, in this order; None: all of the split.
  """
  order = np.asarray(range(len(records)) if chosen is None else chosen)

  def find_records(step: int) -> np.ndarray:
    places = step * batch_size + np.asarray(rows)
    return order[places[places < len(order)]]

  steps = range(-(-len(order) // batch_size))
  batches = _read(records, find_records, steps, rows=len(rows), threads=threads)
  if on_error is None:
    return batches
  side = records.stored_size
  blank = records_lib.HostBatch(
    np.zeros((len(rows), side, side, 3), np.uint8),
    np.full(len(rows), PADDING, np.int32),
    [],
  )
  return _blank_after_error(batches, len(steps), blank, on_error)


def _blank_after_error(
  batches: Iterator[records_lib.HostBatch],
  count: int,
  blank: records_lib.HostBatch,
  on_error: Callable[[Exception], None],
) -> Iterator[records_lib.HostBatch]:
  """Yields `count` batches, `blank` ones from the first error on."""
  with contextlib.closing(batches):
    try:
      for batch in batches:
        count -= 1
        yield batch
    except source.RecordError as error:
      on_error(error)
      yield from [blank] * count


def default_threads(processes_on_host: int = 1) -> int:
  """Chooses the number of reader threads: one per core, up to 16.

  The processes of the run on this host divide its cores unless the launcher has
  given each its own.
  """
  cores = (os.cpu_count() or 1) // processes_on_host
  return max(1, min(cores_lib.count_cores(), cores, _MAX_THREADS))


def _read(
  records: records_lib.Records,
  find_records: Callable[[int], np.ndarray],
  steps: range,
  *,
  rows: int,
  threads: int | None,
) -> Iterator[records_lib.HostBatch]:
  """Yields a batch of `rows` rows for each step.

  `find_records` maps a step to its records; rows past them stay blank.
  """
  threads = threads or default_threads()
  side = records.stored_size
  pool = BufferPool((rows, side, side, 3))
  ends = [rows * part // threads for part in range(threads + 1)]
  started, lock = {}, threading.Lock()

  def start(step: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    with lock:
      if step not in started:
        images, indices = pool.acquire(), find_records(step).tolist()
        images[len(indices) :] = 0
        labels = np.full(rows, PADDING, np.int32)
        started[step] = images, labels, indices
      return started[step]

  def fill(number: int) -> list[int]:
    step, part = divmod(number, threads)
    images, labels, indices = start(step)
    span = slice(ends[part], min(ends[part + 1], len(indices)))
    replaced = records.fill(indices[span], images[span], labels[span])
    return [ends[part] + row for row in replaced]

  parts = grain.MapDataset.range(steps.start * threads, steps.stop * threads)
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=_BATCHES_AHEAD * threads
  )
  with contextlib.closing(
    iter(parts.map(fill).to_iter_dataset(options))
  ) as filled:
    for step in steps:
      replaced = [row for _ in range(threads) for row in next(filled)]
      yield records_lib.HostBatch(*started.pop(step)[:2], replaced)


class BufferPool:
  """Arrays of one shape, whose memory is reused once nothing refers to it.

  A fresh array costs a page fault for every page written, and the kernel clears
  each page first: 5 % of the time of decoding JPEGs into it. Overwriting the
  array of a batch that is on the devices would be wrong: on CPU a `jax.Array`
  can be the same memory.
  """

  def __init__(self, shape: tuple[int, ...]):
    self._shape = shape
    self._free: collections.deque[np.ndarray] = collections.deque()

  def acquire(self) -> np.ndarray:
    """Returns an array with arbitrary content. Not thread-safe."""
    size = math.prod(self._shape)
    if self._free:
      memory = self._free.pop()
    else:
      memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    # Through a memoryview: else the base would be `memory`, which the finalizer
    # itself keeps alive.
    array = np.frombuffer(memoryview(memory), np.uint8, size, start)
    # Views of the array, and what JAX makes of them, all refer to its base.
    weakref.finalize(array.base, self._free.append, memory).atexit = False
    return array.reshape(self._shape)


class ShuffledStream:
  """An endless stream of epochs, each another permutation of the records.

  A permutation is a function of (seed, epoch) alone, so any position of the
  stream can be looked up without those before it.

  Args:
    count: records in an epoch.
    seed: 0 to 2^32 - 1.
  """

  def __init__(self, count: int, seed: int):
    self._count = count
    self._seed = seed
    # Two: a batch can cross the end of an epoch.
    self._permute = functools.lru_cache(maxsize=2)(self._make_permutation)

  def records_at(self, positions: np.ndarray) -> np.ndarray:
    """Returns the records, i64[n] in 0..count-1, at positions i64[n] >= 0."""
    epochs, within = np.divmod(positions, self._count)
    records = np.empty_like(within)
    for epoch in np.unique(epochs):
      rows = epochs == epoch
      records[rows] = self._permute(int(epoch))[within[rows]]
    return records

  def _make_permutation(self, epoch: int) -> np.ndarray:
    # NumPy guarantees that the numbers of a RandomState never change.
    return np.random.RandomState((self._seed, epoch)).permutation(self._count)
