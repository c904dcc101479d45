"""Local response normalization over the maps of all columns."""

import jax
import numpy as np
import pytest

from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import exchange as exchange_lib
from alexnet_jax.network import model, wiring
from alexnet_jax.partition import catalog, check, exchange, plan, specs
from tests import build, reference

TENSOR_PARALLEL = build.with_mesh(catalog.TENSOR_PARALLEL, data=1, model=4)
ACROSS = wiring.make_network(wirings.ALEXNET_2012, normalization="across")


@pytest.mark.parametrize(
  ("name", "expected"),
  [("conv1", [46, 47, 48, 49]), ("conv2", [126, 127, 128, 129])],
)
def test_maps_at_the_boundary_of_the_columns_change_and_no_others(
  name, expected, key
):
  maps = ACROSS.layer(name).features
  x = np.array(60 * jax.random.normal(key, (1, 2, 2, maps)))
  alone = exchange_lib.NoExchange()

  @jax.jit
  def normalize(x):
    return [
      model.apply_local_response_norm(network, network.layer(name), x, alone)
      for network in (ACROSS, build.FULL_NETWORK)
    ]

  found, in_columns = map(np.asarray, normalize(x))
  # float32 against float64.
  np.testing.assert_allclose(found, reference.local_response_norm(x), rtol=2e-6)
  # Reference, section 9.
  changed = np.flatnonzero(np.any(found != in_columns, axis=(0, 1, 2)))
  assert changed.tolist() == expected


def test_device_gets_the_maps_on_both_sides_of_its_own(key):
  network = wiring.make_network(
    wirings.ALEXNET_2012, columns=1, width=1 / 8, normalization="across"
  )
  routes = plan.choose_routes(network, TENSOR_PARALLEL, batch_size=4)
  on_mesh = exchange.MeshExchange(routes, specs.make_specs(network, routes))
  x = np.array(jax.random.normal(key, (4, 2, 2, 12)))
  split = jax.P("data", None, None, "model")
  mesh = jax.make_mesh((1, 4), ("data", "model"))
  with jax.set_mesh(mesh):
    found = jax.jit(
      jax.shard_map(
        lambda x: on_mesh.add_halo("conv1", x, 2),
        in_specs=split,
        out_specs=split,
      )
    )(jax.device_put(x, jax.NamedSharding(mesh, split)))
  padded = np.pad(x, ((0, 0),) * 3 + ((2, 2),))
  expected = [padded[..., 3 * device : 3 * device + 7] for device in range(4)]
  np.testing.assert_array_equal(found, np.concatenate(expected, axis=-1))


def test_edges_are_planned_where_maps_are_split_and_nowhere_else():
  edges = {
    layout.name: [
      (e.layer, e.direction, e.kind, e.elements_per_image)
      for e in build.make_plan(ACROSS, layout)
      if e.tensor == "edges"
    ]
    for layout in (catalog.TWO_COLUMN, catalog.DATA_PARALLEL)
  }
  # Of each of two devices the first and the last two maps.
  expected = [
    (layer, *how, side * side * 8)
    for layer, side in (("conv1", 55), ("conv2", 27))
    for how in (("forward", "all_gather"), ("backward", "reduce_scatter"))
  ]
  assert edges == {"two_column": expected, "data_parallel": []}


def test_device_with_fewer_maps_than_its_neighbors_need_is_refused():
  table = wirings.rewire(
    wirings.ALEXNET_2012, "narrow", columns=1, conv1={"features": 4}
  )
  network = wiring.make_network(table, normalization="across")
  with pytest.raises(
    ValueError, match="conv1 normalizes with 2 maps .* have only 1"
  ):
    check.check(TENSOR_PARALLEL, network, batch_size=8)
