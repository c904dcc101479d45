"""What a run computes of its validation split, against NumPy."""

import dataclasses

import numpy as np
import pytest

import alexnet_jax
from alexnet_jax.data import source
from alexnet_jax.network import catalog as wirings
from alexnet_jax.report import mistakes, validation
from alexnet_jax.training import evaluation, loaded_run
from tests import small_sets, stored_run

SHORT = dataclasses.replace(
  wirings.ALEXNET_2012,
  name="short",
  layers=tuple(
    row
    for row in wirings.ALEXNET_2012.layers
    if row.name in ("conv1", "fc6", "fc8")
  ),
)
IMAGES = 11


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  path = tmp_path_factory.mktemp("runs") / "short"
  stored_run.write(path, stored_run.make_config(SHORT))
  return alexnet_jax.load(path)


@pytest.fixture
def split(tmp_path, monkeypatch):
  """Makes the split of the run; returns its pictures and labels."""
  images = small_sets.tiles(IMAGES, side=72)
  labels = np.arange(IMAGES) * 7 % 10
  labels[3] = -1
  records = small_sets.make_records(
    tmp_path,
    [small_sets.encode(image) for image in images],
    labels=labels,
    num_classes=10,
    stored_size=72,
    allow_unlabeled=True,
  )
  opened = evaluation.OpenedSplit(records, stored_run.CLASSES, {}, None)
  monkeypatch.setattr(
    validation.evaluation, "open_split", lambda *_, **options: opened
  )
  # Three batches, the last one not full.
  monkeypatch.setattr(loaded_run, "MAX_BATCH", 4)
  return images, labels


@pytest.mark.parametrize(
  ("most", "rows"),
  [
    (100, [*range(IMAGES)]),
    pytest.param(5, [0, 2, 4, 6, 8], marks=pytest.mark.slow),
  ],
)
def test_outputs_are_those_of_each_picture(run, split, most, rows):
  images, labels = split
  done = []
  found = validation.read(
    run, data_dir=None, most=most, report=lambda *one: done.append(one)
  )
  starts = [*range(0, len(rows), 4), len(rows)]
  assert done == [(start, len(rows)) for start in starts]
  assert (len(found), found.images) == (len(rows), IMAGES)
  assert (found.name, found.hidden_layer) == ("small/train", "fc6")
  np.testing.assert_array_equal(found.rows, rows)
  np.testing.assert_array_equal(found.predictions.labels, labels[rows])
  hidden = run.activations(images[rows], "fc6")
  # Batches of another size; float32.
  np.testing.assert_allclose(
    found.hidden, hidden, rtol=0, atol=1e-5 * np.abs(hidden).max()
  )
  own = run.parameters["fc8"]
  logits = np.float64(hidden) @ np.float64(own["kernel"]) + own["bias"]
  exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
  expected = np.log(exponentials / exponentials.sum(axis=1, keepdims=True))
  np.testing.assert_allclose(
    found.predictions.log_probabilities,
    expected,
    rtol=0,
    atol=1e-5 * np.abs(logits).max(),
  )
  places = [len(rows) - 1, 1]
  np.testing.assert_array_equal(
    found.read_pictures(places), images[np.array(rows)[places]]
  )
  assert found.find_name(1) == f"class {labels[rows[1]]}"


@pytest.mark.slow
def test_sections_are_made_of_them(run, split):
  found = validation.read(run, data_dir=None, most=IMAGES)
  sections = mistakes.make_sections(run, found)
  assert [one.name for one in sections] == [
    *("predictions", "nearest-neighbors", "mistakes")
  ]
  assert "all 11 images of small/train" in sections[0].text[0]
  assert sections[0].text[1].startswith("1 of them have no label")
  assert found.find_name(3) is None


def test_set_that_is_not_there_is_a_line(run, tmp_path):
  line = validation.read(run, data_dir=str(tmp_path), most=IMAGES)
  assert "dataset 'digits' is not prepared in" in line
  assert line.endswith("Set --data_dir to the folder that has it.")
  assert not [*tmp_path.iterdir()]
  (section,) = mistakes.make_sections(run, line)
  assert section.text == (line,)


@pytest.mark.slow
def test_other_set_is_a_line(run, data_dir):
  evaluation.open_split(  # builds it
    dataclasses.replace(
      run.trained,
      found=dict.fromkeys(run.trained.found),
    ),
    data_dir=data_dir,
  )
  line = validation.read(run, data_dir=data_dir, most=IMAGES)
  assert "was none/1.0.0, but is digits/1.0.0 here. Set --data_dir" in line


def test_output_that_is_not_finite_is_a_line(run, split, monkeypatch):
  def fail(*_):
    raise FloatingPointError("the output is not finite. Set step to another.")

  monkeypatch.setattr(run, "activations_of_layers", fail)
  line = validation.read(run, data_dir=None, most=IMAGES)
  assert line.endswith("is not finite. Set --checkpoint_step to another.")


def test_record_that_cannot_be_read_is_a_line(run, split, monkeypatch):
  def fail(*_):
    raise source.RecordError("record 3 of small/train cannot be read.")

  monkeypatch.setattr(source.Source, "__getitem__", fail)
  line = validation.read(run, data_dir=None, most=IMAGES)
  assert "record 3 of small/train cannot be read. Set --data_dir" in line
