import itertools
import math

import pytest

from alexnet_jax.figures import hosts as hosts_lib
from alexnet_jax.inspect import tables
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.planner import machine as machine_lib


@pytest.mark.parametrize(
  ("mesh", "hosts"),
  [
    ({"data": 2, "model": 4}, 2),
    ({"data": 4, "model": 2}, 2),
    ({"data": 2, "model": 4}, 8),
    ({"data": 2, "x": 2, "y": 4}, 4),
    ({"data": 1, "x": 8}, 2),
  ],
)
def test_neighbors_share_a_host_whatever_the_order_of_axes(mesh, hosts):
  layout = layout_lib.Layout(name="own", mesh=mesh)
  each = layout.devices // hosts
  machine = machine_lib.load("dgx_h100").with_hosts(hosts, each)
  for order in itertools.permutations(mesh):
    found = hosts_lib.find_hosts(machine, layout, order)
    assert found.count == hosts
    assert math.prod(found.inside.values()) == each
    places = itertools.product(*(range(mesh[axis]) for axis in order))
    for number, place in enumerate(places):
      position = dict(zip(order, place, strict=True))
      assert found.find(position) == (number // each,)
    assert found.find({}) == tuple(range(hosts))


def test_one_host_and_links_of_one_kind_are_not_hosts():
  layout = layout_lib.Layout(name="own", mesh={"data": 8})
  order = ("data",)
  machine = machine_lib.load("dgx_h100")
  assert hosts_lib.find_hosts(machine, layout, order) is None
  machine = machine_lib.load("tpu_v4")
  assert hosts_lib.find_hosts(machine, layout, order) is None


def test_hosts_of_tpus_are_slices():
  layout = layout_lib.Layout(name="own", mesh={"data": 512})
  machine = machine_lib.load("tpu_v5e")
  assert machine.with_hosts(2, 256)
  hosts = hosts_lib.find_hosts(machine, layout, ("data",))
  assert hosts.name((0,)) == "slice 0"
  assert hosts.name((0, 1)) == "slices 0 and 1"
  assert hosts.name((0, 1, 2, 3)) == "slices 0 to 3"
  assert hosts.name((0, 4, 8)) == "slices 0, 4, … 8"


def test_table_of_many_hosts_is_short():
  layout = layout_lib.Layout(name="own", mesh={"data": 64, "model": 8})
  machine = machine_lib.load("dgx_h100").with_hosts(64, 8)
  hosts = hosts_lib.find_hosts(machine, layout, ("data", "model"))
  columns = [
    list(column.cells) for column in hosts_lib.make_table(hosts).columns
  ]
  assert columns[0] == [*map(str, range(7)), "...", "63"]
  assert columns[1] == columns[0]
  assert set(columns[2]) == {"0 to 7", "..."}


def test_each_axis_says_over_which_links_it_runs():
  layout = layout_lib.Layout(name="own", mesh={"data": 4, "model": 4})
  machine = machine_lib.load("dgx_h100").with_hosts(2, 8)
  order = ("data", "model")
  hosts = hosts_lib.find_hosts(machine, layout, order)
  lines = tables.describe_levels(layout, machine, order, hosts)
  assert lines == [
    "axis data: 4 devices, 2 inside a host, over NVLink 4 through NVSwitch; 2 "
    "between hosts, over InfiniBand NDR",
    "axis model: 4 devices, inside a host, over NVLink 4 through NVSwitch",
  ]
  machine = machine_lib.load("k20")
  layout = layout_lib.Layout(name="own", mesh={"data": 2, "model": 1})
  assert tables.describe_levels(layout, machine, order, None) == [
    "axis data: 2 devices, over PCIe 2.0"
  ]
