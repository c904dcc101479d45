"""Published networks, each against plain lax in the layout of its source.

Tables, sizes and constants below are typed in from the sources of each network
(see network/catalog.py), as Caffe and PyTorch write them: maps before pixels,
groups as groups of one convolution, alpha divided by the size of the window.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from alexnet_jax.network import catalog, model, wiring
from alexnet_jax.network import implementations as implementations_lib

CPU = implementations_lib.PLATFORMS["cpu"]
# Sides of images in tests that are quick.
SMALL_SIDE = {"vgg11": 32}


def conv(x, layer, stride, pads, groups=1):
  return (
    lax.conv_general_dilated(
      x,
      layer["weight"],
      (stride, stride),
      (pads, pads),
      dimension_numbers=("NCHW", "OIHW", "NCHW"),
      feature_group_count=groups,
    )
    + layer["bias"][None, :, None, None]
  )


def fc(x, layer):
  return x.reshape(len(x), -1) @ layer["weight"].T + layer["bias"][None]


def relu(x):
  return jnp.maximum(x, 0.0)


def pool(x, size, stride, after=0):
  """Max pooling; `after`: pixels after the map, to count windows rounded up."""
  return lax.reduce_window(
    x,
    -jnp.inf,
    lax.max,
    (1, 1, size, size),
    (1, 1, stride, stride),
    ((0, 0), (0, 0), (0, after), (0, after)),
  )


def lrn(x, k, groups=1):
  """Over 5 maps of a group, alpha 1e-4, beta .75."""
  columns = []
  for column in jnp.split(x, groups, 1):
    maps = column.shape[1]
    padded = jnp.pad(column, ((0, 0), (2, 2), (0, 0), (0, 0)))
    energy = sum(padded[:, i : i + maps] ** 2 for i in range(5))
    columns.append(column / (k + 1e-4 / 5 * energy) ** 0.75)
  return jnp.concatenate(columns, 1)


def rnorm(x):
  """Over 5 x 5 neighbors in a map, scale .001, power .75."""
  height, width = x.shape[2:]
  padded = jnp.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
  energy = sum(
    padded[:, :, i : i + height, j : j + width] ** 2
    for i in range(5)
    for j in range(5)
  )
  return x / (1.0 + 0.001 / 25 * energy) ** 0.75


def tail(x, p, keep=1.0):
  """fc6, fc7, fc8; `keep` scales what dropout follows."""
  for name in ("fc6", "fc7"):
    x = keep * relu(fc(x, p[name]))
  return fc(x, p["fc8"])


def three_to_five(x, p, groups):
  x = relu(conv(x, p["conv3"], 1, (1, 1)))
  x = relu(conv(x, p["conv4"], 1, (1, 1), groups))
  return pool(relu(conv(x, p["conv5"], 1, (1, 1), groups)), 3, 2)


def caffenet(x, p):
  x = lrn(pool(relu(conv(x, p["conv1"], 4, (0, 0))), 3, 2), 1.0)
  x = lrn(pool(relu(conv(x, p["conv2"], 1, (2, 2), 2)), 3, 2), 1.0)
  return tail(three_to_five(x, p, 2), p)


def bvlc_alexnet(x, p):
  x = pool(lrn(relu(conv(x, p["conv1"], 4, (0, 0))), 1.0), 3, 2)
  x = pool(lrn(relu(conv(x, p["conv2"], 1, (2, 2), 2)), 1.0), 3, 2)
  return tail(three_to_five(x, p, 2), p)


def torchvision_alexnet(x, p):
  x = pool(relu(conv(x, p["conv1"], 4, (2, 2))), 3, 2)
  x = pool(relu(conv(x, p["conv2"], 1, (2, 2))), 3, 2)
  return tail(three_to_five(x, p, 1), p)


def source145(x, p):
  # An image of 224 pixels, read up to 227.
  x = relu(pool(lrn(conv(x, p["conv1"], 4, (0, 3)), 2.0, 2), 3, 2))
  x = relu(conv(x, p["conv2"], 1, (2, 2), 2))
  x = pool(rnorm(lrn(x, 2.0, 2)), 3, 2)
  return tail(three_to_five(x, p, 2), p, keep=0.5)


def zfnet(x, p):
  x = lrn(pool(relu(conv(x, p["conv1"], 2, (0, 1))), 3, 2, after=1), 2.0)
  x = lrn(pool(relu(conv(x, p["conv2"], 2, (0, 0))), 3, 2, after=1), 2.0)
  return tail(three_to_five(x, p, 1), p)


def vgg11(x, p):
  for name in ("1_1", "M", "2_1", "M", "3_1", "3_2", "M", "4_1", "4_2", "M"):
    x = vgg_part(x, p, name)
  for name in ("5_1", "5_2", "M"):
    x = vgg_part(x, p, name)
  return tail(x, p)


def vgg_part(x, p, name):
  if name == "M":
    return pool(x, 2, 2)
  return relu(conv(x, p[f"conv{name}"], 1, (1, 1)))


REFERENCES = {
  function.__name__: function
  for function in (
    *(caffenet, bvlc_alexnet, torchvision_alexnet, source145, zfnet, vgg11),
  )
}


def to_published(parameters):
  """Our kernels as OIHW, or (out, in) with maps before pixels."""
  published = {}
  for name, layer in parameters.items():
    kernel = layer["kernel"]
    if kernel.ndim == 4:
      weight = kernel.transpose(3, 2, 0, 1)
    elif kernel.ndim == 3:  # [pixels, maps, units]
      weight = kernel.transpose(2, 1, 0).reshape(kernel.shape[-1], -1)
    else:
      weight = kernel.T
    published[name] = {"weight": weight, "bias": layer["bias"]}
  return published


def difference(found, expected):
  found, expected = (np.asarray(x, np.float64) for x in (found, expected))
  return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def make_case(name, *, width, image_size=None):
  """A network, random parameters for it, and two images."""
  table = catalog.find(name)
  network = wiring.make_network(
    table,
    width=width,
    image_size=image_size or table.published_size,
    num_classes=10 if width < 1 else table.published_classes,
    dropout_scaling="test" if name == "source145" else "train",
  )
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.standard_normal(shape, np.float32)

  # Values of about the size of the image's in each layer.
  parameters = {
    layer: {
      "kernel": draw(*size.kernel)
      * np.float32(np.sqrt(2 / np.prod(size.kernel[:-1]))),
      "bias": draw(size.kernel[-1]),
    }
    for layer, size in network.sizes().items()
  }
  side = network.image_size
  return network, parameters, 60 * draw(2, side, side, 3)


def make_forwards(name, network, images, chosen):
  """Functions of the parameters: our logits, and the reference's."""
  graphdef = model.make_graphdef(network, chosen)

  def ours(parameters):
    return nnx.merge(graphdef, parameters)(images)

  def reference(parameters):
    return REFERENCES[name](
      images.transpose(0, 3, 1, 2), to_published(parameters)
    )

  return ours, reference


@pytest.mark.parametrize(
  ("name", "width", "image_size"),
  [
    *((name, 1 / 8, SMALL_SIDE.get(name, 67)) for name in REFERENCES),
    # At full width and size; those of a sixteenth of the width are below.
    pytest.param("caffenet", 1.0, None, marks=pytest.mark.slow),
  ],
)
def test_published_network_gives_the_logits_of_its_source(
  name, width, image_size
):
  network, parameters, images = make_case(
    name, width=width, image_size=image_size
  )
  chosen = implementations_lib.choose("cpu", network)
  forwards = make_forwards(name, network, images, chosen)
  found, expected = (jax.jit(forward)(parameters) for forward in forwards)
  # float32, sums of up to 25,088 products in another order.
  assert difference(found, expected) <= 1e-5


# At full size; how else a layer is computed: test_implementations.py.
@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCES)
def test_published_network_has_the_gradients_of_its_source(name):
  network, parameters, images = make_case(name, width=1 / 16)
  weights = jnp.arange(20.0).reshape(2, 10) % 7 - 3

  def run(forward):
    def loss(parameters):
      logits = forward(parameters)
      return (weights * logits).sum(), logits

    return jax.jit(jax.grad(loss, has_aux=True))(parameters)

  (gradients, found), (expected_gradients, expected) = (
    run(forward) for forward in make_forwards(name, network, images, CPU)
  )
  assert difference(found, expected) <= 1e-5
  for path, gradient in jax.tree.leaves_with_path(gradients):
    layer, leaf = (part.key for part in path)
    # Rounding may change which of two values of a window is the largest.
    distance = difference(gradient, expected_gradients[layer][leaf])
    assert distance <= 1e-3, (layer, leaf, distance)


# Sides of the maps of each convolution: its own, after pooling, and, where the
# row normalizes, of what is normalized.
SIDES = {
  "caffenet": (
    *((55, 27, 27), (27, 13, 13), (13, 13, None), (13, 13, None)),
    (13, 6, None),
  ),
  "bvlc_alexnet": (
    *((55, 27, 55), (27, 13, 27), (13, 13, None), (13, 13, None)),
    (13, 6, None),
  ),
  "torchvision_alexnet": (
    *((55, 27, None), (27, 13, None), (13, 13, None), (13, 13, None)),
    (13, 6, None),
  ),
  "source145": (
    *((55, 27, 55), (27, 13, 27), (13, 13, None), (13, 13, None)),
    (13, 6, None),
  ),
  "zfnet": (
    *((110, 55, 55), (26, 13, 13), (13, 13, None), (13, 13, None)),
    (13, 6, None),
  ),
  "vgg11": (
    *((224, 112, None), (112, 56, None), (56, 56, None), (56, 28, None)),
    *((28, 28, None), (28, 14, None), (14, 14, None), (14, 7, None)),
  ),
}


@pytest.mark.parametrize("name", SIDES)
def test_maps_have_their_published_sides(name):
  table = catalog.find(name)
  network = wiring.make_network(table, image_size=table.published_size)
  found = tuple(
    (
      size.map_side,
      size.out_side,
      None if layer.normalize == "none" else size.norm_side,
    )
    for layer, size in zip(
      network.layers, network.sizes().values(), strict=True
    )
    if layer.kind == "conv"
  )
  assert found == SIDES[name]


def test_initial_values_are_those_of_the_files():
  rows = {
    name: {
      layer.name: (layer.kernel_std, layer.bias)
      for layer in catalog.find(name).layers
    }
    for name in ("caffenet", "bvlc_alexnet", "zfnet")
  }
  for name, one in (("caffenet", 1.0), ("bvlc_alexnet", 0.1)):
    assert rows[name] == {
      **{"conv1": (0.01, 0.0), "conv2": (0.01, one), "conv3": (0.01, 0.0)},
      **{"conv4": (0.01, one), "conv5": (0.01, one)},
      **{"fc6": (0.005, one), "fc7": (0.005, one), "fc8": (0.01, 0.0)},
    }
  assert set(rows["zfnet"].values()) == {(0.01, 0.0)}
  network = wiring.make_network(catalog.TORCHVISION_ALEXNET)
  for name, size in network.sizes().items():
    # The standard deviation of a uniform number in +-1 / sqrt(fan-in).
    fan_in = np.prod(size.kernel[:-1])
    expected = pytest.approx((3 * fan_in) ** -0.5, rel=0.01)
    assert network.layer(name).kernel_std == expected
