"""A network of columns, written out with the zeros between them, and back."""

import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from alexnet_jax.checkpoints import reader
from alexnet_jax.convert import block_diagonal, conversion
from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import model
from alexnet_jax.partition import catalog
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from tests import build, processes, runs

# Fully connected layers that read their own column, and no normalization
# within one: one column that reads everything computes the same.
ONE_TOWER = wirings.rewire(
  wirings.INDEPENDENT_COLUMNS,
  "one_tower",
  columns=1,
  **{name: {"reads": "all"} for name in ("conv2", "conv3", "conv4", "conv5")},
  **{name: {"reads": "all"} for name in ("fc6", "fc7")},
)
PAIRS = {
  "2012": (wirings.ALEXNET_2012, wirings.BLOCK_DIAGONAL, None),
  "units": (wirings.INDEPENDENT_COLUMNS, ONE_TOWER, "none"),
}


def make(table, **options):
  return build.make_network(table, width=1 / 16, **options)


def init_parameters(network):
  return jax.device_get(model.init_parameters(network, jax.random.key(0)))


def compute_logits(network, parameters, images):
  graphdef = model.make_graphdef(network)
  run = jax.jit(lambda tree, x: nnx.merge(graphdef, tree)(x))
  return np.asarray(run(parameters, images))


@pytest.mark.parametrize("pair", PAIRS)
def test_both_networks_compute_the_same_and_the_way_back_is_exact(pair):
  one, other, normalization = PAIRS[pair]
  source, target = (
    make(table, normalization=normalization) for table in (one, other)
  )
  block_diagonal.check(source, target)
  before = init_parameters(source)
  after = block_diagonal.convert(before, source, target)
  assert {name: size.shapes for name, size in target.sizes().items()} == {
    name: {key: leaf.shape for key, leaf in leaves.items()}
    for name, leaves in after.items()
  }
  images = np.random.default_rng(0).normal(size=(2, 67, 67, 3)).astype("f4")
  expected = compute_logits(source, before, images)
  found = compute_logits(target, after, images)
  # Zeros are added in between: the same sums in another order, in float32.
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  assert np.abs(expected).max() > 0.1
  block_diagonal.check(target, source)
  again = block_diagonal.convert(after, target, source)
  jax.tree.map(np.testing.assert_array_equal, again, before)


def test_zeros_are_where_columns_do_not_meet():
  source, target = make(wirings.ALEXNET_2012), make(wirings.BLOCK_DIAGONAL)
  kernel = init_parameters(source)["conv2"]["kernel"]
  # As the state of an optimizer has it: anywhere in a tree.
  (dense,) = block_diagonal.convert(
    ({"conv2": {"kernel": kernel}},), source, target
  )
  dense = dense["conv2"]["kernel"]
  _, _, read, out = kernel.shape
  for y, x, channel, feature in np.ndindex(dense.shape):
    column = feature // (out // 2)
    inside = channel // read == column
    expected = kernel[y, x, channel - column * read, feature] if inside else 0
    assert dense[y, x, channel, feature] == expected


def test_values_that_would_be_lost_are_refused():
  source, target = make(wirings.BLOCK_DIAGONAL), make(wirings.ALEXNET_2012)
  tree = block_diagonal.convert(init_parameters(target), target, source)
  tree["conv4"]["kernel"][0, 0, 0, -1] = -0.25
  with pytest.raises(ValueError, match="^conv4 .*kernel.* up to 0.25 where t"):
    block_diagonal.convert(tree, source, target)


@pytest.mark.parametrize(
  ("other", "message"),
  [
    (
      make(wirings.ALEXNET_2012, columns=1),
      "normalization of conv1 is local response over 3 of 6 maps in alexnet",
    ),
    (
      make(wirings.INDEPENDENT_COLUMNS),
      "the features of conv2 is 16 in .*, and 20 in independent_columns",
    ),
    (
      make(wirings.WITHOUT_CONV4),
      "the layers are conv1, .*config.network.wiring",
    ),
    (
      make(wirings.BLOCK_DIAGONAL, lrn_k=1.0),
      r"the lrn of conv1 is Lrn\(size=5, k=2.0, .* and Lrn\(size=5, k=1.0, ",
    ),
  ],
)
def test_networks_that_compute_something_else_are_refused(other, message):
  with pytest.raises(ValueError, match=message):
    block_diagonal.check(make(wirings.ALEXNET_2012), other)


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
  with pytest.raises(ValueError, match="optimizer.momentum: was 0.9, is 0.5"):
    conversion.convert(tiny_config, workdir=new, new_workdir=f"{lost}/other")


@pytest.mark.slow
def test_command_refuses_in_one_line(tmp_path):
  command = ["python", "-m", "alexnet_jax.convert"]
  command += ["--config=configs/two_device.py", f"--workdir={tmp_path}/none"]
  done = processes.run([*command, f"--new_workdir={tmp_path}/new"], tmp_path)
  assert done.code == 1 and len(done.errors.splitlines()) == 1
  assert done.errors.startswith("error: there is no run in the workdir")
  assert list(tmp_path.iterdir()) == []
