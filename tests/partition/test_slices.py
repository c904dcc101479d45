"""Steps compiled for TPU slices that are not there; needs libtpu."""

import json
import tempfile

import numpy as np
import pytest
from jax.experimental import topologies

from alexnet_jax.partition import layout, mesh
from alexnet_jax.program import compiler_options
from tests import fake, processes
from tests.inspect.test_inspect import run, run_well

pytestmark = pytest.mark.slices


def inspect(topology, *flags):
  out = run_well(
    *("inspect", "--format=json", f"--topology={topology}"),
    "--config=configs/one_device.py:imagenet",
    *(f"--config.{flag}" for flag in flags),
  )
  return json.loads(out)


@pytest.mark.parametrize(
  ("topology", "flags"),
  [
    ("v5e:2x4", ["layout.name=two_column_data", "layout.mesh.data=4"]),
    (
      "v5e:2x4",
      # All of its gradients are sums, of whatever size.
      ["layout.name=data_parallel", "layout.mesh.data=8"]
      + ["network.width=0.25", "network.image_size=67"],
    ),
    (
      "v5e:8x8",
      ["layout.name=one_weird_trick", "batch_size=1024"]
      # Of smaller images some of what is sent is sent in another way.
      + ["layout.mesh.data=8", "layout.mesh.model=8", "network.image_size=131"],
    ),
  ],
  ids=["eight_chips", "eight_chips_data_parallel", "sixty_four_chips"],
)
def test_step_communicates_as_planned(topology, flags):
  found = inspect(topology, *flags)
  assert found["device_kind"] == "TPU v5 lite"
  assert found["xla_options"] == compiler_options.PRESETS["tpu"]
  assert found["audit"]["agrees"]
  assert found["audit"]["unplanned"] == found["audit"]["missing"] == []
  # 16 GB a chip.
  assert 0 < found["memory"]["peak"] < 16e9
  for line in found["exchanges"]:
    assert line["traced_bytes"] == line["planned_bytes"]
    # This compiler moves in bfloat16 what it multiplies in bfloat16: what is
    # gathered, and what is traded on the way forward. The rest, every
    # reduce-scatter among it, is sent as planned.
    is_read = line["kind"] == "all_gather" or (
      (line["kind"], line["direction"]) == ("all_to_all", "forward")
    )
    factor = 2 if is_read else 1
    assert factor * line["compiled_bytes"] == line["planned_bytes"]


def test_axis_along_which_most_is_sent_lies_inside_a_host():
  sizes = {"data": 4, "column": 2}
  flags = [f"layout.mesh.{axis}={size}" for axis, size in sizes.items()]
  found = inspect(
    "v5e:2x4",
    *("layout.name=two_column_data", *flags, "batch_size=64"),
    *("network.width=0.25", "network.image_size=67"),
  )
  # Two hosts of four chips; gradients are most of what is sent.
  assert found["nested_axes"] == ["column", "data"]
  assert [(axis["axis"], axis["links"]) for axis in found["axes"]] == [
    ("data", "inside a process"),
    ("column", "between processes"),
  ]


def print_mesh(name, slices, sizes, sent):
  """Prints which device of which slice lies where, and the links between."""
  mesh.simulate_devices(1, only_cpu=True)
  devices = mesh.find_topology_devices(name)
  if slices > 1:
    devices = topologies.get_topology_desc(
      platform="tpu", topology_name=name, num_slices=slices
    ).devices
  made = mesh.make_mesh(layout.Layout(name="x", mesh=sizes), devices, sent=sent)
  placed = np.vectorize(mesh.slice_index)(made.devices).tolist()
  print(json.dumps([placed, fake.find_ids(made), mesh.find_links(made)]))


def find_mesh(*arguments):
  """What `print_mesh` prints in a process of its own, which libtpu wants."""
  code = "import json, sys; from tests.partition import test_slices as here; "
  code += "here.print_mesh(*map(json.loads, sys.argv[1:]))"
  command = ["python", "-c", code, *map(json.dumps, arguments)]
  process = processes.run(command, tempfile.gettempdir())
  assert process.code == 0, process.errors
  return json.loads(process.out)


@pytest.mark.parametrize(
  ("sent", "expected", "found_links"),
  [
    (
      *({"data": 9, "column": 1}, [[0, 1]] * 4),
      {"data": "inside a process", "column": "between slices"},
    ),
    (
      *({"data": 1, "column": 9}, [[0, 0]] * 2 + [[1, 1]] * 2),
      {"data": "between slices", "column": "inside a process"},
    ),
  ],
  ids=["column_crosses", "data_crosses"],
)
def test_axis_along_which_least_is_sent_crosses_two_slices(
  sent, expected, found_links
):
  slices, ids, found = find_mesh("v5e:2x2", 2, {"data": 4, "column": 2}, sent)
  assert slices == expected and found == found_links
  assert len({*np.ravel(ids)}) == 8


def test_every_tpu_takes_a_mesh_that_splits_its_torus():
  _, ids, _ = find_mesh("v6e:4x4", 1, {"data": 8, "column": 2}, None)
  assert sorted(np.ravel(ids)) == list(range(16))


@pytest.mark.parametrize("topology", ["v4:2x2x2", "v5p:2x2x2", "v6e:2x4"])
def test_every_generation_compiles_a_small_step(topology):
  found = inspect(
    topology,
    *("layout.name=fully_sharded", "layout.mesh.data=8", "batch_size=64"),
    *("network.width=0.25", "network.image_size=67"),
  )
  assert found["devices"] == 8
  preset = compiler_options.PRESETS
  assert found["xla_options"] == preset.get(found["device_kind"], preset["tpu"])
  assert found["audit"]["agrees"]


def test_slice_that_libtpu_does_not_know_is_refused():
  flags = ("--topology=v5e:3x5", "--config=configs/one_device.py")
  process = run("inspect", *flags)
  assert process.code == 1
  error = processes.last_error(process.errors)
  assert error.startswith("error: libtpu knows no slice 'v5e:3x5'")
