"""What we are compared with computes what we compute: losses and steps.

With the same parameters and images and without dropout, which each draws for
itself. Three steps, so that momentum and decay are in them.
"""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from alexnet_jax.network import catalog, model, wiring
from alexnet_jax.program import metrics
from alexnet_jax.settings import build
from benchmarks import peer_flax
from configs import default
from tests import processes

pytestmark = pytest.mark.slow

STEPS, BATCH, CLASSES, WIDTH = 3, 6, 10, 1 / 8
# The last windows of conv1 reach the padding, and fc6 reads 2 x 2 positions.
SIDE = 100
# The Python of an environment with PyTorch, which is no requirement of ours.
TORCH_PYTHON = os.environ.get("TORCH_PYTHON", sys.executable)


@pytest.fixture(scope="module")
def ours():
  """Parameters, images, labels; our losses and the parameters afterwards."""
  network = wiring.make_network(
    catalog.ALEXNET_2012,
    width=WIDTH,
    image_size=SIDE,
    num_classes=CLASSES,
    init="he",
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
  rule = build.make_optimizer(default.get_config("imagenet"), 1_281_167)

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
  kernel = arrays["fc6"]["kernel"]
  flat = kernel.reshape(-1, kernel.shape[-1])
  return arrays | {"fc6": arrays["fc6"] | {"kernel": flat}}


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
  # As anybody's program, it is without the strictness of these tests.
  with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
    alexnet = peer_flax.AlexNet(
      nnx.Rngs(0), width=WIDTH, image_size=SIDE, classes=CLASSES, dropout=0.0
    )
    for layer, arrays in before.items():
      for name, array in arrays.items():
        parameter = getattr(getattr(alexnet, layer), name)
        assert parameter[...].shape == array.shape
        parameter[...] = array
    graphdef, state = nnx.split((alexnet, peer_flax.make_optimizer(alexnet)))
    step = jax.jit(peer_flax.train_step, static_argnums=0)
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
  arrays = {
    f"{layer}/{name}": array
    for layer, of_layer in before.items()
    for name, array in of_layer.items()
  }
  given, result = tmp_path / "given.npz", tmp_path / "result.npz"
  np.savez(
    given,
    **arrays,
    images=images,
    labels=labels.astype(np.int64),
    steps=STEPS,
    width=WIDTH,
  )
  subprocess.run(
    [TORCH_PYTHON, "-m", "tests.peer_in_torch", given, result, layout],
    cwd=processes.ROOT,
    check=True,
  )
  taken = np.load(result)
  after = {
    layer: {name: taken[f"{layer}/{name}"] for name in of_layer}
    for layer, of_layer in before.items()
  }
  check(ours, taken["losses"], after)
