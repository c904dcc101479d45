"""Batch normalization: its numbers, what it keeps, and what it sends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import exchange, model, ops, wiring
from alexnet_jax.optim import optimizer
from alexnet_jax.partition import catalog
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


def test_variance_far_from_zero_keeps_its_digits(key):
  x = np.array(1e4 + jax.random.normal(key, (1000, 2)))
  center = np.full(2, 9_999.0, np.float32)
  mean, variance = jax.jit(
    lambda x: ops.to_mean_and_variance(
      ops.moments(x, center=center), center=center
    )
  )(x)
  wide = x.astype(np.float64)
  np.testing.assert_allclose(mean, wide.mean(0), rtol=1e-6)
  # Centered on 0, squares of 1e8 would leave none of the digits of 1.
  np.testing.assert_allclose(variance, wide.var(0), rtol=1e-5)


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


def test_two_moments_of_each_map_are_summed_where_images_are_split():
  found = {
    layout.name: [
      (e.layer, e.direction, e.kind, e.elements)
      for e in build.make_plan(NETWORK, layout)
      if e.tensor == "statistics"
    ]
    for layout in map(
      catalog.find, ("two_column", "data_parallel", "two_column_data")
    )
  }
  assert found["two_column"] == []
  maps = {"conv1": 12, "conv2": 32, "conv3": 48, "conv4": 48, "conv5": 32}
  maps |= {"fc6": 512, "fc7": 512}
  for name, parts in (("data_parallel", 1), ("two_column_data", 2)):
    assert found[name] == [
      (layer, direction, "sum", 2 * number // parts)
      for layer, number in maps.items()
      for direction in ("forward", "backward")
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
