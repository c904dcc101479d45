"""The doctor: in this process, and as a person meets it in several."""

import json
import shutil
import socket
import time

import pytest
import rich.console

from alexnet_jax.data import sets
from alexnet_jax.distributed import group
from alexnet_jax.doctor import examination
from alexnet_jax.settings import settings
from tests import processes


def test_doctor_makes_neither_set_nor_workdir(tmp_path, tiny_config):
  tiny_config.layout.name = "two_column_data"
  with open(tmp_path / "out", "w") as out:
    examined = examination.Examination(
      group.alone(), tiny_config, rich.console.Console(file=out, width=120)
    )
    network, layout = settings.check(tiny_config)
    examined.examine_processes({"XLA_FLAGS": "--a"})
    program = examined.examine_program(network, layout)
    data = examined.examine_data(network, str(tmp_path / "data"))
    examined.examine_workdir(str(tmp_path / "run"), data)
    assert examined.examine_links(program, 60)
    examined.conclude()
  assert examined.problems == []
  assert [path.name for path in tmp_path.iterdir()] == ["out"]
  text = (tmp_path / "out").read_text()
  assert "is made at the first run" in text
  assert text.endswith("a run would start\n")


def test_doctor_continues_after_a_problem(tmp_path, tiny_config):
  tiny_config.data.name = "imagenet256/raw"
  tiny_config.layout.name = "data_parallel"
  tiny_config.layout.mesh.data = 16
  (tmp_path / "file").touch()
  console = rich.console.Console(quiet=True)
  examined = examination.Examination(group.alone(), tiny_config, console)
  network, layout = settings.check(tiny_config)
  examined.examine_processes({})
  assert examined.examine_program(network, layout) is None
  assert examined.examine_data(network, str(tmp_path)) is None
  examined.examine_workdir(str(tmp_path / "file" / "run"), None)
  examined.conclude()
  few, unprepared, unwritable = examined.problems
  assert "needs 16 devices" in few
  assert "dataset 'imagenet256/raw' is not prepared" in unprepared
  assert "cannot be written" in unwritable
  json.dumps(examined.facts)


# Real processes.


def start(
  tmp, count, *arguments, given=None, program=("-m", "alexnet_jax.doctor")
):
  """Runs `count` processes, or those of `given`; (code, out, err) of each.

  Args:
    *arguments: with {tmp} and {index} in place of the folder and the process.
  """
  address = f"localhost:{processes.free_port()}"
  config = f"--config={processes.ROOT}/configs/four_device.py"
  started = []
  for index in given or range(count):
    variables = {"PYTHONPATH": str(processes.ROOT)}
    if count > 1:
      variables |= processes.cluster_variables(count, index, address)
    cwd = tmp / f"cwd{index}"
    cwd.mkdir()
    flags = [each.format(tmp=tmp, index=index) for each in arguments]
    started.append(
      processes.open_process(
        ["python", *program, config, *flags],
        tmp / "cache",
        cwd=cwd,
        variables=variables,
      )
    )
  return processes.finish(started)


FOLDERS = ("--data_dir={tmp}/data", "--workdir={tmp}/run")


@pytest.mark.hosts
def test_one_process_with_four_devices_would_start(tmp_path):
  ((code, out, err),) = start(tmp_path, 1, *FOLDERS)
  assert (code, err) == (0, "")
  lines = [line.split() for line in out.splitlines()]
  assert ["2", "0", "1", "cpu", "0"] in lines  # device, data, column
  (row,) = [line for line in lines if line[:1] == ["data=2"]]
  assert row[1:4] == ["inside", "a", "process"]
  assert "platform" in out and "orbax-checkpoint" in out
  assert lines[-1] == ["a", "run", "would", "start"]
  assert [path.name for path in tmp_path.iterdir()] == ["cwd0"]


@pytest.mark.hosts
def test_two_processes_with_two_devices_would_start(tmp_path):
  first, second = start(tmp_path, 2, *FOLDERS, "--format=json")
  assert first[::2] == (0, "") and second == (0, "", "")
  found = json.loads(first[1])
  assert found["problems"] == []
  assert [own["devices"] for own in found["processes"]] == [2, 2]
  assert len({own["pid"] for own in found["processes"]}) == 2
  links = {row["axis"]: row["links"] for row in found["axes"]}
  # More is sent along data, so it is inside a process.
  assert links == {"data": "inside a process", "column": "inside a host"}
  for row in found["axes"]:
    assert row["step_seconds"] > row["exchanges"] * row["latency_seconds"] > 0
  assert found["settings"][1]["JAX_PROCESS_ID"] == "1"
  assert not (tmp_path / "run").exists()
  assert not list(tmp_path.glob(".alexnet*"))


@pytest.mark.hosts
@pytest.mark.parametrize(
  ("given", "expected"),
  [
    (0, "process 1 of 2 did not connect to localhost:"),
    (1, "process 0 of 2 cannot be reached at localhost:"),
  ],
)
def test_process_that_is_missing_is_named_in_time(tmp_path, given, expected):
  start_time = time.monotonic()
  ((code, out, err),) = start(
    tmp_path, 2, "--start_timeout_seconds=3", given=[given]
  )
  assert time.monotonic() - start_time < 30  # most of it imports
  assert (code, out) == (1, "")
  (line,) = err.splitlines()
  assert line.startswith(f"error: {expected}")


@pytest.mark.hosts
def test_workdir_and_data_that_differ_between_hosts_are_all_named(tmp_path):
  for index in (0, 1):
    builder = sets.open_builder("digits", data_dir=str(tmp_path / f"d{index}"))
    sets.open_splits(builder, ("train",), stored_size=8)
  (lost,) = (tmp_path / "d1").rglob("*train.array_record*")
  lost.unlink()
  # Each process has another folder there.
  flags = ("--workdir=/proc/self/cwd/run", "--data_dir={tmp}/d{index}")
  first, second = start(tmp_path, 2, *flags)
  assert first[::2] == (1, "") and second == (1, "", "")
  _, _, problems = first[1].rpartition("problems:\n")
  data, workdir = problems.splitlines()
  name = f"process 1 of 2 ({socket.gethostname()}): "
  assert data.startswith(f"  {name}digits/train lacks 1 of its 1 files")
  assert str(lost) in data
  assert workdir.startswith(f"  {name}a file that process 0 has made in")
  assert "axis" in first[1]  # what comes after it was examined
  for index in (0, 1):
    assert not list((tmp_path / f"cwd{index}").iterdir())
  shutil.rmtree(tmp_path / "d0")


# Process 1 sends nothing, so that process 0 waits for ever.
SILENT = """
import os
from absl import app
from alexnet_jax.cli import command
from alexnet_jax.doctor import __main__ as doctor
from alexnet_jax.partition import timing
if os.environ["JAX_PROCESS_ID"] == "1":
  timing.time_sums = lambda mesh, axis, timeout_seconds: {}
app.run(doctor.main, flags_parser=command.parse_flags)
"""


@pytest.mark.hosts
def test_links_that_do_not_answer_are_named_and_everyone_leaves(tmp_path):
  start_time = time.monotonic()
  flags = ("--timeout_seconds=4", "--config.layout.mesh.data=1")
  first, second = start(tmp_path, 2, *FOLDERS, *flags, program=("-c", SILENT))
  assert time.monotonic() - start_time < 60
  assert first.code == 1 and second == (1, "", ""), first
  _, _, problem = first[1].rpartition("problems:\n")
  assert problem.startswith(
    "  axis 'column', inside a host: process 0 of 2 "
    f"({socket.gethostname()}): a sum of 4 bytes did not end within 4 s."
  )
