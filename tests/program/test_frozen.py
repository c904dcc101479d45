"""Frozen layers: what is sent, what changes, and what a step computes."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from alexnet_jax.network import catalog as wirings
from alexnet_jax.partition import catalog
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.program import compiled_step
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from tests import build, cases, random_cases, runs, short_network

LAYERS = tuple(layer.name for layer in wirings.ALEXNET_2012.layers)
FROZEN = {
  "conv1": ("conv1",),
  "convolutions": LAYERS[:5],
  "all but fc8": LAYERS[:-1],
  "conv4": ("conv4",),
}
LAYOUTS = (
  *(catalog.TWO_COLUMN, catalog.DATA_PARALLEL, catalog.FULLY_SHARDED),
  *(catalog.TENSOR_PARALLEL, catalog.ONE_WEIRD_TRICK),
)
on_layouts = pytest.mark.parametrize(
  "layout", LAYOUTS, ids=lambda layout: layout.name
)


@on_layouts
@pytest.mark.parametrize("name", FROZEN)
def test_plan_lacks_gradients_of_frozen_layers_and_all_below(name, layout):
  frozen = FROZEN[name]
  trained = [layer for layer in LAYERS if layer not in frozen]
  network = dataclasses.replace(build.FULL_NETWORK, frozen=frozen)
  options = {"batch_size": 128, "norms": True}
  # Fewer gradients may make another choice the cheapest.
  layout = plan_lib.choose_placements(network, layout, batch_size=128)
  planned = plan_lib.make_plan(network, layout, **options)
  free = plan_lib.make_plan(build.FULL_NETWORK, layout, **options)
  removed = [one for one in free if one.tensor == "norm"]
  for one in free:
    if one.direction == "forward" or one.layer == "loss":
      continue
    above = LAYERS.index(one.layer) - LAYERS.index(trained[0])
    if one.tensor in plan_lib.PARAMETERS:
      is_removed = one.layer in frozen
    elif one.tensor == "activation" and one.kind != "all_gather":
      is_removed = above <= 0  # the gradient of the input
    else:
      is_removed = above < 0  # that of the output
    removed += [one] if is_removed else []
  expected = [one for one in free if one not in removed]
  found = [one for one in planned if one.tensor != "norm"]
  assert sorted(found) == sorted(expected)
  # Of each kernel that is trained, the norm and that of its update.
  assert all(
    one.elements == 2 * len(trained) for one in planned if one not in found
  )


@functools.cache
def make_problem(
  frozen: tuple[str, ...],
  layers: tuple[str, ...] = LAYERS,
  normalization: str | None = None,
) -> cases.Problem:
  """Makes AlexNet, or layers of it, with few features, for small images."""
  table = random_cases.shrink(wirings.ALEXNET_2012)
  rows = tuple(layer for layer in table.layers if layer.name in layers)
  table = dataclasses.replace(table, name="part", layers=rows)
  size = {"num_classes": 8, "init": "he", "normalization": normalization}
  size["image_size"] = random_cases.find_least_size(table, size)
  options = {"trust_coefficient": 0.01, "ema_decay": 0.9}
  return cases.Problem(table, size, options=options, frozen=frozen)


def check_step(problem, layout):
  """Compiles a step, audits it, and compares three steps with one device."""
  program = problem.make_program(layout)
  compiled, found = compiled_step.compile_step(
    program, options=cases.find_xla_options()
  )
  assert found.agrees, (found.unplanned, found.missing)
  assert sorted(found.traced) == sorted(program.plan)
  numbers, expected = problem.one_device
  with jax.enable_x64(True):
    state = jax.tree.map(
      lambda number, leaf: jax.device_put(number, leaf.sharding),
      *(numbers, program.abstract_state),
    )
  steps = cases.take_steps(program, compiled, state, problem.batch)
  assert cases.find_differences(steps, expected) == []
  after = steps["state"]
  for layer in problem.network.sizes():
    for one, other in (
      (after.parameters, numbers.parameters),
      (after.optimizer[-1].average, numbers.optimizer[-1].average),
    ):
      is_same = runs.same_bits(one[layer], other[layer])
      assert is_same == (layer in problem.frozen), layer
  # The forward pass is that of a trained layer, and so are its statistics.
  for layer, statistics in after.statistics.items():
    assert not runs.same_bits(statistics, numbers.statistics[layer])


def test_step_with_a_frozen_layer_in_the_middle_is_that_of_one_device():
  layers = ("conv1", "conv4", "fc6", "fc8")
  check_step(make_problem(("conv4",), layers), catalog.ONE_WEIRD_TRICK)


@pytest.mark.slow
@on_layouts
@pytest.mark.parametrize("name", FROZEN)
def test_frozen_step_sends_what_is_planned_and_computes_as_one_device(
  name, layout
):
  check_step(make_problem(FROZEN[name]), layout)


@pytest.mark.slow
@on_layouts
def test_normalization_of_a_frozen_layer_is_that_of_a_trained_one(layout):
  for name in ("convolutions", "conv4"):
    check_step(make_problem(FROZEN[name], normalization="batch"), layout)


def take_steps(config, *, count=3):
  """Takes steps of a config on noise: totals and states, the first before."""
  network, layout = settings.check(config)
  program = run_lib.make_program(config, network, layout)
  compiled, audit = compiled_step.compile_step(program)
  assert audit.agrees
  batch = build.put(
    program, build.make_batch(config.data.stored_size, size=config.batch_size)
  )
  init_key, key = program.make_keys(config.seed)
  state, totals = program.init(init_key), []
  states = [jax.device_get(state)]
  for _ in range(count):
    state, sums = compiled(state, key, *batch)
    states.append(jax.device_get(state))
    totals.append(np.asarray(sums))
  return totals, states, program, (key, *batch)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("layout", "normalization"),
  [("one_device", None), ("two_column", None), ("data_parallel", "batch")],
)
def test_layer_frozen_for_the_run_trains_others_as_at_a_rate_of_0(
  layout, normalization
):
  """Bit for bit, with dropout and augmentation."""
  config = short_network.get_config("one_device")
  config.layout.name = layout
  config.network.width = 1 / 8
  config.network.normalization = normalization
  config.batch_size = 8
  frozen = ("conv1", "conv3", "conv4")
  found = []
  for rule in ({"lr_multiplier": 0.0}, {"rates": ((0.0, 0.0),)}):
    config.optimizer.layers = {name: rule for name in frozen}
    found.append(take_steps(config))
  (totals, states, _, _), (expected_totals, expected, _, _) = found
  assert runs.same_bits(totals, expected_totals)
  for one, other in zip(states, expected, strict=True):
    assert runs.same_bits(one.parameters, other.parameters)
    assert runs.same_bits(one.statistics, other.statistics)
  for name, parameters in states[-1].parameters.items():
    is_same = runs.same_bits(parameters, states[0].parameters[name])
    assert is_same == (name in frozen), name


@pytest.mark.slow
def test_step_with_frozen_layers_is_replayed():
  config = short_network.get_config("two_device")
  config.optimizer.layers.conv1 = {"lr_multiplier": 0.0}
  totals, _, program, arguments = take_steps(config, count=1)
  state = program.init(program.make_keys(config.seed)[0])
  replayed, outputs, variables = program.replay(state, *arguments)
  # The same loss, of a program with other fusions.
  np.testing.assert_allclose(replayed, totals[0], rtol=1e-5)
  assert variables.keys() == program.network.sizes().keys() <= outputs.keys()
