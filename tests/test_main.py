"""The command line as a person meets it: real processes."""

import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data import host_batches, sets
from tests import processes, small_sets

ROOT = pathlib.Path(__file__).parents[1]

BAD_INPUT = {
  "unknown layout name": (
    ["--config.layout.name=three_column"],
    "unknown layout 'three_column', expected one of one_device, two_column",
  ),
  "misspelled field": (
    ["--config.optimizer.learning_rat=1"],
    'no field config.optimizer.learning_rat. Did you mean "learning_rate"',
  ),
  "value of another type": (["--config.batch_size=many"], "batch_size"),
  "batch that does not divide": (
    ["--config.layout.mesh.data=2", "--config.batch_size=63"]
    + ["--config.layout.conv1.batch=('data',)"],
    "63 images does not divide evenly over the 2 devices",
  ),
  "columns that do not divide": (
    ["--config.layout.mesh.column=4"],
    "the 4 devices of axis 'column' .* do not divide the network's 2 columns",
  ),
  "axis that the mesh lacks": (
    ["--config.layout.conv3.features=('colum',)"],
    "conv3 splits its features over axis 'colum'",
  ),
  "more devices than there are": (
    ["--simulate_devices=1"],
    "needs 2 devices .* there are 1 .* --simulate_devices=2",
  ),
  "variant that is none": (None, "unknown variant 'imagnet'"),
  "imagenet without data": (
    None,
    "dataset 'imagenet256/jpeg' is not prepared.*alexnet_jax.prepare",
  ),
  "config that is not there": (None, "configs/three_device.py"),
  "workdir that cannot be written": (
    ["--workdir={tmp}/file/workdir"],
    "workdir '.*/file/workdir' cannot be written: .*/file is no directory",
  ),
  "argument that is no flag": (["two_device"], "unexpected argument"),
}
CONFIGS = {
  "variant that is none": "configs/two_device.py:imagnet",
  "imagenet without data": "configs/two_device.py:imagenet",
  "config that is not there": "configs/three_device.py",
}


def command(tmp, name="two_device", *flags):
  return [
    *(sys.executable, "-m", "alexnet_jax.main"),
    f"--config={name if '/' in name else f'configs/{name}.py'}",
    *(f"--workdir={tmp}/workdir", f"--data_dir={tmp}/data"),
    *flags,
  ]


def environment():
  """As in a fresh shell: none of what other tests set for JAX."""
  clean = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("JAX_", "XLA_"))
  }
  # Nothing is kept in the home of whoever tests.
  return clean | {"XDG_CACHE_HOME": tempfile.gettempdir()}


def start(arguments):
  return subprocess.run(
    arguments,
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=200,
  )


@pytest.fixture(scope="module")
def bad_runs(tmp_path_factory):
  """Every bad input, two at a time."""
  calls = {}
  for case, (flags, _) in BAD_INPUT.items():
    tmp = tmp_path_factory.mktemp("bad")
    (tmp / "file").touch()
    flags = [flag.format(tmp=tmp) for flag in flags or []]
    calls[case] = tmp, command(tmp, CONFIGS.get(case, "two_device"), *flags)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    done = pool.map(start, [arguments for _, arguments in calls.values()])
  return {
    case: (tmp, process)
    for (case, (tmp, _)), process in zip(calls.items(), done, strict=True)
  }


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_in_one_line_and_writes_nothing(case, bad_runs):
  tmp, process = bad_runs[case]
  assert process.returncode != 0
  lines = process.stderr.strip().splitlines()
  assert len(lines) == 1, process.stderr
  assert lines[0].startswith("error: ")
  assert re.search(BAD_INPUT[case][1], lines[0]), lines[0]
  assert process.stdout == ""
  assert [path.name for path in tmp.iterdir()] == ["file"]


@pytest.mark.slow
def test_four_simulated_devices_train_and_resume_from_the_command_line(
  tmp_path,
):
  flags = (
    *("--config.network.width=0.125", "--config.batch_size=16"),
    *("--config.data.train_split=train[:64]", "--config.log_every_steps=1"),
  )
  first = start(
    command(tmp_path, "four_device", *flags, "--config.num_epochs=0.5")
  )
  assert first.returncode == 0, first.stderr
  assert "the 4 devices are simulated on this machine's CPU" in first.stdout
  assert first.stderr == ""
  second = start(
    command(tmp_path, "four_device", *flags, "--config.num_epochs=1.0")
  )
  assert second.returncode == 0, second.stderr
  assert "goes on after step 2 of 4" in second.stdout
  lines = processes.metrics(tmp_path)
  steps = [line["step"] for line in lines]
  assert steps == [1, 2, 2, 3, 4, 4]
  assert lines[-1]["validation_images"] == 299


@pytest.mark.slow
def test_record_that_is_lost_stops_the_run_in_one_line_or_is_replaced(
  tmp_path,
):
  builder = sets.open_builder("digits", data_dir=str(tmp_path / "data"))
  (split,) = sets.open_splits(builder, ("train",), stored_size=8)
  stored = [split.source[index] for index in range(len(split))]
  # In the ninth of ten batches of the only epoch, seed 0.
  (lost,) = host_batches.Order(160, 0).find(np.array([16 * 8 + 3]))
  example = tf_example_pb2.Example.FromString(stored[lost])
  image = example.features.feature["image"].bytes_list
  image.value[0] = image.value[0][:-30]
  stored[lost] = example.SerializeToString()
  (shard,) = (tmp_path / "data").rglob("*train.array_record*")
  small_sets.write_shard(shard, stored)

  flags = (
    *("--config.network.width=0.125", "--config.batch_size=16"),
    *("--config.data.train_split=train[:160]", "--config.num_epochs=1.0"),
    *("--config.log_every_steps=1", "--config.checkpoint_every_steps=2"),
  )
  first = start(command(tmp_path, "one_device", *flags))
  assert first.returncode == 1, first.stderr
  (line,) = first.stderr.strip().splitlines()
  assert line.startswith(
    f"error: record {lost} of digits/train[:160] (number {lost} in {shard}) "
    "has an image that cannot be decoded ("
  )
  assert "set config.data.unreadable=replace" in line
  second = start(
    command(tmp_path, "one_device", *flags, "--config.data.unreadable=replace")
  )
  assert second.returncode == 0, second.stderr
  assert "goes on after step 6 of 10" in second.stdout
  assert "1 replaced" in second.stdout
  lines = processes.metrics(tmp_path)
  replaced = {
    line["step"]: line["training_replaced_images"]
    for line in lines
    if "training_loss" in line
  }
  assert replaced == {step: int(step == 9) for step in range(1, 11)}
  assert lines[-1]["validation_replaced_images"] == 0
