"""Placement never changes the numbers."""

import dataclasses

import jax
import numpy as np
import pytest

from alexnet_jax.data import host_batches
from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import wiring
from alexnet_jax.partition import audit, catalog
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.program import compiled_step, metrics
from tests import build

Layout, Placement = layout_lib.Layout, layout_lib.Placement

# Layouts that are in no catalog: every kind of move between layers.
MIXED = (
  Layout(  # one exchange for two layers, and a sum that stays split
    name="gather_then_sum",
    mesh={"model": 2},
    conv=Placement(features=("model",)),
    fc=Placement(features=("model",)),
    layers={
      "conv3": Placement(features=("model",), arrive="sum"),
      "fc7": Placement(features=("model",), arrive="sum"),
      "fc8": Placement(),
    },
  ),
  Layout(  # all-to-all both ways
    name="back_and_forth",
    mesh={"data": 2},
    conv=Placement(batch=("data",)),
    fc=Placement(features=("data",)),
    layers={
      "conv5": Placement(features=("data",)),
      "fc7": Placement(batch=("data",)),
      "fc8": Placement(features=("data",), arrive="sum"),
    },
  ),
  Layout(  # two axes at once from the batch to the features
    name="two_axes",
    mesh={"a": 2, "b": 2},
    conv=Placement(batch=("a", "b")),
    fc=Placement(features=("a", "b")),
    layers={
      "fc6": Placement(features=("a", "b"), arrive="sum"),
      "fc8": Placement(features=("a", "b"), arrive="sum"),
    },
  ),
  Layout(  # whole layers between split ones: copies, slices, repeated work
    name="here_and_there",
    mesh={"column": 2},
    layers={
      "conv1": Placement(features=("column",)),
      "conv3": Placement(features=("column",)),
      "conv5": Placement(batch=("column",)),
      "fc7": Placement(features=("column",)),
    },
  ),
)


def run(program, batch, steps=5):
  """Losses of some steps, the final parameters, and an evaluation.

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
  evaluated = parts.evaluate(state.variables, images, labels)
  parameters = jax.tree.map(np.asarray, state.parameters)
  return np.array(losses), parameters, np.asarray(evaluated)


def assert_same(parameters, expected):
  """Up to sums in another order, in float32, carried through the steps."""
  for layer, blocks in expected.items():
    for name, block in blocks.items():
      difference = np.linalg.norm(parameters[layer][name] - block)
      assert difference <= 1e-5 * np.linalg.norm(block), (layer, name)


@pytest.fixture(scope="module")
def one_device(program, tiny_batch):
  return run(program(catalog.ONE_DEVICE), tiny_batch)


OVERRIDDEN = dataclasses.replace(
  layout_lib.override(
    catalog.TWO_COLUMN,
    mesh={},
    placements={"fc6": {"arrive": "sum"}, "fc8": {"arrive": "gather"}},
  ),
  name="overridden",
)


def overlap_gather(layout: layout_lib.Layout) -> layout_lib.Layout:
  """The layout, where all that is gathered waits for nothing with its own."""
  placements = {name: {"overlap_gather": True} for name in layout_lib.LAYERS}
  first = layout_lib.override(layout, mesh={}, placements=placements)
  return dataclasses.replace(first, name=f"{layout.name}_own_first")


# Of four devices each has three others.
FOUR = dataclasses.replace(
  catalog.ONE_WEIRD_TRICK, mesh={"data": 1, "model": 4}
)
OWN_FIRST = overlap_gather(catalog.TWO_COLUMN)

# For parameters of tests: half a minute more, and no preset among them.
UNUSUAL = [
  pytest.param(layout, marks=pytest.mark.slow)
  for layout in (*MIXED, *map(overlap_gather, (FOUR, *MIXED)))
]


@pytest.mark.parametrize(
  "layout",
  [*catalog.LAYOUTS[1:], OVERRIDDEN, OWN_FIRST, *UNUSUAL],
  ids=lambda layout: layout.name,
)
def test_layout_matches_one_device(layout, program, tiny_batch, one_device):
  losses, parameters, evaluated = run(program(layout), tiny_batch)
  expected_losses, expected, expected_evaluated = one_device
  assert len(set(expected_losses)) == 5  # it does train
  # Sums in another order, in float32, carried through five steps.
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
  np.testing.assert_allclose(evaluated, expected_evaluated, rtol=1e-5)
  assert evaluated[metrics.NAMES.index("images")] == 5
  assert_same(parameters, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("table", "layout"),
  [
    (wirings.INDEPENDENT_COLUMNS, catalog.TWO_COLUMN),
    (
      wirings.FOUR_COLUMN,
      dataclasses.replace(catalog.TWO_COLUMN, mesh={"column": 4}),
    ),
  ],
  ids=["independent_columns", "four_column"],
)
def test_other_wirings_match_one_device(
  table, layout, tiny_augmentation, tiny_batch
):
  network = wiring.make_network(
    table, width=1 / 8, image_size=67, num_classes=10, init="he"
  )
  results = []
  for candidate in (catalog.ONE_DEVICE, layout):
    parts = build.make_program(
      network, candidate, tiny_augmentation, batch_size=8
    )
    compiled, found = compiled_step.compile_step(parts)
    assert found.agrees and sorted(found.compiled) == sorted(found.plan)
    results.append(run((parts, None, compiled), tiny_batch, steps=3))
  (expected, parameters, _), (losses, split_parameters, _) = results
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert_same(split_parameters, parameters)


# What a CPU takes at full width, where compiling takes longer.
@pytest.mark.slow
@pytest.mark.parametrize(
  "layout",
  [catalog.TWO_COLUMN_DATA, catalog.FULLY_SHARDED, OWN_FIRST],
  ids=lambda layout: layout.name,
)
def test_layout_matches_one_device_with_fewer_multiplications(
  layout, tiny_network, tiny_augmentation, tiny_batch, one_device
):
  parts = build.make_program(
    tiny_network,
    layout,
    tiny_augmentation,
    batch_size=8,
    implementations="conv3x3=winograd",
  )
  compiled, found = compiled_step.compile_step(parts)
  assert found.agrees and sorted(found.compiled) == sorted(found.plan)
  losses, parameters, _ = run((parts, None, compiled), tiny_batch)
  expected, whole, _ = one_device
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert_same(parameters, whole)


def test_exchange_in_half_precision_sends_half_and_changes_little(
  program, tiny_network, tiny_augmentation, tiny_batch
):
  parts = build.make_program(
    tiny_network,
    catalog.TWO_COLUMN,
    tiny_augmentation,
    batch_size=8,
    precision="bfloat16",
  )
  compiled, found = compiled_step.compile_step(parts)
  whole, _, _ = program(catalog.TWO_COLUMN)
  assert found.agrees and sorted(found.traced) == sorted(found.plan)
  assert {e.bytes_per_element for e in found.traced} == {2}
  assert 2 * sum(e.sent_bytes for e in found.plan) == (
    sum(e.sent_bytes for e in whole.plan)
  )
  halved, _, _ = run((parts, None, compiled), tiny_batch)
  expected, _, _ = run(program(catalog.TWO_COLUMN), tiny_batch)
  # Eight bits of mantissa: a relative error of 2^-9 for each value sent.
  assert not np.array_equal(halved, expected)
  np.testing.assert_allclose(halved, expected, rtol=0.02)


def test_each_device_holds_half_of_every_kernel_at_full_size():
  network = wiring.make_network(wirings.ALEXNET_2012)
  parts = build.make_program(network, catalog.TWO_COLUMN, None, batch_size=8)
  state = parts.abstract_state
  for name, layer in state.parameters.items():
    kernel = layer["kernel"]
    held = kernel.sharding.shard_shape(kernel.shape)
    assert 2 * np.prod(held) == kernel.size, name


def test_draws_are_the_same_on_every_layout(
  layout, tiny_network, tiny_augmentation, key
):
  parts = build.make_program(
    tiny_network, layout, tiny_augmentation, batch_size=8
  )

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


@pytest.mark.slow
def test_sum_over_the_channels_of_a_map_matches_one_device(
  tiny_augmentation,
):
  # 99 pixels leave a map of 2 x 2 for fc6: its kernel splits at channels, as
  # conv5 leaves them, so nothing moves before the sums.
  network = wiring.make_network(
    wirings.ALEXNET_2012, width=1 / 8, image_size=99, num_classes=10, init="he"
  )
  augmentation = dataclasses.replace(
    tiny_augmentation, stored_size=104, image_size=99
  )
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (8, 104, 104, 3), dtype=np.uint8)
  batch = images, rng.integers(0, 10, 8, dtype=np.int32)
  results = []
  for layout in (catalog.ONE_DEVICE, OVERRIDDEN):
    parts = build.make_program(network, layout, augmentation, batch_size=8)
    traced = parts.trace()
    compiled = traced.lower().compile()
    found = audit.audit_step(
      parts.plan,
      jaxpr=traced.jaxpr,
      hlo=compiled.as_text(),
      mesh=dict(parts.mesh.shape),
    )
    assert found.agrees and sorted(found.compiled) == sorted(found.plan)
    results.append(run((parts, traced, compiled), batch, steps=3))
  kinds = {(e.layer, e.direction, e.kind) for e in found.plan}
  assert {kind for kind in kinds if kind[0] == "fc6"} == {
    ("fc6", "forward", "reduce_scatter"),
    ("fc6", "backward", "all_gather"),
  }
  (expected, parameters, _), (losses, split_parameters, _) = results
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  kernel = parameters["fc6"]["kernel"]
  difference = np.linalg.norm(split_parameters["fc6"]["kernel"] - kernel)
  assert difference <= 1e-5 * np.linalg.norm(kernel)
