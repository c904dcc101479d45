"""From records to batches on the devices.

Batch k is a function of (seed, k) alone, so the step number is all the state of
the input. Each process reads only the rows that its devices hold.

The devices hold the batches in use, `batches_ahead` more, and one in transfer,
besides those in the memory of this process (`host_batches.py`). On CPU, JAX
uses that memory without copying it.
"""

from __future__ import annotations

import collections
import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from alexnet_jax.data import host_batches
from alexnet_jax.data import records as records_lib

# Of the images and of the labels of a batch.
Shardings = tuple[jax.sharding.Sharding, jax.sharding.Sharding]


class Batch(NamedTuple):
  """A batch on the devices.

  Attributes:
    images: u8[N, side, side, 3], global.
    labels: i32[N], global.
    replaced: rows that hold another record than their own, which could not be
      read. If several processes read a row, only the first counts it.
  """

  images: jax.Array
  labels: jax.Array
  replaced: int


def train_batches(
  records: records_lib.Records,
  *,
  batch_size: int,
  seed: int,
  first_step: int,
  num_steps: int,
  shardings: Shardings,
  threads: int | None,
  batches_ahead: int,
) -> Iterator[Batch]:
  """Yields the batches of steps `first_step` to `num_steps - 1`.

  Every epoch is another permutation of the split; batches cross the end of an
  epoch. Closing the iterator early stops the reader threads.

  Args:
    batch_size: images in a step, over all devices.
    threads: threads that read and decode; None: one per core, up to 16.
    batches_ahead: batches to have on the devices before they are requested.

  Raises:
    source.RecordError: see `Records.fill`.
  """
  rows = find_local_rows(shardings, batch_size)
  batches = host_batches.train_batches(
    records,
    rows=rows,
    batch_size=batch_size,
    seed=seed,
    steps=range(first_step, num_steps),
    threads=threads,
  )
  return to_devices(
    batches,
    rows=rows,
    batch_size=batch_size,
    shardings=shardings,
    batches_ahead=batches_ahead,
  )


def validation_batches(
  records: records_lib.Records,
  *,
  batch_size: int,
  shardings: Shardings,
  threads: int | None,
  batches_ahead: int,
  on_error: Callable[[Exception], None] | None = None,
) -> Iterator[Batch]:
  """Yields every image of a split exactly once, in order.

  The last batch is filled up with rows whose label is `host_batches.PADDING`.
  Other arguments, arrays and errors are those of `train_batches`.

  Args:
    on_error: gets a RecordError, which is then not raised: from there on the
      rows of this process are all `PADDING`. None: it is raised.
  """
  rows = find_local_rows(shardings, batch_size)
  batches = host_batches.validation_batches(
    records,
    rows=rows,
    batch_size=batch_size,
    threads=threads,
    on_error=on_error,
  )
  return to_devices(
    batches,
    rows=rows,
    batch_size=batch_size,
    shardings=shardings,
    batches_ahead=batches_ahead,
  )


def find_local_rows(
  shardings: Iterable[jax.sharding.Sharding], batch_size: int
) -> list[int]:
  """Returns the rows of a batch that this process's devices hold, ascending."""
  rows = set()
  for sharding in shardings:
    indices = sharding.addressable_devices_indices_map((batch_size,))
    for (index,) in indices.values():
      rows.update(range(*index.indices(batch_size)))
  return sorted(rows)


def _find_counted_rows(
  shardings: Iterable[jax.sharding.Sharding], batch_size: int
) -> list[int]:
  """Returns the local rows that no process of a lower number holds."""
  first = {}
  for sharding in shardings:
    indices = sharding.devices_indices_map((batch_size,))
    for device, (index,) in indices.items():
      for row in range(*index.indices(batch_size)):
        first[row] = min(first.get(row, math.inf), device.process_index)
  this = jax.process_index()
  return sorted(row for row, process in first.items() if process == this)


def to_devices(
  batches: Iterator[records_lib.HostBatch],
  *,
  rows: Sequence[int],
  batch_size: int,
  shardings: Shardings,
  batches_ahead: int,
) -> Iterator[Batch]:
  """Copies batches to the devices, ahead of the one that is requested.

  `batches` have the `rows` of `find_local_rows`, and are closed at the end. The
  other arguments are those of `train_batches`.
  """
  local_rows = np.asarray(rows)
  counted = set(_find_counted_rows(shardings, batch_size))

  def put(local: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    def shard(index):
      first, last, _ = index[0].indices(batch_size)
      return local[slice(*np.searchsorted(local_rows, (first, last)))]

    shape = (batch_size, *local.shape[1:])
    return jax.make_array_from_callback(shape, sharding, shard)

  queue = collections.deque()
  with contextlib.closing(batches):
    for batch in batches:
      images, labels = map(put, (batch.images, batch.labels), shardings)
      replaced = sum(rows[row] in counted for row in batch.replaced)
      queue.append(Batch(images, labels, replaced))
      del batch, images, labels  # so that their memory can be reused
      if len(queue) > batches_ahead:
        yield queue.popleft()
    yield from queue
