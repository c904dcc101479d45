"""Batches: which rows, in which order, and what becomes of the threads."""

import collections
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from alexnet_jax.data import host_batches, pipeline, source
from alexnet_jax.partition import catalog, specs
from tests import build, numbered, small_sets

ROOT = pathlib.Path(__file__).parents[2]


def labels_of(layout, **options):
  found = []
  for images, labels, _ in numbered.train_batches(layout, **options):
    labels = np.asarray(labels)
    assert (numbered.read_numbers(images) == labels).all()
    found.append(labels)
  return np.array(found)


def reading_threads():
  return [thread for thread in threading.enumerate() if "grain" in thread.name]


def test_epochs_run_on_through_the_batches():
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
  found = [(np.asarray(labels), images) for images, labels, _ in batches]
  for labels, images in found:
    assert len(labels) == 16
    blank = labels == host_batches.PADDING
    assert (np.asarray(images)[blank] == 0).all()
  labels = np.concatenate([labels for labels, _ in found])
  assert labels[labels != host_batches.PADDING].tolist() == list(range(count))


def test_few_batches_are_in_memory_however_many_are_asked_for(monkeypatch):
  taken = []
  take = host_batches.Buffers.take

  def watched(self):
    array = take(self)
    taken.append(array.ctypes.data)
    return array

  monkeypatch.setattr(host_batches.Buffers, "take", watched)
  read = host_batches.train_blocks(
    numbered.make_records(),
    rows=range(64),
    batch_size=64,
    seed=0,
    steps=range(60),
    threads=6,
  )
  for block in read:
    time.sleep(0.002)
    del block
  assert len(taken) == 60
  assert len(set(taken)) <= 4


def test_threads_stop_where_the_batches_are_left():
  batches = numbered.train_batches(catalog.ONE_DEVICE, num_steps=2**30)
  next(batches)
  assert reading_threads()
  batches.close()
  for thread in reading_threads():
    thread.join(timeout=10)
  assert not reading_threads()


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
  for thread in reading_threads():
    thread.join(timeout=10)
  assert not reading_threads()


def test_parts_of_a_step_take_what_the_pipeline_gives(
  tiny_network, tiny_augmentation, tiny_batch, layout
):
  parts = build.make_program(
    tiny_network, layout, tiny_augmentation, batch_size=8
  )
  images, labels = build.put(parts, tiny_batch)
  assert images.sharding == specs.to_shardings(parts.mesh, parts.specs.images)
  assert labels.shape == (8,)


PLACES = {
  "one process": ("data_parallel", "data=4", 1),
  "two processes": ("data_parallel", "data=4", 2),
  "four processes": ("data_parallel", "data=4", 4),
  "a column in each process": ("two_column", "column=2", 2),
  "columns in two processes each": ("two_column_data", "data=2,column=2", 4),
}


def read_in_processes(layout, sizes, processes, steps):
  """{(first step, step): {row: number}}; the rows that each process holds."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  environment = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("JAX_", "XLA_"))
  }
  running = [
    subprocess.Popen(
      [sys.executable, "-m", "tests.numbered", layout, sizes]
      + [str(port), str(processes), str(process), str(steps)],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for process in range(processes)
  ]
  found, held = collections.defaultdict(dict), []
  try:
    for process in running:
      out, errors = process.communicate(timeout=120)
      assert process.returncode == 0, errors
      held.append(set())
      for line in out.splitlines():
        if not line.startswith("rows"):
          continue
        first, step, start, *numbers = map(int, line.split()[1:])
        for row, number in enumerate(numbers, start=start):
          # Two devices that hold one row hold the same image there.
          assert found[first, step].setdefault(row, number) == number
          held[-1].add(row)
  finally:
    for process in running:
      process.kill()
      process.wait()
  return found, held


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_stream_is_the_same_in_any_number_of_processes(place):
  layout, sizes, processes = PLACES[place]
  steps = 11  # three epochs and more
  expected = labels_of(catalog.ONE_DEVICE, num_steps=steps)
  assert expected.size > 3 * numbered.COUNT
  found, held = read_in_processes(layout, sizes, processes, steps)
  assert len(found) == steps * (steps + 1) // 2  # from every step to the last
  for (_, step), rows in found.items():
    assert [rows[row] for row in range(16)] == expected[step].tolist()
  if layout == "two_column":
    assert held == [set(range(16))] * 2
  if layout == "data_parallel":
    assert sum(map(len, held)) == 16
