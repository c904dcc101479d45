"""Starts runs of several real processes, for tests."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np

from alexnet_jax.checkpoints import checkpoint
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from configs import default

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


def free_port() -> int:
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


def flags(config: str, tmp: pathlib.Path, fields: dict | None = None):
  """The flags of `main` for a small run in `tmp`."""
  return [
    f"--config=configs/{config}.py",
    *(f"--workdir={tmp}/workdir", f"--data_dir={tmp.parent}/data"),
    *(
      f"--config.{name}={value}"
      for name, value in (SMALL | (fields or {})).items()
    ),
  ]


def environment(cache: pathlib.Path, **variables) -> dict[str, str]:
  """As in a fresh shell: none of what other tests set for JAX.

  But for what conftest.py sets, so that all compile alike.
  """
  foreign = re.compile(r"(JAX_(?!DISABLE)|XLA_|OMPI_|PMIX_)")
  clean = {
    name: value for name, value in os.environ.items() if not foreign.match(name)
  }
  return clean | {"XDG_CACHE_HOME": str(cache), **variables}


def local(tmp, processes, devices, arguments):
  """Runs launch/local.sh to its end."""
  port = str(free_port())
  return subprocess.run(
    ["launch/local.sh", str(processes), str(devices), *arguments],
    cwd=ROOT,
    env=environment(tmp.parent / "cache", PORT=port, PYTHON=sys.executable),
    capture_output=True,
    text=True,
    timeout=200,
  )


def start(tmp, count, arguments, *, module="main", variables=None, prefix=None):
  """Starts processes one by one.

  Args:
    tmp: the folder of the run.
    count: of processes.
    arguments: of the command.
    module: the command.
    variables: index -> environment variables; by default JAX's own.
    prefix: index -> what comes before the interpreter.
  """
  port = free_port()

  def jax_variables(index):
    return {
      "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
      "JAX_NUM_PROCESSES": str(count),
      "JAX_PROCESS_ID": str(index),
    }

  return [
    subprocess.Popen(
      [
        *(prefix(index) if prefix else ()),
        sys.executable,
        "-m",
        f"alexnet_jax.{module}",
        *arguments,
      ],
      cwd=ROOT,
      env=environment(
        tmp.parent / "cache", **(variables or jax_variables)(index)
      ),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(count)
  ]


def finish(running, timeout=100):
  """[(exit code, output, errors)] of processes; none is left behind."""
  try:
    done = []
    for process in running:
      out, errors = process.communicate(timeout=timeout)
      done.append((process.returncode, out, errors))
    return done
  finally:
    for process in running:
      process.kill()
      process.wait()


def wait_for_step(tmp, step, running, seconds=90) -> None:
  """Until the run in `tmp` has reported on a step."""
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    if any(line["step"] >= step for line in metrics(tmp)):
      return
    if all(process.poll() is not None for process in running):
      break
    time.sleep(0.05)
  raise AssertionError([process.communicate() for process in running])


def kill(process, sent=signal.SIGKILL) -> None:
  process.send_signal(sent)


def metrics(tmp) -> list[dict]:
  """What a run in `tmp` has reported of trainings and validations."""
  return read_reports(tmp / "workdir")


def read_reports(workdir: pathlib.Path) -> list[dict]:
  """As `metrics`; lines on checkpoints come when these are on disk."""
  file = workdir / "metrics.jsonl"
  lines = file.read_text().splitlines() if file.exists() else []
  found = [json.loads(line) for line in lines if line.endswith("}")]
  return [line for line in found if "checkpoint_seconds" not in line]


def read_state(tmp, fields: dict | None = None):
  """The newest checkpoint, on one device: (step, {path: array})."""
  config = default.get_config("digits")
  config.update_from_flattened_dict(SMALL | (fields or {}))
  config.layout.name = "one_device"
  config.layout.mesh.data = None
  network, layout = settings.check(config)
  program = run_lib.make_program(config, network, layout)
  checkpoints = checkpoint.Checkpoints(str(tmp / "workdir"), keep=3)
  state = checkpoints.restore(program.abstract_state)
  checkpoints.close()
  leaves = jax.tree.leaves_with_path(state)
  return checkpoints.latest_step(), {
    jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves
  }


def last_error(errors: str) -> str:
  """The last line of standard error."""
  return errors.strip().splitlines()[-1]
