"""Steps compiled for TPU slices that are not there; needs libtpu."""

import json
import sys

import pytest

from tests import test_main

pytestmark = pytest.mark.slices


def inspect(topology, *flags):
  process = test_main.start(
    [
      *(sys.executable, "-m", "alexnet_jax.inspect", "--format=json"),
      *("--config=configs/one_device.py:imagenet", f"--topology={topology}"),
      *(f"--config.{flag}" for flag in flags),
    ]
  )
  assert process.returncode == 0, process.stderr
  return json.loads(process.stdout)


@pytest.mark.parametrize(
  ("topology", "kind", "flags"),
  [
    (
      "v5e:2x4",
      "TPU v5 lite",
      ["layout.name=two_column_data", "layout.mesh.data=4"],
    ),
    (
      "v5e:8x8",
      "TPU v5 lite",
      ["layout.name=one_weird_trick", "batch_size=1024"]
      + ["layout.mesh.data=8", "layout.mesh.model=8"],
    ),
  ],
  ids=["eight_chips", "sixty_four_chips"],
)
def test_full_size_step_communicates_as_planned(topology, kind, flags):
  found = inspect(topology, *flags)
  assert found["device_kind"] == kind
  assert found["audit"]["agrees"]
  assert found["audit"]["unplanned"] == found["audit"]["missing"] == []
  # 16 GB a chip.
  assert 0 < found["memory"]["peak"] < 16e9
  for line in found["exchanges"]:
    assert line["traced_bytes"] == line["planned_bytes"]
    # This compiler gathers in bfloat16 what it multiplies in bfloat16, and
    # sends the rest, every reduce-scatter among it, as planned.
    factor = 2 if line["kind"] == "all_gather" else 1
    assert factor * line["compiled_bytes"] == line["planned_bytes"]


@pytest.mark.parametrize("topology", ["v4:2x2x2", "v5p:2x2x2", "v6e:2x4"])
def test_every_generation_compiles_a_small_step(topology):
  found = inspect(
    topology,
    *("layout.name=fully_sharded", "layout.mesh.data=8", "batch_size=64"),
    *("network.width=0.25", "network.image_size=67"),
  )
  assert found["devices"] == 8
  assert found["audit"]["agrees"]


def test_slice_that_libtpu_does_not_know_is_refused():
  process = test_main.start(
    [
      *(sys.executable, "-m", "alexnet_jax.inspect", "--topology=v5e:3x5"),
      "--config=configs/one_device.py",
    ]
  )
  assert process.returncode == 1
  assert process.stderr.splitlines()[-1].startswith(
    "error: libtpu knows no slice 'v5e:3x5'"
  )
