import dataclasses

import pytest

from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog, fit, mesh, route
from alexnet_jax.partition import layout as layout_lib

Layout, Placement = layout_lib.Layout, layout_lib.Placement


def test_every_named_layout_fits_the_full_size_network(layout):
  fit.check(layout, wiring.make_network(wirings.ALEXNET_2012), batch_size=128)


@pytest.mark.parametrize(
  ("layout", "words"),
  [
    (
      Layout(
        name="x", mesh={"column": 4}, conv=Placement(features=("column",))
      ),
      ["conv1", "4 devices of axis 'column'", "2 columns", "config.layout"],
    ),
    (
      Layout(name="x", mesh={"column": 2}, conv=Placement(features=("cols",))),
      ["conv1", "axis 'cols'", "column=2", "config.layout.conv1.features"],
    ),
    (
      Layout(name="x", mesh={"data": 3}, conv=Placement(batch=("data",))),
      ["batch of 128", "3 devices", "conv1", "config.batch_size"],
    ),
    (
      Layout(
        name="x",
        mesh={"data": 2},
        conv=Placement(batch=("data",), features=("data",)),
      ),
      ["conv1", "both its batch and its features", "'data'"],
    ),
    (
      Layout(name="x", mesh={"model": 3}, fc=Placement(features=("model",))),
      ["fc6", "4096 features", "3 devices", "config.layout.fc6.features"],
    ),
    (
      Layout(
        name="x",
        mesh={"model": 3},
        layers={"fc8": Placement(features=("model",), arrive="sum")},
      ),
      ["fc8", "3 devices", "4096 channels", "config.layout.fc8.features"],
    ),
    (
      Layout(
        name="x",
        mesh={"model": 8},
        layers={"fc6": Placement(features=("model",), arrive="sum")},
      ),
      ["fc6", "8 devices", "36 positions"],
    ),
    (
      Layout(
        name="x",
        mesh={"column": 2},
        conv=Placement(features=("column",), arrive="sum"),
      ),
      ["conv1 reads the image", "config.layout.conv1.arrive"],
    ),
    (
      Layout(name="x", mesh={"data": 1}, conv=Placement(arrive="scatter")),
      ["conv1", "'scatter'", "'gather' or 'sum'", "config.layout.conv1.arrive"],
    ),
    (
      Layout(name="x", mesh={"data": 2}, fc=Placement(stored=("data",))),
      ["fc6 stores its weights", "'data'", "no axis", "config.layout.fc6.sto"],
    ),
    (
      Layout(
        name="x",
        mesh={"data": 64},
        conv=Placement(batch=("data",), stored=("data",)),
      ),
      ["conv1 has 96 outputs", "64 devices", "config.layout.conv1.stored"],
    ),
    (
      Layout(
        name="x", mesh={"data": 2}, conv=Placement(batch=("data", "data"))
      ),
      ["conv1", "twice in its batch axes", "config.layout.conv1.batch"],
    ),
    (
      Layout(name="x", mesh={"data": 0}),
      ["axis 'data' has 0 devices", "config.layout.mesh.data"],
    ),
  ],
)
def test_layout_that_does_not_fit_is_refused(layout, words):
  with pytest.raises(ValueError) as error:
    fit.check(layout, wiring.make_network(wirings.ALEXNET_2012), batch_size=128)
  assert [word for word in words if word not in str(error.value)] == []


def test_axes_in_another_order_are_refused():
  layout = Layout(
    name="x",
    mesh={"a": 2, "b": 2},
    conv=Placement(batch=("a", "b")),
    fc=Placement(batch=("b", "a")),
  )
  network = wiring.make_network(wirings.ALEXNET_2012)
  fit.check(layout, network, batch_size=128)
  with pytest.raises(ValueError, match=r"fc6 wants a split over \('b', 'a'\)"):
    route.find_routes(network, layout, batch_size=128)


def test_unknown_name_lists_the_known_ones():
  with pytest.raises(ValueError, match="'three_column', expected one of one_d"):
    catalog.find("three_column")


def test_override_changes_one_layer_and_one_axis():
  layout = layout_lib.override(
    catalog.TWO_COLUMN_DATA,
    mesh={"data": 4, "column": None},
    placements={"fc6": {"arrive": "sum", "batch": None, "features": None}},
  )
  assert dict(layout.mesh) == {"data": 4, "column": 2}
  expected = dataclasses.replace(layout.fc, arrive="sum")
  assert layout.placement("fc6") == expected
  assert layout.placement("fc7") == catalog.TWO_COLUMN_DATA.fc


def test_order_of_axes_is_that_of_the_config_and_must_be_complete():
  layout = layout_lib.override(
    catalog.TWO_COLUMN_DATA, mesh={}, placements={}, axes=("column", "data")
  )
  assert list(layout.mesh) == ["column", "data"]
  with pytest.raises(ValueError, match="'column',. is not one of the mesh"):
    layout_lib.override(
      catalog.TWO_COLUMN_DATA, mesh={}, placements={}, axes=("column",)
    )


def test_layout_survives_its_way_through_a_config(layout):
  fields = layout_lib.to_fields(layout)
  made = layout_lib.override(
    Layout(name=fields["name"], mesh={}),
    axes=fields["axes"],
    mesh=dict(sorted(fields["mesh"].items())),
    placements={name: fields[name] for name in layout_lib.LAYERS},
  )
  assert list(made.mesh.items()) == list(layout.mesh.items())
  for name in layout_lib.LAYERS:
    assert made.placement(name) == layout.placement(name)


def test_more_devices_than_there_are_are_refused():
  with pytest.raises(ValueError, match="needs 16 devices .* there are 8 .cpu"):
    mesh.make_mesh(Layout(name="x", mesh={"data": 8, "column": 2}))
