"""Over which links the axes of a mesh run, and how that is said."""

import dataclasses

import jax
import numpy as np
import pytest

from alexnet_jax.partition import links
from alexnet_jax.program import summary
from alexnet_jax.settings import settings
from alexnet_jax.training import run
from tests import fake


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
  ids=["unknown", "neighbours", "alternating", "one_apart"],
)
def test_links_of_four_processes_are_the_slowest_of_an_axis(hosts, expected):
  made = make_mesh(
    fake.make_devices(4, 2), {"far": 2, "near": 2, "own": 2, "one": 1}
  )
  found = links.find_links(made, hosts)
  assert [*found.items()] == [
    *(("far", expected[0]), ("near", expected[1])),
    *(("own", "inside a process"), ("one", "-")),
  ]


def test_axis_that_crosses_processes_now_and_then_is_between_them():
  made = make_mesh(fake.make_devices(2, 4), {"data": 8})
  assert links.find_links(made) == {"data": "between processes"}


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
  assert list(links.find_links(made, hosts).values()) == [
    *expected,
    "inside a process",
  ]


def make_program(config, **sizes):
  config.layout.name = "two_column_data"
  config.layout.mesh.update(sizes)
  return run.make_program(config, *settings.check(config))


def test_lines_say_the_nesting_and_who_ordered_it(tiny_config):
  lines = summary.axes(make_program(tiny_config))
  assert lines[0].startswith("axis data: 2 devices, ")
  assert lines[0].endswith(" bytes sent along it in a step, inside a process")
  assert lines[1].startswith("axis column: 2 devices, ")
  assert lines[2:] == ["nested by these bytes, slowest first: column, data"]
  tiny_config.layout.axes = ("data", "column")
  assert summary.axes(make_program(tiny_config))[2:] == [
    "nested as config.layout.axes has it, slowest first: data, column; by "
    "these bytes: column, data"
  ]


def test_axis_of_one_device_has_neither_bytes_nor_place(tiny_config):
  lines = summary.axes(make_program(tiny_config, data=1))
  assert lines[0] == "axis data: 1 device"
  assert len(lines) == 2 and lines[1].endswith("inside a process")


def test_lines_name_the_links_between_hosts(tiny_config):
  program = make_program(tiny_config)
  devices = [
    fake.Device(0, 0, "tpu"),
    *(fake.Device(1, 1, "tpu"), fake.Device(2, 0, "tpu")),
    fake.Device(3, 1, "tpu"),
  ]
  program = dataclasses.replace(
    program, mesh=make_mesh(devices, {"data": 2, "column": 2})
  )
  lines = summary.axes(program, {0: "a", 1: "b"})
  assert lines[0].endswith("inside a process")
  assert lines[1].endswith("between hosts")
  assert "a TPU's chips are joined directly" in lines[3]
