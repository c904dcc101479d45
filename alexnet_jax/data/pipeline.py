"""From records to batches on the devices.

Batch k is a function of (seed, k) alone: the state of the input is the step
number. Each process reads the rows that its devices hold, and no others.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator

import grain
import jax
import numpy as np

from alexnet_jax import metrics
from alexnet_jax.data import records as records_lib

Batch = tuple[jax.Array, jax.Array]


def train_batches(
  records: records_lib.Records,
  *,
  batch_size: int,
  seed: int,
  first_step: int,
  num_steps: int,
  shardings: tuple[jax.sharding.Sharding, jax.sharding.Sharding],
  threads: int,
  batches_ahead: int,
) -> Iterator[Batch]:
  """Yields the batches of steps `first_step` to `num_steps - 1`.

  Every epoch is a permutation of the split, a function of (seed, epoch);
  batches run on across the end of an epoch.

  Args:
    records: the split.
    batch_size: images in a step, over all devices.
    seed: of the permutations.
    first_step: the step to start at.
    num_steps: the step to end before.
    shardings: of the images and of the labels.
    threads: that read and decode, a batch each.
    batches_ahead: batches that are on the devices before they are asked for.

  Yields:
    images u8[N, side, side, 3] and labels i32[N], global arrays.
  """
  order = grain.MapDataset.range(len(records)).seed(seed).shuffle().repeat()
  rows = _local_rows(shardings, batch_size)

  def load(step: int):
    return _stack(records, [order[step * batch_size + row] for row in rows])

  yield from _to_devices(
    _read(load, range(first_step, num_steps), threads),
    rows,
    batch_size,
    shardings,
    batches_ahead,
  )


def validation_batches(
  records: records_lib.Records,
  *,
  batch_size: int,
  shardings: tuple[jax.sharding.Sharding, jax.sharding.Sharding],
  threads: int,
  batches_ahead: int,
) -> Iterator[Batch]:
  """Yields every image of a split exactly once, in order.

  The last batch is filled up with rows whose label is `metrics.PADDING`.
  Arguments and arrays are those of `train_batches`.
  """
  rows = _local_rows(shardings, batch_size)

  def load(step: int):
    indices = [step * batch_size + row for row in rows]
    real = [index for index in indices if index < len(records)]
    images, labels = _stack(records, real)
    fill = len(indices) - len(real)
    return (
      np.pad(images, ((0, fill), (0, 0), (0, 0), (0, 0))),
      np.pad(labels, (0, fill), constant_values=metrics.PADDING),
    )

  steps = -(-len(records) // batch_size)
  yield from _to_devices(
    _read(load, range(steps), threads),
    rows,
    batch_size,
    shardings,
    batches_ahead,
  )


def _local_rows(
  shardings: Iterable[jax.sharding.Sharding], batch_size: int
) -> list[int]:
  """The rows of a batch that the devices of this process hold."""
  rows = set()
  for sharding in shardings:
    indices = sharding.addressable_devices_indices_map((batch_size,))
    for (index,) in indices.values():
      rows.update(range(*index.indices(batch_size)))
  return sorted(rows)


def _stack(
  records: records_lib.Records, indices: list[int]
) -> tuple[np.ndarray, np.ndarray]:
  side = records.stored_size
  images = np.empty((len(indices), side, side, 3), np.uint8)
  labels = np.empty(len(indices), np.int32)
  for row, index in enumerate(indices):
    images[row], labels[row] = records[index]
  return images, labels


def _read(load, steps: range, threads: int) -> Iterator:
  """Loads batches in order, ahead of their use, in background threads."""
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=2 * threads
  )
  batches = grain.MapDataset.range(steps.start, steps.stop).map(load)
  return iter(batches.to_iter_dataset(options))


def _to_devices(
  batches: Iterator,
  rows: list[int],
  batch_size: int,
  shardings: tuple[jax.sharding.Sharding, jax.sharding.Sharding],
  ahead: int,
) -> Iterator[Batch]:
  """Copies batches to the devices, `ahead` of the one that is asked for."""
  held = np.asarray(rows)

  def put(local: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    def block(index):
      first, last, _ = index[0].indices(batch_size)
      return local[slice(*np.searchsorted(held, (first, last)))]

    shape = (batch_size, *local.shape[1:])
    return jax.make_array_from_callback(shape, sharding, block)

  queue = collections.deque()
  arrays = (tuple(map(put, batch, shardings)) for batch in batches)
  queue.extend(itertools.islice(arrays, ahead))
  while queue:
    yield queue.popleft()
    queue.extend(itertools.islice(arrays, 1))
