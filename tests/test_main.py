"""The command line as a person meets it: real processes."""

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

# What is wrong -> flags, or another config than two_device.py; the message.
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
  "variant that is none": (
    "two_device.py:imagnet",
    "unknown variant 'imagnet'",
  ),
  "imagenet without data": (
    "two_device.py:imagenet",
    "dataset 'imagenet256/jpeg' is not prepared.*alexnet_jax.prepare",
  ),
  "config that is not there": (
    "three_device.py",
    "there is no config file 'configs/three_device.py'",
  ),
  "workdir that cannot be written": (
    ["--workdir={tmp}/file/workdir"],
    "workdir '.*/file/workdir' cannot be written: .*/file is no directory",
  ),
  "argument that is no flag": (["two_device"], "unexpected argument"),
  "tracker that is none": (
    ["--tracker=json:make_it"],
    "the module 'json' has no function 'make_it'. Set --tracker",
  ),
  "tracker that cannot be imported": (
    ["--tracker=no_trackers:make"],
    "'no_trackers' of the tracker cannot be imported: ModuleNotFoundError",
  ),
}


# Those of a process of their own; the others are forks of one, which need no
# imports.
ALONE = ("more devices than there are", "misspelled field")

SMALL = ("--config.network.width=0.125", "--config.batch_size=16")
SMALL += ("--config.log_every_steps=1",)


def make_flags(tmp, config, *flags):
  places = f"--workdir={tmp}/workdir", f"--data_dir={tmp}/data"
  return [f"--config=configs/{config}", *places, *flags]


def run(tmp, config, *flags):
  flags = make_flags(tmp, config, *flags)
  return processes.run(
    ["python", "-m", "alexnet_jax.main", *flags],
    pathlib.Path(tempfile.gettempdir()),
  )


@pytest.fixture(scope="module")
def bad_runs(tmp_path_factory):
  """The folder of every bad input, and how its command ends."""
  found, forked = {}, {}
  for name, (given, _) in BAD_INPUT.items():
    tmp = tmp_path_factory.mktemp("bad") / "here"
    tmp.mkdir()
    (tmp / "file").touch()
    config, flags = "two_device.py", given
    if isinstance(given, str):
      config, flags = given, []
    flags = [flag.format(tmp=tmp) for flag in flags]
    if name in ALONE:
      found[name] = tmp, run(tmp, config, *flags)
    else:
      forked[name] = "main", make_flags(tmp, config, *flags), tmp
  ended = processes.run_forked(
    forked.values(), tmp_path_factory.mktemp("forked")
  )
  for (name, (*_, tmp)), end in zip(forked.items(), ended, strict=True):
    found[name] = tmp, end
  return found


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_in_one_line_and_writes_nothing(case, bad_runs):
  tmp, (code, out, errors) = bad_runs[case]
  assert code != 0 and out == ""
  (line,) = errors.strip().splitlines()
  assert re.match(f"error: .*{BAD_INPUT[case][1]}", line), line
  assert [path.name for path in tmp.iterdir()] == ["file"]


STREAMS = """
import os, sys
for number in CLOSED:
  os.close(number)
os.execv(sys.executable, [sys.executable, "-c", '''
import alexnet_jax, os, sys
with open(os.devnull) as file:
  assert file.fileno() > 2, file.fileno()
print(sys.stdin.read(), sys.stdout, sys.stderr, file=sys.stderr)
print("said")
'''])
"""


@pytest.mark.parametrize(
  "closed",
  [
    (2,),
    (0, 1, 2),
    *(pytest.param((number,), marks=pytest.mark.slow) for number in (0, 1)),
  ],
)
def test_no_file_takes_the_place_of_a_closed_stream(closed, tmp_path):
  script = STREAMS.replace("CLOSED", str(closed))
  ended = processes.run(
    ["python", "-c", script], tmp_path, stdin=subprocess.DEVNULL
  )
  assert ended.code == 0, ended.errors
  assert ended.out == ("" if 1 in closed else "said\n")
  assert (ended.errors == "") == (2 in closed)


@pytest.mark.parametrize(
  "kilobytes",
  [
    300_000,
    *(
      pytest.param(number, marks=pytest.mark.slow)
      for number in (1_000_000, 2_000_000)
    ),
  ],
)
def test_small_address_space_is_refused(kilobytes, tmp_path):
  command = f"ulimit -v {kilobytes}; exec {sys.executable} -m alexnet_jax.main"
  ended = processes.run(["bash", "-c", command], tmp_path)
  limit = f"{kilobytes * 1024 / 1e9:.3g}"
  assert (ended.code, ended.out) == (1, "")
  assert ended.errors == (
    f"error: address space is limited to {limit} GB, expected 3 GB or more. "
    "Set ulimit -v unlimited.\n"
  )


def test_output_that_cannot_be_written_ends_a_command_in_one_line(tmp_path):
  with open("/dev/full", "w") as full:
    process = subprocess.Popen(
      [
        sys.executable,
        "-m",
        "alexnet_jax.complexity",
        "--config=configs/one_device.py",
      ],
      cwd=processes.ROOT,
      env=processes.environment(tmp_path),
      stdout=full,
      stderr=subprocess.PIPE,
      text=True,
    )
  ((code, _, errors),) = processes.finish([process])
  assert code == 1
  assert re.fullmatch(
    r"error: standard output .*written \(No space left on device\)\.",
    errors.strip(),
  )


@pytest.mark.slow
def test_four_simulated_devices_train_and_resume(tmp_path):
  flags = (*SMALL, "--config.data.train_split=train[:64]")
  first = run(tmp_path, "four_device.py", *flags, "--config.num_epochs=0.5")
  assert (first.code, first.errors) == (0, "")
  assert "the 4 devices are simulated on this machine's CPU" in first.out
  second = run(tmp_path, "four_device.py", *flags, "--config.num_epochs=1.0")
  assert second.code == 0, second.errors
  assert "resumes after step 2 of 4" in second.out
  lines = processes.metrics(tmp_path)
  assert [line["step"] for line in lines] == [1, 2, 2, 3, 4, 4]
  assert lines[-1]["validation_images"] == 299


@pytest.mark.slow
def test_lost_record_stops_the_run_in_one_line_or_is_replaced(tmp_path):
  builder = sets.open_builder("digits", data_dir=str(tmp_path / "data"))
  (split,) = sets.open_splits(builder, ("train",), stored_size=8)
  stored = [split.source[index] for index in range(len(split))]
  # In the ninth of ten batches of the only epoch, seed 0.
  stream = host_batches.ShuffledStream(160, 0)
  (lost,) = stream.records_at(np.array([16 * 8 + 3]))
  example = tf_example_pb2.Example.FromString(stored[lost])
  image = example.features.feature["image"].bytes_list
  image.value[0] = image.value[0][:-30]
  stored[lost] = example.SerializeToString()
  (shard,) = (tmp_path / "data").rglob("*train.array_record*")
  small_sets.write_shard(shard, stored)

  flags = (
    *(*SMALL, "--config.data.train_split=train[:160]"),
    *("--config.num_epochs=1.0", "--config.checkpoint_every_steps=2"),
  )
  first = run(tmp_path, "one_device.py", *flags)
  assert first.code == 1, first.errors
  (line,) = first.errors.strip().splitlines()
  assert line.startswith(
    f"error: record {lost} of digits/train[:160] (number {lost} in {shard}) "
    "has an image that cannot be decoded ("
  )
  assert "set config.data.unreadable=replace" in line
  replace = "--config.data.unreadable=replace"
  second = run(tmp_path, "one_device.py", *flags, replace)
  assert second.code == 0, second.errors
  assert "resumes after step 6 of 10" in second.out
  assert "1 replaced" in second.out
  lines = processes.metrics(tmp_path)
  replaced = {
    line["step"]: line["training_replaced_images"]
    for line in lines
    if "training_loss" in line
  }
  assert replaced == {step: int(step == 9) for step in range(1, 11)}
  assert lines[-1]["validation_replaced_images"] == 0
