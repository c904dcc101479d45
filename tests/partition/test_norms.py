"""Norms of kernels that are split over devices: for layer-wise rates."""

import jax
import numpy as np
import pytest

from alexnet_jax.partition import (
  catalog,
  exchange,
  mesh,
  plan,
  resharding,
  specs,
)
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.program import compiled_step, eval_step
from tests import build

# Along each of these some kernel is split.
AXES = {
  "two_column": ("column",),
  "two_column_data": ("column",),
  "one_weird_trick": ("model",),
  "tensor_parallel": ("model",),
  "fully_sharded": ("data",),
  "two_column_sharded": ("data", "column"),
}


def make_plan(network, layout, **changes):
  return plan.make_plan(network, layout, batch_size=8, loss_values=4, **changes)


def test_plan_lists_one_sum_of_norms_where_kernels_are_split(
  layout, tiny_network
):
  without = make_plan(tiny_network, layout)
  found = make_plan(tiny_network, layout, norms=True)
  assert found[: len(without)] == without
  more = [
    (e.layer, e.direction, e.tensor, e.kind, e.axes, e.elements)
    for e in found[len(without) :]
  ]
  # Two numbers for each of eight kernels.
  axes = AXES.get(layout.name)
  assert more == (
    [("update", "forward", "norm", "sum", axes, 16)] if axes else []
  )


@pytest.mark.parametrize(
  "layout",
  [catalog.TWO_COLUMN_SHARDED, catalog.ONE_WEIRD_TRICK],
  ids=lambda layout: layout.name,
)
def test_norms_match_numpy(layout: layout_lib.Layout, tiny_network):
  routes = resharding.find_routes(tiny_network, layout, batch_size=8)
  splits = specs.make_specs(tiny_network, layout, routes)
  rng = np.random.default_rng(0)
  trees = [
    {
      name: {"kernel": rng.normal(size=size.kernel).astype(np.float32)}
      for name, size in tiny_network.sizes().items()
    }
    for _ in range(2)
  ]
  on = mesh.make_mesh(layout)
  shardings = specs.to_shardings(on, splits.parameters)
  with jax.set_mesh(on):
    put = [
      {
        layer: {
          "kernel": jax.device_put(x["kernel"], shardings[layer]["kernel"])
        }
        for layer, x in tree.items()
      }
      for tree in trees
    ]
    found = jax.jit(exchange.MeshExchange(routes, splits).squared_norms)(*put)
  for tree, norms in zip(trees, found, strict=True):
    assert norms.keys() == tree.keys()
    for layer, x in tree.items():
      expected = np.sum(np.square(x["kernel"], dtype=np.float64))
      # Sums of up to 300,000 squares in float32, by blocks.
      np.testing.assert_allclose(norms[layer], expected, rtol=1e-5)


@pytest.mark.slow
def test_layer_wise_rates_do_not_depend_on_the_layout(
  tiny_network, tiny_augmentation, tiny_batch
):
  found = []
  for layout in (
    catalog.ONE_DEVICE,
    catalog.ONE_WEIRD_TRICK,
    catalog.TWO_COLUMN_SHARDED,
  ):
    parts = build.make_program(
      tiny_network,
      layout,
      tiny_augmentation,
      batch_size=8,
      trust_coefficient=0.01,
      ema_decay=0.5,
      accumulate=2,
    )
    compiled, audit = compiled_step.compile_step(parts)
    assert audit.agrees and sorted(audit.compiled) == sorted(parts.plan)
    state = parts.init(jax.random.key(1))
    batch = build.put(parts, tiny_batch)
    for _ in range(4):
      state, _ = compiled(state, jax.random.key(2), *batch)
    averaged = eval_step.find_variables(state)
    found.append(jax.device_get((state.parameters, averaged)))
  # Sums in another order, in float32, carried through two updates.
  for others in found[1:]:
    jax.tree.map(
      lambda a, b: np.testing.assert_array_less(
        np.linalg.norm(a - b), 1e-5 * np.linalg.norm(b) + 1e-12
      ),
      others,
      found[0],
    )
