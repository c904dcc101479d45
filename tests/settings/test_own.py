"""Networks and layouts that a config defines or changes layer by layer."""

import dataclasses

import pytest

from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.settings import settings
from alexnet_jax.training import trained_run
from configs import default

Layer, Placement = wiring.Layer, layout_lib.Placement
OWN = wiring.Wiring(
  name="mine",
  columns=2,
  image_channels=1,
  layers=(
    Layer(
      name="stem",
      reads="image",
      features=8,
      window=5,
      stride=2,
      padding=(1, 2),
      activation="tanh",
      normalize="column",
      lrn=wiring.Lrn(size=3, k=1.0, alpha=1e-4, beta=0.5),
      pool=wiring.Pool(window=2, kind="average", padding=(0, 1)),
      order=("activation", "pooling", "normalization"),
      bias=1.0,
    ),
    Layer(name="deep_1", reads="own", features=16, window=3, kernel_std=None),
    Layer(
      name="hidden", reads="all", features=32, dropout=True, dropout_rate=0.25
    ),
    Layer(name="scores", reads="all", features=99, activation="linear"),
  ),
)
FOUND = {"dataset": "digits/1.0.0", "statistics": "s", "training_images": 48}


def make_config(**fields):
  """Makes a small config with some fields, by their full names."""
  config = default.get_config("digits")
  config.network.init = "source"  # the initial values of the rows
  for name, value in fields.items():
    group = config
    *groups, last = name.split("__")
    for one in groups:
      group = group[one]
    group[last] = value
  return config


def make_network(table):
  """Makes the network of a wiring by itself, in the size of the digits."""
  return wiring.make_network(table, image_size=67, num_classes=10)


def test_wiring_survives_its_way_through_a_config():
  config = make_config()
  default.use_wiring(config, OWN)
  assert settings.make_network(config) == make_network(OWN)
  # Nothing of a wiring that was set before remains.
  stem, _, *others = OWN.layers
  default.use_wiring(config, dataclasses.replace(OWN, layers=(stem, *others)))
  assert set(config.network.layers) == {"stem", "hidden", "scores"}


@pytest.mark.parametrize("table", wirings.WIRINGS, ids=lambda one: one.name)
def test_every_wiring_of_the_catalog_can_be_an_own_one(table):
  own = dataclasses.replace(table, name="mine")
  config = make_config()
  default.use_wiring(config, own)
  config.network.image_size = size = table.published_size
  assert settings.make_network(config) == wiring.make_network(
    own, image_size=size, num_classes=10
  )


@pytest.mark.parametrize(
  "table", [OWN, *wirings.WIRINGS], ids=lambda one: one.name
)
def test_run_of_an_own_wiring_needs_only_its_workdir(table, tmp_path):
  config = make_config()
  default.use_wiring(config, dataclasses.replace(table, name="mine"))
  default.use_layout(
    config,
    layout_lib.Layout(
      name="rows",
      mesh={"row": 2, "of": 4},
      fc=Placement(batch=("row",), features=("of",)),
      layers={table.layers[-1].name: Placement(inputs=("of", "row"))},
    ),
  )
  config.network.image_size = table.published_size
  fields = workdir_lib.flatten_config(config.to_dict(), FOUND)
  workdir_lib.write_config(str(tmp_path), fields)
  stored, found = trained_run.read_config(str(tmp_path), default.get_config())
  assert stored.to_dict() == config.to_dict()
  assert found == FOUND
  assert settings.make_network(stored) == settings.make_network(config)
  assert settings.make_layout(
    stored, settings.make_network(stored)
  ) == settings.make_layout(config, settings.make_network(config))


def test_single_fields_change_a_wiring_of_the_catalog():
  config = make_config(network__width=1.0)
  config.network.layers.conv1 = {
    "pool": {"window": 2, "stride": None},
    "lrn": {"k": 1.0},
    "features": 48,
  }
  config.network.layers.conv2 = {"pool": {"kind": "none"}, "window": 3}
  config.network.layers.conv3 = {"pool": {"kind": "average"}, "bias": None}
  config.network.layers.conv4 = {"map_lrn": {"k": 1.0}, "normalize": "across"}
  changed = {
    "conv1": {
      "pool": wiring.Pool(window=2),
      "lrn": wiring.Lrn(k=1.0),
      "features": 48,
    },
    "conv2": {"pool": None, "window": 3},
    "conv3": {"pool": wiring.Pool(kind="average")},
    "conv4": {"map_lrn": wiring.Lrn(k=1.0), "normalize": "across"},
  }
  expected = wirings.rewire(wirings.ALEXNET_2012, "alexnet2012", **changed)
  assert settings.make_network(config) == make_network(expected)
  config.network.layers.conv4.map_lrn = {"size": 0}  # none
  assert settings.make_network(config).layer("conv4").map_lrn is None
  config.network.image_channels = 1
  assert settings.make_network(config).image_channels == 1


@pytest.mark.parametrize(
  ("group", "fields", "expected"),
  [
    ("pool", {"kind": "none", "window": 5}, "kind is 'none', .* its window is"),
    ("map_lrn", {"size": 0, "k": 1.0, "beta": 0.5}, "size is 0, .* beta, k is"),
  ],
)
def test_field_of_a_part_that_a_row_does_not_have_is_refused(
  group, fields, expected
):
  config = make_config()
  config.network.layers.conv1 = {group: fields}
  with pytest.raises(ValueError, match=f"conv1.{group}.{expected} set"):
    settings.make_network(config)
  # The same for a flag on a row of an own wiring, which is stored in full.
  default.use_wiring(config, OWN)
  config.network.layers.deep_1[group].update(fields)
  with pytest.raises(ValueError, match=f"deep_1.{group}.{expected} set"):
    settings.make_network(config)


def test_wiring_may_be_written_row_by_row():
  config = make_config(network__wiring="mine", network__order=("a", "b"))
  config.network.columns, config.network.width = 1, 1.0
  config.network.layers = {
    "a": {"reads": "image", "features": 8, "window": 3, "kernel_std": None},
    "b": {"reads": "all", "features": 10, "activation": "linear"},
  }
  a, b = settings.make_network(config).layers
  assert (a.kernel_std, b.kernel_std) == (None, 0.01)
  assert (a.kind, b.kind, a.stride) == ("conv", "fc", 1)


@pytest.mark.parametrize(
  ("fields", "expected"),
  [
    (
      {"network__layers": {"conv9": {"features": 8}}},
      "a row 'conv9', but wiring 'alexnet2012' has the layers conv1, .* fc8. "
      "Remove config.network.layers.conv9.",
    ),
    (
      {"network__order": ("conv1", "fc8")},
      "wiring of its own under the name 'alexnet2012', .* in the catalog. Set",
    ),
    (
      {"network__wiring": "mine", "network__order": ("conv1",)},
      "network.columns is None, .* 'mine', .* Set config.network.columns.",
    ),
    (
      {"network__wiring": "mine", "network__order": ()},
      "network.order is .*, expected a value for 'mine'",
    ),
    (
      {
        "network__wiring": "mine",
        "network__columns": 1,
        "network__order": ("stem",),
        "network__layers": {"stem": {"reads": "image"}},
      },
      "network.layers.stem.features is None, expected a value: wiring 'mine'",
    ),
    ({"network__wiring": "mine"}, "unknown wiring 'mine', expected one of"),
    (
      {"layout__fc9": {"batch": ()}},
      "layout 'one_device' places a layer 'fc9', .* network's: conv1, .* fc8. "
      "Remove config.layout.fc9.",
    ),
    (
      {
        "network__wiring": "four_layer",
        "network__image_size": 32,
        "layout__fc6": {"batch": ()},
      },
      "places a layer 'fc6', expected one .* conv1, conv2, conv3, fc8. Remove",
    ),
    (
      {
        "network__wiring": "mine",
        "network__columns": 1,
        "network__order": ("stem", "top"),
        "network__layers": {
          "stem": {"reads": "image", "features": 8, "window": 3},
          "top": {"reads": "all", "features": 10, "activation": "linear"},
        },
        "optimizer__layers": {"conv1": {"rates": ((1.0, 0.0),)}},
      },
      "optimizer.layers has a layer 'conv1', expected one .* stem, top. Remove",
    ),
    (
      {"optimizer__layers": {"fc8": {"lr_multiplier": 0, "weight_decay": 1.0}}},
      "fc8.weight_decay is 1.0, but .*fc8.lr_multiplier is 0, .* expected None",
    ),
    (
      {
        "network__wiring": "four_layer",
        "network__image_size": 32,
        "optimizer__layers": dict.fromkeys(
          ("conv1", "conv2", "conv3", "fc8"), {"lr_multiplier": 0.0}
        ),
      },
      "freezes all of conv1, conv2, conv3, fc8, .*layers.fc8.lr_multiplier.",
    ),
  ],
)
def test_layers_that_do_not_go_together_are_refused(fields, expected):
  with pytest.raises(ValueError, match=expected) as error:
    settings.check(make_config(**fields))
  assert "\n" not in str(error.value)


# Refused by the config, or by the wiring or the layout itself.
NO_NAME = "expected a (name|Python identifier)"


@pytest.mark.parametrize("name", ["keys", "update", "two words", "a.b", "1st"])
def test_name_that_a_config_cannot_have_is_refused(name):
  first, second, *others = OWN.layers
  renamed = dataclasses.replace(second, name=name)
  for use, make, where in (
    (
      default.use_wiring,
      lambda: dataclasses.replace(OWN, layers=(first, renamed, *others)),
      "(the name of a layer is|a layer is called)",
    ),
    (
      default.use_layout,
      lambda: layout_lib.Layout(name="mine", mesh={name: 2}),
      "a mesh axis is called",
    ),
    (
      default.use_layout,
      lambda: layout_lib.Layout(
        name="mine", mesh={}, layers={name: Placement()}
      ),
      "(a layer is called|layers places)",
    ),
  ):
    with pytest.raises(ValueError, match=f"{where} {name!r}, {NO_NAME}"):
      use(make_config(), make())


def test_catalog_layout_may_place_layers_that_a_network_lacks():
  config = make_config(network__wiring="four_layer", network__image_size=32)
  config.layout.name = "tensor_parallel"
  assert "fc7" in catalog.TENSOR_PARALLEL.layers
  network, layout = settings.check(config)
  assert layout.layers == catalog.TENSOR_PARALLEL.layers
  assert "fc7" not in [layer.name for layer in network.layers]


def placements(config):
  """{layer: its placement} of a config."""
  layout = settings.make_layout(config, settings.make_network(config))
  rows = settings.make_network(config).layers
  return {row.name: layout.placement(row) for row in rows}


def test_placement_of_a_kind_holds_for_all_its_layers():
  config = make_config(layout__name="tensor_parallel")
  before = placements(config)
  config.layout.fc.fsdp = ("data",)
  config.layout.fc6 = {"fsdp": (), "overlap_gather": True}
  for name, placement in placements(config).items():
    changes = {"fsdp": ("data",)} if name.startswith("fc") else {}
    if name == "fc6":
      changes = {"overlap_gather": True}
    assert placement == dataclasses.replace(before[name], **changes)


def test_axis_that_splits_one_dimension_leaves_the_others():
  config = make_config(layout__name="two_column_data")
  before = placements(config)["fc6"]
  assert before.batch == ("data",) and "column" not in before.inputs
  config.layout.fc6 = {"inputs": ("column",)}
  assert placements(config)["fc6"] == Placement(
    batch=("data",), inputs=("column",)
  )
  config.layout.fc.outputs = ("column", "data")
  assert placements(config)["fc7"] == Placement(outputs=("column", "data"))
  # A single layer's own fields go before those of its kind.
  assert placements(config)["fc6"] == Placement(
    outputs=("data",), inputs=("column",)
  )


def test_fields_of_a_kind_change_an_own_layout_but_for_its_single_layers():
  config = make_config()
  single = Placement(batch=("a",), inputs=("b",))
  own = layout_lib.Layout(
    name="mine",
    mesh={"a": 2, "b": 2},
    fc=Placement(batch=("a",), outputs=("b",)),
    layers={"fc7": single},
  )
  default.use_layout(config, own)
  config.layout.fc.inputs = ("b",)
  both = "fc6 splits both its outputs and its inputs over axis 'b'"
  with pytest.raises(ValueError, match=both):
    settings.check(config)
  config.layout.fc.outputs = ()
  config.layout.fc.batch = ()
  found = placements(config)
  assert found["fc6"] == found["fc8"] == Placement(inputs=("b",))
  assert found["fc7"] == single
  settings.check(config)


def test_own_layout_can_be_changed_and_not_renamed_to_a_preset():
  config = make_config()
  fields = {"mesh": {"a": 2}, "conv": Placement(batch=("a",))}
  default.use_layout(config, layout_lib.Layout(name="mine", **fields))
  config.layout.conv2 = {"fsdp": ("sister",)}
  message = "conv2 splits its weights over axis 'sister'"
  with pytest.raises(ValueError, match=message):
    settings.check(config)
  config.layout.conv2 = {"fsdp": ("a",)}
  settings.check(config)
  config.layout.name = "two_column"
  message = "a layout of its own under the name 'two_column'"
  with pytest.raises(ValueError, match=message):
    settings.check(config)


def test_own_layout_replaces_the_one_before():
  config = make_config()
  first = layout_lib.Layout(
    name="first", mesh={"a": 2}, layers={"fc6": Placement(inputs=("a",))}
  )
  second = layout_lib.Layout(name="second", mesh={"b": 4})
  default.use_layout(config, first)
  default.use_layout(config, second)
  assert settings.make_layout(config, settings.make_network(config)) == second


@pytest.mark.parametrize("value", ["two_column", {"name": "mine"}, None])
def test_what_is_no_layout_or_no_wiring_is_refused_in_one_line(value):
  for use, word in ((default.use_layout, "Lay"), (default.use_wiring, "Wiri")):
    with pytest.raises(ValueError, match=f"got .*, expected a {word}") as error:
      use(make_config(), value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["conv.batch", "fc.overlap_gather"])
def test_unset_field_of_an_own_layout_is_named(field):
  config = make_config()
  default.use_layout(config, layout_lib.Layout(name="mine", mesh={}))
  kind, name = field.split(".")
  config.layout[kind][name] = None
  with pytest.raises(ValueError, match=f"layout.{field} is None.*'mine'"):
    settings.make_layout(config, settings.make_network(config))


# Numbers of parameters by the papers and the released files: 60,965,224 with
# maps of 6 x 6 before fc6. Caffe's conv1 has no padding: of 224 pixels it makes
# maps of 54, 26 and 12 pixels, and the last pooling makes 5 x 5.
SMALLER = 60_965_224 - (36 - 25) * 256 * 4096


@pytest.mark.parametrize(
  ("fields", "expected"),
  [
    (
      {},
      [f"227 pixels (60,965,224 parameters); image_size is 224 ({SMALLER:,})"],
    ),
    ({"image_size": 227}, []),
    ({"wiring": "alexnet2012", "image_size": 227}, []),
    ({"wiring": "zfnet", "image_size": 256}, ["is 256"]),
    ({"num_classes": 10}, []),
    ({"width": 0.5}, []),
    ({"columns": 1}, []),
    ({"layers": {"conv1": {"features": 64}}}, []),
  ],
)
def test_other_network_than_the_published_one_is_said(fields, expected):
  config = default.get_config("imagenet")
  config.network.wiring = "bvlc_alexnet"
  config.network.update(fields)
  lines = settings.describe_published(settings.make_network(config))
  assert len(lines) == len(expected)
  for line, words in zip(lines, expected, strict=True):
    assert words in line


def test_the_digits_are_no_published_network():
  network = settings.make_network(default.get_config())
  assert not settings.describe_published(network)
