"""The evaluation of a split, against a NumPy loop; and the command itself."""

import csv
import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from array_record.python import array_record_module
from flax import nnx
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data import pipeline
from alexnet_jax.network import model
from alexnet_jax.partition import catalog
from alexnet_jax.training import evaluation
from tests import build, processes, small_sets

# A full batch and one that is not.
IMAGES, BATCH = 21, 16
# Corners and center of 67 pixels in 72, from the top and the left; reference,
# section 3.3.
PLACES = ((0, 0), (0, 5), (2, 2), (5, 0), (5, 5))

# Where fc8 is gathered, the devices of a column hold copies of the logits.
COPIES = dataclasses.replace(catalog.TWO_COLUMN, name="copies", layers={})
READING = {"threads": 1, "batches_ahead": 1}


@pytest.fixture(scope="module")
def split(tmp_path_factory):
  """Stored images, labels, and records of them."""
  images = small_sets.tiles(IMAGES, side=72)
  labels = np.random.default_rng(0).integers(0, 10, IMAGES)
  records = small_sets.make_records(
    tmp_path_factory.mktemp("split"),
    [small_sets.encode(image) for image in images],
    labels=labels,
    num_classes=10,
    stored_size=72,
  )
  return images, labels, records


@pytest.fixture(scope="module")
def expected(split, tiny_network):
  """Parameters, and softmax outputs of the ten crops: f64[10, N, classes].

  Logits of some units, so that views differ in what they rank first.
  """
  images, _, _ = split
  init = jax.jit(lambda key: model.init_parameters(tiny_network, key))
  parameters = init(jax.random.key(0))
  parameters["fc8"]["kernel"] = 10 * parameters["fc8"]["kernel"]
  graphdef = model.make_graphdef(tiny_network)
  forward = jax.jit(lambda weights, x: nnx.merge(graphdef, weights)(x))
  outputs = []
  for mirrored in (False, True):
    for top, left in PLACES:
      crops = images[:, top : top + 67, left : left + 67]
      if mirrored:
        crops = crops[:, :, ::-1]
      x = (crops - np.array([127.0, 120.0, 105.0])) / 64.0
      logits = np.float64(forward(parameters, jnp.asarray(x, jnp.float32)))
      exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
      outputs.append(exponentials / exponentials.sum(axis=1, keepdims=True))
  return jax.device_get(parameters), np.array(outputs)


def predict_split(program, parameters, records, *, views):
  return evaluation.predict_split(
    program, parameters, records, name="a", views=views, **READING
  )


@pytest.mark.parametrize(
  "layout", [COPIES, catalog.ONE_WEIRD_TRICK], ids=lambda layout: layout.name
)
def test_each_image_is_predicted_once_as_by_a_loop(layout, split, expected):
  _, labels, records = split
  parameters, outputs = expected
  program = build.make_program(layout, batch_size=BATCH)
  parameters = build.put_parameters(program, parameters)
  (one, five, ten), replaced = predict_split(
    program, parameters, records, views=(1, 5, 10)
  )
  assert replaced == 0
  for found, probabilities in (
    (one, outputs[2]),
    (five, outputs[:5].mean(axis=0)),  # none of them mirrored
    (ten, outputs.mean(axis=0)),
  ):
    np.testing.assert_array_equal(found.labels, labels)
    assert found.log_probabilities.shape == (IMAGES, 10)
    # Sums in float32, in another order, of logits of some units.
    np.testing.assert_allclose(found.probabilities, probabilities, atol=1e-5)
    ranks = [
      np.sum(row > row[label])
      for row, label in zip(probabilities, labels, strict=True)
    ]
    np.testing.assert_array_equal(found.ranks, ranks)
  assert np.abs(outputs[2] - outputs.mean(axis=0)).max() > 0.01

  ten_views = dataclasses.replace(program, views=10)
  evaluated = [
    jax.device_get(ten_views.evaluate(parameters, batch.images, batch.labels))
    for batch in pipeline.validation_batches(
      records,
      batch_size=BATCH,
      shardings=program.batch_shardings,
      **READING,
    )
  ]
  totals = sum(batch.totals for batch in evaluated)
  for copies in zip(*(batch.predicted for batch in evaluated), strict=True):
    first = np.concatenate(copies)[:IMAGES]
    np.testing.assert_array_equal(first, outputs.mean(axis=0).argmax(axis=1))
  errors = [ten.count_errors(1), ten.count_errors(5)]
  assert totals[1:].tolist() == [*errors, IMAGES]
  # A sum in float32.
  assert totals[0] / IMAGES == pytest.approx(ten.loss, rel=1e-5)


def test_split_without_labels_has_the_same_predictions(tmp_path):
  images = [small_sets.encode(image) for image in small_sets.tiles(10, side=36)]
  program = build.make_short_program("data_parallel")
  variables = program.init(jax.random.key(0)).variables
  found = {}
  for name, labels in (
    ("labeled", [number % 3 for number in range(10)]),
    ("unlabeled", [-1] * 10),
    ("mixed", [0] * 8 + [-1] * 2),
  ):
    (tmp_path / name).mkdir()
    split = small_sets.make_records(
      tmp_path / name,
      images,
      labels=labels,
      num_classes=10,
      stored_size=36,
      allow_unlabeled=True,
    )
    if name == "mixed":
      with pytest.raises(ValueError, match="2 of the 10 images of .* no label"):
        predict_split(program, variables, split, views=(1,))
      continue
    (found[name],), _ = predict_split(program, variables, split, views=(1,))
    assert found[name].labels.tolist() == labels
    assert found[name].has_labels == (name == "labeled")
  # Ten of two batches of eight; the other six rows are no images.
  assert found["unlabeled"].log_probabilities.shape == (10, 10)
  np.testing.assert_array_equal(
    found["unlabeled"].log_probabilities, found["labeled"].log_probabilities
  )


@pytest.mark.slow
def test_answer_that_is_not_finite_is_refused(split, expected):
  program = build.make_program(catalog.ONE_DEVICE, batch_size=BATCH)
  parameters = build.put_parameters(
    program,
    jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), expected[0]),
  )
  message = "output of 'a' for image 0 of small"
  with pytest.raises(FloatingPointError, match=message):
    predict_split(program, parameters, split[2], views=(1,))


def run(tmp, module, arguments):
  """What a command of one process prints."""
  ((code, printed, errors),) = processes.finish(
    processes.start(tmp, 1, arguments, module=module)
  )
  assert (code, errors) == (0, ""), errors
  return printed


@pytest.mark.slow
def test_command_evaluates_runs_and_their_ensemble_under_another_layout(folder):
  members = []
  place = folder("ensemble, of two :x:")
  for seed, config in enumerate(("two_device", "one_device")):
    run(place, "main", processes.flags(config, place, {"seed": seed}))
    members.append((place / "workdir").rename(place / f"member_{seed}"))
  (place / "other").mkdir()
  arguments = [
    *(f"--workdir={place}", "--layout=data_parallel", "--mesh=data=4"),
    *(f"--data_dir={place.parent}/data", f"--json={place}/e.json"),
    f"--predictions={place}/p.npz",
  ]
  heading = (
    f"{members[0]}: step 9, layout data_parallel (data=4), 21 images of digits/"
  )
  assert heading in run(place, "evaluate", arguments)
  lines = json.loads((place / "e.json").read_text())["lines"]
  assert [(line["name"], line["views"]) for line in lines] == [
    # Digits are not flipped.
    *((str(path), views) for path in members for views in (1, 5)),
    *(("mean of 2", 1), ("ensemble of 2", 1)),
    *(("mean of 2", 5), ("ensemble of 2", 5)),
  ]
  for line, member in zip(lines[:4:2], members, strict=True):
    trained = processes.read_reports(member)[-1]
    assert line["images"] == 21
    for name in ("images", "top1_error", "top5_error"):
      assert line[name] == trained[f"validation_{name}"]
    # Another layout adds up in another order, in float32.
    assert line["loss"] == pytest.approx(trained["validation_loss"], rel=1e-5)
  with np.load(place / "p.npz", allow_pickle=False) as kept:
    assert kept["probabilities"].shape == (6, 21, 10)
    a, b, ensemble = kept["probabilities"][[0, 2, 4]]
    # Kept in float32.
    np.testing.assert_allclose(ensemble, (a + b) / 2, rtol=1e-5)
    first = np.argmax(ensemble, axis=1)
    assert np.mean(first != kept["labels"]) == lines[5]["top1_error"]


@pytest.mark.slow
def test_command_writes_predictions_of_a_split_without_labels(folder, tmp_path):
  place = folder("without labels")
  run(place, "main", processes.flags("one_device", place))
  data = tmp_path / "data"
  shutil.copytree(place.parent / "data" / "digits", data / "digits")
  (shard,) = data.glob("digits/*/digits-validation.array_record*")
  reader = array_record_module.ArrayRecordReader(str(shard))
  stored = reader.read(range(reader.num_records()))
  reader.close()
  unlabeled = []
  for record in stored:
    example = tf_example_pb2.Example.FromString(record)
    example.features.feature["label"].int64_list.value[:] = [-1]
    unlabeled.append(example.SerializeToString())
  small_sets.write_shard(shard, unlabeled)
  arguments = [
    *(f"--workdir={place}/workdir", "--split=validation[:21]"),
    f"--data_dir={data}",
  ]
  ((code, printed, errors),) = processes.finish(
    processes.start(place, 1, arguments, module="evaluate")
  )
  assert (code, printed) == (1, "")
  assert re.fullmatch(
    r"error: the images of digits.* have no labels, .* Set --predictions=.*\n",
    errors,
  )
  files = {name: place / name for name in ("p.csv", "p.npz", "e.json")}
  for name in ("p.csv", "p.npz"):
    printed = run(
      place,
      "evaluate",
      [
        *arguments,
        f"--predictions={files[name]}",
        f"--json={files['e.json']}",
      ],
    )
    assert "have no labels: no errors are shown" in printed
    assert "top-1" not in printed
  with np.load(files["p.npz"], allow_pickle=False) as kept:
    assert kept["labels"].tolist() == [-1] * 21
    probabilities = kept["probabilities"]
  assert probabilities.shape == (2, 21, 10)
  first = np.argmax(probabilities, axis=2)
  with open(files["p.csv"], newline="") as file:
    lines = list(csv.DictReader(file))
  assert [line["label"] for line in lines] == [""] * 42
  assert [int(line["class_1"]) for line in lines] == first.ravel().tolist()
  content = json.loads(files["e.json"].read_text())
  assert [line["images"] for line in content["lines"]] == [21, 21]
  assert [
    int(one["classes"][0])
    for line in content["lines"]
    for one in line["predictions"]
  ] == first.ravel().tolist()


@pytest.mark.parametrize(
  ("layout", "expected"),
  [
    (
      "none.py:rows",
      "there is no config file 'none.py:rows', .* Set --layout.",
    ),
    (
      "alexnet_jax/cli/help_text.py",
      "has no function get_config, expected one",
    ),
  ],
)
@pytest.mark.slow
def test_file_that_gives_no_layout_is_refused(layout, expected, tmp_path):
  (tmp_path / "config.json").write_text("{}")
  ((code, printed, errors),) = processes.finish(
    processes.start(
      *(tmp_path, 1, [f"--workdir={tmp_path}", f"--layout={layout}"]),
      module="evaluate",
    )
  )
  assert (code, printed) == (1, "")
  assert re.fullmatch(f"error: .*{expected}.*\n", errors), errors


@pytest.mark.hosts
def test_two_processes_evaluate_as_one_does(folder):
  place = folder("two processes")
  run(place, "main", processes.flags("two_device", place))
  lines = []
  for count in (1, 2):
    arguments = [
      *(f"--workdir={place}/workdir", "--layout=two_column_data"),
      *(f"--data_dir={place.parent}/data", f"--json={place}/{count}.json"),
    ]
    running = processes.start(place, count, arguments, module="evaluate")
    for index, (code, printed, errors) in enumerate(processes.finish(running)):
      assert (code, errors) == (0, "")
      assert bool(printed) == (index == 0)
    lines.append(json.loads((place / f"{count}.json").read_text())["lines"])
  for one, two in zip(*lines, strict=True):
    # The same sums, in float32.
    assert two.pop("loss") == pytest.approx(one.pop("loss"), rel=1e-6)
    assert one == two
