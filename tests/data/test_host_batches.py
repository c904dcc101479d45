import jax
import numpy as np
import pytest

from alexnet_jax.data import host_batches


def test_memory_is_reused_when_nothing_refers_to_it():
  pool = host_batches.BufferPool((4, 8, 8, 3))
  first = pool.acquire()
  second = pool.acquire()
  assert first.shape == (4, 8, 8, 3) and first.dtype == np.uint8
  assert not np.shares_memory(first, second)
  address = first.ctypes.data
  del first
  assert pool.acquire().ctypes.data == address


def test_memory_with_a_view_is_not_reused():
  pool = host_batches.BufferPool((4, 8, 8, 3))
  array = pool.acquire()
  array[:] = 7
  part = array[1:3, :, ::2].reshape(-1)
  del array
  pool.acquire()[:] = 9
  assert (part == 7).all()


def test_memory_on_the_devices_is_not_reused():
  pool = host_batches.BufferPool((64, 64, 3))
  placed = []
  for value in range(20):
    array = pool.acquire()
    array[:] = value
    # On CPU the array of the device is this memory.
    placed.append(jax.device_put((array, array[16:32])))
    del array
  for value, arrays in enumerate(placed):
    assert all((np.asarray(array) == value).all() for array in arrays)


def test_each_epoch_is_another_permutation():
  stream = host_batches.ShuffledStream(100, 3)
  epochs = stream.records_at(np.arange(500)).reshape(5, 100)
  assert (np.sort(epochs, axis=1) == np.arange(100)).all()
  assert len({tuple(epoch) for epoch in epochs}) == 5


def test_other_seeds_have_other_orders():
  streams = [
    tuple(host_batches.ShuffledStream(50, seed).records_at(np.arange(150)))
    for seed in (0, 1, 2, 3, 2**32 - 1)
  ]
  assert len(set(streams)) == 5
  # Nor does one seed have the epochs of the next.
  epochs = {
    stream[first : first + 50] for stream in streams for first in (0, 50, 100)
  }
  assert len(epochs) == 15


@pytest.mark.parametrize("count", [1, 7, 64])
def test_positions_can_be_looked_up_in_any_order_and_size(count):
  whole = host_batches.ShuffledStream(count, 5).records_at(np.arange(300))
  stream = host_batches.ShuffledStream(count, 5)
  for first, last in ((250, 300), (0, 3), (60, 200), (3, 60), (290, 291)):
    np.testing.assert_array_equal(
      stream.records_at(np.arange(first, last)), whole[first:last]
    )
