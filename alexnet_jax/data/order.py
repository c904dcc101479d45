"""Which record stands where in an endless stream of epochs.

Every epoch is a permutation of the records, a function of (seed, epoch) alone,
so any place of the stream can be looked up without those before it.
"""

from __future__ import annotations

import functools

import numpy as np


class Order:
  """The stream of one seed.

  Args:
    count: records in an epoch.
    seed: 0 to 2^32 - 1.
  """

  def __init__(self, count: int, seed: int):
    self._count = count
    self._seed = seed
    # A batch that runs across the end of an epoch takes from two of them.
    self._permute = functools.lru_cache(maxsize=2)(self._make_permutation)

  def find(self, places: np.ndarray) -> np.ndarray:
    """The records at some places of the stream.

    Args:
      places: i64[n], 0 or more.

    Returns:
      i64[n], 0..count-1.
    """
    epochs, within = np.divmod(places, self._count)
    records = np.empty_like(within)
    for epoch in np.unique(epochs):
      rows = epochs == epoch
      records[rows] = self._permute(int(epoch))[within[rows]]
    return records

  def _make_permutation(self, epoch: int) -> np.ndarray:
    # NumPy promises that the numbers of a RandomState never change.
    return np.random.RandomState((self._seed, epoch)).permutation(self._count)
