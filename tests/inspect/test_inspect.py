"""The commands that look at a layout before any run, as a person meets them."""

import json
import sys

import pytest

from alexnet_jax.partition import mesh
from tests import test_main

# A layout of a user's own: pairs of devices split the fully connected layers,
# each convolution splits the batch, and conv5 is stored in shares.
OWN_CONFIG = """
from alexnet_jax.partition import catalog
from configs import default

PAIRS = catalog.Layout(
  name="pairs",
  mesh={"pair": 2, "member": 2},
  conv=catalog.Placement(batch=("pair", "member")),
  fc=catalog.Placement(batch=("pair",), features=("member",)),
  layers={
    "conv5": catalog.Placement(batch=("pair", "member"), fsdp=("member",)),
    "fc7": catalog.Placement(
      batch=("pair",), features=("member",), arrive="sum"
    ),
    "fc8": catalog.Placement(batch=("pair", "member")),
  },
)

def get_config(variant="digits"):
  config = default.get_config(variant)
  config.batch_size = 16
  config.num_epochs = 0.05
  config.network.width = 1 / 8
  default.use_layout(config, PAIRS)
  return config
"""


def inspect(config, *flags):
  return test_main.start(
    [
      *(sys.executable, "-m", "alexnet_jax.inspect"),
      *(f"--config={config}", *flags),
    ]
  )


@pytest.fixture(scope="module")
def own_config(tmp_path_factory):
  path = tmp_path_factory.mktemp("own") / "pairs.py"
  path.write_text(OWN_CONFIG)
  return path


def test_json_has_what_the_tables_show():
  process = inspect(
    "configs/two_device.py", "--format=json", "--config.network.width=0.125"
  )
  assert process.returncode == 0, process.stderr
  found = json.loads(process.stdout)
  assert found["layout"] == "two_column"
  assert found["network"] == "alexnet2012"
  assert (found["devices"], found["batch"]) == (2, 64)
  assert [layer["layer"] for layer in found["layers"]] == [
    *("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
  ]
  assert found["layers"][0] == found["layers"][0] | {
    "batch_axes": [],
    "features_axes": ["column"],
    "arrive": "gather",
    # Half of 12 kernels of 11 x 11 x 3, and of 12 biases.
    "parameter_bytes": 4 * (11 * 11 * 3 * 6 + 6),
    "optimizer_bytes": 4 * (11 * 11 * 3 * 6 + 6),
    # 15 x 15 places from 67 pixels, half of 12 maps.
    "activation_bytes": 4 * 64 * 15 * 15 * 6,
    "flops": 2 * 2 * 64 * 15 * 15 * 11 * 11 * 3 * 6,
  }
  # 32 maps of 3 x 3 after pooling, both halves; each device sends one.
  assert found["exchanges"][0] == {
    "layer": "conv3",
    "direction": "forward",
    "tensor": "activation",
    "kind": "all_gather",
    "axes": ["column"],
    "elements_per_image": 32 * 3 * 3,
    "planned_bytes": 4 * 64 * 16 * 3 * 3,
    "traced_bytes": 4 * 64 * 16 * 3 * 3,
    "compiled_bytes": 4 * 64 * 16 * 3 * 3,
  }
  assert found["axes"] == [
    {
      "axis": "column",
      "devices": 2,
      "sent_bytes": sum(line["planned_bytes"] for line in found["exchanges"]),
      "links": "inside a process",
    }
  ]
  assert found["nested_axes"] == ["column"]
  assert found["audit"] == {
    "agrees": True,
    "unplanned": [],
    "missing": [],
    "notes": [],
  }
  assert found["memory"]["peak"] > 0


def test_layout_of_a_config_outside_the_package_is_inspected(own_config):
  picture = own_config.parent / "pairs.svg"
  process = inspect(own_config, f"--picture={picture}")
  assert process.returncode == 0, process.stderr
  assert "layout pairs, mesh pair=2, member=2" in process.stdout
  assert "exchanges of the plan and no others" in process.stdout
  # Gradients are summed over pairs; a config of its own orders its axes.
  assert "axis pair: 2 devices, " in process.stdout
  assert "slowest first: pair, member; by these bytes: member, pair" in (
    process.stdout
  )
  assert picture.read_text().startswith("<?xml")


@pytest.mark.slow
def test_layout_of_a_config_outside_the_package_trains(own_config):
  process = test_main.start(
    test_main.command(own_config.parent, str(own_config))
  )
  assert process.returncode == 0, process.stderr
  assert "layout pairs, mesh pair=2, member=2" in process.stdout
  assert "exchanges of the plan and no others" in process.stdout
  assert (own_config.parent / "workdir" / "metrics.jsonl").exists()


def test_own_layout_can_be_changed_and_not_renamed_to_a_preset(own_config):
  process = inspect(own_config, "--config.layout.conv2.fsdp=('sister',)")
  assert process.returncode == 1
  assert process.stderr.startswith(
    "error: conv2 splits its weights over axis 'sister'"
  )
  process = inspect(own_config, "--config.layout.name=two_column")
  assert process.returncode == 1
  assert "a layout of its own under the name 'two_column'" in process.stderr


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--picture=a.pdf"], "a.pdf"),
    (["--topology=v5e:2"], "unknown topology 'v5e:2'"),
    (["--config.exchange_dtype=half"], "float32, bfloat16"),
    (["--format=yaml"], "format"),
  ],
)
def test_bad_flag_ends_in_one_line(flags, message):
  process = inspect("configs/two_device.py", *flags)
  assert process.returncode == 1
  assert process.stderr.startswith("error: ")
  assert message in process.stderr
  assert len(process.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_compare_lists_planned_and_compiled_bytes():
  process = test_main.start(
    [
      *(sys.executable, "-m", "alexnet_jax.compare"),
      *("--config=configs/one_device.py", "--config.network.width=0.125"),
      *("--layouts=two_column,data_parallel", "--devices=2", "--format=json"),
    ]
  )
  assert process.returncode == 0, process.stderr
  rows = json.loads(process.stdout)["rows"]
  assert [row["layout"] for row in rows] == ["two_column", "data_parallel"]
  for row in rows:
    assert row["agrees"] and row["planned_bytes"] == row["compiled_bytes"]
    assert row["memory_bytes"] > 0


@pytest.mark.slow
def test_verify_finds_the_promises_of_a_layout_kept():
  process = test_main.start(
    [
      *(sys.executable, "-m", "alexnet_jax.verify"),
      *("--config.batch_size=8", "--layouts=fully_sharded", "--devices=2"),
    ]
  )
  assert process.returncode == 0, process.stdout + process.stderr
  lines = process.stdout.splitlines()
  assert sum(line.endswith("kept") for line in lines) == 1, process.stdout


def test_topology_is_checked_before_libtpu_is_asked():
  for name in ("v5e", "v5e:2x4x2", "v3:2x2", "v5p:2x2", "v5e:0x4"):
    with pytest.raises(ValueError, match=f"unknown topology '{name}'"):
      mesh.find_devices(name)
