"""What the augmentation must know of the pixels of a training split.

The mean image, the mean of each channel, and the directions in which the
colors vary. `imagenet256` keeps its own with its metadata; `PUBLISHED` are
those of the released code, for sets that keep none.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
  """Of the pixels of a training split, 0..255.

  Attributes:
    mean: of each channel (R, G, B).
    mean_image: f32[side, side, 3]; None where it is not known.
    directions: eigenvectors of the covariance of R, G, B, one a row, that of
      the largest eigenvalue first.
    stds: standard deviation along each direction, in gray levels: the roots of
      the eigenvalues.
  """

  mean: tuple[float, float, float]
  mean_image: np.ndarray | None
  directions: tuple[tuple[float, float, float], ...]
  stds: tuple[float, float, float]

  def fingerprint(self) -> str:
    """Differs where any number does."""
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


class Sums:
  """Sums over the pixels of many images, exact; they can be added up.

  Args:
    side: of the images, pixels.
  """

  def __init__(self, side: int):
    self.images = 0
    # i64[side, side, 3] of the values, i64[3, 3] of the products of channels.
    self._values = np.zeros((side, side, 3), np.int64)
    self._products = np.zeros((3, 3), np.int64)

  def add(self, pixels: np.ndarray) -> None:
    """Adds an image, u8[side, side, 3]."""
    self.images += 1
    self._values += pixels
    # Exact: of a square of 256 no sum reaches 2^53.
    planes = np.ascontiguousarray(pixels.reshape(-1, 3).T).astype(np.float64)
    products = [[first @ second for second in planes] for first in planes]
    self._products += np.array(products).astype(np.int64)

  def merge(self, other: Sums) -> None:
    """Adds the sums of other images."""
    self.images += other.images
    self._values += other._values
    self._products += other._products

  def to_arrays(self) -> dict[str, np.ndarray]:
    """For a file: `from_arrays` reads them."""
    return {
      "images": np.asarray(self.images),
      "values": self._values,
      "products": self._products,
    }

  @classmethod
  def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Sums:
    sums = cls(arrays["values"].shape[0])
    sums.images = int(arrays["images"])
    sums._values += arrays["values"]
    sums._products += arrays["products"]
    return sums

  def to_statistics(self) -> Statistics:
    """Mean image, means, and the axes of the covariance of R, G, B.

    The covariance is over all pixels of all images, divided by their number.
    The largest component of each direction is positive.
    """
    pixels = self.images * self._values.shape[0] * self._values.shape[1]
    # In whole numbers as long as they are differences of large ones.
    totals = [int(total) for total in self._values.sum(axis=(0, 1))]
    covariance = np.array(
      [
        [
          (pixels * int(self._products[i, j]) - totals[i] * totals[j])
          / pixels**2
          for j in range(3)
        ]
        for i in range(3)
      ]
    )
    variances, columns = np.linalg.eigh(covariance)
    directions = columns.T[::-1]
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[range(3), largest])[:, None]
    return Statistics(
      mean=tuple(total / pixels for total in totals),
      mean_image=(self._values / self.images).astype(np.float32),
      directions=tuple(tuple(map(float, row)) for row in directions),
      stds=tuple(map(float, np.sqrt(np.maximum(variances[::-1], 0)))),
    )


def to_metadata(statistics: Statistics) -> dict[str, Any]:
  """As plain numbers, for JSON; pixels to a thousandth of a gray level."""
  fields = dataclasses.asdict(statistics)
  image = statistics.mean_image
  fields["mean_image"] = np.round(image.astype(np.float64), 3).tolist()
  return fields


def from_metadata(fields: Mapping[str, Any]) -> Statistics:
  """From what `to_metadata` has made."""
  return Statistics(
    mean=tuple(fields["mean"]),
    mean_image=np.asarray(fields["mean_image"], np.float32),
    directions=tuple(map(tuple, fields["directions"])),
    stds=tuple(fields["stds"]),
  )
