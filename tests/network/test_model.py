import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import model, wiring
from tests import build, reference


def relative_difference(a, b):
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize(
  "network",
  [
    pytest.param(build.FULL_NETWORK, marks=pytest.mark.slow, id="full_size"),
    pytest.param(build.TINY_NETWORK, id="tiny"),
  ],
)
def test_forward_and_gradients_match_two_explicit_halves(network, key):
  keys = jax.random.split(key, 5)
  parameters = model.init_parameters(network, keys[0])
  size = network.image_size
  images = 60 * jax.random.normal(keys[1], (2, size, size, 3))
  labels = jnp.array([1, 7])
  masks = {
    layer.name: jax.random.bernoulli(mask_key, 0.5, (2, layer.features))
    for layer, mask_key in zip(network.layers[5:7], keys[2:4], strict=True)
  }
  graphdef = model.make_graphdef(network)

  def differentiate(forward):
    def loss(parameters):
      logits = forward(parameters)
      return reference.mean_cross_entropy(logits, labels), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
      parameters
    )
    return logits, gradients

  logits, gradients = differentiate(
    lambda parameters: nnx.merge(graphdef, parameters)(images, masks=masks)
  )
  expected, expected_gradients = differentiate(
    lambda parameters: reference.forward(parameters, images, masks)
  )
  # Sums of up to 9,216 float32 products in another order.
  assert relative_difference(logits, expected) <= 1e-5
  for layer, blocks in gradients.items():
    for name, block in blocks.items():
      difference = relative_difference(block, expected_gradients[layer][name])
      assert difference <= 1e-5, (layer, name, difference)


def test_module_runs_on_one_device_without_a_mesh(tiny_network, key):
  alexnet = nnx.jit(model.AlexNet, static_argnums=0)(
    tiny_network, rngs=nnx.Rngs(params=key)
  )
  images = jax.random.normal(key, (2, 67, 67, 3))
  parameters = nnx.to_pure_dict(nnx.state(alexnet))
  expected = jax.jit(reference.forward)(parameters, images)
  found = nnx.jit(lambda alexnet, images: alexnet(images))(alexnet, images)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_parameters_are_plain_global_arrays():
  parameters = jax.eval_shape(
    lambda: model.init_parameters(build.FULL_NETWORK, jax.random.key(0))
  )
  shapes = {name: layer["kernel"].shape for name, layer in parameters.items()}
  expected = {"conv1": (11, 11, 3, 96), "conv2": (5, 5, 48, 256)}
  expected |= {"conv3": (3, 3, 256, 384), "conv4": (3, 3, 192, 384)}
  expected |= {"conv5": (3, 3, 192, 256), "fc7": (4096, 4096)}
  expected |= {"fc6": (36, 256, 4096), "fc8": (4096, 1000)}  # 6 x 6 positions
  assert shapes == expected
  total = sum(leaf.size for leaf in jax.tree.leaves(parameters))
  assert total == 60_965_224


def test_source_init_has_the_published_spread(key):
  network = wiring.make_network(wirings.ALEXNET_2012, width=1 / 4)
  parameters = model.init_parameters(network, key)
  # Reference: std .01 but .03 in conv3-5; mean |w| = std * sqrt(2 / pi).
  for name, mean_abs in (("conv1", 0.0079), ("conv3", 0.0236)):
    # Thousands of samples.
    expected = pytest.approx(mean_abs, rel=0.03)
    assert abs(parameters[name]["kernel"]).mean() == expected
  biases = {name: layer["bias"][0] for name, layer in parameters.items()}
  ones = {name for name, bias in biases.items() if bias == 1}
  assert ones == {"conv2", "conv4", "conv5", "fc6", "fc7"}


def test_no_grouped_convolution_for_two_columns_on_one_device(tiny_network):
  graphdef = model.make_graphdef(tiny_network)
  parameters = jax.eval_shape(
    lambda: model.init_parameters(tiny_network, jax.random.key(0))
  )
  images = jax.ShapeDtypeStruct((2, 67, 67, 3), jnp.float32)
  jaxpr = jax.make_jaxpr(lambda p, x: nnx.merge(graphdef, p)(x))(
    parameters, images
  )
  groups = [
    equation.params["feature_group_count"]
    for equation in jaxpr.eqns
    if equation.primitive.name == "conv_general_dilated"
  ]
  assert groups == [1] * 8  # conv2, conv4 and conv5 twice


@pytest.mark.slow
def test_independent_columns_are_two_networks_up_to_the_logits(key):
  network = build.make_network(wirings.INDEPENDENT_COLUMNS, image_size=99)
  keys = jax.random.split(key, 2)
  parameters = model.init_parameters(network, keys[0])
  images = jax.random.normal(keys[1], (2, 99, 99, 3))
  found = nnx.merge(model.make_graphdef(network), parameters)(images)
  logits = reference.independent_columns(parameters, images)
  # Sums of some hundred float32 products in another order.
  assert relative_difference(found, logits) <= 1e-5


def draw_wiring(rng) -> wiring.Wiring:
  """Up to seven layers of any kind; some of them do not fit each other."""

  def choose(*values):
    return values[rng.integers(len(values))]

  columns, layers = choose(1, 2), []
  convolutions, units = int(rng.integers(0, 5)), int(rng.integers(0, 3))
  for index in range(convolutions):
    pool = wiring.Pool(
      window=choose(2, 3),
      stride=choose(1, 2),
      kind=choose("max", "average", "stochastic"),
      padding=choose((0, 0), (0, 1), (1, 1)),
    )
    normalize = choose(*wiring.NORMALIZATIONS)
    layers.append(
      wiring.Layer(
        name=f"map{index}",
        reads=choose("own", "all"),
        features=choose(4, 8),
        window=choose(1, 2, 3, 5),
        stride=choose(1, 1, 2),
        padding=choose((0, 0), (1, 1), (0, 2), (3, 1)),
        activation=choose("relu", "sigmoid", "tanh", "linear"),
        normalize=normalize,
        lrn=wiring.Lrn(size=choose(1, 3, 5)),
        map_lrn=choose(None, wiring.Lrn(size=3)),
        pool=choose(None, pool, pool),
        order=tuple(rng.permutation(wiring.ORDER).tolist()),
        dropout=choose(False, True),
      )
    )
  for index in range(units):
    layers.append(
      wiring.Layer(
        name=f"units{index}",
        reads=choose("own", "all"),
        features=choose(4, 6),
        normalize=choose("none", "batch"),
        dropout=choose(False, True),
      )
    )
  layers.append(
    wiring.Layer(name="top", reads="all", features=3, activation="linear")
  )
  layers[0] = dataclasses.replace(layers[0], reads="image")
  return wiring.Wiring(name="drawn", columns=columns, layers=tuple(layers))


def trace(network):
  """Parameters, outputs, and sides of normalized maps, by layer."""
  outputs, sides = {}, {}
  normalize = model.apply_local_response_norm

  def watch_norm(network, layer, x, exchange):
    sides[layer.name] = x.shape[1] if x.ndim == 4 else 1
    return normalize(network, layer, x, exchange)

  def run(images, drawn):
    alexnet = model.AlexNet(network, rngs=nnx.Rngs(params=0))
    for name, _, x in alexnet.iterate_outputs(
      images, masks=drawn, uniforms=drawn
    ):
      outputs[name] = x
    return nnx.to_pure_dict(nnx.state(alexnet, nnx.Param))

  side = network.image_size
  drawn = {
    name: jax.ShapeDtypeStruct((2, *size.out_shape), jnp.float32)
    for name, size in network.sizes().items()
  }
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(model, "apply_local_response_norm", watch_norm)
    parameters = jax.eval_shape(
      run, jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32), drawn
    )
  return parameters, outputs, sides


def test_layers_of_any_wiring_have_the_sizes_of_its_table():
  rng, fitting = np.random.default_rng(0), 0
  while fitting < 24:
    table = draw_wiring(rng)
    try:
      network = wiring.make_network(table, image_size=12, num_classes=3)
    except ValueError:
      continue
    fitting += 1
    parameters, outputs, sides = trace(network)
    for name, size in network.sizes().items():
      assert outputs[name].shape == (2, *size.out_shape), table
      assert sides[name] == size.norm_side, table
      shapes = {leaf: array.shape for leaf, array in parameters[name].items()}
      assert shapes == size.shapes, table
