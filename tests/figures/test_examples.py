"""Chosen pictures and nearest neighbors, against loops."""

import itertools
import math

import numpy as np
import pytest
from matplotlib.backends import backend_agg

from alexnet_jax.figures import examples


@pytest.mark.parametrize(
  ("count", "most", "expected"),
  [
    (1000, 4, [0, 250, 500, 750]),
    (10, 8, [0, 1, 2, 3, 5, 6, 7, 8]),
    (3, 8, [0, 1, 2]),
    (0, 8, []),
  ],
)
def test_rows_are_spread_evenly(count, most, expected):
  assert examples.choose_evenly(count, most).tolist() == expected


def test_confident_mistakes_match_a_loop():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(200, 5)).astype(np.float32)
  log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  labels = rng.integers(-1, 5, 200).astype(np.int32)
  log_probabilities[50], labels[50] = log_probabilities[9], labels[9]
  expected = sorted(
    (-max(row), index)
    for index, (row, label) in enumerate(
      zip(log_probabilities.tolist(), labels, strict=True)
    )
    if label >= 0 and row.index(max(row)) != label
  )
  found = examples.find_confident_mistakes(labels, log_probabilities, 200)
  assert found.tolist() == [index for _, index in expected]
  few = examples.find_confident_mistakes(labels, log_probabilities, 3)
  assert few.tolist() == found[:3].tolist()


def test_lower_class_of_a_tie_is_the_predicted_one():
  ties = np.full((3, 4), -math.log(4), np.float32)
  labels = np.array([0, 1, 3], np.int32)
  found = examples.find_confident_mistakes(labels, ties, 8)
  assert found.tolist() == [1, 2]


def test_neighbors_match_a_loop(monkeypatch):
  monkeypatch.setattr(examples, "_BLOCK", 16)
  features = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
  features[[7, 21, 33]] = features[3]  # as near to any other
  found, distances = examples.find_neighbors(features, [0, 3, 49], 6)
  for query, rows, of_rows in zip((0, 3, 49), found, distances, strict=True):
    expected = sorted(
      (
        math.sqrt(
          sum(
            (float(a) - float(b)) ** 2
            for a, b in zip(features[query], other, strict=True)
          )
        ),
        index,
      )
      for index, other in enumerate(features)
      if index != query
    )[:6]
    assert rows.tolist() == [index for _, index in expected]
    # float64, whose sums are in another order.
    np.testing.assert_allclose(of_rows, [d for d, _ in expected], rtol=1e-12)
  assert found[1, :3].tolist() == [7, 21, 33]


def test_few_pictures_have_few_neighbors():
  features = np.eye(3, 4, dtype=np.float32)
  found, distances = examples.find_neighbors(features, [1], 6)
  assert found.tolist() == [[0, 2]]
  np.testing.assert_allclose(distances, math.sqrt(2))
  assert examples.find_neighbors(features[:1], [0], 6)[0].shape == (1, 0)


def test_best_classes_are_drawn_with_the_true_one_marked():
  picture = np.zeros((200, 200, 3), np.uint8)
  best = [("cat", 0.6), ("dog", 0.3), ("owl", 0.1)]
  drawn = examples.draw_best(
    [
      examples.Example(picture=picture, name="dog", best=best, correct=1),
      examples.Example(picture=picture, name=None, best=best, correct=None),
    ]
  )
  (axes,) = drawn.axes
  assert [image.get_array().shape for image in axes.images] == [(96, 96, 3)] * 2
  texts = {text.get_text(): text for text in axes.texts}
  assert {"no label", "dog", "cat", "owl"} == {*texts}
  bars = axes.patches
  widths = [bar.get_width() for bar in bars]
  np.testing.assert_allclose(widths, 2 * [0.6, 0.3, 0.1])
  colors = [bar.get_facecolor() for bar in bars]
  assert colors[0] == colors[2] != colors[1]
  assert {*colors[3:]} == {colors[0]}
  bold = [one.get_text() for one in axes.texts if one.get_weight() == "bold"]
  assert bold == ["dog"]


def test_neighbors_are_drawn_with_other_classes_in_brackets():
  query = examples.Neighbors(
    pictures=np.zeros((3, 8, 8, 3), np.uint8),
    names=["cat", "cat", "dog"],
    distances=np.array([1.0, 2.0]),
  )
  (axes,) = examples.draw_neighbors([query]).axes
  assert [one.get_text() for one in axes.texts] == ["cat", "cat", "(dog)"]
  assert len(axes.images) == 3


LONG = ["W" * 40, "black-footed ferret, Mustela nigripes", "a_b" * 12, "cat"]


def find_boxes(drawn):
  """The texts of a figure, and the boxes in which they are drawn."""
  (axes,) = drawn.axes
  drawn.set_dpi(300)  # as in files; at fewer dots, letters are fitted to these
  renderer = backend_agg.FigureCanvasAgg(drawn).get_renderer()
  return [(one.get_window_extent(renderer), one) for one in axes.texts]


def test_long_names_do_not_overlap():
  pictures = np.zeros((4, 8, 8, 3), np.uint8)
  for names in (LONG, [LONG[0]] * 4):
    query = examples.Neighbors(
      pictures=pictures, names=names, distances=np.ones(3)
    )
    drawn = examples.draw_neighbors([query, query])
    boxes = [box for box, _ in find_boxes(drawn)]
    assert len(boxes) == 8
    assert not [
      (one, two)
      for one, two in itertools.combinations(boxes, 2)
      if one.overlaps(two)
    ]
    for box in boxes:
      assert drawn.bbox.x0 <= box.x0 and box.x1 <= drawn.bbox.x1
  texts = [one.get_text() for _, one in find_boxes(drawn)]
  assert texts[0].endswith("…") and len(texts[0]) >= 5


def test_long_names_of_best_classes_stay_below_their_picture():
  best = [(name, 0.2) for name in LONG]
  one = examples.Example(
    picture=np.zeros((8, 8, 3), np.uint8), name=LONG[0], best=best, correct=1
  )
  drawn = examples.draw_best([one] * 4)
  (axes,) = drawn.axes
  boxes = [box for box, _ in find_boxes(drawn)]
  sides = [image.get_window_extent() for image in axes.images]
  each = len(boxes) // 4
  for index, side in enumerate(sides):
    for box in boxes[index * each : (index + 1) * each]:
      # A pixel of antialiasing.
      assert side.x0 - 1 <= box.x0 and box.x1 <= side.x1 + 1
