"""Placement never changes the numbers, and sends what is planned."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from alexnet_jax.data import host_batches
from alexnet_jax.partition import audit, catalog, collectives, exchange
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.program import compiled_step, metrics
from tests import build
from tests.partition.test_communication import (
  audited,
  find_grouped_convolutions,
)

Layout, Placement = layout_lib.Layout, layout_lib.Placement

# Layouts that are in no catalog: every kind of reshard between layers. Steps on
# many more are compared in test_random.py.
MIXED = (
  Layout(  # one exchange for two layers, and a sum that stays sharded
    name="gather_then_sum",
    mesh={"model": 2},
    conv=Placement(outputs=("model",)),
    fc=Placement(outputs=("model",)),
    layers={
      "conv3": Placement(inputs=("model",)),
      "fc7": Placement(inputs=("model",)),
      "fc8": Placement(),
    },
  ),
  Layout(  # all-to-all both ways
    name="back_and_forth",
    mesh={"data": 2},
    conv=Placement(batch=("data",)),
    fc=Placement(outputs=("data",)),
    layers={
      "conv5": Placement(outputs=("data",)),
      "fc7": Placement(batch=("data",)),
      "fc8": Placement(inputs=("data",)),
    },
  ),
  Layout(  # two axes at once from the batch to the features
    name="two_axes",
    mesh={"a": 2, "b": 2},
    conv=Placement(batch=("a", "b")),
    fc=Placement(outputs=("a", "b")),
    layers={
      "fc6": Placement(inputs=("a", "b")),
      "fc8": Placement(inputs=("a", "b")),
    },
  ),
  Layout(  # replicated layers between split ones: copies, slices, repetition
    name="here_and_there",
    mesh={"column": 2},
    layers={
      "conv1": Placement(outputs=("column",)),
      "conv3": Placement(outputs=("column",)),
      "conv5": Placement(batch=("column",)),
      "fc7": Placement(outputs=("column",)),
    },
  ),
)


def compile_program(parts):
  """Compiles a step and checks its plan; returns as the `program` fixture."""
  compiled, found = compiled_step.compile_step(parts)
  assert found.agrees and sorted(found.traced) == sorted(found.plan)
  assert sorted(found.compiled) == sorted(found.plan)
  return parts, None, compiled


def run(program, batch, steps=5):
  """Returns the losses of some steps, the final state, and an evaluation.

  The evaluation is of a batch whose last three rows are no images.
  """
  parts, _, train_step = program
  init_key, step_key = jax.random.split(jax.random.key(0))
  state = parts.init(init_key)
  images, labels = build.put(parts, batch)
  losses = []
  for _ in range(steps):
    state, totals = train_step(state, step_key, images, labels)
    losses.append(np.asarray(totals)[0])
  padded = np.where(np.arange(8) < 5, batch[1], host_batches.PADDING)
  images, labels = build.put(parts, (batch[0], padded))
  evaluated = np.asarray(parts.evaluate(state.variables, images, labels).totals)
  assert evaluated[metrics.NAMES.index("images")] == 5
  return np.array(losses), state, evaluated


def assert_same(found, expected, *, rtol=1e-8, atol=0.0):
  """Compares two results of `run`, up to sums in another order.

  These are carried through the steps, in float64 unless `rtol` says otherwise;
  `atol` is for norms of variables.
  """
  losses, state, evaluated = found
  expected_losses, expected_state, expected_evaluated = expected
  assert len(set(expected_losses)) == len(expected_losses)  # it does train
  np.testing.assert_allclose(losses, expected_losses, rtol=rtol)
  np.testing.assert_allclose(evaluated, expected_evaluated, rtol=rtol)
  for layer, of_layer in expected_state.variables.items():
    for name, variable in of_layer.items():
      variable = np.asarray(variable)
      difference = np.asarray(state.variables[layer][name]) - variable
      limit = rtol * np.linalg.norm(variable) + atol
      assert np.linalg.norm(difference) <= limit, (layer, name)


@pytest.fixture(scope="module")
def one_device(program, tiny_batch):
  return run(program(catalog.ONE_DEVICE, "float64"), tiny_batch)


OVERRIDDEN = dataclasses.replace(
  layout_lib.override(
    catalog.TWO_COLUMN,
    mesh={},
    rows=build.TINY_NETWORK.layers,
    placements={
      "fc6": {"inputs": ("column",)},
      "fc8": {"outputs": ("column",)},
    },
  ),
  name="overridden",
)


def overlap_gather(layout: layout_lib.Layout) -> layout_lib.Layout:
  """Returns the layout with overlapped gathers in all layers."""
  layers = {
    row.name: dataclasses.replace(layout.placement(row), overlap_gather=True)
    for row in build.TINY_NETWORK.layers
  }
  name = f"{layout.name}_overlapped"
  return dataclasses.replace(layout, name=name, layers=layers)


OVERLAPPED = overlap_gather(catalog.TWO_COLUMN)


# Compiled once for all tests of them.
on_compiled = pytest.mark.parametrize(
  "layout",
  [*build.PRESETS, OVERLAPPED, *build.slow(OVERRIDDEN)],
  ids=lambda layout: layout.name,
)


@on_compiled
def test_layout_matches_one_device(layout, program, tiny_batch, one_device):
  assert_same(run(program(layout, "float64"), tiny_batch), one_device)


@on_compiled
def test_step_communicates_as_planned(layout, program):
  found = audited(program(layout, "float64"))
  assert found.unplanned == () and found.missing == ()
  assert sorted(found.traced) == sorted(found.plan)
  # XLA's CPU compiler keeps every collective.
  assert sorted(found.compiled) == sorted(found.plan)


@on_compiled
def test_no_convolution_is_grouped(layout, program):
  _, traced, compiled = program(layout, "float64")
  hlo = compiled.as_text()
  # Forward, and backward for the kernel and all inputs but the image.
  assert len(re.findall(r"= .* convolution\(", hlo)) >= 14
  assert find_grouped_convolutions(hlo) == []
  assert find_grouped_convolutions(traced.lower().as_text("hlo")) == []


@on_compiled
def test_state_is_donated_to_the_step(layout, program):
  parts, _, compiled = program(layout, "float64")
  leaves = len(jax.tree.leaves(parts.abstract_state))
  header = compiled.as_text().partition("\n")[0]
  aliases = re.search(r"input_output_alias=\{(.*?)\}, \w+=", header)[1]
  # Parameters, velocity, and the counts of steps: each in its own place.
  assert len(re.findall(r"\(\d+, \{\}", aliases)) == leaves


# Those of float64 may send in other types.
@pytest.mark.parametrize(
  "layout",
  [catalog.TWO_COLUMN_DATA, catalog.FULLY_SHARDED, OVERLAPPED],
  ids=lambda layout: layout.name,
)
def test_step_in_float32_is_traced_as_planned(layout):
  parts = build.make_program(layout)
  layers = [*parts.network.sizes(), "loss", "update"]
  found = collectives.read_traced(parts.trace().jaxpr, layers, parts.mesh.shape)
  assert found.refused == ()
  assert sorted(found.collectives) == sorted(parts.plan)


def test_no_collective_of_two_column_has_the_size_of_a_parameter(
  program, tiny_network
):
  found = audited(program(catalog.TWO_COLUMN))
  assert {e.tensor for e in found.compiled} == {"activation"}
  sizes = {s.parameters for s in tiny_network.sizes().values()}
  sizes |= {np.prod(s.kernel) for s in tiny_network.sizes().values()}
  assert not sizes & {e.elements for e in found.compiled}


def test_plan_with_one_too_many_is_found_by_name_of_layer(program):
  two_column = program(catalog.TWO_COLUMN)
  plan = two_column[0].plan
  extra = dataclasses.replace(plan[0], layer="conv5", elements=1_234)
  found = audited(two_column, planned=(*plan, extra))
  assert found.unplanned == ()
  assert len(found.missing) == 1 and "conv5 forward" in found.missing[0]
  with pytest.raises(audit.PlanMismatch, match="but missing: .*conv5 forward"):
    audit.check(found)


def test_kernels_gathered_in_rows_are_those_gathered_along_outputs(
  program, tiny_batch
):
  in_rows = program(catalog.TWO_COLUMN_SHARDED, "float64")
  parts = in_rows[0]
  assert parts.exchange.kernels_in_rows  # as on CPUs only
  along_outputs = dataclasses.replace(
    parts,
    exchange=exchange.MeshExchange(
      parts.routes, parts.specs, exchange_dtype=parts.exchange_dtype
    ),
  )
  gathers = [
    str(p.trace().jaxpr).count("all_gather_dimension=1")
    for p in (parts, along_outputs)
  ]
  assert gathers[0] < gathers[1]
  found = run(compile_program(along_outputs), tiny_batch)
  assert_same(found, run(in_rows, tiny_batch))


def test_step_in_float32_is_that_of_float64_up_to_rounding(program, tiny_batch):
  # Draws and first weights are the same. Sums of up to 3,025 products; after
  # more steps, near ties in a pooling window amplify their rounding.
  found, expected = (
    run(program(layout, dtype), tiny_batch, steps=2)
    for layout, dtype in (
      (catalog.TWO_COLUMN, "float32"),
      (catalog.ONE_DEVICE, "float64"),
    )
  )
  assert_same(found, expected, rtol=1e-5)


# The implementation that a CPU uses at full width, where compiling is slower.
@pytest.mark.slow
def test_layout_matches_one_device_with_fewer_multiplications(
  tiny_batch, one_device
):
  parts = build.make_program(
    OVERLAPPED, implementations="conv3x3=winograd", compute_dtype="float64"
  )
  assert_same(run(compile_program(parts), tiny_batch), one_device)


def test_exchange_in_half_precision_sends_half_and_changes_little(
  program, tiny_batch
):
  parts = build.make_program(catalog.TWO_COLUMN, exchange_dtype="bfloat16")
  compiled, found = compiled_step.compile_step(parts)
  float32, _, _ = program(catalog.TWO_COLUMN)
  assert found.agrees and sorted(found.traced) == sorted(found.plan)
  assert {e.bytes_per_element for e in found.traced} == {2}
  assert 2 * sum(e.sent_bytes for e in found.plan) == (
    sum(e.sent_bytes for e in float32.plan)
  )
  losses, _, _ = run((parts, None, compiled), tiny_batch)
  expected, _, _ = run(program(catalog.TWO_COLUMN), tiny_batch)
  # Eight bits of mantissa: a relative error of 2^-9 for each value sent.
  assert not np.array_equal(losses, expected)
  np.testing.assert_allclose(losses, expected, rtol=0.02)


def test_each_device_holds_half_of_every_kernel_at_full_size():
  parts = build.make_program(catalog.TWO_COLUMN, build.FULL_NETWORK, None)
  for name, layer in parts.abstract_state.parameters.items():
    kernel = layer["kernel"]
    held = kernel.sharding.shard_shape(kernel.shape)
    assert 2 * np.prod(held) == kernel.size, name


@build.on_presets
def test_draws_are_the_same_on_every_layout(layout, tiny_augmentation, key):
  parts = build.make_program(layout)

  def draws(spec, mask_spec):
    drawn = tiny_augmentation.draw(key, 8, spec=spec)
    mask = jax.random.bernoulli(key, 0.5, (8, 512), out_sharding=mask_spec)
    return drawn | {"mask": mask}

  with jax.set_mesh(parts.mesh):
    split = jax.jit(lambda: draws(parts.specs.images, parts.specs.masks["fc6"]))
    found = jax.tree.map(np.asarray, split())
  expected = draws(None, None)
  for name, drawn in expected.items():
    # The bits are the same; what the normal distribution makes of them may be
    # rounded otherwise in arrays of another shape.
    rtol = 1e-6 if name == "color" else 0
    np.testing.assert_allclose(found[name], drawn, rtol=rtol, err_msg=name)
  assert 0.45 < found["mask"].mean() < 0.55  # 4096 draws: 0.5 +- 0.008


def test_sum_over_the_channels_of_a_map_moves_nothing_before():
  # 99 pixels leave a map of 2 x 2 for fc6: its kernel splits at channels, as
  # conv5 leaves them.
  planned = build.make_plan(build.make_network(image_size=99), OVERRIDDEN)
  kinds = {(e.direction, e.kind) for e in planned if e.layer == "fc6"}
  assert kinds == {("forward", "reduce_scatter"), ("backward", "all_gather")}


# With its flags, verify loads its config in a way that Python 3.12 deprecates.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(("change", "agrees"), [(1e-7, False), (1e-10, True)])
def test_verify_finds_a_gradient_that_differs(change, agrees):
  from alexnet_jax import verify

  def steps(factor):
    layers = {"fc8": {"kernel": np.ones((3, 2)), "bias": np.ones(2) * factor}}
    losses = np.array([2.0, 1.0])
    return verify.Steps(losses=losses, gradients=layers, parameters=layers)

  found = verify.find_differences(steps(1 + change), steps(1))
  assert (max(found) <= verify.TOLERANCE) == agrees
