"""The commands that examine a layout before any run, as users run them."""

import json
import tempfile

import pytest

from alexnet_jax.partition import mesh
from tests import processes

# A layout of a user: pairs of devices split the fully connected layers, each
# convolution splits the batch, and conv5 is stored sharded.
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


def run(command, *flags):
  return processes.run(
    ["python", "-m", f"alexnet_jax.{command}", *flags], tempfile.gettempdir()
  )


def run_well(command, *flags) -> str:
  """Returns the output of a command, which must end well."""
  process = run(command, *flags)
  assert process.code == 0, process.out + process.errors
  return process.out


CONFIG = "--config=configs/two_device.py"


@pytest.fixture(scope="module")
def own_config(tmp_path_factory):
  path = tmp_path_factory.mktemp("own") / "pairs.py"
  path.write_text(OWN_CONFIG)
  return path


def test_json_has_what_the_tables_show():
  flags = ("--format=json", "--config.network.width=0.125")
  found = json.loads(run_well("inspect", CONFIG, *flags))
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
  audited = ("planned", "traced", "compiled")
  # 32 maps of 3 x 3 after pooling, both halves; each device sends one.
  assert found["exchanges"][0] == {
    "layer": "conv3",
    "direction": "forward",
    "tensor": "activation",
    "kind": "all_gather",
    "axes": ["column"],
    "elements_per_image": 32 * 3 * 3,
    **{f"{name}_bytes": 4 * 64 * 16 * 3 * 3 for name in audited},
  }
  sent = sum(line["planned_bytes"] for line in found["exchanges"])
  axis = {"axis": "column", "devices": 2, "sent_bytes": sent}
  assert found["axes"] == [axis | {"links": "inside a process"}]
  assert found["nested_axes"] == ["column"]
  empty = {"unplanned": [], "missing": [], "notes": []}
  assert found["audit"] == {"agrees": True, **empty}
  assert found["memory"]["peak"] > 0


def test_layout_of_a_config_outside_the_package_is_inspected(own_config):
  picture = own_config.parent / "pairs.svg"
  out = run_well("inspect", f"--config={own_config}", f"--picture={picture}")
  assert "layout pairs, mesh pair=2, member=2" in out
  assert "exchanges of the plan and no others" in out
  # Gradients are summed over pairs; a config of its own orders its axes.
  assert "axis pair: 2 devices, " in out
  assert "slowest first: pair, member; by these bytes: member, pair" in out
  assert picture.read_text().startswith("<?xml")


@pytest.mark.slow
def test_layout_of_a_config_outside_the_package_trains(own_config):
  folder = own_config.parent
  flags = (f"--workdir={folder}/workdir", f"--data_dir={folder}/data")
  out = run_well("main", f"--config={own_config}", *flags)
  assert "layout pairs, mesh pair=2, member=2" in out
  assert "exchanges of the plan and no others" in out
  assert (folder / "workdir" / "metrics.jsonl").exists()


def test_own_layout_can_be_changed_and_not_renamed_to_a_preset(own_config):
  for flag, message in (
    (
      "conv2.fsdp=('sister',)",
      "error: conv2 splits its weights over axis 'sister'",
    ),
    ("name=two_column", "a layout of its own under the name 'two_column'"),
  ):
    process = run(
      "inspect", f"--config={own_config}", f"--config.layout.{flag}"
    )
    assert process.code == 1 and process.errors.startswith("error: ")
    assert message in process.errors


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
  process = run("inspect", CONFIG, *flags)
  assert process.code == 1
  assert process.errors.startswith("error: ")
  assert message in process.errors
  assert len(process.errors.strip().splitlines()) == 1


@pytest.mark.slow
def test_compare_lists_planned_and_compiled_bytes():
  out = run_well(
    "compare",
    *("--config=configs/one_device.py", "--config.network.width=0.125"),
    *("--layouts=two_column,data_parallel", "--devices=2", "--format=json"),
  )
  rows = json.loads(out)["rows"]
  assert [row["layout"] for row in rows] == ["two_column", "data_parallel"]
  for row in rows:
    assert row["agrees"] and row["planned_bytes"] == row["compiled_bytes"]
    assert row["memory_bytes"] > 0


@pytest.mark.slow
def test_verify_finds_the_promises_of_a_layout_kept():
  out = run_well(
    *("verify", "--config.batch_size=8"),
    *("--layouts=fully_sharded", "--devices=2"),
  )
  assert sum(line.endswith("kept") for line in out.splitlines()) == 1, out


def test_topology_is_checked_before_libtpu_is_asked():
  for name in ("v5e", "v5e:2x4x2", "v3:2x2", "v5p:2x2", "v5e:0x4"):
    with pytest.raises(ValueError, match=f"unknown topology '{name}'"):
      mesh.find_topology_devices(name)
