"""A run is copied into an equivalent network of other columns, and back."""

import pathlib

import jax
import numpy as np
import pytest

from alexnet_jax.checkpoints import reader
from alexnet_jax.convert import conversion
from alexnet_jax.partition import catalog
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from tests import processes, runs


def run(config, workdir, data_dir):
  """Trains; the loss of each step."""
  reports = runs.train(config, workdir, data_dir).lines
  return {
    line["step"]: line["training_loss"]
    for line in reports
    if "training_loss" in line
  }


@pytest.mark.slow
def test_run_resumes_in_the_new_network(tiny_config, tmp_path):
  tiny_config.log_every_steps = 1
  tiny_config.optimizer.ema_decay = 0.5
  old, new, back, lost, data_dir = (
    str(tmp_path / name) for name in ("old", "new", "back", "lost", "data")
  )
  tiny_config.checkpoint_every_steps = tiny_config.eval_every_steps = 3
  expected = run(tiny_config, old, data_dir)  # six steps; converted at 3
  files = sorted(pathlib.Path(old).rglob("*"))

  target = tiny_config.copy_and_resolve_references()
  target.network.wiring = "block_diagonal"
  target.layout.name = "two_column"
  said = conversion.convert(target, workdir=old, new_workdir=new, step=3)
  assert said[0] == "conv2: the kernel was 5x5x6x32, and is now 5x5x12x32"
  assert sorted(pathlib.Path(old).rglob("*")) == files
  with pytest.raises(ValueError, match="exists already"):
    conversion.convert(target, workdir=old, new_workdir=new)

  facts = reader.read_facts(old, 3)
  assert 0 <= facts["validation_error"] <= 1
  assert reader.read_facts(new, 3) == facts
  kept = [pathlib.Path(place, "data.json").read_bytes() for place in (old, new)]
  assert kept[0] == kept[1]

  # Back, bit for bit, velocities and averages too.
  conversion.convert(tiny_config, workdir=new, new_workdir=back)
  network, _ = settings.check(tiny_config)
  program = run_lib.make_program(tiny_config, network, catalog.ONE_DEVICE)
  states = (
    reader.load(place, 3, program.abstract_state) for place in (back, old)
  )
  jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, states))

  losses = run(target, new, data_dir)
  assert list(losses) == [4, 5, 6]
  # The first step after it: the same forward pass, in another order of sums.
  np.testing.assert_allclose(losses[4], expected[4], rtol=1e-5)
  # Trained, the zeros are none.
  with pytest.raises(ValueError, match="conv2 .* where the 2 columns"):
    conversion.convert(tiny_config, workdir=new, new_workdir=lost)
  assert not pathlib.Path(lost).exists()
  tiny_config.optimizer.momentum = 0.5
  with pytest.raises(ValueError, match="momentum: 0.9 in the workdir, 0.5 n"):
    conversion.convert(tiny_config, workdir=new, new_workdir=f"{lost}/other")


@pytest.mark.slow
def test_command_refuses_in_one_line(tmp_path):
  command = ["python", "-m", "alexnet_jax.convert"]
  command += ["--config=configs/two_device.py", f"--workdir={tmp_path}/none"]
  done = processes.run([*command, f"--new_workdir={tmp_path}/new"], tmp_path)
  assert done.code == 1 and len(done.errors.splitlines()) == 1
  assert done.errors.startswith("error: there is no run in the workdir")
  assert list(tmp_path.iterdir()) == []
