"""The peers compute what we compute: losses and steps.

They get the same parameters and images, without dropout, which each draws for
itself. Three steps, so that momentum and decay matter.
"""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx, traverse_util

from alexnet_jax.network import model
from alexnet_jax.program import metrics
from alexnet_jax.settings import build as settings_build
from benchmarks.peers import flax_worker
from configs import default
from tests import build, processes

pytestmark = pytest.mark.slow

STEPS, BATCH, CLASSES, WIDTH = 3, 6, 10, 1 / 8
# The last windows of conv1 reach the padding, and fc6 reads 2 x 2 positions.
SIDE = 100
# The Python of an environment with PyTorch, which is not a requirement.
TORCH_PYTHON = os.environ.get("TORCH_PYTHON", sys.executable)


@pytest.fixture(scope="module")
def ours():
  """Parameters, images, labels; our losses and the parameters afterwards."""
  network = build.make_network(
    width=WIDTH, image_size=SIDE, num_classes=CLASSES
  )
  rng = np.random.default_rng(0)
  before = jax.device_get(model.init_parameters(network, jax.random.key(0)))
  for layer in before.values():
    bias = 0.1 * rng.standard_normal(layer["bias"].shape)
    layer["bias"] = bias.astype(np.float32)
  # So large that normalization divides by something else than a constant.
  images = 20.0 * rng.standard_normal((BATCH, SIDE, SIDE, 3))
  images = images.astype(np.float32)
  labels = rng.integers(0, CLASSES, BATCH, dtype=np.int32)
  masks = {name: np.ones((BATCH, 512), bool) for name in ("fc6", "fc7")}
  graphdef = model.make_graphdef(network)
  config = default.get_config("imagenet")
  rule = settings_build.make_optimizer(config, 1_281_167)

  def mean_loss(parameters):
    logits = nnx.merge(graphdef, parameters)(images, masks=masks)
    return metrics.totals(logits, labels)[0] / BATCH

  @jax.jit
  def take_step(parameters, state):
    loss, gradients = jax.value_and_grad(mean_loss)(parameters)
    updates, state = rule.update(gradients, state, parameters)
    return loss, jax.tree.map(jax.numpy.add, parameters, updates), state

  parameters, state, losses = before, rule.init(before), []
  for _ in range(STEPS):
    loss, parameters, state = take_step(parameters, state)
    losses.append(float(loss))
  return flatten(before), images, labels, losses, flatten(parameters)


def flatten(parameters):
  """With the kernel of fc6, (positions, maps, units), as (inputs, units)."""
  arrays = jax.device_get(parameters)
  fc6 = arrays["fc6"]
  kernel = fc6["kernel"].reshape(-1, fc6["kernel"].shape[-1])
  return arrays | {"fc6": fc6 | {"kernel": kernel}}


def check(ours, losses, after):
  """Holds losses, and how far each parameter has moved, against ours."""
  before, _, _, our_losses, our_after = ours
  # Sums of float32 products in another order, over three steps.
  np.testing.assert_allclose(losses, our_losses, rtol=1e-5)
  assert abs(our_losses[0] - our_losses[-1]) > 0.05  # it does move
  for layer, arrays in our_after.items():
    for name, array in arrays.items():
      moved = array - before[layer][name]
      difference = after[layer][name] - array
      share = np.linalg.norm(difference) / np.linalg.norm(moved)
      assert share < 1e-4, (layer, name)


def test_flax_takes_our_steps(ours):
  before, images, labels, _, _ = ours
  # It is written for JAX's defaults, without the strictness of these tests.
  with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
    alexnet = flax_worker.AlexNet(
      nnx.Rngs(0), width=WIDTH, image_size=SIDE, classes=CLASSES, dropout=0.0
    )
    for layer, arrays in before.items():
      for name, array in arrays.items():
        parameter = getattr(getattr(alexnet, layer), name)
        assert parameter[...].shape == array.shape
        parameter[...] = array
    graphdef, state = nnx.split((alexnet, flax_worker.make_optimizer(alexnet)))
    step = jax.jit(flax_worker.train_step, static_argnums=0)
    losses = []
    for _ in range(STEPS):
      state, loss = step(graphdef, state, images, labels)
      losses.append(float(loss))
    alexnet, _ = nnx.merge(graphdef, state)
  check(ours, losses, nnx.to_pure_dict(nnx.state(alexnet, nnx.Param)))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_pytorch_takes_our_steps(layout, ours, tmp_path):
  found = subprocess.run([TORCH_PYTHON, "-c", "import torch"], check=False)
  if found.returncode:
    pytest.skip(f"no PyTorch in {TORCH_PYTHON}; set TORCH_PYTHON")
  before, images, labels, _, _ = ours
  given, result = tmp_path / "given.npz", tmp_path / "result.npz"
  batch = {"images": images, "labels": labels.astype(np.int64)}
  arrays = batch | traverse_util.flatten_dict(before, sep="/")
  np.savez(given, **arrays, steps=STEPS, width=WIDTH)
  command = [TORCH_PYTHON, "-m", "tests.benchmarks.peer_in_torch"]
  command += [given, result, layout]
  subprocess.run(command, cwd=processes.ROOT, check=True)
  taken = dict(np.load(result))
  losses = taken.pop("losses")
  check(ours, losses, traverse_util.unflatten_dict(taken, sep="/"))
