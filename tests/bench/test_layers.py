"""A step in parts: they compute what the step does, and each has its row."""

import dataclasses
import functools
import json
import math

import jax
import numpy as np
import pytest

from alexnet_jax.bench import layers, pieces, report, turns
from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import model
from alexnet_jax.network import wiring as wiring_lib
from alexnet_jax.partition import catalog, check
from tests import build


def inputs(piece):
  return piece.parameters, piece.statistics, piece.x, piece.drawn


def test_piece_multiplies_as_much_as_one_device_on_every_layout(
  tiny_network, layout
):
  check.check(layout, tiny_network, batch_size=8)
  program = build.make_program(layout)
  for piece in pieces.cut_layers(program):
    kernel = piece.parameters["kernel"].shape
    per_product = 2 * math.prod(piece.product.shape) * math.prod(kernel[:-1])
    load = program.device_loads[piece.layer.name]
    assert per_product * len(piece.products()) == load.flops, piece.layer.name
    assert jax.eval_shape(piece.run, *inputs(piece)) == piece.y


def test_pieces_of_frozen_layers_have_the_gradients_of_a_step(tiny_network):
  network = dataclasses.replace(tiny_network, frozen=("conv1", "conv2", "fc6"))
  program = build.make_program(catalog.find("two_column"), network)
  for piece in pieces.cut_layers(program):
    name = piece.layer.name
    y, gradients = jax.eval_shape(piece.run_both, *inputs(piece), piece.y)
    (gradients,) = gradients
    expected = {"conv1": {}, "conv2": {}, "fc6": {"x": piece.x}}.get(
      name, {"parameters": piece.parameters, "x": piece.x}
    )
    if name == "conv3":  # the lowest that is trained
      del expected["x"]
    assert (y, gradients) == (piece.y, expected), name
    load = program.device_loads[name]
    assert load.passes == len(piece.products()) == 1 + len(expected)


def test_pieces_have_the_types_of_the_step_in_bfloat16():
  program = build.make_program(
    catalog.find("one_device"), compute_dtype="bfloat16"
  )
  cut = pieces.cut_layers(program)
  types = ["bfloat16"] * 7 + ["float32"]  # the logits
  assert [piece.product.dtype.name for piece in cut] == types
  assert [piece.y.dtype.name for piece in cut] == types
  y, _ = jax.eval_shape(cut[-1].run_both, *inputs(cut[-1]), cut[-1].y)
  assert y == cut[-1].y


@pytest.mark.slow
@pytest.mark.parametrize(
  ("wiring", "normalization"),
  [
    *((wiring, None) for wiring in wirings.WIRINGS),
    (wirings.ALEXNET_2012, "batch"),
  ],
  ids=lambda it: getattr(it, "name", it),
)
def test_every_network_can_be_cut(wiring, normalization):
  network = wiring_lib.make_network(
    wiring, image_size=67, num_classes=10, normalization=normalization
  )
  program = build.make_program(catalog.find("one_device"), network)
  for piece in pieces.cut_layers(program):
    y, _ = jax.eval_shape(piece.run_both, *inputs(piece), piece.y)
    assert y == piece.y


@pytest.mark.slow
def test_pieces_one_after_the_other_are_the_network(tiny_network, key):
  program = build.make_program(catalog.find("one_device"), batch_size=2)
  parameters = model.init_parameters(tiny_network, key)
  side = tiny_network.image_size
  images = jax.random.normal(key, (2, side, side, 3))
  cut = pieces.cut_layers(program)
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
      x = piece.run(parameters[name], {}, x.reshape(piece.x.shape), drawn)
    return x

  graphdef = model.make_graphdef(tiny_network, program.implementations)
  run_network = jax.jit(
    lambda parameters, x: model.nnx.merge(graphdef, parameters)(x, masks=masks)
  )
  expected = run_network(parameters, images)
  np.testing.assert_array_equal(run(parameters, images), expected)


@pytest.mark.slow
def test_every_part_has_seconds_of_every_round_and_its_row_in_the_tables():
  program = build.make_short_program("two_column")
  found = layers.measure(program, rounds=2, options={}, peak_side=64)
  assert list(found.layers) == ["conv1", "conv2", "fc8"]
  everything = [*found.others.values(), found.step]
  for layer in found.layers.values():
    everything += [*layer.seconds.values(), *layer.products.values()]
  for seconds in everything:
    assert len(seconds) == 2 and min(seconds) > 0
  assert list(found.others) == ["augmentation", "loss", "update"]
  # An image needs no gradient.
  assert set(found.layers["conv1"].products) == {"forward", "by kernel"}
  assert set(found.layers["fc8"].products) == set(layers.PRODUCTS)
  data = json.loads(json.dumps(report.to_data(found)))
  flops = [layer["flops"] for layer in data["layers"].values()]
  assert sum(flops) == sum(x.flops for x in program.device_loads.values())
  layer_table, product_table = found.tables()
  rows = list(layer_table.columns[0].cells)
  assert rows == [
    *("conv1", "conv2", "fc8", "augmentation", "loss", "update"),
    *("sum", "the step", "not explained"),
  ]
  assert list(product_table.columns[0].cells) == rows[:3]
  assert "exchanges" in found.lines()[-1]


def test_times_are_medians_of_rounds(program_facts):
  fc8 = layers.LayerTime(
    images=1,
    flops_per_product=80,
    seconds={layers.FORWARD: [1.0, 4.0, 2.0], layers.BOTH: [3.0, 5.0, 5.0]},
    products={"forward": [1.0], "by input": [2.0], "by kernel": [5.0]},
  )
  found = layers.LayerTimes(
    **program_facts,
    layers={"fc8": fc8},
    others={"loss": [0.5], "update": [1.5]},
    step=[9.0],
    peak_flops_per_second=60.0,
  )
  assert fc8.backward_seconds == 2.0  # of 2, 1, 3
  assert fc8.flops_per_second == 3 * 80 / 8.0
  assert found.parts_seconds == 5.0 + 0.5 + 1.5


def test_turns_go_either_way_and_what_is_short_is_repeated():
  order = []
  calls = {name: functools.partial(order.append, name) for name in "ab"}
  found = turns.take_turns(calls, rounds=2, in_order=False)
  assert [len(found[name]) for name in "ab"] == [2, 2]
  counted = order[4:]  # each was called twice before
  assert len(counted) == 4 * turns.MOST_REPEATS
  assert "".join(counted[:: turns.MOST_REPEATS]) == "abba"


@pytest.mark.slow
def test_products_are_those_of_the_gradients(key):
  program = build.make_short_program("one_device")
  piece = next(p for p in pieces.cut_layers(program) if p.layer.name == "conv2")
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
  _, (gradients,) = jax.jit(piece.run_both)(parameters, {}, x, {}, gradient)
  products = piece.products()
  expected_products = {
    "by input": gradients["x"],
    "by kernel": gradients["parameters"]["kernel"],
  }
  for what, expected in expected_products.items():
    (product,) = jax.jit(products[what][0])(x, kernel, gradient)
    # Computed by itself, sums may be taken in another order.
    np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-4)
