"""The doctor: in this process, and as a person meets it in several."""

import json
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import pytest
import rich.console

from alexnet_jax.data import sets
from alexnet_jax.distributed import group
from alexnet_jax.doctor import examination
from alexnet_jax.settings import settings
from tests import processes

ROOT = pathlib.Path(__file__).parents[2]


def test_doctor_makes_neither_set_nor_workdir(tmp_path, tiny_config):
  tiny_config.layout.name = "two_column_data"
  with open(tmp_path / "out", "w") as out:
    patient = examination.Examination(
      group.alone(), tiny_config, rich.console.Console(file=out, width=120)
    )
    network, layout = settings.check(tiny_config)
    patient.examine_processes({"XLA_FLAGS": "--a"})
    program = patient.examine_program(network, layout)
    data = patient.examine_data(network, str(tmp_path / "data"))
    patient.examine_workdir(str(tmp_path / "run"), data)
    assert patient.examine_links(program, 60)
    patient.conclude()
  assert patient.problems == []
  assert [path.name for path in tmp_path.iterdir()] == ["out"]
  text = (tmp_path / "out").read_text()
  assert "is made at the first run" in text
  assert text.endswith("a run would start\n")


def test_doctor_goes_on_after_a_problem(tmp_path, tiny_config):
  tiny_config.data.name = "imagenet256/raw"
  tiny_config.layout.name = "data_parallel"
  tiny_config.layout.mesh.data = 16
  (tmp_path / "file").touch()
  console = rich.console.Console(quiet=True)
  patient = examination.Examination(group.alone(), tiny_config, console)
  network, layout = settings.check(tiny_config)
  patient.examine_processes({})
  assert patient.examine_program(network, layout) is None
  assert patient.examine_data(network, str(tmp_path)) is None
  patient.examine_workdir(str(tmp_path / "file" / "run"), None)
  patient.conclude()
  few, unprepared, unwritable = patient.problems
  assert "needs 16 devices" in few
  assert "dataset 'imagenet256/raw' is not prepared" in unprepared
  assert "cannot be written" in unwritable
  json.dumps(patient.facts)


# Real processes.


def start(arguments, count, *, tmp, given=None, program=None, each=()):
  """Runs `count` processes, or those of `given`; (code, out, err) of each."""
  port = processes.free_port()
  started = []
  for index in range(count) if given is None else given:
    variables = {
      "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
      "JAX_NUM_PROCESSES": str(count),
      "JAX_PROCESS_ID": str(index),
    }
    cwd = tmp / f"cwd{index}"
    cwd.mkdir()
    started.append(
      subprocess.Popen(
        [
          sys.executable,
          *(("-c", program) if program else ("-m", "alexnet_jax.doctor")),
          f"--config={ROOT}/configs/four_device.py",
          *arguments,
          *(each[index] if each else ()),
        ],
        cwd=cwd,
        env=processes.environment(
          tmp / "cache",
          PYTHONPATH=str(ROOT),
          **(variables if count > 1 else {}),
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  return processes.finish(started)


@pytest.mark.hosts
def test_one_process_with_four_devices_would_start(tmp_path):
  ((code, out, err),) = start(
    [f"--data_dir={tmp_path}/data", f"--workdir={tmp_path}/run"],
    1,
    tmp=tmp_path,
  )
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
  first, second = start(
    [
      *(f"--data_dir={tmp_path}/data", f"--workdir={tmp_path}/run"),
      "--format=json",
    ],
    2,
    tmp=tmp_path,
  )
  assert first[::2] == (0, "")
  assert second == (0, "", "")
  found = json.loads(first[1])
  assert found["problems"] == []
  assert [there["devices"] for there in found["processes"]] == [2, 2]
  assert len({there["pid"] for there in found["processes"]}) == 2
  links = {row["axis"]: row["links"] for row in found["axes"]}
  # More is sent along data, so it lies inside.
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
    (0, "process 1 of 2 did not call at localhost:"),
    (1, "process 0 of 2 cannot be reached at localhost:"),
  ],
)
def test_process_that_is_missing_is_named_in_time(tmp_path, given, expected):
  start_time = time.monotonic()
  ((code, out, err),) = start(
    ["--start_timeout_seconds=3"], 2, tmp=tmp_path, given=[given]
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
  first, second = start(
    ["--workdir=/proc/self/cwd/run"],
    2,
    tmp=tmp_path,
    each=[[f"--data_dir={tmp_path}/d{index}"] for index in (0, 1)],
  )
  assert (first[0], second[0]) == (1, 1)
  assert (first[2], second[1:]) == ("", ("", ""))
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
  timing.measure = lambda mesh, axis, timeout_seconds: {}
app.run(doctor.main, flags_parser=command.parse_flags)
"""


@pytest.mark.hosts
def test_links_that_do_not_answer_are_named_and_everyone_leaves(tmp_path):
  start_time = time.monotonic()
  first, second = start(
    [
      *(f"--data_dir={tmp_path}/data", f"--workdir={tmp_path}/run"),
      *("--timeout_seconds=4", "--config.layout.mesh.data=1"),
    ],
    2,
    tmp=tmp_path,
    program=SILENT,
  )
  assert time.monotonic() - start_time < 60
  assert (first[0], second[0]) == (1, 1), first
  _, _, problem = first[1].rpartition("problems:\n")
  assert problem.startswith(
    "  axis 'column', inside a host: process 0 of 2 "
    f"({socket.gethostname()}): a sum of 4 bytes did not end within 4 s."
  )
  assert second[1:] == ("", "")
