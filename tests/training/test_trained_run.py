"""Runs are read from their workdirs, which have no arrays here."""

import dataclasses
import json
import pathlib

import pytest

from alexnet_jax.checkpoints import workdir
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.settings import fields as fields_lib
from alexnet_jax.settings import settings
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


# What the version before networks of rows wrote to config.json for two_column
# with layout.fc6.arrive=sum and layout.fc7.features=('column',), in the fields
# that this one has no more or has otherwise. All other placements were None.
OLD = {
  "layout.axes": None,
  "layout.fc6.arrive": "sum",
  "layout.fc7.features": ["column"],
  "layout.mesh.column": None,
  "layout.mesh.data": None,
  "layout.mesh.model": None,
  "layout.name": "two_column",
  "network.lrn_alpha": 2e-05,
  "network.lrn_k": 2.0,
}
# The same for a layout of its own: conv=Placement(batch=("row", "col")),
# fc=Placement(batch=("row",), features=("col",), arrive="fewest"), and fc7=
# Placement(features=("col",), arrive="sum").
OLD_OWN = {
  "layout.axes": ["row", "col"],
  **{
    f"layout.{layer}.{field}": value
    for layer, batch, features, arrive in (
      *((f"conv{n}", ["row", "col"], [], "gather") for n in range(1, 6)),
      ("fc6", ["row"], ["col"], "fewest"),
      ("fc7", [], ["col"], "sum"),
      ("fc8", ["row"], ["col"], "fewest"),
    )
    for field, value in (
      *(("batch", batch), ("features", features), ("arrive", arrive)),
      *(("fsdp", []), ("overlap_gather", False)),
    )
  },
  "layout.mesh.col": 2,
  "layout.mesh.row": 2,
  "layout.name": "mine",
  "network.lrn_alpha": 1e-4,
  "network.lrn_k": 2.0,
}


@pytest.fixture
def make_old_run(make_run):
  """fields -> the directory of a run that the earlier version saved."""

  def make(fields):
    path = make_run("old")
    kept = workdir.read_config(path)
    old = {
      name: value
      for name, value in kept.items()
      if not name.startswith("layout.")
      and name not in ("network.order", "network.image_channels")
      and name not in ("augment.channel_scale", "augment.color_order")
    }
    layers = [f"conv{n}" for n in range(1, 6)] + ["fc6", "fc7", "fc8"]
    for layer in layers:
      for field in ("batch", "features", "arrive", "fsdp", "overlap_gather"):
        old[f"layout.{layer}.{field}"] = None
    old |= {"layout.allow_unplanned": False, **fields}
    with open(f"{path}/config.json", "w") as file:
      json.dump(old, file)
    return path

  return make


def test_run_of_the_earlier_version_has_its_layout(make_old_run):
  run = read(make_old_run(OLD))
  # A layout changes no numbers, so its changes of single layers are dropped.
  assert run.layout == catalog.TWO_COLUMN
  assert run.config.network.lrn_k is run.config.network.lrn_alpha is None
  # Layers that are not named have no groups of their own.
  groups = {"name", "axes", "mesh", "conv", "fc", "allow_unplanned"}
  assert set(run.config.layout) == groups


def test_own_layout_of_the_earlier_version_is_read(make_old_run):
  Placement = layout_lib.Placement
  run = read(make_old_run(OLD_OWN))
  assert run.layout == layout_lib.Layout(
    name="mine",
    mesh={"row": 2, "col": 2},
    conv=Placement(batch=("row", "col")),
    fc=Placement(batch=("row",), features=("col",)),
    layers={"fc7": Placement(inputs=("col",))},
  )
  assert run.config.network.lrn_alpha == 1e-4


@pytest.mark.parametrize(
  ("table", "changed", "single"),
  [
    ("without_conv3", "conv1", {"conv1": layout_lib.Placement()}),
    ("without_conv3", "conv3", {}),
    ("four_layer", "conv1", {"conv1": layout_lib.Placement()}),
    ("lenet5", "fc8", {"fc8": layout_lib.Placement()}),
  ],
)
def test_own_layout_of_a_smaller_network_of_then_is_read(
  table, changed, single, make_old_run
):
  Placement = layout_lib.Placement
  fields = OLD_OWN | {
    "network.wiring": table,
    "network.columns": None,
    "network.width": 1.0,
    **{f"layout.{changed}.{name}": [] for name in ("batch", "features")},
    f"layout.{changed}.arrive": "gather",
  }
  if table == "lenet5":  # of its fc6 to fc8, two remain as they were
    fields |= {"layout.fc7.batch": ["row"], "layout.fc7.arrive": "fewest"}
  run = read(make_old_run(fields))
  fc = Placement(batch=("row",), features=("col",))
  others = {"fc7": Placement(inputs=("col",))}
  assert run.layout == layout_lib.Layout(
    name="mine",
    mesh={"row": 2, "col": 2},
    conv=Placement(batch=("row", "col")),
    fc=fc,
    layers=single | (others if table == "without_conv3" else {}),
  )


@pytest.mark.parametrize(
  ("damage", "expected"),
  [
    ({"layout.fc7.arrive": "foo"}, "fc7.arrive is 'foo', expected one of gath"),
    ({"layout.fc7.arrive": ["sum"]}, r"fc7.arrive is \['sum'\], expected one"),
    ({"layout.fc7.batch": 3}, "layout.fc7.batch is 3, expected None or a tup"),
    ({"layout.conv9.batch": ["row"]}, "places a layer 'conv9', expected one"),
    ({"layout.conv9.arrive": "sum"}, "conv9.arrive is gone"),
    ({"network.layers.conv1.lrn.__init__": 1}, "is damaged: .*__init__.* Res"),
    ({"layout.mesh.row.x": 1}, "is damaged: .* Restore it"),
  ],
)
def test_damaged_config_is_refused_in_one_line(damage, expected, make_old_run):
  with pytest.raises((ValueError, TypeError), match=expected) as caught:
    read(make_old_run(OLD_OWN | damage))
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fields", [OLD, OLD_OWN], ids=["catalog", "own"])
def test_run_of_the_earlier_version_resumes(fields, make_old_run, tiny_config):
  path = make_old_run(fields)
  if fields is OLD_OWN:
    tiny_config.network.lrn_alpha = 1e-4
  tiny_config.layout.name = "data_parallel"
  options = {"may_change": fields_lib.find_changeable()}
  acquired = workdir.acquire({path: tiny_config.to_dict()}, FOUND, **options)
  assert not acquired.changes
  for lock in acquired.locks:
    lock.release()
  assert read(path).config.to_dict() == tiny_config.to_dict()
  tiny_config.network.lrn_k = 1.0
  with pytest.raises(ValueError, match="lrn_k: None in the workdir, 1.0 now"):
    workdir.acquire({path: tiny_config.to_dict()}, FOUND, **options)


def test_checkpoint_of_the_earlier_version_is_of_the_same_run(make_old_run):
  old = {"layout.conv1.arrive": None, "network.lrn_k": 2.0}
  for name in ("conv1", "fc8"):
    for field in ("batch", "features", "arrive", "fsdp", "overlap_gather"):
      old[f"layout.{name}.{field}"] = None
  upgraded = workdir.upgrade(old | {"network.wiring": "alexnet2012"})
  assert upgraded["network.lrn_k"] is None
  assert not [name for name in upgraded if name.startswith("layout.conv1")]
  assert workdir.upgrade(upgraded) == upgraded


def test_initial_values_that_had_no_effect_are_dropped(make_run):
  path = make_run("a")
  earlier = workdir.read_config(path)
  assert earlier["network.init"] == "he"
  workdir.write_config(
    path, earlier | {"network.layers.conv1.kernel_std": 0.01}
  )
  assert read(path).network.layer("conv1").kernel_std is None


def test_dropout_rate_without_dropout_of_an_earlier_run_is_dropped(
  make_run, tiny_config
):
  path = make_run("a")
  earlier = workdir.read_config(path) | {
    "network.layers.conv3.dropout_rate": 0.2,
    "network.layers.fc6.dropout_rate": 0.3,
    "network.layers.fc6.dropout": False,
    "network.layers.fc7.dropout_rate": 0.4,
  }
  workdir.write_config(path, earlier)
  network = read(path).network
  rates = [network.layer(name).dropout_rate for name in ("conv3", "fc6", "fc7")]
  assert rates == [None, None, 0.4]
  rows = {"fc6": {"dropout": False}, "fc7": {"dropout_rate": 0.4}}
  tiny_config.network.layers = rows
  options = {"may_change": fields_lib.find_changeable()}
  acquired = workdir.acquire({path: tiny_config.to_dict()}, FOUND, **options)
  assert not acquired.changes


def test_fields_that_were_added_have_the_values_of_before(
  make_run, tiny_config
):
  path = make_run("a")
  added = {"augment.channel_scale": None, "augment.color_order": "rgb"}
  kept = workdir.read_config(path)
  assert added.items() <= kept.items()
  earlier = {name: kept[name] for name in kept.keys() - added.keys()}
  workdir.write_config(path, earlier)
  assert read(path).config.to_dict() == tiny_config.to_dict()
  tiny_config.augment.color_order = "bgr"
  with pytest.raises(ValueError, match="order: rgb in the workdir, bgr now"):
    workdir.acquire(
      {path: tiny_config.to_dict()},
      FOUND,
      may_change=fields_lib.find_changeable(),
    )


def test_run_from_before_a_field_was_added_has_none_of_it(make_run):
  path = make_run("a")
  earlier = {
    name: value
    for name, value in workdir.read_config(path).items()
    if not name.startswith("init_from.")
  }
  workdir.write_config(path, earlier)
  start = read(path).config.init_from
  expected = default.get_config().init_from
  assert start.to_dict() == expected.to_dict()


@pytest.mark.parametrize(
  ("rates", "expected"),
  [([], {}), ([[1.0, 1e-5], [1.5, 0.0]], {"conv1": ((1.0, 1e-5), (1.5, 0.0))})],
)
def test_rates_of_conv1_of_an_earlier_run_are_rates_of_its_layer(
  rates, expected, make_run, tiny_config
):
  path = make_run("a")
  earlier = workdir.read_config(path) | {"optimizer.conv1_rates": rates}
  workdir.write_config(path, earlier)
  layers = read(path).config.optimizer.layers
  assert {name: group.rates for name, group in layers.items()} == expected
  tiny_config.optimizer.layers = {
    name: {"rates": one} for name, one in expected.items()
  }
  options = {"may_change": fields_lib.find_changeable()}
  acquired = workdir.acquire({path: tiny_config.to_dict()}, FOUND, **options)
  assert not acquired.changes
  assert "optimizer.conv1_rates" not in workdir.read_config(path)
  for lock in acquired.locks:
    lock.release()
  tiny_config.optimizer.layers.fc8 = {"lr_multiplier": 0.5}
  with pytest.raises(ValueError, match="fc8.lr_multiplier: None in the workdi"):
    workdir.acquire({path: tiny_config.to_dict()}, FOUND, **options)


def test_fields_that_an_earlier_run_lacks_are_not_invented():
  old = {"layout.conv1.arrive": None, "network.wiring": "four_layer"}
  assert "network.lrn_k" not in workdir.upgrade(old)


def test_changed_row_is_another_network(make_run, tiny_config):
  path = make_run("a", steps=())
  options = {"may_change": fields_lib.find_changeable()}
  tiny_config.network.layers.conv4 = {"features": 192, "bias": None}
  tiny_config.layout.fc6 = {"inputs": ("device",)}
  with pytest.raises(
    ValueError, match=r"conv4.features: None in the workdir, 192 now\)"
  ):
    workdir.acquire({path: tiny_config.to_dict()}, FOUND, **options)


def test_own_network_is_read_onto_a_layout_of_a_config(make_run, tiny_config):
  Layer = wiring.Layer
  rows = (
    Layer(name="stem", reads="image", features=8, window=3, stride=4),
    Layer(name="scores", reads="all", features=10, activation="linear"),
  )
  table = wiring.Wiring(name="mine", columns=1, layers=rows)
  default.use_wiring(tiny_config, table)
  path = make_run("a")
  own = layout_lib.Layout(
    name="split",
    mesh={"row": 4},
    layers={"stem": layout_lib.Placement(batch=("row",))},
  )
  other = default.get_config()
  default.use_layout(other, own)
  run = read(path, layout=other.layout, mesh={"row": 2})
  assert run.layout == dataclasses.replace(own, mesh={"row": 2})
  assert [row.name for row in run.network.layers] == ["stem", "scores"]
  assert run.network == settings.make_network(tiny_config)
  other.layout.fc6 = {"batch": ("row",)}
  with pytest.raises(ValueError, match="'split' places a layer 'fc6', .* To e"):
    read(path, layout=other.layout)


def test_run_is_read_as_it_was_configured(make_run, tiny_config):
  tiny_config.layout.name = "two_column_data"
  run = read(make_run("a"))
  assert run.config.to_dict() == tiny_config.to_dict()
  assert (run.found, run.step) == (FOUND, 6)
  assert dict(run.layout.mesh) == {"data": 2, "column": 2}


def test_run_is_read_onto_another_layout(make_run, tiny_config):
  tiny_config.layout.name = "two_column"
  tiny_config.layout.fc6 = {"inputs": ("column",)}
  options = {"layout": "data_parallel", "mesh": {"data": 4}, "batch_size": 8}
  run = read(make_run("a"), split="train", step=3, **options)
  assert run.layout.name == "data_parallel"
  assert dict(run.layout.mesh) == {"data": 4}
  assert run.layout == dataclasses.replace(
    catalog.DATA_PARALLEL, mesh={"data": 4}
  )
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
      "^the run in .*: unknown wiring 'mine', expected one of .*alexnet_d2l.*. "
      "Evaluate it with the version of alexnet_jax that trained it.$",
    ),
    ({"network.init": "mine"}, {}, "paper, he. Evaluate it with the version"),
    (
      {"layout.name": "mine"},
      {"data": 2},
      "unknown layout 'mine', expected one of .*two_column_sharded.*. To "
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
  assert run.layout == layout


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
  inner = make_run("b")
  with pytest.raises(ValueError, match=f"Set --workdir to one .*: .*{inner}"):
    read(str(pathlib.Path(inner).parent))


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
