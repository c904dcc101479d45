"""What is made of predictions, against loops and published figures."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from alexnet_jax.cli import command
from alexnet_jax.evaluate import tables
from alexnet_jax.training import predictions


def make(seed, *, name="a", images=40, classes=8, views=1):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(images, classes))
  softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  labels = np.random.default_rng(0).integers(0, classes, images)
  return predictions.Predictions(
    name=name,
    views=views,
    labels=labels.astype(np.int32),
    log_probabilities=np.log(softmax).astype(np.float32),
  )


def test_errors_and_loss_match_a_loop():
  found = make(1)
  top1 = top5 = loss = 0
  for row, label in zip(found.probabilities, found.labels, strict=True):
    order = np.argsort(-row)
    top1 += label != order[0]
    top5 += label not in order[:5]
    loss -= np.log(row[label]) / 40
  assert (found.count_errors(1), found.count_errors(5)) == (top1, top5)
  assert found.loss == pytest.approx(loss, rel=1e-6)  # probabilities in float32


def test_lower_class_of_a_tie_ranks_first():
  found = dataclasses.replace(
    make(1), log_probabilities=np.full((40, 8), np.log(1 / 8), np.float32)
  )
  assert found.count_errors(1) == np.sum(found.labels > 0)
  assert found.count_errors(5) == np.sum(found.labels > 4)
  wrong = {
    one.label: one.wrong for one in predictions.count_class_errors(found)
  }
  assert wrong == {0: None, **dict.fromkeys(range(1, 8), 0)}


@pytest.mark.parametrize(
  ("errors", "images", "low", "high"),
  [  # Newcombe 1998, table I, method 3
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ],
)
def test_interval_is_the_published_one(errors, images, low, high):
  found = predictions.find_interval(errors, images)
  # Published to four places.
  np.testing.assert_allclose(found, (low, high), atol=5e-5)
  mirrored = predictions.find_interval(images - errors, images)
  np.testing.assert_allclose(mirrored, (1 - found[1], 1 - found[0]), atol=1e-12)


def test_ensemble_averages_the_probabilities():
  members = [make(seed, name=str(seed)) for seed in range(3)]
  ensemble = predictions.average_runs(members)
  expected = np.mean([one.probabilities for one in members], axis=0)
  # float32.
  np.testing.assert_allclose(ensemble.probabilities, expected, rtol=1e-6)
  assert ensemble.name == "ensemble of 3"
  assert ensemble.log_probabilities.dtype == np.float32


def test_ensemble_of_vanishing_probabilities_has_a_finite_loss():
  far = dataclasses.replace(
    make(0), log_probabilities=np.full((40, 8), -2000.0, np.float32)
  )
  found = predictions.average_runs([far, far])
  np.testing.assert_array_equal(found.log_probabilities, far.log_probabilities)


def test_members_that_saw_different_images_are_refused():
  other = dataclasses.replace(make(1, name="b"), labels=make(0).labels[::-1])
  with pytest.raises(ValueError, match="labels .* b and a .* differ"):
    predictions.average_runs([make(0), other])


def test_classes_match_a_loop():
  found = make(3, images=400)
  classes = predictions.count_class_errors(found)
  assert sum(one.images for one in classes) == 400
  for k in (1, 5):
    assert sum(one.errors[k] for one in classes) == found.count_errors(k)
  for one in classes:
    answers = [
      int(np.argmax(row))
      for row, label in zip(found.probabilities, found.labels, strict=True)
      if label == one.label
    ]
    wrong = [answer for answer in answers if answer != one.label]
    assert (one.images, one.errors[1]) == (len(answers), len(wrong))
    most = max(range(8), key=lambda answer, wrong=wrong: wrong.count(answer))
    assert (one.wrong, one.wrong_images) == (most, wrong.count(most))
  worst = predictions.find_worst(classes, 3)
  shares, of_worst = (
    [one.errors[1] / one.images for one in group] for group in (classes, worst)
  )
  assert of_worst == sorted(shares, reverse=True)[:3]


def test_lines_are_those_of_networks_then_means_and_ensembles():
  found = [
    [make(10 * seed + views, name=name, views=views) for views in (1, 10)]
    for seed, name in enumerate("ab")
  ]
  lines = tables.make_rows(found)
  assert [(line.name, line.views) for line in lines] == [
    *(("a", 1), ("a", 10), ("b", 1), ("b", 10)),
    *(("mean of 2", 1), ("ensemble of 2", 1)),
    *(("mean of 2", 10), ("ensemble of 2", 10)),
  ]
  assert lines[4].errors[1] == (lines[0].errors[1] + lines[2].errors[1]) / 2
  low, high = lines[5].find_interval(1)
  assert low < lines[5].errors[1] < high
  assert len(tables.make_rows(found[:1])) == 2


def test_classes_are_those_of_the_center_and_no_empty_figure_is_shown():
  found = [
    [make(views, name=name, views=views, classes=5) for views in (1, other)]
    for name, other in (("a", 5), ("b", 10))
  ]
  rows = tables.make_rows(found)
  lead = tables.find_lead(rows)
  assert (lead.name, lead.views) == ("ensemble of 2", 1)
  assert tables.find_lead(rows[1:2]).views == 5
  of_views = [[of_run[1]] for of_run in found]  # 5 and 10
  lead_of_views = tables.find_lead(tables.make_rows(of_views))
  assert (lead_of_views.name, lead_of_views.views) == ("ensemble of 2", 10)
  content = tables.to_json(rows, [], ["n"] * 5)
  assert content["classes_of"] == {"name": "ensemble of 2", "views": 1}
  assert [line["views"] for line in content["lines"]][-2:] == [10, 10]
  for classes, top_k in ((5, ["top-1"]), (6, ["top-1", "top-5"])):
    table = tables.make_table(rows[:1], classes)
    headers = [str(column.header) for column in table.columns]
    assert [name for name in headers if name.startswith("top-")] == top_k
  certain = np.where(np.eye(5)[lead.labels] == 1, 0, -100).astype(np.float32)
  row = tables.make_rows(
    [[dataclasses.replace(lead, log_probabilities=certain)]]
  )
  (loss,) = (
    list(column.cells)
    for column in tables.make_table(row, 5).columns
    if column.header == "loss"
  )
  assert loss == ["0"]  # not -0


def test_files_hold_the_predictions(tmp_path):
  names = [f"n{label:08}" for label in range(8)]
  found = [make(1), make(2, name="b", views=10)]
  predictions.write(str(tmp_path / "p.npz"), found, names)
  with np.load(tmp_path / "p.npz", allow_pickle=False) as kept:
    assert kept["names"].tolist() == ["a", "b"]
    assert kept["views"].tolist() == [1, 10]
    assert kept["class_names"].tolist() == names
    np.testing.assert_array_equal(kept["labels"], found[0].labels)
    np.testing.assert_array_equal(
      kept["probabilities"], [one.probabilities for one in found]
    )
  predictions.write(str(tmp_path / "p.csv"), found, names)
  with open(tmp_path / "p.csv", newline="") as file:
    lines = list(csv.DictReader(file))
  assert len(lines) == 80
  for line in (lines[7], lines[47]):
    one = found[line["name"] == "b"]
    assert int(line["views"]) == one.views and line["index"] == "7"
    assert line["label"] == names[one.labels[7]]
    falling = sorted(enumerate(one.probabilities[7]), key=lambda pair: -pair[1])
    for place, (label, probability) in enumerate(falling[:5], start=1):
      assert line[f"class_{place}"] == names[label]
      # Written with six digits.
      assert float(line[f"p_{place}"]) == pytest.approx(probability, rel=1e-5)


def test_predictions_without_labels_have_no_errors_but_files(tmp_path):
  names = [f"n{label:08}" for label in range(8)]
  runs = [
    dataclasses.replace(make(seed, name=name), labels=np.full(40, -1, np.int32))
    for seed, name in enumerate("ab")
  ]
  rows = tables.make_rows([[one] for one in runs])
  assert [row.name for row in rows] == ["a", "b", "ensemble of 2"]
  assert all(row.loss is None and not row.errors for row in rows)
  assert not tables.find_lead(rows).has_labels
  found = [row.predictions for row in rows]
  predictions.write(str(tmp_path / "p.csv"), found, names)
  with open(tmp_path / "p.csv", newline="") as file:
    lines = list(csv.DictReader(file))
  assert [line["label"] for line in lines] == [""] * 120
  content = json.loads(command.to_json(tables.predictions_to_json(rows, names)))
  assert content["labels"] is False
  mean = (runs[0].probabilities[7] + runs[1].probabilities[7]) / 2
  falling = np.argsort(-mean)[:5]
  written = content["lines"][2]["predictions"][7]
  assert written["classes"] == [names[label] for label in falling]
  # float32.
  np.testing.assert_allclose(written["probabilities"], mean[falling], rtol=1e-6)


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("p.txt", "does not end in .csv or .npz. Set --predictions"),
    ("none/p.csv", "cannot be written: .* is not a folder"),
  ],
)
def test_file_that_cannot_be_written_is_refused(name, expected, tmp_path):
  with pytest.raises(ValueError, match=expected):
    command.check_path(
      str(tmp_path / name), flag="predictions", endings=predictions.ENDINGS
    )
