"""Batches: which rows, in which order, and what becomes of the threads."""

import collections
import threading
import time

import numpy as np
import pytest

from alexnet_jax.data import host_batches, pipeline, source
from alexnet_jax.partition import catalog, specs
from tests import build, numbered, processes, small_sets


def labels_of(layout, **options):
  found = []
  for images, labels, _ in numbered.train_batches(layout, **options):
    labels = np.asarray(labels)
    assert (numbered.read_numbers(images) == labels).all()
    found.append(labels)
  return np.array(found)


def reading_threads(timeout=0):
  """Names of the threads that still read after `timeout` seconds each."""
  threads = [one for one in threading.enumerate() if "grain" in one.name]
  for thread in threads:
    thread.join(timeout=timeout)
  return [thread.name for thread in threads if thread.is_alive()]


def test_batches_cross_the_ends_of_epochs():
  stream = labels_of(catalog.ONE_DEVICE, num_steps=25).ravel()
  epochs = stream.reshape(8, numbered.COUNT)
  assert (np.sort(epochs, axis=1) == np.arange(numbered.COUNT)).all()
  assert len({tuple(epoch) for epoch in epochs}) == 8


def test_batch_is_a_function_of_seed_and_step_on_every_layout(layout):
  expected = labels_of(catalog.ONE_DEVICE, num_steps=12)
  np.testing.assert_array_equal(labels_of(layout, num_steps=12), expected)
  np.testing.assert_array_equal(
    labels_of(layout, first_step=7, num_steps=12), expected[7:]
  )


@pytest.mark.parametrize("threads", [1, 3, 20])
def test_number_of_threads_changes_nothing(threads):
  expected = labels_of(catalog.DATA_PARALLEL, num_steps=8)
  found = labels_of(catalog.DATA_PARALLEL, num_steps=8, threads=threads)
  np.testing.assert_array_equal(found, expected)


def test_replaced_records_are_counted_with_their_batch():
  for batch in numbered.train_batches(catalog.TWO_COLUMN_DATA, num_steps=10):
    assert batch.replaced == sum(np.asarray(batch.labels) % 10 == 0)


@pytest.mark.parametrize("count", [1, 16, 37])
def test_validation_yields_each_image_once(count, layout):
  batches = pipeline.validation_batches(
    numbered.make_records(count),
    batch_size=16,
    shardings=numbered.make_shardings(layout),
    threads=2,
    batches_ahead=2,
  )
  found = []
  for images, labels, _ in batches:
    assert len(labels) == 16
    blank = np.asarray(labels) == host_batches.PADDING
    assert (np.asarray(images)[blank] == 0).all()
    found += np.asarray(labels)[~blank].tolist()
  assert found == list(range(count))


def test_few_batches_are_in_memory_however_many_threads_read(monkeypatch):
  taken = []
  acquire = host_batches.BufferPool.acquire

  def watched(self):
    array = acquire(self)
    taken.append(array.ctypes.data)
    return array

  monkeypatch.setattr(host_batches.BufferPool, "acquire", watched)
  batches = host_batches.train_batches(
    numbered.make_records(),
    rows=range(64),
    batch_size=64,
    seed=0,
    steps=range(60),
    threads=6,
  )
  for batch in batches:
    time.sleep(0.002)
    del batch
  assert len(taken) == 60
  assert len(set(taken)) <= 4


def test_threads_stop_when_the_batches_are_closed():
  batches = numbered.train_batches(catalog.ONE_DEVICE, num_steps=2**30)
  next(batches)
  assert reading_threads()
  batches.close()
  assert not reading_threads(timeout=10)


def test_record_that_cannot_be_read_ends_the_batches(tmp_path):
  images = [small_sets.encode(tile) for tile in small_sets.tiles(64)]
  images[11] = images[11][:50]
  records = small_sets.make_records(tmp_path, images)
  batches = numbered.train_batches(
    catalog.DATA_PARALLEL, records, num_steps=100
  )
  with pytest.raises(source.UnreadableError, match="^record 11 of small/train"):
    for batch in batches:
      assert 11 not in np.asarray(batch.labels)
  assert not reading_threads(timeout=10)


def test_batches_have_the_shardings_of_a_step(tiny_batch, layout):
  parts = build.make_program(layout)
  images, labels = build.put(parts, tiny_batch)
  assert images.sharding == specs.to_shardings(parts.mesh, parts.specs.images)
  assert labels.shape == (8,)


def read_in_processes(layout, sizes, count, steps, cache):
  """{(first step, step): {row: number}}; the rows that each process holds."""
  port = str(processes.free_port())
  command = ["python", "-m", "tests.numbered", layout, sizes, port, str(count)]
  running = [
    processes.open_process([*command, str(process), str(steps)], cache)
    for process in range(count)
  ]
  found, held = collections.defaultdict(dict), []
  for ended in processes.finish(running):
    assert ended.code == 0, ended.errors
    held.append(set())
    for line in ended.out.splitlines():
      if not line.startswith("rows"):
        continue
      first, step, start, *numbers = map(int, line.split()[1:])
      for row, number in enumerate(numbers, start=start):
        # Two devices that hold one row hold the same image there.
        assert found[first, step].setdefault(row, number) == number
        held[-1].add(row)
  return found, held


@pytest.mark.slow
@pytest.mark.parametrize(
  ("layout", "sizes", "count"),
  [
    *(("data_parallel", "data=4", count) for count in (1, 2, 4)),
    ("two_column", "column=2", 2),  # a column in each process
    ("two_column_data", "data=2,column=2", 4),  # columns in two processes each
  ],
)
def test_stream_is_the_same_in_any_number_of_processes(
  layout, sizes, count, tmp_path
):
  steps = 11  # three epochs and more
  expected = labels_of(catalog.ONE_DEVICE, num_steps=steps)
  assert expected.size > 3 * numbered.COUNT
  found, held = read_in_processes(layout, sizes, count, steps, tmp_path)
  assert len(found) == steps * (steps + 1) // 2  # from every step to the last
  for (_, step), rows in found.items():
    assert [rows[row] for row in range(16)] == expected[step].tolist()
  if layout == "two_column":
    assert held == [set(range(16))] * 2
  if layout == "data_parallel":
    assert sum(map(len, held)) == 16
