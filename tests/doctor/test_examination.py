"""What a process finds about itself, and about a run that has not begun."""

import os
import socket

import jax
import jax.numpy as jnp

from alexnet_jax.checkpoints import checkpoint, reader
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.distributed import environment, machine
from alexnet_jax.doctor import examination
from alexnet_jax.program import step
from alexnet_jax.training import run as run_lib
from tests import fake_group


def test_process_knows_its_machine_and_settings():
  facts = machine.describe()
  assert facts["host"] == socket.gethostname() and facts["pid"] == os.getpid()
  assert 0 < facts["memory_free"] <= facts["memory_total"]
  assert machine.find_versions()["jax"] == jax.__version__
  settings = {"JAX_LOG_COMPILES": "1", "XLA_FLAGS": "-a"}
  inherited = {
    "HOME": "/",
    "JAX_ENABLE_X64": "1",
    "https_proxy": "http://me:secret@proxy:80",
    "NO_PROXY": "a.org",
  }
  assert environment.find_settings(settings | inherited) == settings | {
    "JAX_ENABLE_X64": "1 (no effect: set to False)",
    "https_proxy": "http://proxy:80",
    "NO_PROXY": "a.org",
  }


def test_run_in_the_workdir_is_described_and_held_against_the_config(
  tmp_path, tiny_config
):
  path = str(tmp_path / "run")
  data = {"dataset": "digits/1.0.0", "training_images": 48}
  assert examination.check_run(path, tiny_config, data) == (None, None)
  workdir_lib.acquire({path: tiny_config.to_dict()}, data, may_change=())
  run, problem = examination.check_run(path, tiny_config, data)
  assert problem is None and run["step"] is None
  assert run["layout"] == "one_device" and run["dataset"] == "digits"
  # Where the data are not there yet, nothing is said of them.
  assert examination.check_run(path, tiny_config, None)[1] is None
  others = {**data, "training_images": 47}
  _, problem = examination.check_run(path, tiny_config, others)
  assert "found.training_images: 48 in the workdir, 47 now" in problem
  tiny_config.optimizer.learning_rate = 0.5
  _, problem = examination.check_run(path, tiny_config, None)
  assert "belongs to a run of another config" in problem
  assert "optimizer.learning_rate" in problem


def test_newest_step_is_that_of_the_open_run(tmp_path):
  workdir = str(tmp_path / "run")
  assert reader.find_latest_step(workdir) is None
  assert not list(tmp_path.iterdir())
  checkpoints = checkpoint.Checkpoints(workdir, keep=3)
  fields = dict.fromkeys(step.TrainState._fields, jnp.ones(2))
  for number in (3, 12):
    checkpoints.save(number, step.TrainState(**fields))
  checkpoints.close()
  assert reader.find_latest_step(workdir) == 12


def test_data_that_differ_are_named_and_those_not_there_are_left_out():
  one, other = {"training_images": 9}, {"training_images": 8}
  groups = fake_group.make_groups("a", "b", "c")
  assert not run_lib.compare_data(groups[0], [None, one, one])
  unknown = {"training_images": None}
  assert not run_lib.compare_data(groups[0], [unknown, one, one])
  for first in (None, unknown):
    (line,) = run_lib.compare_data(groups[0], [first, one, other])
    assert line.startswith(
      "training images: 8 in process 2 of 3 (c), but 9 in process 1 of 3 (b)."
    )
