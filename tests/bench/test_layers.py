"""A step in parts: they compute what the step does, and each has its row."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from alexnet_jax.bench import layers, pieces, turns
from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import implementations as implementations_lib
from alexnet_jax.network import model
from alexnet_jax.network import wiring as wiring_lib
from alexnet_jax.partition import catalog, check
from tests import build, small_step


def test_piece_multiplies_as_much_as_its_share_of_every_layout(
  tiny_network, tiny_augmentation, layout
):
  check.check(layout, tiny_network, batch_size=8)
  program = build.make_program(
    tiny_network, layout, tiny_augmentation, batch_size=8
  )
  for piece in pieces.cut(program):
    kernel = piece.parameters["kernel"].shape
    of_each = 2 * math.prod(piece.product.shape) * math.prod(kernel[:-1])
    share = program.shares[piece.layer.name]
    assert of_each * len(piece.products()) == share.flops, piece.layer.name
    # What a layer leaves is what it was cut out with.
    found = jax.eval_shape(
      piece.run, piece.parameters, piece.statistics, piece.x, piece.drawn
    )
    assert found == piece.y


@pytest.mark.slow
@pytest.mark.parametrize("wiring", wirings.WIRINGS, ids=lambda it: it.name)
@pytest.mark.parametrize("normalization", [None, "batch"])
def test_every_network_can_be_cut(tiny_augmentation, wiring, normalization):
  network = wiring_lib.make_network(
    wiring, image_size=67, num_classes=10, normalization=normalization
  )
  program = build.make_program(
    network, catalog.find("one_device"), tiny_augmentation, batch_size=8
  )
  for piece in pieces.cut(program):
    y, _ = jax.eval_shape(
      piece.run_both,
      piece.parameters,
      piece.statistics,
      piece.x,
      piece.drawn,
      piece.y,
    )
    assert y == piece.y


@pytest.mark.slow
def test_pieces_one_after_the_other_are_the_network(
  tiny_network, tiny_augmentation, key
):
  layout = catalog.find("one_device")
  program = build.make_program(
    tiny_network, layout, tiny_augmentation, batch_size=2
  )
  parameters = model.init_parameters(tiny_network, key)
  side = tiny_network.image_size
  images = jax.random.normal(key, (2, side, side, 3))
  cut = pieces.cut(program)
  masks = {
    piece.layer.name: jax.random.bernoulli(key, shape=piece.y.shape)
    for piece in cut
    if piece.layer.dropout
  }

  @jax.jit
  def run(parameters, x):
    for piece in cut:
      name = piece.layer.name
      drawn = {"masks": masks} if name in masks else {}
      x = x.reshape(piece.x.shape)
      x = piece.run(parameters[name], {}, x, drawn)
    return x

  graphdef = model.make_graphdef(tiny_network, program.implementations)
  whole = jax.jit(
    lambda parameters, x: model.nnx.merge(graphdef, parameters)(x, masks=masks)
  )
  np.testing.assert_array_equal(
    run(parameters, images), whole(parameters, images)
  )


@pytest.fixture(scope="module")
def program():
  return small_step.make_program("two_column")


@pytest.fixture(scope="module")
def found(program):
  return layers.measure(program, rounds=2, options={}, peak_side=64)


@pytest.mark.slow
def test_every_layer_and_every_rest_has_seconds_of_every_round(found):
  assert list(found.layers) == ["conv1", "conv2", "fc8"]
  everything = [
    *(list(of_layer.values()) for of_layer in found.layers.values()),
    *(list(of_layer.values()) for of_layer in found.products.values()),
    [*found.rests.values(), found.step],
  ]
  for seconds in sum(everything, []):
    assert len(seconds) == 2 and min(seconds) > 0
  assert list(found.rests) == ["augmentation", "loss", "update"]
  # An image needs no gradient.
  assert set(found.products["conv1"]) == {"forward", "by kernel"}
  assert set(found.products["fc8"]) == {"forward", "by input", "by kernel"}


@pytest.mark.slow
def test_tables_and_data_have_every_part(found, program):
  data = json.loads(json.dumps(layers.show(found).data))
  flops = [of_layer["flops"] for of_layer in data["layers"].values()]
  assert sum(flops) == sum(share.flops for share in program.shares.values())
  table = layers.show(found).tables[0]
  rows = list(table.columns[0].cells)
  assert rows == [
    *("conv1", "conv2", "fc8", "augmentation", "loss", "update"),
    *("sum", "the step", "not explained"),
  ]
  assert list(layers.show(found).tables[1].columns[0].cells) == rows[:3]
  assert "exchanges" in layers.show(found).lines[-1]


def test_times_are_medians_of_rounds():
  found = layers.Speed(
    layers={
      "fc8": {layers.FORWARD: [1.0, 4.0, 2.0], layers.BOTH: [3.0, 5.0, 5.0]}
    },
    products={"fc8": {"forward": [1.0], "by input": [2.0], "by kernel": [5.0]}},
    rests={"loss": [0.5], "update": [1.5]},
    step=[9.0],
    flops={"fc8": 80},
    peak_flops=60.0,
    images={"fc8": 1},
    batch_size=1,
    devices=1,
    platform="cpu",
    implementations=implementations_lib.PLAIN,
    options={},
  )
  assert found.backward("fc8") == 2.0  # of 2, 1, 3
  assert found.flops_per_second("fc8") == 3 * 80 / 8.0
  assert found.parts() == 5.0 + 0.5 + 1.5


def test_turns_go_either_way_and_what_is_short_is_repeated():
  order = []

  def call(name):
    return lambda: order.append(name)

  found = turns.take_turns(
    {name: call(name) for name in "ab"}, rounds=2, in_order=False
  )
  assert [len(found[name]) for name in "ab"] == [2, 2]
  counted = order[4:]  # each was called twice before
  assert len(counted) == 4 * turns.MOST_REPEATS
  shortened = counted[:: turns.MOST_REPEATS]
  assert shortened == ["a", "b", "b", "a"]


@pytest.mark.slow
def test_products_are_those_of_the_gradients(key):
  program = small_step.make_program("one_device")
  piece = next(p for p in pieces.cut(program) if p.layer.name == "conv2")
  # Without bias, activation and all else, the products are the layer.
  row = dataclasses.replace(
    piece.layer, activation="linear", normalize="none", pool=None
  )
  piece = dataclasses.replace(piece, layer=row)
  keys = jax.random.split(key, 3)
  blocks = (piece.x, piece.parameters["kernel"], piece.product)
  x, kernel, gradient = (
    np.asarray(jax.random.normal(key, block.shape))
    for key, block in zip(keys, blocks, strict=True)
  )
  parameters = {"kernel": kernel, "bias": np.zeros(kernel.shape[-1:], "f4")}
  _, (of_parameters, of_input) = jax.jit(piece.run_both)(
    parameters, {}, x, {}, gradient
  )
  products = piece.products()
  for what, expected in (
    ("by input", of_input),
    ("by kernel", of_parameters["kernel"]),
  ):
    (product,) = jax.jit(products[what][0])(x, kernel, gradient)
    # Computed by itself, sums may be taken in another order.
    np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-4)
