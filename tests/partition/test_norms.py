"""The norms of sharded kernels, which layer-wise learning rates need."""

import jax
import numpy as np
import pytest

from alexnet_jax.partition import catalog, exchange, mesh, plan, specs
from tests import build

# Along each of these some kernel is split.
AXES = {
  "two_dimensional": ("x", "y"),
  "two_column_2d": ("column", "model"),
  "two_column": ("column",),
  "two_column_data": ("column",),
  "one_weird_trick": ("model",),
  "tensor_parallel": ("model",),
  "fully_sharded": ("data",),
  "two_column_sharded": ("data", "column"),
}


def test_plan_lists_one_sum_of_norms_where_kernels_are_split(
  layout, tiny_network
):
  without = build.make_plan(tiny_network, layout)
  found = build.make_plan(tiny_network, layout, norms=True)
  assert found[: len(without)] == without
  more = [
    (e.layer, e.direction, e.tensor, e.kind, e.axes, e.elements)
    for e in found[len(without) :]
  ]
  # Two numbers for each of eight kernels.
  axes = AXES.get(layout.name)
  line = ("update", "forward", "norm", "sum", axes, 16)
  assert more == ([line] if axes else [])


@pytest.mark.parametrize(
  "layout",
  [
    catalog.TWO_COLUMN_SHARDED,
    catalog.ONE_WEIRD_TRICK,
    catalog.TWO_COLUMN_2D,
  ],
  ids=lambda layout: layout.name,
)
def test_norms_match_numpy(layout, tiny_network):
  routes = plan.choose_routes(tiny_network, layout, batch_size=8)
  splits = specs.make_specs(tiny_network, routes)
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
    kernels = {
      layer: {"kernel": sharding["kernel"]}
      for layer, sharding in shardings.items()
    }
    put = [jax.device_put(tree, kernels) for tree in trees]
    found = jax.jit(exchange.MeshExchange(routes, splits).squared_norms)(*put)
  for tree, norms in zip(trees, found, strict=True):
    assert norms.keys() == tree.keys()
    for layer, x in tree.items():
      expected = np.sum(np.square(x["kernel"], dtype=np.float64))
      # Sums of up to 300,000 squares in float32, by blocks.
      np.testing.assert_allclose(norms[layer], expected, rtol=1e-5)
