"""The sections on a validation, against loops over its images."""

import re
import types

import numpy as np
import pytest

from alexnet_jax.figures import examples
from alexnet_jax.report import mistakes, section, validation
from alexnet_jax.training import predictions
from tests import build

RUN = types.SimpleNamespace(step=1200)


class Records:
  """Gray pictures, as light as their number."""

  def read(self, indices):
    images = np.zeros((len(indices), 8, 8, 3), np.uint8)
    images += (np.array(indices) % 250).astype(np.uint8)[:, None, None, None]
    return types.SimpleNamespace(images=images)


def make(*, classes=6, images=60, labels=None, hidden=3, seed=0):
  """A validation, every second image of a split; a class is never seen."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(images, classes)).astype(np.float32)
  if labels is None:
    labels = rng.integers(0, classes - 1, images)
    logits[np.arange(images), labels] += 1.5
  return validation.Validation(
    name="set/validation",
    images=2 * images,
    rows=2 * np.arange(images),
    predictions=predictions.Predictions(
      name="run",
      views=1,
      labels=labels.astype(np.int32),
      log_probabilities=validation.to_log_probabilities(logits),
    ),
    hidden_layer="fc7" if hidden else None,
    hidden=rng.normal(size=(images, hidden)).astype(np.float32),
    class_names=tuple(f"class {label}" for label in range(classes)),
    replaced=0,
    records=Records(),
  )


@pytest.fixture(scope="module")
def shown():
  """A validation, and its sections: compiled and drawn once."""
  found = make()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mistakes, "_MOST_DIFFERENCES", 20 * found.hidden.size)
    return found, mistakes.make_sections(RUN, found)


def find_parts(sections):
  """{name of a drawing, or caption of a table: it}."""
  parts = [part for one in sections for part in one.parts]
  return {
    part.name if isinstance(part, section.Drawing) else part.caption: part
    for part in parts
  }


def find_best(validation, place):
  """The five best classes of an image, by a loop."""
  row = np.exp(validation.predictions.log_probabilities[place].astype(float))
  best = sorted(range(len(row)), key=lambda label: (-row[label], label))[:5]
  return [f"class {label} {row[label]:.1%}" for label in best]


def test_best_classes_match_a_loop(shown):
  found, sections = shown
  parts = find_parts(sections)
  rows = parts["best_classes"].table.rows
  for row, place in zip(rows, (0, 7, 15, 22, 30, 37, 45, 52), strict=True):
    label = found.predictions.labels[place]
    assert [*row] == [
      f"{2 * place}",
      f"class {label}",
      *find_best(found, place),
    ]
  wrong = parts["confident_mistakes"].table.rows
  shares = [float(re.search(r"([\d.]+)%", row[2])[1]) for row in wrong]
  assert shares == sorted(shares, reverse=True)
  for row in wrong:
    assert not row[2].startswith(f"{row[1]} ")
    assert [*row[2:]] == find_best(found, int(row[0]) // 2)


def test_errors_and_pairs_match_a_loop(shown):
  found, sections = shown
  labels = found.predictions.labels.tolist()
  first = [
    row.index(max(row)) for row in found.predictions.log_probabilities.tolist()
  ]
  wrong = sum(a != b for a, b in zip(labels, first, strict=True))
  assert "60 of the 120 images, evenly spread, of set" in sections[0].text[0]
  assert f"top-1 error {wrong / 60:.2%} ({wrong} of 60;" in sections[0].text[1]
  parts = find_parts(sections)
  pairs = [*zip(labels, first, strict=True)]
  table = next(part for name, part in parts.items() if " pairs of " in name)
  for one, other, taken, share, back, share_back in table.rows:
    a, b = int(one.split()[1]), int(other.split()[1])
    counts = pairs.count((a, b)), pairs.count((b, a))
    images = labels.count(a), labels.count(b)
    assert (taken, back) == tuple(
      f"{n} of {of}" for n, of in zip(counts, images, strict=True)
    )
    assert share == f"{counts[0] / images[0]:.1%}"
    assert share_back == (f"{counts[1] / images[1]:.1%}" if images[1] else "-")
  rows = parts["classes_by_error"].table.rows
  assert rows[-1] == ("class 5", "0", "-", "-", "-", "-")  # never seen
  assert len(rows) == 6
  shares = []
  for name, images, errors, _, interval, _ in rows[:-1]:
    label = int(name.split()[1])
    mine = [b for a, b in pairs if a == label]
    count = sum(b != label for b in mine)
    assert (images, errors) == (f"{len(mine)}", f"{count}")
    low, high = predictions.find_interval(count, len(mine))
    assert interval == f"{low:.1%} to {high:.1%}"
    shares.append(count / len(mine))
  assert shares == sorted(shares, reverse=True)


def test_neighbors_match_a_loop(shown):
  found, sections = shown
  drawing = find_parts(sections)["nearest_neighbors"]

  def find_nearest(place):
    far = [
      (float(np.linalg.norm(found.hidden[place] - other)), index)
      for index, other in enumerate(found.hidden)
      if index != place
    ]
    return sorted(far)[:6]

  names = [f"class {label}" for label in found.predictions.labels]
  for place, row in zip(range(0, 60, 12), drawing.table.rows, strict=True):
    assert row[0] == f"{names[place]} (image {2 * place})"
    for text, (_, index) in zip(row[1:], find_nearest(place), strict=True):
      assert text.startswith(f"{names[index]} (image {2 * index}), ")
  same = [
    names[index] == names[place]
    for place in range(0, 60, 3)
    for _, index in find_nearest(place)
  ]
  assert (
    f"nearest of 20 images (evenly spread), {np.mean(same):.1%} are"
    in sections[1].text[1]
  )


def test_images_without_labels_have_no_errors():
  found = make(labels=np.full(60, -1))
  sections = mistakes.make_sections(RUN, found)
  assert sections[0].text[-1].startswith("They have no labels")
  assert [part.name for part in sections[0].parts] == ["best_classes"]
  assert sections[0].parts[0].table.rows[0][1] == "no label"
  assert sections[2].parts == ()


@pytest.mark.slow
def test_network_without_a_hidden_layer_has_no_neighbors():
  sections = mistakes.make_sections(RUN, make(hidden=0))
  assert sections[1].text == ("The network has no hidden layer.",)


@pytest.mark.slow
def test_perfect_run_has_no_mistakes():
  labels = np.arange(12) % 2
  found = make(classes=2, images=12, labels=labels)
  found.predictions.log_probabilities[:] = np.log(
    np.where(np.eye(2)[labels] == 1, 0.9, 0.1)
  )
  sections = mistakes.make_sections(RUN, found)
  assert [part.name for part in sections[0].parts] == ["best_classes"]
  assert sections[2].text == ["No image is taken for another class."]
  # The top-5 error of two classes is none.
  assert "top-5" not in " ".join(sections[0].text)


@pytest.mark.parametrize("classes", build.slow(41, 1000, 2001))
def test_many_classes_are_shown_in_part(classes):
  found = make(classes=classes, images=3000)
  sections = mistakes.make_sections(RUN, found)
  parts = find_parts(sections)
  assert ("confusion_matrix" in parts) == (classes <= 2000)
  assert ("confused_classes" in parts) == (classes <= 2000)
  classes_drawn = parts["classes_by_error"].figure.axes[0].get_yticklabels()
  assert len(classes_drawn) == 40
  assert len(parts["classes_by_error"].table.rows) <= 1000
  for drawing in parts.values():
    if isinstance(drawing, section.Drawing):
      assert len(drawing.alternative) < 1500


def test_shown_images_are_read_again(shown):
  drawing = find_parts(shown[1])["best_classes"]
  pictures = drawing.figure.axes[0].images
  lightness = [picture.get_array()[0, 0, 0] for picture in pictures]
  places = examples.choose_evenly(60, 8)
  assert lightness == [2 * place for place in places]
