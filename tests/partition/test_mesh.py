"""Which device has which place on a mesh; expected numbers are written out."""

import dataclasses

import jax
import numpy as np
import pytest

from alexnet_jax.partition import catalog, mesh, plan
from alexnet_jax.partition.layout import Layout, Placement
from alexnet_jax.program import summary
from alexnet_jax.settings import settings
from alexnet_jax.training import run
from configs import default
from tests import build, fake

TWO_BY_TWO = Layout(name="x", mesh={"data": 2, "column": 2})


COLUMN_INSIDE, DATA_INSIDE = [[0, 1], [2, 3]], [[0, 2], [1, 3]]


@pytest.mark.parametrize(
  ("sent", "expected"),
  [
    *(({"data": 9, "column": 1}, DATA_INSIDE), ({"data": 9}, DATA_INSIDE)),
    ({"data": 1, "column": 9}, COLUMN_INSIDE),
    ({"data": 5, "column": 5}, COLUMN_INSIDE),
    *(({}, COLUMN_INSIDE), (None, COLUMN_INSIDE)),
  ],
  ids=["data", "data_alone", "column", "tie", "nothing", "unknown"],
)
def test_axis_along_which_most_is_sent_lies_inside_a_process(sent, expected):
  made = mesh.make_mesh(TWO_BY_TWO, fake.make_devices(2, 2), sent=sent)
  assert fake.find_ids(made) == expected
  assert made.axis_names == ("data", "column")
  assert made.axis_types == (jax.sharding.AxisType.Explicit,) * 2


def test_three_axes_are_nested_by_what_is_sent():
  layout = Layout(name="x", mesh={"a": 2, "b": 2, "c": 2})
  sent = {"a": 1, "b": 9, "c": 5}
  made = mesh.make_mesh(layout, fake.make_devices(2, 4), sent=sent)
  assert mesh.nest_axes(layout, sent) == ("a", "c", "b")
  assert fake.find_ids(made) == [[[0, 2], [1, 3]], [[4, 6], [5, 7]]]


def test_mesh_without_bytes_is_that_of_jax(layout):
  made = mesh.make_mesh(layout)
  assert made == jax.make_mesh(tuple(layout.mesh.values()), tuple(layout.mesh))


def test_one_process_takes_the_first_devices():
  made = mesh.make_mesh(TWO_BY_TWO, fake.make_devices(1, 8))
  assert fake.find_ids(made) == [[0, 1], [2, 3]]


def test_no_process_of_a_run_is_left_without_a_device(monkeypatch):
  devices = fake.make_devices(3, 2)
  mesh.make_mesh(TWO_BY_TWO, devices)  # of a slice that is not there
  monkeypatch.setattr(jax, "process_count", lambda: 3)
  with pytest.raises(
    ValueError, match="needs 4 devices, .* 6 in 3 processes; process 2 would "
  ):
    mesh.make_mesh(TWO_BY_TWO, devices)
  made = mesh.make_mesh(Layout(name="x", mesh={"data": 5}), devices)
  assert fake.find_ids(made) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
  ("sizes", "slices", "sent", "expected"),
  [
    (
      *({"data": 4, "column": 2}, [0, 1] * 4),
      *({"data": 9, "column": 1}, [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ),
    (
      *({"data": 4, "column": 2}, [0, 1] * 4),
      *({"data": 1, "column": 9}, [[0, 2], [4, 6], [1, 3], [5, 7]]),
    ),
    (
      *({"data": 2, "column": 4}, [3, 3, 2, 2, 1, 1, 0, 0]),
      *({"data": 1, "column": 9}, [[6, 7, 4, 5], [2, 3, 0, 1]]),
    ),
  ],
  ids=["column_crosses", "data_crosses", "both_cross"],
)
def test_axis_along_which_least_is_sent_crosses_slices(
  sizes, slices, sent, expected
):
  made = mesh.make_mesh(
    Layout(name="x", mesh=sizes), make_slices(slices), sent=sent
  )
  assert fake.find_ids(made) == expected


def make_slices(slices, platform="cpu") -> list[fake.Device]:
  """Makes a device in each slice listed; a slice is a process."""
  return [
    fake.DeviceOfSlice(number, index, platform, slice_index=index)
    for number, index in enumerate(slices)
  ]


def test_hosts_of_unequal_size_are_used_one_after_the_other():
  made = mesh.make_mesh(TWO_BY_TWO, make_slices([0, 1, 0, 0]))
  assert fake.find_ids(made) == [[0, 2], [3, 1]]


def test_tpu_slices_that_do_not_share_the_devices_evenly_are_refused():
  with pytest.raises(
    ValueError, match=r"data=2, column=2\) .* 2 slices of its 4 devices \(3, 1"
  ):
    mesh.make_mesh(TWO_BY_TWO, make_slices([0, 1, 0, 0], "tpu"))


def test_exchange_over_two_axes_counts_along_both():
  exchange = build.make_collective(100, axes=("a", "b"), devices=4)
  # A ring of four sends 2 x 100 x 3 / 4 elements of four bytes.
  assert plan.sent_along([exchange, exchange]) == {"a": 1_200, "b": 1_200}


def test_bytes_along_axes_are_those_of_the_published_network():
  exchanges = build.make_plan(
    build.FULL_NETWORK, catalog.TWO_COLUMN_DATA, batch_size=128
  )
  assert plan.sent_along(exchanges) == {
    # Halves of what crosses at conv3, fc6 and fc7, there and back, and of
    # the logits as much as there are, for each of 64 images.
    "column": 64 * 4 * (2 * (43_264 + 4_096 + 4_096) // 2 + 1_000),
    # Half of the parameters, of fc8's biases all; a sum over two devices sends
    # what it adds. Four numbers of the loss.
    "data": 4 * ((60_965_224 - 1_000) // 2 + 1_000) + 4 * 4,
  }


def find_program_ids(config) -> list:
  network, layout = settings.check(config)
  return fake.find_ids(run.make_program(config, network, layout).mesh)


def test_gradients_lie_innermost_unless_the_config_orders_the_axes(tiny_config):
  tiny_config.layout.name = "two_column_data"
  assert find_program_ids(tiny_config) == DATA_INSIDE
  for axes in (("data", "column"), ("column", "data")):
    tiny_config.layout.axes = axes
    assert find_program_ids(tiny_config) == COLUMN_INSIDE


def test_layout_of_a_config_keeps_its_order_until_that_is_unset(tiny_config):
  both = Placement(batch=("a",), features=("b",))
  own = Layout(name="own", mesh={"a": 2, "b": 2}, conv=both, fc=both)
  default.use_layout(tiny_config, own)
  assert find_program_ids(tiny_config) == [[0, 1], [2, 3]]
  tiny_config.layout.axes = None
  assert find_program_ids(tiny_config) == [[0, 2], [1, 3]]


def make_mesh(devices, sizes):
  placed = np.array(devices).reshape(list(sizes.values()))
  return jax.sharding.Mesh(placed, tuple(sizes))


@pytest.mark.parametrize(
  ("hosts", "expected"),
  [
    (None, ["between processes", "between processes"]),
    ({0: "a", 1: "a", 2: "b", 3: "b"}, ["between hosts", "inside a host"]),
    ({0: "a", 1: "b", 2: "a", 3: "b"}, ["inside a host", "between hosts"]),
    ({0: "a", 1: "a", 2: "a", 3: "b"}, ["between hosts", "between hosts"]),
  ],
  ids=["unknown", "neighbors", "alternating", "one_apart"],
)
def test_links_of_four_processes_are_the_slowest_of_an_axis(hosts, expected):
  sizes = {"far": 2, "near": 2, "own": 2, "one": 1}
  found = mesh.find_links(make_mesh(fake.make_devices(4, 2), sizes), hosts)
  links = (*expected, "inside a process", "-")
  assert [*found.items()] == [*zip(sizes, links, strict=True)]


def test_axis_that_crosses_processes_now_and_then_is_between_them():
  made = make_mesh(fake.make_devices(2, 4), {"data": 8})
  assert mesh.find_links(made) == {"data": "between processes"}


@pytest.mark.parametrize(
  ("platform", "hosts", "expected"),
  [
    ("tpu", None, ["between slices", "between processes"]),
    ("tpu", "aabb", ["between slices", "inside a host"]),
    # Hosts, in JAX's words, whose names nobody gave.
    ("gpu", None, ["between hosts", "between processes"]),
    ("gpu", "aabb", ["between hosts", "inside a host"]),
    ("gpu", "abcd", ["between hosts", "between hosts"]),
  ],
)
def test_links_between_slices_are_slower(platform, hosts, expected):
  devices = [
    fake.DeviceOfSlice(number, number // 2, platform, slice_index=number // 4)
    for number in range(8)
  ]
  made = make_mesh(devices, {"slice": 2, "process": 2, "device": 2})
  hosts = hosts and dict(enumerate(hosts))
  found = list(mesh.find_links(made, hosts).values())
  assert found == [*expected, "inside a process"]


def make_program(config, **sizes):
  config.layout.name = "two_column_data"
  config.layout.mesh.update(sizes)
  return run.make_program(config, *settings.check(config))


def test_lines_say_the_nesting_and_who_ordered_it(tiny_config):
  lines = summary.describe_axes(make_program(tiny_config))
  assert lines[0].startswith("axis data: 2 devices, ")
  assert lines[0].endswith(" MB sent along it in a step, inside a process")
  assert lines[1].startswith("axis column: 2 devices, ")
  assert lines[2:] == ["nested by these bytes, slowest first: column, data"]
  tiny_config.layout.axes = ("data", "column")
  assert summary.describe_axes(make_program(tiny_config))[2:] == [
    "nested as config.layout.axes has it, slowest first: data, column; by "
    "these bytes: column, data"
  ]


def test_axis_of_one_device_has_neither_bytes_nor_place(tiny_config):
  lines = summary.describe_axes(make_program(tiny_config, data=1))
  assert lines[0] == "axis data: 1 device"
  assert len(lines) == 2 and lines[1].endswith("inside a process")


def test_lines_name_the_links_between_hosts(tiny_config):
  program = make_program(tiny_config)
  devices = [fake.Device(number, number % 2, "tpu") for number in range(4)]
  program = dataclasses.replace(
    program, mesh=make_mesh(devices, {"data": 2, "column": 2})
  )
  lines = summary.describe_axes(program, {0: "a", 1: "b"})
  assert lines[0].endswith("inside a process")
  assert lines[1].endswith("between hosts")
  assert "a TPU's chips are joined directly" in lines[3]
