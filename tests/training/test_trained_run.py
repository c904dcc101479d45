"""Runs are read from their workdirs, which have no arrays here."""

import json

import pytest

from alexnet_jax.checkpoints import workdir
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.training import trained_run
from configs import default

FOUND = {"dataset": "digits/1.0.0", "statistics": "s", "training_images": 48}


@pytest.fixture
def make_run(tmp_path, tiny_config):
  """name, fields -> the directory of a run that has steps 3 and 6."""

  def make(name, *, steps=(3, 6), **fields):
    path = tmp_path / name
    tiny_config.update_from_flattened_dict(fields)
    workdir.acquire({str(path): tiny_config.to_dict()}, FOUND, may_change=())
    for step in steps:
      (path / "checkpoints" / str(step)).mkdir(parents=True)
    return str(path)

  return make


def read(path, **options):
  return trained_run.read(path, fields=default.get_config(), **options)


def test_run_is_read_as_it_was_configured(make_run, tiny_config):
  tiny_config.layout.name = "two_column_data"
  run = read(make_run("a"))
  assert run.config.to_dict() == tiny_config.to_dict()
  assert (run.found, run.step) == (FOUND, 6)
  assert dict(run.layout.mesh) == {"data": 2, "column": 2}


def test_run_is_read_onto_another_layout(make_run, tiny_config):
  tiny_config.layout.name = "two_column"
  tiny_config.layout.fc6.arrive = "sum"
  options = {"layout": "data_parallel", "mesh": {"data": 4}, "batch_size": 8}
  run = read(make_run("a"), split="train", step=3, **options)
  assert run.layout.name == "data_parallel"
  assert dict(run.layout.mesh) == {"data": 4}
  assert run.layout.placement("fc6").arrive == "gather"
  assert (run.config.batch_size, run.step) == (8, 3)
  assert run.config.data.validation_split == "train"


def test_axis_that_no_config_has_is_set(make_run):
  options = {"layout": "one_device", "mesh": {"device": 1}}
  assert dict(read(make_run("a"), **options).layout.mesh) == {"device": 1}


@pytest.mark.parametrize(
  ("fields", "mesh", "expected"),
  [
    (
      {"network.wiring": "mine"},
      {},
      "^the run in .*: unknown wiring 'mine', expected one of .*alexnet_d2l. "
      "Evaluate it with the version of alexnet_jax that trained it.$",
    ),
    ({"network.init": "mine"}, {}, "paper, he. Evaluate it with the version"),
    (
      {"layout.name": "mine"},
      {"data": 2},
      "unknown layout 'mine', expected one of .*two_column_sharded. To "
      "evaluate it, set --layout, --mesh or --batch_size.$",
    ),
  ],
)
def test_advice_on_a_run_that_is_refused_helps(
  fields, mesh, expected, make_run
):
  with pytest.raises(ValueError, match=expected):
    read(make_run("a", **fields), mesh=mesh)


def test_layout_of_a_config_of_its_own_is_read(make_run, tiny_config):
  rows = layout_lib.Placement(batch=("row",))
  layout = layout_lib.Layout(name="mine", mesh={"row": 2}, conv=rows, fc=rows)
  default.use_layout(tiny_config, layout)
  run = read(make_run("a"))
  assert run.layout.name == "mine"
  assert dict(run.layout.mesh) == {"row": 2}
  assert run.layout.placement("fc6") == rows


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    ({"step": 4}, "no checkpoint of step 4, but of 3, 6. Set --checkpoint_"),
    ({"layout": "one"}, "unknown layout 'one'.* Set --layout."),
    ({"mesh": {"row": 2}}, "no axis 'row', but device. Set --mesh."),
    (
      {"layout": "data_parallel", "batch_size": 15},
      "15 images does not divide .* set --layout, --mesh or --batch_size.",
    ),
  ],
)
def test_what_does_not_fit_is_refused_in_one_line(options, expected, make_run):
  with pytest.raises(ValueError, match=expected) as caught:
    read(make_run("a"), **options)
  assert "\n" not in str(caught.value)


def test_directory_without_a_run_or_a_checkpoint_is_refused(make_run, tmp_path):
  with pytest.raises(ValueError, match="no run .* has no config.json. Set --w"):
    read(str(tmp_path / "none"))
  with pytest.raises(ValueError, match="has no checkpoint. Set --workdir"):
    read(make_run("a", steps=()))


def test_run_of_another_version_is_refused_by_its_fields(make_run, tmp_path):
  path = make_run("a")
  file = tmp_path / "a" / "config.json"
  kept = json.loads(file.read_text())
  absent = object()
  for field, value, expected in (
    ("network.depth", 9, "has no field network.depth. Set another"),
    (
      *("augment.scale", absent),
      r"lacks augment.scale. Add .* defaults are \"augment.scale\": 90.0",
    ),
    ("found.statistics", absent, "lacks found.statistics. Use the version"),
  ):
    changed = kept | {field: value}
    if value is absent:
      del changed[field]
    file.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=expected):
      trained_run.read(path, fields=default.get_config("digits"))


def test_runs_whose_predictions_cannot_be_averaged_are_refused(make_run):
  first = read(make_run("a"))
  other = read(make_run("b", **{"network.num_classes": 9}))
  with pytest.raises(ValueError, match="the classes of .* is 10, but 9 in"):
    trained_run.check_alike(first, other)
  fields = {"network.num_classes": 10, "data.validation_split": "train"}
  other = read(make_run("c", **fields))
  with pytest.raises(ValueError, match="the split .* to runs on .* --split"):
    trained_run.check_alike(first, other)
  trained_run.check_alike(first, first)


def test_other_data_than_that_of_the_run_is_refused(make_run):
  run = read(make_run("a"))
  trained_run.check_data(run, {"dataset": "digits/1.0.0", "statistics": "s"})
  with pytest.raises(ValueError, match="statistics .* was s, but is t here"):
    trained_run.check_data(run, {"statistics": "t"})
