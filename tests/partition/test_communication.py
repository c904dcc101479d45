"""The plan is the whole truth about communication."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from alexnet_jax.partition import audit, catalog, exchange
from alexnet_jax.partition import layout as layout_lib
from tests import build
from tests.partition.test_placement import OVERLAPPED, OVERRIDDEN, UNUSUAL


def audited(program, *, planned=None):
  parts, traced, compiled = program
  planned = parts.plan if planned is None else planned
  return audit_step(planned, traced, compiled, parts.mesh)


def audit_step(planned, traced, compiled, mesh):
  return audit.audit_step(
    planned,
    jaxpr=traced.jaxpr,
    hlo=compiled.as_text(),
    mesh=dict(mesh.shape),
  )


@pytest.mark.parametrize(
  "layout",
  [*catalog.LAYOUTS, OVERRIDDEN, OVERLAPPED, *UNUSUAL],
  ids=lambda layout: layout.name,
)
def test_step_communicates_as_planned(layout, program):
  found = audited(program(layout))
  assert found.unplanned == () and found.missing == ()
  assert sorted(found.traced) == sorted(found.plan)
  # XLA's CPU compiler keeps every collective.
  assert sorted(found.compiled) == sorted(found.plan)


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


def test_no_convolution_is_grouped(layout, program):
  _, traced, compiled = program(layout)
  hlo = compiled.as_text()
  # Forward, and backward for the kernel and all inputs but the image.
  assert len(re.findall(r"= .* convolution\(", hlo)) >= 14
  assert find_grouped_convolutions(hlo) == []
  assert find_grouped_convolutions(traced.lower().as_text("hlo")) == []


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
  ("arrive", "fc6", "total"),
  [("gather", AS_BUILT, 58_624 - 1_048), ("fewest", FEWEST, 52_456)],
)
def test_two_column_plan_has_the_published_numbers(arrive, fc6, total):
  layout = layout_lib.override(
    catalog.TWO_COLUMN, mesh={}, placements={"fc6": {"arrive": arrive}}
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
def test_no_other_way_to_arrive_sends_less(layout, network):
  def sent(*ways):
    placements = {
      layer: {"arrive": way}
      for layer, way in zip(("fc6", "fc7", "fc8"), ways, strict=True)
    }
    changed = layout_lib.override(layout, mesh={}, placements=placements)
    exchanges = build.make_plan(network, changed, batch_size=128)
    return sum(exchange.sent_bytes for exchange in exchanges)

  ways = itertools.product(("gather", "sum"), repeat=3)
  # The classes of the tiny network divide, so that each can be gathered.
  assert sent(*["fewest"] * 3) == min(sent(*three) for three in ways)


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


def test_no_collective_of_two_column_has_the_size_of_a_parameter(
  program, tiny_network
):
  found = audited(program(catalog.TWO_COLUMN))
  assert {e.tensor for e in found.compiled} == {"activation"}
  sizes = {s.parameters for s in tiny_network.sizes().values()}
  sizes |= {np.prod(s.kernel) for s in tiny_network.sizes().values()}
  assert not sizes & {e.elements for e in found.compiled}


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
  exchanges_more = GathersTooMuch(parts.exchange._routes, parts.specs)
  parts = dataclasses.replace(parts, exchange=exchanges_more)
  traced = parts.trace()
  found = audited((parts, traced, traced.lower().compile()))
  assert not found.agrees and found.missing == ()
  for program in ("traced", "compiled"):
    expected = f"{program}: conv4 forward: all_gather of the activation"
    assert expected in "\n".join(found.unplanned)
  with pytest.raises(audit.PlanMismatch, match="not planned: .*conv4 forward"):
    audit.check(found)


def test_plan_with_one_too_many_is_found_by_name_of_layer(program):
  two_column = program(catalog.TWO_COLUMN)
  plan = two_column[0].plan
  extra = dataclasses.replace(plan[0], layer="conv5", elements=1_234)
  found = audited(two_column, planned=(*plan, extra))
  assert found.unplanned == ()
  assert len(found.missing) == 1 and "conv5 forward" in found.missing[0]
  with pytest.raises(audit.PlanMismatch, match="but missing: .*conv5 forward"):
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
