"""Starts commands and runs in real processes, for tests."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import numpy as np

from alexnet_jax.checkpoints import reader
from alexnet_jax.partition import catalog
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from tests import short_network

ROOT = pathlib.Path(__file__).parents[1]

# An eighth of the width, three epochs of 48 images in 9 steps.
SMALL = {
  "network.width": 0.125,
  "batch_size": 16,
  "data.train_split": "train[:48]",
  "data.validation_split": "validation[:21]",
  "num_epochs": 3.0,
  "optimizer.drop_epochs": (2.0,),
  "log_every_steps": 2,
  "eval_every_steps": 100,
  "checkpoint_every_steps": 3,
}


class Ended(NamedTuple):
  """Exit code and streams of a process that has ended."""

  code: int
  out: str
  errors: str


def free_ports(count: int) -> list[int]:
  """Different ports of this machine that nothing uses."""
  sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
  ports = [free.getsockname()[1] for free in sockets]
  for free in sockets:
    free.close()
  return ports


def free_port() -> int:
  return free_ports(1)[0]


def flags(config: str, tmp: pathlib.Path, fields: dict | None = None):
  """The flags of `main` for a small run in `tmp`, see `short_network.py`."""
  return [
    f"--config=tests/short_network.py:{config}",
    *(f"--workdir={tmp}/workdir", f"--data_dir={tmp.parent}/data"),
    *(
      f"--config.{name}={value}"
      for name, value in (SMALL | (fields or {})).items()
    ),
  ]


def environment(cache: pathlib.Path, **variables) -> dict[str, str]:
  """A fresh shell's: without the variables that other tests set for JAX.

  Keeps those that conftest.py sets, so that all processes compile alike.
  """
  foreign = re.compile(
    r"JAX_(?!DISABLE)|XLA_|OMPI_|PMIX?_|MPI_|SLURM|SBATCH|SRUN|SCANCEL"
    r"|WORLD_SIZE|RANK|MASTER_|LOCAL_|TORCHELASTIC|MV2_|JSM_|FLUX_|PALS_|SM_"
    r"|JOB_COMPLETION|(?i:\w+_proxy)"
  )
  clean = {
    name: value for name, value in os.environ.items() if not foreign.match(name)
  }
  return clean | {"XDG_CACHE_HOME": str(cache), **variables}


def open_process(command, cache, *, cwd=ROOT, **options) -> subprocess.Popen:
  """Starts a command with pipes for its output.

  Args:
    command: program and arguments; the first "python" is this interpreter.
    cache: folder for compiled programs.
    cwd: where it runs.
    **options: `variables` of its environment; else of `subprocess.Popen`.
  """
  variables = options.pop("variables", {})
  return subprocess.Popen(
    [sys.executable if part == "python" else part for part in command],
    cwd=cwd,
    env=environment(cache, **variables),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **options,
  )


def run(command, cache, *, timeout=200, **options) -> Ended:
  """Runs a command as `open_process` starts it, to its end."""
  return finish([open_process(command, cache, **options)], timeout)[0]


def run_forked(cases, cache, *, timeout=300) -> list[Ended]:
  """Runs commands in forks of one process, see `tests/faults/forked.py`.

  Args:
    cases: for each command its module below alexnet_jax, its arguments, and an
      existing folder, where it runs.
    cache: folder for compiled programs, and of the list of the cases.
    timeout: of all, in seconds.
  """
  names = ("module", "arguments", "folder")
  listed = [dict(zip(names, case, strict=True)) for case in cases]
  file = pathlib.Path(cache) / "cases.json"
  file.write_text(json.dumps(listed, default=str))
  command = ["python", "-m", "tests.faults.forked", str(file)]
  done = run(command, cache, timeout=timeout)
  assert done.code == 0, done.errors
  return [
    Ended(ended["code"], ended["out"], ended["errors"])
    for ended in json.loads(done.out)
  ]


def open_local(
  tmp, count, devices, fields=None, *, config="two_device", **options
) -> subprocess.Popen:
  """Starts a small run in `tmp` with launch/local.sh."""
  return open_process(
    ["launch/local.sh", str(count), str(devices), *flags(config, tmp, fields)],
    tmp.parent / "cache",
    variables={"PORT": str(free_port()), "PYTHON": sys.executable},
    **options,
  )


def train_local(tmp, count, devices, fields=None, **options) -> str:
  """Runs as `open_local` to the end, which must be good; returns the output."""
  (ended,) = finish([open_local(tmp, count, devices, fields, **options)])
  assert (ended.code, ended.errors) == (0, ""), ended.errors
  return ended.out


def cluster_variables(count: int, index: int, address: str) -> dict[str, str]:
  """JAX's own variables of one process of several."""
  return {
    "JAX_COORDINATOR_ADDRESS": address,
    "JAX_NUM_PROCESSES": str(count),
    "JAX_PROCESS_ID": str(index),
  }


def start(
  tmp,
  count,
  arguments,
  *,
  module="main",
  address=None,
  variables=None,
  prefix=None,
) -> list[subprocess.Popen]:
  """Starts the processes of a command.

  Args:
    tmp: folder of the run; its parent holds the cache.
    count: number of processes.
    arguments: of the command.
    module: the command.
    address: of process 0; a free port of this machine by default.
    variables: index -> environment variables; by default those of JAX for
      `count` processes, and none for a single one.
    prefix: index -> arguments before the interpreter.
  """
  address = address or f"localhost:{free_port()}"
  if variables is None:

    def variables(index):
      return cluster_variables(count, index, address) if count > 1 else {}

  return [
    open_process(
      [
        *(prefix(index) if prefix else ()),
        *("python", "-m", f"alexnet_jax.{module}", *arguments),
      ],
      tmp.parent / "cache",
      variables=variables(index),
    )
    for index in range(count)
  ]


def start_training(
  tmp, fields=None, *arguments, config="two_device", count=1, **options
) -> list[subprocess.Popen]:
  """Starts a small run in `tmp`, see `flags` and `start`."""
  return start(tmp, count, [*flags(config, tmp, fields), *arguments], **options)


def start_saves(
  workdir: pathlib.Path, count: int, last_step: int, *prefix: str
) -> list[subprocess.Popen]:
  """Starts a run of `tests.saves`, which resumes where there is one.

  Args:
    prefix: arguments before the interpreter.
  """
  address = f"localhost:{free_port()}"
  run = (*prefix, "python", "-m", "tests.saves", str(workdir), str(last_step))
  return [
    open_process(
      [*run, str(index), str(count), address],
      workdir.parent / "cache",
      variables={"JAX_PLATFORMS": "cpu"},
    )
    for index in range(count)
  ]


def train(tmp, fields=None, *arguments, code=0, **options) -> Ended:
  """Runs a small training of one process, which must end with `code`.

  A run that ends well writes nothing to standard error, and one that is
  refused a single line.
  """
  (ended,) = finish(start_training(tmp, fields, *arguments, **options))
  assert ended.code == code, ended
  assert ended.errors.count("\n") == (code != 0), ended.errors
  assert code == 0 or ended.errors.startswith("error: "), ended.errors
  return ended


def finish(running, timeout=200) -> list[Ended]:
  """Waits for processes to end; leaves none behind."""
  try:
    outputs = [process.communicate(timeout=timeout) for process in running]
    return [
      Ended(process.returncode, *output)
      for process, output in zip(running, outputs, strict=True)
    ]
  finally:
    for process in running:
      process.kill()
      process.wait()


def wait_until(
  is_so, running, *, seconds: float = 90, poll_seconds: float = 0.05
) -> None:
  """Waits until `is_so()`, while one of the processes `running` is alive.

  Raises:
    AssertionError: not in time, or all have ended; with their output.
  """
  end = time.monotonic() + seconds
  while not is_so():
    ended = all(process.poll() is not None for process in running)
    if ended or time.monotonic() > end:
      for process in running:
        process.kill()
      raise AssertionError([process.communicate() for process in running])
    time.sleep(poll_seconds)


def wait_for_step(tmp, step, running) -> None:
  """Waits until the run in `tmp` has reported a step."""
  wait_until(
    lambda: any(line["step"] >= step for line in metrics(tmp)), running
  )


def wait_for_line(process, text) -> None:
  """Waits until a process has printed a line that contains `text`."""
  for line in process.stdout:
    if text in line:
      return
  raise AssertionError(f"no {text!r}: {process.communicate()}")


def metrics(tmp) -> list[dict]:
  """Reports on training and validation of the run in `tmp`."""
  return read_reports(tmp / "workdir")


def read_reports(workdir: pathlib.Path) -> list[dict]:
  """As `metrics`, without a line that a kill cut off, and without the clock.

  Lines on checkpoints are left out: they come when these are on disk; also
  those of the sessions, of which a run that was stopped has more.
  """
  file = workdir / "metrics.jsonl"
  lines = file.read_text().splitlines() if file.exists() else []
  found = [json.loads(line) for line in lines if line.endswith("}")]
  return [
    {name: line[name] for name in line if name != "elapsed_seconds"}
    for line in found
    if "checkpoint_seconds" not in line and "session" not in line
  ]


def read_state(tmp, fields: dict | None = None):
  """Reads the newest checkpoint of a small run, see `read_newest`."""
  config = short_network.get_config("one_device")
  config.update_from_flattened_dict(SMALL | (fields or {}))
  config.layout.name = "one_device"
  config.layout.mesh.data = None
  return read_newest(tmp / "workdir", config)


def read_newest(workdir: pathlib.Path, config):
  """Reads the newest checkpoint, on one device: (step, {path: array})."""
  network, _ = settings.check(config)
  program = run_lib.make_program(config, network, catalog.ONE_DEVICE)
  step = reader.find_latest_step(str(workdir))
  state = reader.load(str(workdir), step, program.abstract_state)
  return step, {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree.leaves_with_path(state)
  }


def last_error(errors: str) -> str:
  """The last line of standard error."""
  return errors.strip().splitlines()[-1]
