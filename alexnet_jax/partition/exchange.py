"""The only collectives in the project.

Called inside the mapped function of a step, on per-device arrays. What to move
comes from `route.py`; how much that is, `plan.py` says.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
from jax import lax

from alexnet_jax.partition import moves as moves_lib
from alexnet_jax.partition import route as route_lib
from alexnet_jax.partition import specs as specs_lib

LOSS = "loss"


class MeshExchange:
  """Brings each layer its input on a mesh of devices.

  Args:
    routes: from `route.find_routes`.
    specs: of the parameters, from `specs.make_specs`.
  """

  def __init__(
    self, routes: Mapping[str, route_lib.Route], specs: specs_lib.Specs
  ):
    self._routes = routes
    self._specs = specs

  def bring(self, layer: str, x: jax.Array) -> jax.Array:
    """Moves an activation to where `layer` reads it.

    Args:
      layer: the layer that reads.
      x: f32[n, ..., c], as the layer before left it on this device.

    Returns:
      f32[n', ..., c'], all that the layer reads here; f32[n', positions, c']
      where it reads a map as units.
    """
    route = self._routes[layer]
    if route.joins_positions:
      x = x.reshape(x.shape[0], -1, x.shape[-1])
    for move in route.moves:
      x = _move(move, x)
    return x

  def add(self, layer: str, x: jax.Array) -> jax.Array:
    """Adds the partial results of a layer that arrives as a sum.

    Args:
      layer: the layer.
      x: f32[n, ..., outputs], from the share of the input that is here.

    Returns:
      The sums: f32[n, ..., outputs], or this device's share of the outputs
      where the next layer reads just that.
    """
    route = self._routes[layer]
    if not route.sums:
      return x
    if route.scatters:
      return lax.psum_scatter(
        x, route.sums, scatter_dimension=x.ndim - 1, tiled=True
      )
    return lax.psum(x, route.sums)

  def weights(
    self, parameters: Mapping[str, Mapping[str, jax.Array]]
  ) -> dict[str, dict[str, jax.Array]]:
    """Hands this device's block of the parameters to the network.

    Nothing is sent on the way in. On the way back, the gradient of what
    several devices share is summed over them.
    """
    return {
      layer: {
        name: _share(f"{layer}/{name}", block, self._specs.shared[layer][name])
        for name, block in blocks.items()
      }
      for layer, blocks in parameters.items()
    }

  def total(self, values: jax.Array) -> jax.Array:
    """Sums values over all images.

    Args:
      values: f32[m], sums over the images on this device.

    Returns:
      f32[m], the same on every device.
    """
    lie = self._routes[LOSS].leaves
    if not lie.varying:
      return values
    return lax.psum(values, lie.varying) / lax.axis_size(lie.copies)


def _share(name: str, block: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  if not axes:
    return block
  with jax.named_scope(name):
    return lax.pcast(block, axes, to="varying")


def _move(move: moves_lib.Move, x: jax.Array) -> jax.Array:
  source = None if move.source is None else move.source % x.ndim
  target = None if move.target is None else move.target % x.ndim
  if move.kind == "all_gather":
    return lax.all_gather(x, move.axes, axis=source, tiled=True)
  if move.kind == "all_to_all":
    return lax.all_to_all(
      x, move.axes, split_axis=target, concat_axis=source, tiled=True
    )
  if not move.copied:
    x = lax.pcast(x, move.axes, to="varying")
  if move.kind == "slice":
    size = x.shape[target] // lax.axis_size(move.axes)
    start = lax.axis_index(move.axes) * size
    x = lax.dynamic_slice_in_dim(x, start, size, target)
  return x
