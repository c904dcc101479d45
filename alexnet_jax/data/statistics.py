"""Pixel statistics of a training split, for the augmentation.

The mean image, the mean of each channel, and the principal directions of the
colors. `imagenet256` has its own in its metadata; `PUBLISHED` are those of the
released code, for sets that have none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

# Pixels whose products of two channels, of up to 255 x 255, fit into 32 bits:
# sums of 64 bits take twice as long.
_EXACT_PIXELS = 2**16
# Images whose sums of values, of up to 255 each, fit into 16 bits.
_EXACT_IMAGES = 2**16 // 255


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
  """Statistics of pixels of 0..255.

  Attributes:
    mean: of each channel (R, G, B).
    mean_image: f32[side, side, 3]; None if unknown.
    directions: eigenvectors of the covariance of R, G, B, one per row, largest
      eigenvalue first.
    stds: standard deviation along each direction, in gray levels: the square
      roots of the eigenvalues.
  """

  mean: tuple[float, float, float]
  mean_image: np.ndarray | None
  directions: tuple[tuple[float, float, float], ...]
  stds: tuple[float, float, float]

  def fingerprint(self) -> str:
    """Returns a hash of all numbers."""
    numbers = repr((self.mean, self.directions, self.stds)).encode()
    if self.mean_image is not None:
      numbers += np.ascontiguousarray(self.mean_image).tobytes()
    return hashlib.blake2b(numbers, digest_size=8).hexdigest()


# ImageNet 2012. Source: cuda-convnet2, make-data, input_meta.
PUBLISHED = Statistics(
  mean=(127.30, 119.72, 104.91),
  mean_image=None,
  directions=(
    (-0.56351, -0.57618, -0.59200),
    (-0.71258, -0.02354, 0.70120),
    (0.41796, -0.81698, 0.39731),
  ),
  stds=(121.780, 37.094, 19.721),
)


class PixelSums:
  """Exact sums over the pixels of many images, from which statistics follow.

  Attributes:
    images: number of images.
    products: i64[3, 3], sums of products of two channels.
  """

  def __init__(self, images: int, values: np.ndarray, products: np.ndarray):
    """Args as the attributes and `values`."""
    self.images = images
    self.products = products
    self._values = values
    # Of the last images, which `_values` lacks: adding an image to sums of 64
    # bits takes four times as long.
    self._recent = np.zeros(values.shape, np.uint16)
    self._recent_images = 0

  @classmethod
  def zeros(cls, side: int) -> PixelSums:
    return cls(
      0, np.zeros((side, side, 3), np.int64), np.zeros((3, 3), np.int64)
    )

  @property
  def values(self) -> np.ndarray:
    """i64[side, side, 3], sums of values."""
    return self._values + self._recent

  def add(self, pixels: np.ndarray) -> None:
    """Adds an image, u8[side, side, 3]."""
    if self._recent_images == _EXACT_IMAGES:
      self._values = self.values
      self._recent[...] = self._recent_images = 0
    self._recent += pixels
    self._recent_images += 1
    self.images += 1
    # Not `@`: BLAS starts a thread per core for these, in each process.
    planes = pixels.reshape(-1, 3).T.astype(np.uint32, order="C")
    for start in range(0, planes.shape[1], _EXACT_PIXELS):
      part = planes[:, start : start + _EXACT_PIXELS]
      for one, two in itertools.combinations_with_replacement(range(3), 2):
        product = int(np.einsum("p,p", part[one], part[two]))
        self.products[one, two] += product
        if one != two:
          self.products[two, one] += product

  def merge(self, other: PixelSums) -> None:
    """Adds the sums of other images."""
    self.images += other.images
    self._values = self._values + other.values
    self.products += other.products

  def to_statistics(self) -> Statistics:
    """Computes the statistics.

    The covariance is that of the population: divided by the number of pixels.
    The largest component of each direction is made positive.
    """
    values = self.values
    pixels = self.images * values.shape[0] * values.shape[1]
    # In Python's integers, since these are differences of large numbers.
    totals = values.sum(axis=(0, 1)).astype(object)
    products = self.products.astype(object)
    covariance = (pixels * products - np.outer(totals, totals)) / pixels**2
    variances, columns = np.linalg.eigh(covariance.astype(np.float64))
    directions = columns.T[::-1]
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[range(3), largest])[:, None]
    return Statistics(
      mean=tuple(total / pixels for total in totals),
      mean_image=(values / self.images).astype(np.float32),
      directions=tuple(tuple(map(float, row)) for row in directions),
      stds=tuple(map(float, np.sqrt(np.maximum(variances[::-1], 0)))),
    )


def to_metadata(statistics: Statistics) -> dict[str, Any]:
  """Converts to plain numbers for JSON; the mean image is rounded to 0.001."""
  fields = dataclasses.asdict(statistics)
  image = statistics.mean_image
  fields["mean_image"] = np.round(image.astype(np.float64), 3).tolist()
  return fields


def from_metadata(fields: Mapping[str, Any]) -> Statistics:
  """Inverts `to_metadata`."""
  return Statistics(
    mean=tuple(fields["mean"]),
    mean_image=np.asarray(fields["mean_image"], np.float32),
    directions=tuple(map(tuple, fields["directions"])),
    stds=tuple(fields["stds"]),
  )
