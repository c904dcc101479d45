"""A network of columns, written out with the zeros between them, and back."""

import jax
import numpy as np
import pytest
from flax import nnx

from alexnet_jax.network import block_diagonal, model
from alexnet_jax.network import catalog as wirings
from tests import build

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


def test_infinite_values_within_a_block_are_kept():
  source, target = make(wirings.BLOCK_DIAGONAL), make(wirings.ALEXNET_2012)
  before = init_parameters(target)
  before["conv4"]["kernel"] = np.array(before["conv4"]["kernel"])
  before["conv4"]["kernel"][0, 0, 0, -1] = np.inf
  tree = block_diagonal.convert(before, target, source)
  again = block_diagonal.convert(tree, source, target)
  jax.tree.map(np.testing.assert_array_equal, again, before)


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
