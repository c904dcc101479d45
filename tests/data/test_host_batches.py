import jax
import numpy as np
import pytest

from alexnet_jax.data import host_batches


def place(array):
  return array.ctypes.data


def test_memory_is_used_again_when_nobody_holds_it():
  memory = host_batches.Buffers((4, 8, 8, 3))
  first = memory.take()
  second = memory.take()
  assert first.shape == (4, 8, 8, 3) and first.dtype == np.uint8
  assert not np.shares_memory(first, second)
  at = place(first)
  del first
  assert place(memory.take()) == at


def test_memory_of_which_a_part_is_held_is_left_alone():
  memory = host_batches.Buffers((4, 8, 8, 3))
  array = memory.take()
  array[:] = 7
  part = array[1:3, :, ::2].reshape(-1)
  del array
  other = memory.take()
  other[:] = 9
  assert (part == 7).all()


def test_memory_on_the_devices_is_left_alone():
  memory = host_batches.Buffers((64, 64, 3))
  placed = []
  for value in range(20):
    array = memory.take()
    array[:] = value
    # On CPU the array of the device is this memory.
    placed.append(jax.device_put(array))
    placed.append(jax.device_put(array[16:32]))
    del array
  for value in range(20):
    assert (np.asarray(placed[2 * value]) == value).all()
    assert (np.asarray(placed[2 * value + 1]) == value).all()


def test_each_epoch_is_another_permutation():
  epochs = host_batches.Order(100, 3).find(np.arange(500)).reshape(5, 100)
  assert (np.sort(epochs, axis=1) == np.arange(100)).all()
  assert len({tuple(epoch) for epoch in epochs}) == 5


def test_other_seeds_have_other_orders():
  streams = [
    tuple(host_batches.Order(50, seed).find(np.arange(150)))
    for seed in (
      *(0, 1, 2, 3),
      2**32 - 1,
    )
  ]
  assert len(set(streams)) == 5
  # Nor does one seed have the epochs of the next.
  epochs = {
    stream[50 * epoch : 50 * epoch + 50]
    for stream in streams
    for epoch in range(3)
  }
  assert len(epochs) == 15


@pytest.mark.parametrize("count", [1, 7, 64])
def test_places_can_be_looked_up_in_any_order_and_size(count):
  whole = host_batches.Order(count, 5).find(np.arange(300))
  stream = host_batches.Order(count, 5)
  for first, last in ((250, 300), (0, 3), (60, 200), (3, 60), (290, 291)):
    np.testing.assert_array_equal(
      stream.find(np.arange(first, last)), whole[first:last]
    )
