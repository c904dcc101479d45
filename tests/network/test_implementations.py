"""Faster implementations: the numbers and gradients of the plain ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import implementations as implementations_lib
from alexnet_jax.network import model, pooling, winograd, wiring
from tests import build, reference, short_network

PLAIN = implementations_lib.PLAIN
# Each differs from the plain ones in one operation.
OTHERS = [
  dataclasses.replace(PLAIN, **{operation: name})
  for operation, known in implementations_lib.CHOICES.items()
  for name in known[1:]
]


@pytest.mark.parametrize(
  "size, stride", [(3, 2), (2, 2), (3, 1), (2, 3), (5, 3)]
)
@pytest.mark.parametrize("side", [16, *build.slow(13)])
def test_pooling_by_slices_is_that_by_windows(key, size, stride, side):
  # Few values, so that many windows have two that are equal.
  x = jax.random.randint(key, (2, side, side + 1, 3), 0, 4).astype(jnp.float32)

  @jax.jit
  def pool(x):
    y, pull = jax.vjp(
      lambda x: pooling.max_pool(x, size=size, stride=stride), x
    )
    found, pull_found = jax.vjp(
      lambda x: pooling.max_pool_by_slices(x, size, stride), x
    )
    # Small integers, whose sums are exact in any order.
    gradient = jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape) % 7
    return (y, pull(gradient)[0]), (found, pull_found(gradient)[0])

  expected, found = pool(x)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  np.testing.assert_array_equal(
    found[0], reference.max_pool(np.asarray(x), size, stride)
  )


@pytest.mark.parametrize(
  "side, padding",
  [
    *((13, (1, 1)), (6, (4, 3))),
    pytest.param(8, (0, 0), marks=pytest.mark.slow),
    pytest.param(9, (0, 2), marks=pytest.mark.slow),
  ],
)
def test_fewer_multiplications_give_the_convolution(key, side, padding):
  x = np.array(jax.random.normal(key, (2, side, side + 1, 6)))
  kernel = np.array(jax.random.normal(key, (3, 3, 6, 5)))

  @jax.jit
  def run(x, kernel):
    y, pull = jax.vjp(
      lambda *both: winograd.convolve(*both, padding), x, kernel
    )
    return y, *pull(y)

  # Window by window, in float64.
  def to_windows(padded):
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    return windows.astype(np.float64)  # [n, h, w, c, 3, 3]

  windows = to_windows(np.pad(x, ((0, 0), padding, padding, (0, 0))))
  y = np.einsum("nhwcij,ijcm->nhwm", windows, kernel)
  kernel_gradient = np.einsum("nhwcij,nhwm->ijcm", windows, y)
  sides = (2 - padding[0], 2 - padding[1])
  around = [max(side, 0) for side in sides]
  padded = np.pad(y, ((0, 0), around, around, (0, 0)))
  # More zeros than a window has neighbors: nothing of x is in their outputs.
  start, cut = (max(-side, 0) for side in sides)
  height, width = padded.shape[1:3]
  padded = padded[:, start : height - cut, start : width - cut]
  neighbors = to_windows(padded)[..., ::-1, ::-1]
  x_gradient = np.einsum("nhwmij,ijcm->nhwc", neighbors, kernel)
  for found, expected in zip(
    run(x, kernel), (y, x_gradient, kernel_gradient), strict=True
  ):
    # float32, whose unit of rounding is 6e-8.
    assert np.abs(found - expected).max() < 6e-7 * np.abs(expected).max()


def gradients(network, chosen, key, *, dtype="float32"):
  """Loss and gradients of a batch, as a step computes them."""
  parameters = model.init_parameters(network, key)
  side, sizes = network.image_size, network.sizes()
  images = jax.random.normal(key, (4, side, side, 3))
  masks = {
    name: jax.random.bernoulli(key, 0.5, (4, *sizes[name].out_shape))
    for name in (layer.name for layer in network.layers if layer.dropout)
  }
  graphdef = model.make_graphdef(network, chosen)

  def loss(parameters):
    alexnet = nnx.merge(graphdef, parameters)
    logits = alexnet(images.astype(dtype), masks=masks).astype(jnp.float32)
    return -jax.nn.log_softmax(logits)[:, 3].mean()

  return jax.jit(jax.value_and_grad(loss))(parameters)


# A convolution of each kind, pooling, a sum of biases.
NETWORK = build.make_network(short_network.WIRING, image_size=35)


@pytest.fixture(scope="module")
def plain():
  """Loss and gradients of the plain implementations."""
  return gradients(NETWORK, PLAIN, jax.random.key(0))


@pytest.mark.parametrize(
  "chosen",
  [
    implementations_lib.PLATFORMS["cpu"],
    *(pytest.param(other, marks=pytest.mark.slow) for other in OTHERS),
  ],
  ids=str,
)
def test_every_implementation_gives_loss_and_gradients_of_the_plain_one(
  key, plain, chosen
):
  loss, expected = plain
  found_loss, found = gradients(NETWORK, chosen, key)
  np.testing.assert_allclose(found_loss, loss, rtol=2e-6)
  for (path, leaf), other in zip(
    jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
  ):
    # Rounding of float32, in sums over up to 900 positions.
    np.testing.assert_allclose(
      leaf,
      other,
      rtol=1e-4,
      atol=2e-6 * np.abs(other).max(),
      err_msg=jax.tree_util.keystr(path),
    )


@pytest.mark.slow
@pytest.mark.parametrize("chosen", OTHERS, ids=str)
def test_every_implementation_works_in_bfloat16(key, chosen):
  loss, expected = gradients(NETWORK, PLAIN, key, dtype="bfloat16")
  found_loss, found = gradients(NETWORK, chosen, key, dtype="bfloat16")
  # Eight bits of mantissa.
  np.testing.assert_allclose(found_loss, loss, rtol=2**-8)
  for leaf, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    assert leaf.dtype == other.dtype
    distance = np.linalg.norm(leaf - other) / np.linalg.norm(other)
    assert distance < 2**-5


def test_implementations_are_chosen_by_platform_and_by_word():
  network = build.FULL_NETWORK
  on_cpu = implementations_lib.choose("cpu", network)
  assert on_cpu == implementations_lib.PLATFORMS["cpu"] != PLAIN
  assert implementations_lib.choose("cpu", network, "plain") == PLAIN
  found = implementations_lib.choose("cpu", network, "pool=window, bias=sum")
  assert found == dataclasses.replace(on_cpu, pool="window", bias="sum")
  assert implementations_lib.choose("another", network) == PLAIN


def test_multiplications_are_saved_where_layers_are_wide(tiny_network):
  def choose(network, *wanted):
    return implementations_lib.choose("cpu", network, *wanted).conv3x3

  assert choose(tiny_network) == "direct"
  assert choose(tiny_network, "conv3x3=winograd") == "winograd"
  chosen = implementations_lib.choose(
    "cpu", build.FULL_NETWORK, compute_dtype="bfloat16"
  )
  assert chosen == dataclasses.replace(
    implementations_lib.PLATFORMS["cpu"], conv3x3="direct"
  )
  for table, width, expected in (
    (wirings.ALEXNET_2012, 1.0, "winograd"),
    (wirings.ALEXNET_2012, 0.5, "direct"),
    (wirings.FOUR_COLUMN, 1.0, "direct"),
    (wirings.MERGED_TOWER, 1.0, "winograd"),
  ):
    assert choose(wiring.make_network(table, width=width)) == expected
  # A network without windows of 3.
  network = wiring.make_network(wirings.FOUR_LAYER, image_size=32)
  assert choose(network) == "direct"


@pytest.mark.parametrize(
  "wanted, message",
  [
    ("fast", "'fast' is no operation; expected auto, plain, or OPERATION="),
    ("pool=fast", "of pool is 'fast', expected one of window, slices"),
  ],
)
def test_unknown_implementations_are_refused(tiny_network, wanted, message):
  with pytest.raises(ValueError, match=message):
    implementations_lib.choose("cpu", tiny_network, wanted)
