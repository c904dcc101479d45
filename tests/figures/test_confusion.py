"""The confusion matrix and what follows from it, against loops."""

import collections

import matplotlib
import numpy as np
import pytest

from alexnet_jax.figures import charts, confusion, confusion_charts
from tests import build


def make(classes, images, seed=0):
  """Labels, of which one class is never seen, and predictions of all."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes - 1, images).astype(np.int32)
  return labels, rng.integers(0, classes, images)


def count_by_loop(labels, predicted, classes):
  matrix = [[0] * classes for _ in range(classes)]
  for label, one in zip(labels, predicted, strict=True):
    matrix[label][one] += 1
  return np.array(matrix)


@pytest.mark.parametrize(("classes", "images"), [(2, 9), (7, 500), (60, 200)])
def test_counts_match_a_loop(classes, images):
  labels, predicted = make(classes, images)
  matrix = confusion.count(labels, predicted, num_classes=classes)
  assert matrix.dtype == np.int64
  expected = count_by_loop(labels, predicted, classes)
  np.testing.assert_array_equal(matrix, expected)
  assert not matrix[-1].any()  # the class that is never seen


def test_images_without_a_label_are_not_counted():
  labels = np.array([0, -1, 1, -1], np.int32)
  matrix = confusion.count(labels, np.array([0, 0, 0, 1]), num_classes=2)
  np.testing.assert_array_equal(matrix, [[1, 0], [1, 0]])


def test_pairs_match_a_loop():
  labels, predicted = make(9, 300)
  matrix = confusion.count(labels, predicted, num_classes=9)
  taken = collections.Counter(zip(labels, predicted, strict=True))
  expected = sorted(
    (-taken[one, other] - taken[other, one], one, other)
    for one in range(9)
    for other in range(one + 1, 9)
    if taken[one, other] + taken[other, one]
  )
  found = confusion.find_pairs(matrix, 100)
  assert [
    (-sum(pair.taken), *sorted((pair.first, pair.second))) for pair in found
  ] == expected
  for pair in found:
    assert pair.taken == (
      taken[pair.first, pair.second],
      taken[pair.second, pair.first],
    )
    assert pair.taken[0] >= pair.taken[1]
    assert pair.images == tuple(
      int(np.sum(labels == one)) for one in (pair.first, pair.second)
    )
  assert confusion.find_pairs(matrix, 3) == found[:3]


def test_no_mistakes_are_no_pairs():
  matrix = np.diag([3, 0, 5])
  assert confusion.find_pairs(matrix, 5) == []
  assert confusion.find_confused(matrix) == []


def test_equal_pairs_are_in_the_order_of_classes():
  matrix = np.array([[0, 1, 1], [1, 0, 0], [1, 2, 0]])
  pairs = confusion.find_pairs(matrix, 3)
  # Two images each; of the last, both of 2 for 1.
  assert [(one.first, one.second) for one in pairs] == [(0, 1), (0, 2), (2, 1)]
  assert pairs[-1].taken == (2, 0)


def test_confused_classes_are_those_of_the_first_pairs():
  matrix = np.zeros((50, 50), np.int64)
  matrix[40, 7], matrix[7, 3], matrix[20, 21] = 9, 8, 7
  assert confusion.find_confused(matrix, 3) == [3, 7, 40]
  assert confusion.find_confused(matrix, 4) == [3, 7, 40]  # a pair is whole
  assert confusion.find_confused(matrix) == [3, 7, 20, 21, 40]


def test_merged_cells_are_sums_of_blocks():
  matrix = np.random.default_rng(0).integers(0, 9, (11, 11))
  merged = confusion.merge(matrix, 4)
  blocks = [range(0, 4), range(4, 8), range(8, 11)]
  expected = [
    [sum(matrix[i, j] for i in one for j in other) for other in blocks]
    for one in blocks
  ]
  np.testing.assert_array_equal(merged, expected)


@pytest.mark.parametrize("classes", [2, 1000, *build.slow(20, 21)])
def test_matrix_is_drawn(classes, tmp_path):
  labels, predicted = make(classes, 3000)
  matrix = confusion.count(labels, predicted, num_classes=classes)
  names = [
    f"_class ${index}, which has a long name" for index in range(classes)
  ]
  drawn = confusion_charts.draw_matrix(matrix, names)
  axes = drawn.axes[0]
  (image,) = axes.images
  pixels = image.get_array()
  shown = len(axes.get_yticklabels())
  if classes > confusion_charts.MOST_NAMED:
    assert shown == 0
    assert len(pixels) == classes / 5  # five classes a cell
    assert pixels.shape[0] <= 200
  else:
    assert shown == classes
    # What is in no cell is transparent, and what is more is denser.
    np.testing.assert_array_equal(pixels[..., 3] > 0, matrix > 0)
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    order = np.argsort(shares.ravel())
    assert (np.diff(pixels[..., 3].ravel()[order]) >= 0).all()
  chosen = confusion.find_confused(matrix)
  if classes == 1000:
    part = confusion_charts.draw_matrix(matrix, names, classes=chosen)
    assert len(part.axes[0].get_yticklabels()) == len(chosen) <= 20
  with matplotlib.rc_context(charts.SETTINGS):
    charts.save(drawn, str(tmp_path / "matrix.svg"))
  assert (tmp_path / "matrix.svg").stat().st_size < 500_000


def test_pixels_are_shares_of_rows():
  matrix = np.array([[3, 1], [0, 0]])
  pixels = confusion.to_pixels(matrix)
  assert pixels.dtype == np.uint8 and pixels.shape == (240, 240, 4)
  cells = pixels[::120, ::120]
  np.testing.assert_array_equal(pixels, cells.repeat(120, 0).repeat(120, 1))
  blue, orange = (0, 0x72, 0xB2), (0xD5, 0x5E, 0)
  np.testing.assert_array_equal(cells[0, :, :3], [blue, orange])
  # A quarter is the smallest share: 20 %. Three quarters, by the logarithm:
  expected = 255 * (0.2 + 0.7 * (1 - np.log(0.75) / np.log(0.25)))
  np.testing.assert_array_equal(cells[0, :, 3], [round(expected), 51])
  assert not cells[1, :, 3].any()


def test_matrix_without_images_is_drawn():
  drawn = confusion_charts.draw_matrix(np.zeros((3, 3), np.int64), "abc")
  assert not drawn.axes[0].images[0].get_array()[..., 3].any()


def test_long_names_are_cut():
  assert charts.shorten("tench, Tinca tinca, of the carps") == (
    "tench, Tinca tinca, …"
  )
  assert charts.shorten("x" * 30) == "x" * 21 + "…"
  assert charts.shorten("cat") == "cat"
  assert charts.shorten("US$") == r"US\$"


def test_errors_of_classes_are_drawn_with_their_intervals():
  drawn = confusion_charts.draw_classes(
    ["a", "b"], [0.5, 0.25], [(0.2, 0.8), (0.1, 0.4)], overall=0.4
  )
  axes = drawn.axes[0]
  points, overall = axes.lines
  np.testing.assert_allclose(points.get_xdata(), [50, 25])
  np.testing.assert_allclose(overall.get_xdata(), [40, 40])
  ends = [line[:, 0] for line in axes.collections[0].get_segments()]
  np.testing.assert_allclose(ends, [[20, 80], [10, 40]])
