import numpy as np
import pytest

from alexnet_jax.data import order


def test_each_epoch_is_another_permutation():
  epochs = order.Order(100, 3).find(np.arange(500)).reshape(5, 100)
  assert (np.sort(epochs, axis=1) == np.arange(100)).all()
  assert len({tuple(epoch) for epoch in epochs}) == 5


def test_other_seeds_have_other_orders():
  streams = [
    tuple(order.Order(50, seed).find(np.arange(150)))
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
  whole = order.Order(count, 5).find(np.arange(300))
  stream = order.Order(count, 5)
  for first, last in ((250, 300), (0, 3), (60, 200), (3, 60), (290, 291)):
    np.testing.assert_array_equal(
      stream.find(np.arange(first, last)), whole[first:last]
    )
