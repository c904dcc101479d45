"""The network and step of 2012 in plain Flax: a worker of `benchmarks.peers`.

The usual code without a layout: `nnx.Conv` with groups, `nnx.Linear`, one
`jax.jit` as in Flax's guide to performance, and XLA's defaults. Flax has no
local response normalization, so it is written here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from benchmarks.peers import worker

CLASSES = 1000
ONES = nnx.initializers.ones_init()


def local_response_norm(x: jax.Array) -> jax.Array:
  """Over five maps of a column: [n, h, w, c]."""
  columns = x.reshape(*x.shape[:-1], 2, -1)
  energy = lax.reduce_window(
    lax.square(columns), 0.0, lax.add, (1, 1, 1, 1, 5), (1,) * 5, "SAME"
  )
  return (columns / (2.0 + 2e-5 * energy) ** 0.75).reshape(x.shape)


def pool(x: jax.Array) -> jax.Array:
  return nnx.max_pool(x, (3, 3), strides=(2, 2))


class AlexNet(nnx.Module):
  """Two columns as groups of the convolutions.

  Args:
    rngs: with streams `params` and `dropout`.
    width: multiplies the features of all layers but the last.
    image_size: side of the images, in pixels.
    classes: of the last layer.
    dropout: rate for the units of fc6 and fc7.
  """

  def __init__(
    self,
    rngs: nnx.Rngs,
    *,
    width: float = 1.0,
    image_size: int = 224,
    classes: int = CLASSES,
    dropout: float = 0.5,
  ):
    c1, c2, c3, c4, c5, units = (
      round(width * features) for features in (96, 256, 384, 384, 256, 4096)
    )
    side = (image_size + 3 - 11) // 4 + 1
    for _ in range(3):
      side = (side - 3) // 2 + 1  # 6 of 224 pixels
    wide, normal = nnx.initializers.normal(0.03), nnx.initializers.normal(0.01)
    self.conv1 = nnx.Conv(
      *(3, c1, (11, 11), 4),
      padding=((0, 3), (0, 3)),
      kernel_init=normal,
      rngs=rngs,
    )
    columns = {"feature_group_count": 2, "bias_init": ONES, "rngs": rngs}
    self.conv2 = nnx.Conv(c1, c2, (5, 5), kernel_init=normal, **columns)
    self.conv3 = nnx.Conv(c2, c3, (3, 3), kernel_init=wide, rngs=rngs)
    self.conv4 = nnx.Conv(c3, c4, (3, 3), kernel_init=wide, **columns)
    self.conv5 = nnx.Conv(c4, c5, (3, 3), kernel_init=wide, **columns)
    dense = {"kernel_init": normal, "rngs": rngs}
    self.fc6 = nnx.Linear(c5 * side * side, units, bias_init=ONES, **dense)
    self.fc7 = nnx.Linear(units, units, bias_init=ONES, **dense)
    self.fc8 = nnx.Linear(units, classes, **dense)
    self.drop = nnx.Dropout(dropout, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """f32[n, image_size, image_size, 3] -> f32[n, classes]."""
    x = pool(local_response_norm(nnx.relu(self.conv1(x))))
    x = pool(local_response_norm(nnx.relu(self.conv2(x))))
    x = nnx.relu(self.conv3(x))
    x = nnx.relu(self.conv4(x))
    x = pool(nnx.relu(self.conv5(x)))
    x = x.reshape(x.shape[0], -1)
    x = self.drop(nnx.relu(self.fc6(x)))
    x = self.drop(nnx.relu(self.fc7(x)))
    return self.fc8(x)


def make_optimizer(model: nnx.Module) -> nnx.Optimizer:
  """SGD, momentum .9; rate .01 and decay for kernels, .02 for biases."""
  kernels = optax.chain(
    optax.add_decayed_weights(5e-4), optax.sgd(0.01, momentum=0.9)
  )
  rule = optax.partition(
    {True: kernels, False: optax.sgd(0.02, momentum=0.9)},
    lambda parameters: jax.tree.map(lambda x: x.ndim > 1, parameters),
  )
  return nnx.Optimizer(model, rule, wrt=nnx.Param)


def train_step(
  graphdef: nnx.GraphDef, state: nnx.State, images: jax.Array, labels: jax.Array
) -> tuple[nnx.State, jax.Array]:
  """The state of (model, optimizer) after a step, and its loss."""
  model, optimizer = nnx.merge(graphdef, state)

  def find_loss(model):
    logits = model(images)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, labels
    ).mean()

  loss, gradients = nnx.value_and_grad(find_loss)(model)
  optimizer.update(model, gradients)
  return nnx.state((model, optimizer)), loss


def make(
  *, batch_size: int, width: float, image_size: int
) -> tuple[worker.RunSteps, dict]:
  """A step, and facts about it; sizes of the network and its input."""
  model = AlexNet(nnx.Rngs(0), width=width, image_size=image_size)
  graphdef, state = nnx.split((model, make_optimizer(model)))
  rng = np.random.default_rng(0)
  shape = (batch_size, image_size, image_size, 3)
  pixels = rng.integers(0, 256, shape).astype(np.float32) - 120.0
  images = jnp.asarray(pixels)
  labels = jnp.asarray(rng.integers(0, CLASSES, batch_size, dtype=np.int32))
  step = jax.jit(train_step, static_argnums=0, donate_argnums=1)

  def run_steps(count: int) -> float:
    nonlocal state
    for _ in range(count):
      state, loss = step(graphdef, state, images, labels)
    jax.block_until_ready(state)
    return float(loss)

  return run_steps, {
    "version": f"jax {jax.__version__}",
    "device": jax.devices()[0].device_kind,
    "matmul_precision": jax.config.jax_default_matmul_precision or "default",
  }


if __name__ == "__main__":
  worker.serve(make)
