import jax
import numpy as np

from alexnet_jax.data import buffers


def place(array):
  return array.ctypes.data


def test_memory_is_used_again_when_nobody_holds_it():
  memory = buffers.Buffers((4, 8, 8, 3))
  first = memory.take()
  second = memory.take()
  assert first.shape == (4, 8, 8, 3) and first.dtype == np.uint8
  assert not np.shares_memory(first, second)
  at = place(first)
  del first
  assert place(memory.take()) == at


def test_memory_of_which_a_part_is_held_is_left_alone():
  memory = buffers.Buffers((4, 8, 8, 3))
  array = memory.take()
  array[:] = 7
  part = array[1:3, :, ::2].reshape(-1)
  del array
  other = memory.take()
  other[:] = 9
  assert (part == 7).all()


def test_memory_on_the_devices_is_left_alone():
  memory = buffers.Buffers((64, 64, 3))
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
