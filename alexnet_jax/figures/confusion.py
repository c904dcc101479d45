"""Which classes are taken for which: a matrix, and its largest entries.

Rows are true classes and columns predicted ones. A color is a hue whose opacity
rises with the share of images, so that it reads on white and on black. NumPy
alone; `confusion_charts.py` draws.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

# Classes of a small matrix beside a larger one.
FEW = 20
# Classes of a matrix: i64 of 2,000 times 2,000 are 32 MB.
MOST_CLASSES = 2_000
# Cells across a picture; each holds several classes if there are more. Smaller
# cells are not seen.
MOST_CELLS = 200
# Of Okabe and Ito 2008: color-blind safe.
CORRECT, WRONG = "#0072b2", "#d55e00"
# Opacity of the smallest and of the largest share.
FAINT, FULL = 0.2, 0.9
# Pixels of `to_pixels` at least.
_PIXELS = 240


def count(
  labels: np.ndarray, predicted: np.ndarray, *, num_classes: int
) -> np.ndarray:
  """Counts images by true and by predicted class.

  Args:
    labels: i32[N], negative for an image without one, which is not counted.
    predicted: i64[N], 0..num_classes-1.

  Returns:
    i64[classes, classes]; rows: true class.
  """
  has_label = labels >= 0
  cells = labels[has_label].astype(np.int64) * num_classes
  counts = np.bincount(
    cells + predicted[has_label], minlength=num_classes * num_classes
  )
  return counts.reshape(num_classes, num_classes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
  """Two classes that are taken for each other.

  Attributes:
    first, second: the classes; more images of `first` are taken for `second`
      than the other way round, or as many, and `first` is the lower one.
    taken: images of `first` taken for `second`, and of `second` for `first`.
    images: of `first`, and of `second`.
  """

  first: int
  second: int
  taken: tuple[int, int]
  images: tuple[int, int]


def find_pairs(matrix: np.ndarray, most: int) -> list[Pair]:
  """Finds the pairs of classes with most images taken for each other.

  Args:
    matrix: from `count`.
    most: number of pairs; fewer if there are fewer with any.

  Returns:
    Most images, of both directions together, first; of equal pairs the one with
    the lower class, and then with the lower other class.
  """
  both = np.triu(matrix + matrix.T, 1).ravel()
  order = np.argsort(-both, kind="stable")[:most]
  images = matrix.sum(axis=1)
  pairs = []
  for place in order[both[order] > 0]:
    one, other = divmod(int(place), len(matrix))
    if matrix[other, one] > matrix[one, other]:
      one, other = other, one
    pairs.append(
      Pair(
        first=one,
        second=other,
        taken=(int(matrix[one, other]), int(matrix[other, one])),
        images=(int(images[one]), int(images[other])),
      )
    )
  return pairs


def find_confused(matrix: np.ndarray, most: int = FEW) -> list[int]:
  """Finds the classes of the most confused pairs, ascending; at most `most`."""
  chosen: list[int] = []
  for pair in find_pairs(matrix, most * most):
    new = [one for one in (pair.first, pair.second) if one not in chosen]
    if len(chosen) + len(new) > most:
      break
    chosen += new
  return sorted(chosen)


def to_shares(matrix: np.ndarray) -> np.ndarray:
  """Divides each row by its sum: f64[classes, classes]; 0 for no images."""
  images = matrix.sum(axis=1, keepdims=True)
  return matrix / np.maximum(images, 1)


def merge(matrix: np.ndarray, size: int) -> np.ndarray:
  """Sums blocks of `size` x `size` classes: i64[cells, cells].

  The last ones may be smaller.
  """
  starts = np.arange(0, len(matrix), size)
  return np.add.reduceat(np.add.reduceat(matrix, starts, 0), starts, 1)


def find_cell(num_classes: int) -> int:
  """Returns how many classes are a cell of a drawing, along each side."""
  return math.ceil(num_classes / MOST_CELLS)


def find_lowest(shares: np.ndarray) -> float:
  """Returns the smallest share of any images, at most a half."""
  seen = shares[shares > 0]
  return min(0.5, float(seen.min())) if len(seen) else 0.5


def to_colors(shares: np.ndarray, low: float) -> np.ndarray:
  """Maps shares of `low`..1 to f64[n, n, 4], 0..1; 0 is transparent.

  The logarithm of a share counts.
  """
  result = np.empty((*shares.shape, 4))
  result[..., :3] = _to_rgb(WRONG)
  diagonal = np.arange(len(shares))
  result[diagonal, diagonal, :3] = _to_rgb(CORRECT)
  # Where a share is 0, its logarithm is not used.
  part = np.log(np.maximum(shares, low) / low) / -np.log(low)
  result[..., 3] = np.where(shares > 0, FAINT + (FULL - FAINT) * part, 0)
  return result


def to_pixels(matrix: np.ndarray) -> np.ndarray:
  """Draws up to `MOST_CELLS` classes without any text: u8[side, side, 4].

  The same colors as the charts have, on a transparent ground.
  """
  shares = to_shares(matrix)
  colors = to_colors(shares, find_lowest(shares))
  size = math.ceil(_PIXELS / len(matrix))
  pixels = np.rint(255 * colors).astype(np.uint8)
  return pixels.repeat(size, axis=0).repeat(size, axis=1)


def _to_rgb(color: str) -> np.ndarray:
  """Converts #rrggbb to f64[3], 0..1."""
  return np.frombuffer(bytes.fromhex(color[1:]), np.uint8) / 255
