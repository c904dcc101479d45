import dataclasses

import pytest

from alexnet_jax.partition import catalog, check, mesh, plan
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.settings import settings
from configs import default
from tests import build

Layout, Placement = layout_lib.Layout, layout_lib.Placement


def test_every_named_layout_fits_the_full_size_network(layout):
  check.check(layout, build.FULL_NETWORK, batch_size=128)


@pytest.mark.parametrize(
  ("mesh", "part", "placement", "words"),
  [
    (
      *({"column": 4}, "conv", {"outputs": ("column",)}),
      ["conv1", "4 devices of axis 'column'", "2 columns", "config.layout"],
    ),
    (
      *({"column": 2}, "conv", {"outputs": ("cols",)}),
      ["conv1", "axis 'cols'", "column=2", "config.layout.conv1.outputs"],
    ),
    (
      *({"data": 3}, "conv", {"batch": ("data",)}),
      ["batch of 128", "3 devices", "conv1", "config.batch_size"],
    ),
    (
      *({"data": 2}, "conv", {"batch": ("data",), "inputs": ("data",)}),
      ["conv1", "both its batch and its inputs", "'data'"],
    ),
    (
      *({"model": 3}, "fc", {"features": ("model",)}),
      ["fc6", "4096 features", "3 devices", "config.layout.fc6.features"],
    ),
    (
      *({"model": 3}, "fc8", {"inputs": ("model",)}),
      ["fc8", "3 devices", "4096 channels", "config.layout.fc8.inputs"],
    ),
    (
      *({"model": 12}, "fc6", {"inputs": ("model",)}),
      ["fc6", "12 devices", "256 channels"],
    ),
    (
      *({"column": 2}, "conv1", {"inputs": ("column",)}),
      ["conv1 reads the image", "3 channels", "config.layout.conv1.inputs"],
    ),
    (
      *({"model": 2}, "conv2", {"inputs": ("model",)}),
      ["conv2 reads its own column", "one column", "config.layout.conv2"],
    ),
    (
      *({"a": 4}, "conv2", {"outputs": ("a",)}),
      ["conv2 does not split its columns", "2 columns", "conv2.outputs"],
    ),
    (
      *({"data": 2}, "fc", {"fsdp": ("data",)}),
      ["fc6 shards its stored", "'data'", "no axis", "config.layout.fc6.fsdp"],
    ),
    (
      *({"data": 64}, "conv", {"batch": ("data",), "fsdp": ("data",)}),
      ["conv1 has 96 outputs", "64 devices", "config.layout.conv1.fsdp"],
    ),
    (
      *({"data": 2}, "conv", {"batch": ("data", "data")}),
      ["conv1", "twice in its batch axes", "config.layout.conv1.batch"],
    ),
    ({}, "conv", {}, ["layout 'x' has no axis", "config.layout.mesh"]),
    (
      *({"data": 0}, "conv", {}),
      ["axis 'data' has 0 devices", "config.layout.mesh.data"],
    ),
  ],
)
def test_layout_that_does_not_fit_is_refused(mesh, part, placement, words):
  parts = {part: Placement(**placement)}
  if part not in ("conv", "fc"):
    parts = {"layers": parts}
  layout = Layout(name="x", mesh=mesh, **parts)
  with pytest.raises(ValueError) as error:
    check.check(layout, build.FULL_NETWORK, batch_size=128)
  assert [word for word in words if word not in str(error.value)] == []


def test_axes_in_another_order_are_refused():
  layout = Layout(
    name="x",
    mesh={"a": 2, "b": 2},
    conv=Placement(batch=("a", "b")),
    fc=Placement(batch=("b", "a")),
  )
  check.check(layout, build.FULL_NETWORK, batch_size=128)
  with pytest.raises(
    ValueError, match=r"fc6 needs its input split over \(b=2, a=2\)"
  ):
    plan.choose_routes(build.FULL_NETWORK, layout, batch_size=128)


def test_routes_are_found_once_for_equal_layouts(layout, tiny_network):
  other = build.with_mesh(layout, **dict(reversed(layout.mesh.items())))
  one, same = (
    plan.choose_routes(tiny_network, each, batch_size=8)
    for each in (layout, other)
  )
  assert one is same


def test_unknown_name_lists_the_known_ones():
  with pytest.raises(ValueError, match="'three_column', expected one of one_d"):
    catalog.find("three_column")


def test_override_changes_one_layer_and_one_axis():
  layout = layout_lib.override(
    catalog.TWO_COLUMN_DATA,
    rows=build.TINY_NETWORK.layers,
    mesh={"data": 4, "column": None},
    placements={"fc6": {"inputs": ["column"], "batch": None}},
  )
  assert dict(layout.mesh) == {"data": 4, "column": 2}
  # `column` leaves the features.
  expected = Placement(batch=("data",), inputs=("column",))
  rows = {row.name: row for row in build.TINY_NETWORK.layers}
  assert layout.placement(rows["fc6"]) == expected
  assert layout.placement(rows["fc7"]) == catalog.TWO_COLUMN_DATA.fc


def test_override_of_a_kind_holds_for_all_of_its_layers():
  layout = layout_lib.override(
    catalog.TENSOR_PARALLEL,
    rows=build.TINY_NETWORK.layers,
    mesh={},
    placements={"fc": {"outputs": ()}},
  )
  placements = {r.name: layout.placement(r) for r in build.TINY_NETWORK.layers}
  assert placements["fc6"] == Placement(batch=("data",))
  assert placements["fc7"] == Placement(batch=("data",), inputs=("model",))
  assert placements["conv1"] == catalog.TENSOR_PARALLEL.conv


WRONG = {
  "batch=('data',)": {"batch": "data"},
  "outputs=('data',)": {"outputs": ["data"]},
  "inputs=('data',)": {"inputs": ("data", 2)},
  "features=('data',)": {"features": None},
  "fsdp=('data',)": {"fsdp": {"data": 2}},
  "overlap_gather=True": {"overlap_gather": "yes"},
}


@pytest.mark.parametrize("remedy", WRONG)
@pytest.mark.parametrize("layer", ["conv", "fc", "fc7"])
def test_wrong_type_of_a_field_is_refused_when_the_layout_is_made(
  layer, remedy
):
  ((field, value),) = WRONG[remedy].items()
  placement = Placement(**WRONG[remedy])
  parts = {layer: placement}
  if layer == "fc7":
    parts = {"layers": parts}
  with pytest.raises(ValueError) as error:
    Layout(name="mine", mesh={"data": 2}, **parts)
  said = str(error.value)
  assert said.startswith(f"layout 'mine': {layer}.{field} is {value!r}, expect")
  assert said.endswith(f" Write {remedy}.")


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"mesh": [("data", 2)]}, "mesh is .* Write mesh={'data': 2}."),
    ({"mesh": {"data": 2.0}}, "mesh has 2.0 devices along 'data'"),
    ({"fc": {"batch": ("data",)}}, "fc is {'batch': .*}, expected a Placement"),
    ({"layers": [Placement()]}, "layers is .*, expected a dict of placements"),
    ({"layers": {6: Placement()}}, "layers places 6, expected a name of let"),
    ({"layers": {"f 6": Placement()}}, "layers places 'f 6', expected a name"),
    (
      {"layers": {"fc": Placement()}},
      r"layers places 'fc', expected a single layer: .* Write fc=Placement\(",
    ),
    ({"layers": {"mesh": Placement()}}, "layers places 'mesh', expected anoth"),
  ],
)
def test_wrong_type_of_a_part_of_a_layout_is_refused(fields, words):
  with pytest.raises(ValueError, match=f"layout 'mine': {words}"):
    Layout(**{"name": "mine", "mesh": {"data": 2}} | fields)


def test_order_of_axes_is_that_of_the_config_and_must_be_complete():
  def order(*axes):
    return layout_lib.override(
      catalog.TWO_COLUMN_DATA, mesh={}, placements={}, axes=axes
    )

  assert list(order("column", "data").mesh) == ["column", "data"]
  with pytest.raises(ValueError, match="'column',. are not those of the mesh"):
    order("column")


def test_layout_survives_its_way_through_a_config(layout):
  own = dataclasses.replace(layout, name="own")
  config = default.get_config("digits")
  default.use_layout(config, catalog.TWO_COLUMN)
  default.use_layout(config, own)  # nothing of the first remains
  made = settings.make_layout(config, settings.make_network(config))
  assert list(made.mesh.items()) == list(own.mesh.items())
  for layer in build.TINY_NETWORK.layers:
    assert made.placement(layer) == own.placement(layer)


def test_misspelled_layer_is_refused():
  with pytest.raises(ValueError, match="places a layer 'fc_7', expected one"):
    layout_lib.override(
      catalog.TWO_COLUMN,
      mesh={},
      placements={"fc_7": {"batch": ()}},
      rows=build.TINY_NETWORK.layers,
    )


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_two_axes_go_from_the_batch_to_the_features_in_either_order(order):
  layout = Layout(
    name="x",
    mesh={"a": 2, "b": 2},
    conv=Placement(batch=("a", "b")),
    fc=Placement(outputs=order),
    layers={"fc6": Placement(inputs=order)},
  )
  check.check(layout, build.FULL_NETWORK, batch_size=128)
  routes = plan.choose_routes(build.FULL_NETWORK, layout, batch_size=128)
  kinds = [(reshard.kind, reshard.axes) for reshard in routes["fc6"].reshards]
  together = [("all_to_all", ("a", "b"))]
  one_by_one = [("all_to_all", ("b",)), ("all_to_all", ("a",))]
  assert kinds == (together if order == ("a", "b") else one_by_one)


def test_more_devices_than_there_are_are_refused():
  with pytest.raises(ValueError, match="needs 16 devices .* there are 8 .cpu"):
    mesh.make_mesh(Layout(name="x", mesh={"data": 8, "column": 2}))
