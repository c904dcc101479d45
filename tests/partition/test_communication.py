"""The plan is the whole truth about communication."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from alexnet_jax.network import catalog as wirings
from alexnet_jax.partition import (
  audit,
  catalog,
  check,
  collectives,
  exchange,
  plan,
)
from alexnet_jax.partition import layout as layout_lib
from tests import build


def audited(program, *, planned=None):
  parts, traced, compiled = program
  planned = parts.plan if planned is None else planned
  return audit_step(planned, traced, compiled, parts.mesh)


def audit_step(planned, traced, compiled, mesh):
  return audit.audit_step(
    planned,
    jaxpr=traced.jaxpr,
    hlo=compiled.as_text(),
    layers=list(build.TINY_NETWORK.sizes()),
    mesh=dict(mesh.shape),
  )


@pytest.mark.parametrize(
  "layout",
  [
    catalog.TWO_DIMENSIONAL,
    *build.slow(catalog.ONE_WEIRD_TRICK, catalog.TWO_COLUMN_SHARDED),
  ],
  ids=lambda layout: layout.name,
)
def test_validation_sends_what_the_forward_pass_sends(layout):
  program = build.make_program(layout)
  traced = program.trace_part(
    program._eval_step,
    program.abstract_state.variables,
    *program.abstract_batch,
  )
  found = collectives.read_traced(
    traced.jaxpr, [*build.TINY_NETWORK.sizes(), "loss"], layout.mesh
  )
  # The predicted classes leave as they are sharded.
  assert sorted(found.collectives) == sorted(
    one for one in program.plan if one.direction == plan.FORWARD
  )
  assert not found.refused


def find_grouped_convolutions(hlo):
  return [
    line
    for line in hlo.splitlines()
    if re.search(r"(feature|batch)_group_count=([2-9]|1\d)", line)
  ]


@pytest.mark.parametrize("groups", [2, 16])
def test_grouped_convolution_is_found(groups):
  def convolve(images, kernel):
    return lax.conv_general_dilated(
      *(images, kernel, (1, 1), "SAME"),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=groups,
    )

  lowered = jax.jit(convolve).lower(
    *(jnp.ones((1, 8, 8, 32)), jnp.ones((3, 3, 32 // groups, 32)))
  )
  assert find_grouped_convolutions(lowered.as_text("hlo"))


# Elements per image that cross, both directions of the link. Reference, section
# 6: as built in 2012, and the fewest that are possible.
AS_BUILT = [
  ("fc6", "forward", "all_gather", 9_216),
  ("fc6", "backward", "reduce_scatter", 9_216),
]
FEWEST = [
  ("fc6", "forward", "reduce_scatter", 4_096),
  ("fc6", "backward", "all_gather", 4_096),
]


def published(fc6):
  return [
    ("conv3", "forward", "all_gather", 43_264),
    ("conv3", "backward", "reduce_scatter", 43_264),
    *fc6,
    ("fc7", "forward", "all_gather", 4_096),
    ("fc7", "backward", "reduce_scatter", 4_096),
    ("fc8", "forward", "sum", 1_000),
  ]


@pytest.mark.parametrize(
  ("field", "fc6", "total"),
  [("outputs", AS_BUILT, 58_624 - 1_048), ("features", FEWEST, 52_456)],
)
def test_two_column_plan_has_the_published_numbers(field, fc6, total):
  layout = layout_lib.override(
    catalog.TWO_COLUMN,
    mesh={},
    placements={"fc6": {field: ("column",)}},
    rows=build.FULL_NETWORK.layers,
  )
  exchanges = build.make_plan(build.FULL_NETWORK, layout, batch_size=128)
  found = [
    (e.layer, e.direction, e.kind, e.elements_per_image) for e in exchanges
  ]
  assert found == published(fc6)
  # As built, half of fc7's outputs, 2,048, went to the GPU that had fc8; the
  # sum of 1,000 logits is 1,048 less.
  forward = sum(number for _, way, _, number in found if way == "forward")
  assert forward == total
  # Each of two devices sends its half: 128 x 21,632 float32.
  assert exchanges[0].sent_bytes == 128 * 21_632 * 4


@pytest.mark.parametrize(
  "layout",
  [catalog.TWO_COLUMN, catalog.TWO_COLUMN_DATA, catalog.ONE_WEIRD_TRICK],
  ids=lambda layout: layout.name,
)
@pytest.mark.parametrize(
  "network", [build.FULL_NETWORK, build.TINY_NETWORK], ids=["full", "tiny"]
)
def test_no_other_choice_of_features_sends_less(layout, network):
  def sent(*fields):
    placements = {
      layer: {field: layout.fc.features}
      for layer, field in zip(("fc6", "fc7", "fc8"), fields, strict=True)
    }
    changed = layout_lib.override(
      layout, mesh={}, placements=placements, rows=network.layers
    )
    exchanges = build.make_plan(network, changed, batch_size=128)
    return sum(exchange.sent_bytes for exchange in exchanges)

  choices = itertools.product(("outputs", "inputs"), repeat=3)
  # The classes of the tiny network divide, so that outputs of fc8 can be split.
  assert sent(*["features"] * 3) == min(sent(*three) for three in choices)


def test_sum_that_spares_the_next_layer_its_gather_is_chosen():
  """The sum of fc7 leaves complete units, which fc8 reads on every device."""
  layout = layout_lib.override(
    catalog.TENSOR_PARALLEL,
    mesh={},
    placements={"fc7": {"features": ("model",)}},
    rows=build.FULL_NETWORK.layers,
  )
  found = build.make_plan(build.FULL_NETWORK, layout, batch_size=128)
  # conv2, conv3, conv4 and conv5 gather the maps of the layer before, both
  # ways; fc6 the maps of conv5. Of fc7 the partial sums alone are sent.
  assert {e.kind for e in found if e.layer == "fc7"} == {"sum"}
  assert not [e for e in found if e.layer == "fc8"]


def make_random_layout(rng, number):
  """Makes a layout of one to three axes that leaves most choices open."""
  mesh = {
    axis: int(rng.choice([1, 2, 2, 4])) for axis in "abc"[: rng.integers(1, 4)]
  }

  def make_placement():
    split = {
      field: [] for field in ("batch", "features", "outputs", "inputs", "none")
    }
    for axis in mesh:
      field = rng.choice(list(split), p=[0.3, 0.35, 0.1, 0.1, 0.15])
      split[field].append(axis)
    del split["none"]
    return layout_lib.Placement(
      fsdp=tuple(split["batch"][-1:]) if rng.random() < 0.15 else (),
      **{field: tuple(axes) for field, axes in split.items()},
    )

  usual = make_placement()
  return layout_lib.Layout(
    name=f"random{number}",
    mesh=mesh,
    layers={
      name: usual if rng.random() < 0.4 else make_placement()
      for name in build.TINY_NETWORK.sizes()
    },
  )


def test_no_other_choices_of_a_random_layout_send_less():
  rng = np.random.default_rng(0)
  networks = [
    build.make_network(table, num_classes=int(classes))
    for table, classes in (
      (wirings.ALEXNET_2012, 10),
      (wirings.ALEXNET_2012, 16),
      (wirings.MERGED_TOWER, 16),
      (wirings.JOIN_AT_CONV4, 16),
    )
  ]

  def sent(network, layout, **options):
    try:
      check.check(layout, network, batch_size=options["batch_size"])
      planned = plan.make_plan(network, layout, **options)
    except ValueError:  # also: orders of axes that do not fit together
      return None
    return sum(collective.sent_bytes for collective in planned)

  undecided = 0  # layouts whose choices differ in bytes
  for number in itertools.count():
    if undecided == 120:
      break
    network, layout = rng.choice(networks), make_random_layout(rng, number)
    alternatives = {
      layer.name: layout.placement(layer).alternatives
      for layer in network.layers
    }
    choices = list(itertools.product(*alternatives.values()))
    if len(choices) > 8:  # to save time
      continue
    options = {
      "batch_size": int(rng.choice([16, 128, 2048])),
      "exchange_dtype": str(rng.choice(["float32", "bfloat16"])),
    }
    fewest = sent(network, layout, **options)
    if fewest is None:
      continue
    explicit = []
    for chosen in choices:
      changed = dataclasses.replace(
        layout, layers=dict(zip(alternatives, chosen, strict=True))
      )
      explicit.append(sent(network, changed, **options))
    explicit = [total for total in explicit if total is not None]
    assert fewest == min(explicit), layout
    undecided += len(set(explicit)) > 1


def test_full_size_two_column_step_sends_what_was_published():
  parts = build.make_program(
    *(catalog.TWO_COLUMN, build.FULL_NETWORK, build.FULL_AUGMENTATION),
    batch_size=4,
  )
  traced = parts.trace()
  compiled = traced.lower().compile()
  found = audited((parts, traced, compiled))
  assert found.agrees
  # Of the complete activation, in the batch of 4: both directions of the link.
  elements = [(*what, 4 * number) for *what, number in published(FEWEST)]
  assert sorted(elements) == sorted(
    (e.layer, e.direction, e.kind, e.elements) for e in found.compiled
  )
  assert find_grouped_convolutions(compiled.as_text()) == []


def test_data_parallel_sums_every_gradient_once(tiny_network):
  exchanges = build.make_plan(tiny_network, catalog.DATA_PARALLEL)
  gradients = [e for e in exchanges if e.tensor != "activation"]
  total = sum(s.parameters for s in tiny_network.sizes().values())
  assert sum(e.elements for e in gradients) == total
  assert {e.axes for e in gradients} == {("data",)}


class GathersTooMuch(exchange.MeshExchange):
  """Also gathers before conv4, which reads its own column only."""

  def reshard_input(self, layer, x):
    x = super().reshard_input(layer, x)
    if layer == "conv4":
      both = lax.all_gather(x, "column", axis=-1 % x.ndim, tiled=True)
      start = lax.axis_index("column") * x.shape[-1]
      x = lax.dynamic_slice_in_dim(both, start, x.shape[-1], x.ndim - 1)
    return x


def test_unplanned_gather_is_found_by_name_of_layer():
  parts = build.make_program(catalog.TWO_COLUMN)
  exchanges_more = GathersTooMuch(parts.routes, parts.specs)
  parts = dataclasses.replace(parts, exchange=exchanges_more)
  traced = parts.trace()
  found = audited((parts, traced, traced.lower().compile()))
  assert not found.agrees and found.missing == ()
  for program in ("traced", "compiled"):
    expected = f"{program}: conv4 forward: all_gather of the activation"
    assert expected in "\n".join(found.unplanned)
  with pytest.raises(audit.PlanMismatch, match="not planned: .*conv4 forward"):
    audit.check(found)


def test_communication_outside_the_layers_is_found():
  parts_mesh = jax.make_mesh((2, 2), ("data", "column"))
  with jax.set_mesh(parts_mesh):
    traced = jax.jit(
      jax.shard_map(
        lambda x: lax.psum(x, "data"),
        in_specs=jax.P("data", "column"),
        out_specs=jax.P(None, "column"),
      )
    ).trace(jnp.ones((4, 6), out_sharding=jax.P("data", "column")))
  found = audit_step((), traced, traced.lower().compile(), parts_mesh)
  expected = (
    "outside every layer forward: sum of the activation over data, 6 elements"
  )
  assert found.unplanned == (f"traced: {expected}", f"compiled: {expected}")
