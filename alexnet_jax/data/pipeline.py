"""From records to batches on the devices.

Batch k is a function of (seed, k) alone: the state of the input is the step
number. Each process reads the rows that its devices hold, and no others.

The devices hold the batches that are in use, `batches_ahead` more, and one on
its way, besides what `blocks.py` holds in the memory of this process. On CPU,
JAX takes that memory over as it is.
"""

from __future__ import annotations

import collections
import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from alexnet_jax.data import host_batches
from alexnet_jax.data import records as records_lib

Shardings = tuple[jax.sharding.Sharding, jax.sharding.Sharding]


class Batch(NamedTuple):
  """A batch on the devices.

  Attributes:
    images: u8[N, side, side, 3], global.
    labels: i32[N], global.
    replaced: images whose own record could not be read. Where several processes
      read a row, only the first of them counts it.
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

  Every epoch is a permutation of the split, a function of (seed, epoch);
  batches run on across the end of an epoch. Close the iterator where it is
  left before its end: that stops the threads.

  Args:
    records: the split.
    batch_size: images in a step, over all devices.
    seed: of the permutations.
    first_step: the step to start at.
    num_steps: the step to end before.
    shardings: of the images and of the labels.
    threads: that read and decode; None: one for each core, up to 16.
    batches_ahead: batches that are on the devices before they are asked for.

  Raises:
    source.RecordError: see `Records.fill`.
  """
  rows = find_rows(shardings, batch_size)
  blocks = host_batches.train_blocks(
    records,
    rows=rows,
    batch_size=batch_size,
    seed=seed,
    steps=range(first_step, num_steps),
    threads=threads,
  )
  return to_devices(
    blocks,
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
) -> Iterator[Batch]:
  """Yields every image of a split exactly once, in order.

  The last batch is filled up with rows whose label is `host_batches.PADDING`.
  Arguments, arrays and errors are those of `train_batches`.
  """
  rows = find_rows(shardings, batch_size)
  blocks = host_batches.validation_blocks(
    records, rows=rows, batch_size=batch_size, threads=threads
  )
  return to_devices(
    blocks,
    rows=rows,
    batch_size=batch_size,
    shardings=shardings,
    batches_ahead=batches_ahead,
  )


def find_rows(
  shardings: Iterable[jax.sharding.Sharding], batch_size: int
) -> list[int]:
  """The rows of a batch that the devices of this process hold, ascending."""
  rows = set()
  for sharding in shardings:
    indices = sharding.addressable_devices_indices_map((batch_size,))
    for (index,) in indices.values():
      rows.update(range(*index.indices(batch_size)))
  return sorted(rows)


def find_owned_rows(
  shardings: Iterable[jax.sharding.Sharding], batch_size: int
) -> list[int]:
  """Those of `find_rows` that no process of a lower number holds."""
  first = {}
  for sharding in shardings:
    indices = sharding.devices_indices_map((batch_size,))
    for device, (index,) in indices.items():
      for row in range(*index.indices(batch_size)):
        first[row] = min(first.get(row, math.inf), device.process_index)
  own = jax.process_index()
  return sorted(row for row, process in first.items() if process == own)


def to_devices(
  blocks: Iterator[records_lib.Block],
  *,
  rows: Sequence[int],
  batch_size: int,
  shardings: Shardings,
  batches_ahead: int,
) -> Iterator[Batch]:
  """Copies blocks to the devices, ahead of the one that is asked for.

  Args:
    blocks: of these rows; closed at the end.
    rows: of each batch, from `find_rows`.

  The other arguments are those of `train_batches`.
  """
  held = np.asarray(rows)
  owned = set(find_owned_rows(shardings, batch_size))

  def put(local: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    def cut(index):
      first, last, _ = index[0].indices(batch_size)
      return local[slice(*np.searchsorted(held, (first, last)))]

    shape = (batch_size, *local.shape[1:])
    return jax.make_array_from_callback(shape, sharding, cut)

  queue = collections.deque()
  with contextlib.closing(blocks):
    for block in blocks:
      images, labels = map(put, (block.images, block.labels), shardings)
      replaced = sum(rows[row] in owned for row in block.replaced)
      queue.append(Batch(images, labels, replaced))
      del block, images, labels  # the memory is used again
      if len(queue) > batches_ahead:
        yield queue.popleft()
    yield from queue
