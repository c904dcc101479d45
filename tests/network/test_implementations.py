"""Faster forms of operations: the numbers and gradients of the plain ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet_jax.network import blocks, model, ops, pooling, winograd, wiring
from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import implementations as implementations_lib
from tests import reference

# Each in the place of its plain form.
OTHERS = [
  (name, form)
  for name, known in implementations_lib.CHOICES.items()
  for form in known[1:]
]


@pytest.mark.parametrize(
  "size, stride", [(3, 2), (2, 2), (3, 1), (2, 3), (5, 3)]
)
@pytest.mark.parametrize("side", [13, 16])
def test_pooling_by_slices_is_that_by_windows(key, size, stride, side):
  # Few values, so that many windows have two that are equal.
  x = jax.random.randint(key, (2, side, side + 1, 3), 0, 4).astype(jnp.float32)

  @jax.jit
  def pool(x):
    y, pull = jax.vjp(lambda x: ops.max_pool(x, size=size, stride=stride), x)
    found, pull_found = jax.vjp(lambda x: pooling.max_pool(x, size, stride), x)
    # Small whole numbers, whose sums are exact in any order.
    gradient = jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape) % 7
    return (y, pull(gradient)[0]), (found, pull_found(gradient)[0])

  expected, found = pool(x)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  np.testing.assert_array_equal(
    found[0], reference.max_pool(np.asarray(x), size, stride)
  )


@pytest.mark.parametrize(
  "side, padding", [(224, (0, 3)), (67, (0, 3)), (31, (2, 2))]
)
def test_convolution_of_blocks_is_the_strided_one(key, side, padding):
  layer = dataclasses.replace(
    wirings.ALEXNET_2012.layers[0], features=8, padding=padding
  )
  x = 60 * jax.random.normal(key, (2, side, side, 3))
  kernel = jax.random.normal(key, (11, 11, 3, 8))
  expected = jax.lax.conv_general_dilated(
    x,
    kernel,
    (4, 4),
    (padding, padding),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  found = blocks.convolve(x, kernel, stride=layer.stride, padding=padding)
  # Sums of 363 products in another order.
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize(
  "side, padding", [(13, (1, 1)), (8, (0, 0)), (9, (0, 2))]
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

  sides = ((0, 0), padding, padding, (0, 0))
  windows = to_windows(np.pad(x, sides))
  y = np.einsum("nhwcij,ijcm->nhwm", windows, kernel)
  of_kernel = np.einsum("nhwcij,nhwm->ijcm", windows, y)
  sides = (
    (0, 0),
    *((2 - before, 2 - after) for before, after in [padding] * 2),
    (0, 0),
  )
  around = to_windows(np.pad(y, sides))[..., ::-1, ::-1]
  of_x = np.einsum("nhwmij,ijcm->nhwc", around, kernel)
  for found, expected in zip(run(x, kernel), (y, of_x, of_kernel), strict=True):
    # Of float32, whose unit of rounding is 6e-8.
    assert np.abs(found - expected).max() < 6e-7 * np.abs(expected).max()


@pytest.mark.parametrize("form", implementations_lib.CHOICES["norm"])
@pytest.mark.parametrize("groups", [1, 2])
def test_normalization_matches_loop_in_every_form(key, groups, form):
  x = np.array(60 * jax.random.normal(key, (2, 3, 2, 16)))
  found = ops.local_response_norm(x, groups=groups, form=form)
  expected = np.concatenate(
    [reference.local_response_norm(part) for part in np.split(x, groups, -1)],
    -1,
  )
  # float32 against float64.
  np.testing.assert_allclose(found, expected, rtol=2e-6)


@pytest.mark.parametrize("form", implementations_lib.CHOICES["norm"])
def test_gradient_of_normalization_is_that_of_its_formula(key, form):
  x = np.array(60 * jax.random.normal(key, (2, 3, 2, 16)))
  gradient = np.array(jax.random.normal(key, x.shape))
  _, pull = jax.vjp(
    lambda x: ops.local_response_norm(x, groups=2, form=form), x
  )
  # By difference, in float64, of the loops.
  expected = np.zeros(x.shape)
  for at in np.ndindex(*x.shape):
    sides = []
    for step in (1e-3, -1e-3):
      moved = x.astype(np.float64)
      moved[at] += step
      halves = [
        reference.local_response_norm(half) for half in np.split(moved, 2, -1)
      ]
      sides.append((np.concatenate(halves, -1) * gradient).sum())
    expected[at] = (sides[0] - sides[1]) / 2e-3
  np.testing.assert_allclose(pull(gradient)[0], expected, rtol=1e-4, atol=1e-6)


def gradients(network, chosen, key, *, precision="float32"):
  """Loss and gradients of a batch: what a step computes."""
  parameters = model.init_parameters(network, key)
  images = jax.random.normal(
    key, (4, network.image_size, network.image_size, 3)
  )
  masks = {
    layer.name: jax.random.bernoulli(
      key, 0.5, (4, *network.sizes()[layer.name].out_shape)
    )
    for layer in network.layers
    if layer.dropout
  }
  graphdef = model.make_graphdef(network, chosen)

  def loss(parameters):
    alexnet = nnx.merge(graphdef, parameters)
    logits = alexnet(images.astype(precision), masks=masks)
    logits = logits.astype(jnp.float32)
    return -jax.nn.log_softmax(logits)[:, 3].mean()

  return jax.jit(jax.value_and_grad(loss))(parameters)


@pytest.fixture(scope="module")
def plain(tiny_network):
  """Loss and gradients in the plain forms."""
  return gradients(tiny_network, implementations_lib.PLAIN, jax.random.key(0))


@pytest.mark.parametrize(
  "chosen",
  [
    implementations_lib.PLATFORMS["cpu"],
    *(
      pytest.param(
        dataclasses.replace(implementations_lib.PLAIN, **{name: form}),
        marks=pytest.mark.slow,
      )
      for name, form in OTHERS
    ),
  ],
  ids=str,
)
def test_every_form_gives_loss_and_gradients_of_the_plain_ones(
  tiny_network, key, plain, chosen
):
  loss, expected = plain
  found_loss, found = gradients(tiny_network, chosen, key)
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
@pytest.mark.parametrize("name, form", OTHERS)
def test_every_form_works_in_bfloat16(tiny_network, key, name, form):
  chosen = dataclasses.replace(implementations_lib.PLAIN, **{name: form})
  loss, expected = gradients(
    tiny_network, implementations_lib.PLAIN, key, precision="bfloat16"
  )
  found_loss, found = gradients(tiny_network, chosen, key, precision="bfloat16")
  # Eight bits of mantissa.
  np.testing.assert_allclose(found_loss, loss, rtol=2**-8)
  for leaf, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    assert leaf.dtype == other.dtype
    distance = np.linalg.norm(leaf - other) / np.linalg.norm(other)
    assert distance < 2**-5


def test_forms_are_chosen_by_platform_and_by_word():
  network = wiring.make_network(wirings.ALEXNET_2012)
  of_cpu = implementations_lib.choose("cpu", network)
  assert (
    of_cpu == implementations_lib.PLATFORMS["cpu"] != implementations_lib.PLAIN
  )
  assert (
    implementations_lib.choose("cpu", network, "plain")
    == implementations_lib.PLAIN
  )
  found = implementations_lib.choose(
    "cpu", network, "pool=window, norm=product"
  )
  assert found == dataclasses.replace(of_cpu, pool="window", norm="product")
  assert (
    implementations_lib.choose("another", network) == implementations_lib.PLAIN
  )


def test_multiplications_are_saved_where_layers_are_wide(tiny_network):
  chosen = implementations_lib.choose("cpu", tiny_network)
  assert chosen.conv3x3 == "direct"
  chosen = implementations_lib.choose("cpu", tiny_network, "conv3x3=winograd")
  assert chosen.conv3x3 == "winograd"
  wide = wiring.make_network(wirings.ALEXNET_2012)
  chosen = implementations_lib.choose("cpu", wide, precision="bfloat16")
  assert chosen == dataclasses.replace(
    implementations_lib.PLATFORMS["cpu"], conv3x3="direct"
  )
  for table, width, expected in (
    (wirings.ALEXNET_2012, 1.0, "winograd"),
    (wirings.ALEXNET_2012, 0.5, "direct"),
    (wirings.FOUR_COLUMN, 1.0, "direct"),
    (wirings.MERGED_TOWER, 1.0, "winograd"),
  ):
    network = wiring.make_network(table, width=width)
    assert implementations_lib.choose("cpu", network).conv3x3 == expected
  # Whose windows are of 5, and whose maps are too small for one of 11.
  network = wiring.make_network(wirings.FOUR_LAYER, image_size=32)
  assert implementations_lib.choose("cpu", network).conv3x3 == "direct"


@pytest.mark.parametrize(
  "wanted, message",
  [
    ("fast", "'fast' is no operation"),
    ("pool=fast", "the form of pool is 'fast', expected one of window, slices"),
  ],
)
def test_unknown_forms_are_refused(tiny_network, wanted, message):
  with pytest.raises(ValueError, match=message):
    implementations_lib.choose("cpu", tiny_network, wanted)


def test_grouped_columns_are_one_convolution(key):
  network = wiring.make_network(
    wirings.ALEXNET_2012, width=1 / 8, image_size=67, num_classes=10
  )
  grouped = dataclasses.replace(implementations_lib.PLAIN, columns="grouped")

  def count(chosen):
    alexnet = model.AlexNet(network, rngs=nnx.Rngs(0), implementations=chosen)
    jaxpr = jax.make_jaxpr(alexnet)(jnp.ones((1, 67, 67, 3)))
    return str(jaxpr).count("conv_general_dilated[")

  assert (count(implementations_lib.PLAIN), count(grouped)) == (8, 5)
