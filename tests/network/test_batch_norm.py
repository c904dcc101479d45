"""Batch normalization: its numbers, what it keeps, and what it sends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import exchange, model, ops, wiring
from alexnet_jax.optim import optimizer
from alexnet_jax.partition import catalog, plan, specs
from alexnet_jax.partition import exchange as mesh_exchange
from alexnet_jax.partition import mesh as mesh_lib
from tests import build

NETWORK = wiring.make_network(
  wirings.ALEXNET_2012, width=1 / 8, image_size=67, normalization="batch"
)


def test_training_normalizes_with_the_batch_and_keeps_running_statistics(key):
  layer = wiring.Layer(name="fc6", reads="all", features=6, normalize="batch")
  scale, bias = np.arange(1.0, 7.0), np.arange(6.0)

  @jax.jit
  def train_and_evaluate(x):
    variables = model.LayerVariables(layer, (2, 6), jnp.zeros(12))
    variables.scale[...] = jnp.asarray(scale, jnp.float32)
    variables.bias[...] = jnp.asarray(bias, jnp.float32)
    variables.mean[...] = jnp.full(6, 2.0)
    variables.variance[...] = jnp.full(6, 3.0)
    return [
      (
        model.apply_batch_norm(
          *(layer, variables, x, exchange.NoExchange()),
          training=training,
          momentum=0.9,
        ),
        variables.mean[...],
        variables.variance[...],
      )
      for training in (True, False)
    ]

  x = np.array(5 + 2 * jax.random.normal(key, (4, 3, 3, 6)))
  trained, evaluated = train_and_evaluate(x)
  mean, variance = (
    statistic(x.astype(np.float64), axis=(0, 1, 2))
    for statistic in (np.mean, np.var)
  )
  running = 0.9 * 2 + 0.1 * mean, 0.9 * 3 + 0.1 * variance
  for found, (used_mean, used_variance) in (
    (trained, (mean, variance)),
    (evaluated, running),
  ):
    expected = scale * (x - used_mean) / np.sqrt(used_variance + 1e-5) + bias
    # float32 against float64, of values up to some tens.
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], running[0], rtol=1e-6)
    np.testing.assert_allclose(found[2], running[1], rtol=1e-5)


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("ratio", [0, 3, 10, 100])
def test_variance_keeps_its_digits_far_from_the_running_mean(ratio, devices):
  layout = build.with_mesh(catalog.DATA_PARALLEL, data=devices)
  routes = plan.choose_routes(NETWORK, layout, batch_size=8)
  on_mesh = mesh_exchange.MeshExchange(
    routes, specs.make_specs(NETWORK, routes)
  )
  rng = np.random.default_rng(ratio)
  x = (2 * (ratio + rng.standard_normal((8, 9, 9, 12)))).astype(np.float32)

  def moments(x):
    return ops.moments(
      x,
      center=jnp.zeros(12),
      average=functools.partial(on_mesh.average, "conv1"),
    )

  mesh = mesh_lib.make_mesh(layout)
  with jax.set_mesh(mesh):
    mean, variance = jax.jit(
      jax.shard_map(moments, in_specs=jax.P("data"), out_specs=jax.P())
    )(jax.device_put(x, jax.NamedSharding(mesh, jax.P("data"))))
  wide = x.astype(np.float64)
  # Two passes: no more than the rounding of float32, at any ratio.
  np.testing.assert_allclose(mean, wide.mean((0, 1, 2)), rtol=5e-7, atol=2e-7)
  np.testing.assert_allclose(variance, wide.var((0, 1, 2)), rtol=5e-7)


def test_gradients_are_those_of_the_formula(key):
  layer = wiring.Layer(name="fc6", reads="all", features=3, normalize="batch")

  def normalize(x, scale, bias):
    variables = model.LayerVariables(layer, (2, 3), jnp.zeros(6))
    variables.scale[...], variables.bias[...] = scale, bias
    variables.mean[...] = jnp.full(3, 2.0)
    return model.apply_batch_norm(
      *(layer, variables, x, exchange.NoExchange()), training=True, momentum=0.9
    )

  def in_numpy(x, scale, bias):
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return scale * (x - mean) / np.sqrt(variance + 1e-5) + bias

  rng = np.random.default_rng(0)
  arguments = [5 + rng.standard_normal(shape) for shape in ((4, 2, 1, 3), 3, 3)]
  weights = rng.standard_normal((4, 2, 1, 3))
  narrow = [argument.astype(np.float32) for argument in arguments]
  _, pull = jax.vjp(jax.jit(normalize), *narrow)
  found = pull(weights.astype(np.float32))
  for index, argument in enumerate(arguments):
    # Central differences in float64.
    expected = np.zeros(argument.shape)
    for at in np.ndindex(*argument.shape):
      sides = []
      for step in (1e-5, -1e-5):
        moved = [array.copy() for array in arguments]
        moved[index][at] += step
        sides.append((in_numpy(*moved) * weights).sum())
      expected[at] = (sides[0] - sides[1]) / 2e-5
    # float32 against float64; 2e-5 for gradients that cancel to near 0.
    np.testing.assert_allclose(found[index], expected, rtol=1e-4, atol=2e-5)


def init(key):
  return model.init_parameters(NETWORK, key), model.init_statistics(NETWORK)


def test_every_layer_but_the_last_has_scales_and_biases_of_zero(key):
  parameters, statistics = jax.eval_shape(lambda: init(key))
  names = [layer.name for layer in NETWORK.layers]
  assert [*statistics] == names[:-1]
  assert [name for name in names if "scale" in parameters[name]] == names[:-1]
  found = sum(leaf.size for leaf in jax.tree.leaves(parameters))
  assert found == sum(size.parameters for size in NETWORK.sizes().values())
  layer = NETWORK.layer("conv2")  # 1 in the table
  assert not model.LayerVariables(layer, (2, 3), jnp.zeros(6)).bias[...].any()


def test_four_numbers_of_each_map_are_summed_where_images_are_split():
  found = {
    layout.name: [
      (e.layer, e.direction, e.tensor, e.kind, e.elements)
      for e in build.make_plan(NETWORK, layout)
      if e.tensor in ("statistics", "scale")
      or (e.tensor == "bias" and e.layer != "fc8")
    ]
    for layout in map(
      catalog.find, ("two_column", "data_parallel", "two_column_data")
    )
  }
  assert found["two_column"] == []
  maps = {"conv1": 12, "conv2": 32, "conv3": 48, "conv4": 48, "conv5": 32}
  maps |= {"fc6": 512, "fc7": 512}
  for name, parts in (("data_parallel", 1), ("two_column_data", 2)):
    # Mean, variance, and two sums that are the gradients of scale and bias too.
    assert found[name] == [
      (layer, direction, "statistics", "sum", times * number // parts)
      for layer, number in maps.items()
      for direction, times in (("forward", 1), ("forward", 1), ("backward", 2))
    ]


def test_scale_has_the_rate_of_kernels_and_no_decay():
  update = optimizer.make_optimizer(
    *map(optax.constant_schedule, (0.1, 0.2)), momentum=0.0, weight_decay=0.5
  )
  names = ("bias", "kernel", "scale")
  parameters = {"fc6": {name: jnp.ones(1) for name in names}}
  updates, _ = update.update(parameters, update.init(parameters), parameters)
  found = {name: float(value[0]) for name, value in updates["fc6"].items()}
  expected = {"kernel": -0.1 * 1.5, "scale": -0.1, "bias": -0.2}
  assert found == pytest.approx(expected, rel=1e-6)  # float32


def test_module_is_split_into_parameters_and_statistics(key):
  variables = model.join_variables(*jax.eval_shape(lambda: init(key)))
  merged = nnx.merge(model.make_graphdef(NETWORK), variables)
  assert merged.conv1.mean.shape == merged.conv1.scale.shape == (12,)
