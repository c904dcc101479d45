"""The only collectives in the project.

Called inside the mapped function of a step, on per-device arrays. What to move
comes from `route.py`; how much that is, `plan.py` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.network import exchange
from alexnet_jax.network import exchange as exchange_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.partition import resharding
from alexnet_jax.partition import specs as specs_lib

LOSS = "loss"


class MeshExchange:
  """Brings each layer its input on a mesh of devices.

  Args:
    routes: from `resharding.find_routes`.
    specs: of the parameters, from `specs.make_specs`.
    precision: type in which activations and their gradients cross devices,
      `float32` or `bfloat16`, whatever they are computed in.
  """

  def __init__(
    self,
    routes: Mapping[str, resharding.LayerRoute],
    specs: specs_lib.Specs,
    *,
    precision: str = "float32",
  ):
    self._routes = routes
    self._specs = specs
    self._precision = precision

  def multiply(
    self,
    layer: str,
    product: exchange_lib.Product,
    x: jax.Array,
    kernel: jax.Array,
  ) -> jax.Array:
    """Brings a layer its input, and completes its product with the kernel.

    Args:
      layer: the layer.
      product: the convolution or product of an input and a kernel.
      x: f32[n, ..., c], as the layer before left it on this device.
      kernel: f32[..., in, out], from `weights`.

    Returns:
      f32[n', ..., outputs]. Of a layer that arrives as a sum: the sums, or this
      device's share of the outputs where the next layer reads just that.
    """
    route = self._routes[layer]
    if not route.overlap_gather:
      return self._add(layer, product(self.bring(layer, x), kernel))
    *moves, last = route.moves
    x = self._move(moves, x)
    whole = self._move([last], x)
    y = multiply(
      product,
      x,
      whole,
      kernel,
      place=lax.axis_index(last.axes),
      devices=lax.axis_size(last.axes),
    )
    return self._add(layer, y)

  def bring(self, layer: str, x: jax.Array) -> jax.Array:
    """Moves an activation to where `layer`, or the loss, reads it.

    Args:
      layer: who reads.
      x: f32[n, ..., c], as the layer before left it on this device.

    Returns:
      f32[n', ..., c'], all that is read here.
    """
    return self._move(self._routes[layer].moves, x)

  def neighbors(self, layer: str, x: jax.Array, reach: int) -> jax.Array:
    """Puts the maps of the devices beside this one on both sides of its own.

    Args:
      layer: the layer that has computed the maps.
      x: f32[n, h, w, maps], of this device.
      reach: maps to add on each side, up to those of one device.

    Returns:
      f32[n, h, w, reach + maps + reach]; zeros beside the first and last map.
    """
    axes = self._routes[layer].leaves.features
    sides = ((0, 0),) * (x.ndim - 1) + ((reach, reach),)
    if not axes:
      return jnp.pad(x, sides)
    edges = jnp.concatenate([x[..., :reach], x[..., -reach:]], axis=-1)
    with jax.named_scope("edges"):
      edges = self._gather(edges.astype(self._precision), axes, x.ndim - 1)
    edges = jnp.pad(edges.astype(x.dtype), sides)
    # Here lie, between the zeros, 2 * reach maps of each device: its first and
    # its last. Wanted are the last before its own, and the first after them.
    start = 2 * reach * lax.axis_index(axes)
    before, after = (
      lax.dynamic_slice_in_dim(edges, start + skip, reach, x.ndim - 1)
      for skip in (0, 3 * reach)
    )
    return jnp.concatenate([before, x, after], axis=-1)

  def average(self, layer: str, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Averages what devices have found of their own images of a layer.

    Args:
      layer: the layer whose outputs these are of.
      x: f32[...], from the images and the features on this device.

    Returns:
      f32[...] twice: one array of all devices that share these features, and
      this device's own, whose gradients are added.
    """
    axes = self._specs.shared[layer]["bias"]
    if not axes:
      return x, x
    with jax.named_scope("statistics"):
      whole = self._sum(x, axes) / lax.axis_size(axes)
      return whole, self._spread(whole, axes)

  def weights(
    self, parameters: Mapping[str, Mapping[str, jax.Array]]
  ) -> dict[str, dict[str, jax.Array]]:
    """Hands the network its weights, from this device's share of them.

    A kernel that is stored in shares is gathered, and its gradient comes back
    reduce-scattered. The gradient of what several devices use for different
    work is summed over them. Running statistics, which have none, stay whole.
    """
    weights = {}
    for layer, blocks in parameters.items():
      weights[layer] = {}
      for name, block in blocks.items():
        with jax.named_scope(f"{layer}/{name}"):
          if shared := self._specs.shared[layer].get(name):
            block = self._spread(block, shared)
          if (layer, name) in self._specs.gathers:
            axes, dimension = self._specs.gathers[layer, name]
            block = self._gather(block, axes, dimension % block.ndim)
        weights[layer][name] = block
    return weights

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
    return self._sum(values, lie.varying) / lax.axis_size(lie.copies)

  def agree(self, values: jax.Array) -> jax.Array:
    """Makes one array of the equal copies that devices hold of their images.

    Args:
      values: f32[n, ...], of the images whose logits are on this device.

    Returns:
      f32[n, ...], the same bits: those of the first of these devices.
    """
    copies = self._routes[LOSS].leaves.copies
    if not copies:
      return values
    is_first = lax.axis_index(copies) == 0
    return self._sum(jnp.where(is_first, values, 0.0), copies)

  def squared_norms(
    self, *trees: Mapping[str, Mapping[str, jax.Array]]
  ) -> list[dict[str, jax.Array]]:
    """Adds up the squares of every kernel, wherever its blocks lie.

    Unlike the others called in the global view, under the layout's mesh: the
    update is computed there. One sum of a few numbers for all kernels.

    Args:
      trees: {layer: {"kernel": f32[...], ...}}, all split as the parameters.

    Returns:
      {layer: f32[]} for each tree, the same on every device.
    """
    axes = self._specs.kernel_axes
    specs = {
      layer: of_layer["kernel"]
      for layer, of_layer in self._specs.parameters.items()
    }

    def add(*trees):
      with jax.named_scope(f"{plan_lib.UPDATE}/{plan_lib.NORM}"):
        squares = []
        for tree in trees:
          for layer, spec in specs.items():
            square = jnp.sum(jnp.square(tree[layer]))
            split = specs_lib.axes_of(spec)
            copies = tuple(axis for axis in axes if axis not in split)
            if copies:  # of which each device adds its part
              square = self._spread(square, copies)
              square /= lax.axis_size(copies)
            squares.append(square)
        found = jnp.stack(squares)
        return self._sum(found, axes) if axes else found

    kernels = [
      {layer: tree[layer]["kernel"] for layer in specs} for tree in trees
    ]
    found = jax.shard_map(
      add, in_specs=(specs,) * len(trees), out_specs=self._specs.whole
    )(*kernels)
    # f32[trees, kernels]
    rows = found.reshape(len(trees), len(specs))
    return [dict(zip(specs, row, strict=True)) for row in rows]

  def _add(self, layer: str, x: jax.Array) -> jax.Array:
    """Adds the partial results of a layer that arrives as a sum."""
    route = self._routes[layer]
    if not route.sums:
      return x
    partial = x.astype(self._precision)
    if route.scatters:
      total = self._scatter(partial, route.sums, x.ndim - 1)
    else:
      total = self._sum(partial, route.sums)
    return total.astype(x.dtype)

  def _move(
    self, moves: Iterable[resharding.Reshard], x: jax.Array
  ) -> jax.Array:
    """Makes moves of an activation, in order."""
    for move in moves:
      if move.sends:
        x = self._send(move, x.astype(self._precision)).astype(x.dtype)
      else:
        x = self._stay(move, x)
    return x

  def _send(self, move: resharding.Reshard, x: jax.Array) -> jax.Array:
    """Moves an activation between devices."""
    source = move.source % x.ndim
    if move.kind == "all_gather":
      return self._gather(x, move.axes, source)
    return self._swap(x, move.axes, move.target % x.ndim, source)

  def _stay(self, move: resharding.Reshard, x: jax.Array) -> jax.Array:
    """Takes this device's share of an activation, or marks it as shared."""
    if not move.copied:
      # The gradients are added here, in float32 whatever they are computed in.
      wide = self._spread(x.astype(jnp.float32), move.axes)
      x = wide.astype(x.dtype)
    if move.kind == "slice":
      target = move.target % x.ndim
      size = x.shape[target] // lax.axis_size(move.axes)
      start = lax.axis_index(move.axes) * size
      x = lax.dynamic_slice_in_dim(x, start, size, target)
    return x

  # All that is sent, here and in the gradients of these. `silent.py` has others
  # in their place.

  def _gather(
    self, x: jax.Array, axes: tuple[str, ...], dimension: int
  ) -> jax.Array:
    """Joins the blocks of devices; the gradient is a `_scatter`."""
    return lax.all_gather(x, axes, axis=dimension, tiled=True)

  def _scatter(
    self, x: jax.Array, axes: tuple[str, ...], dimension: int
  ) -> jax.Array:
    """This device's share of a sum over devices."""
    return lax.psum_scatter(x, axes, scatter_dimension=dimension, tiled=True)

  def _swap(
    self, x: jax.Array, axes: tuple[str, ...], split: int, join: int
  ) -> jax.Array:
    """Splits one dimension over devices, and joins another."""
    return lax.all_to_all(
      x, axes, split_axis=split, concat_axis=join, tiled=True
    )

  def _sum(self, x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Adds over devices: one array of them all."""
    return lax.psum(x, axes)

  def _spread(self, x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Lets devices use one array for different work: gradients are added."""
    return lax.pcast(x, axes, to="varying")


# A product that starts with what is here, while the rest is on its way.
#
# The input of a layer is gathered by features. The product with this device's
# own share reads nothing that is sent; what the others' shares add to it is a
# product of its own. So a compiler can run the first beside the gather, and
# beside the reduce-scatter of the gradients that of the own share.

# Of an input and of a kernel: what is summed over.
FEATURES, INPUTS = -1, -2


def multiply(
  product: exchange.Product,
  own: jax.Array,
  whole: jax.Array,
  kernel: jax.Array,
  *,
  place: jax.Array,
  devices: int,
) -> jax.Array:
  """The product of the whole input, as the sum of two.

  Args:
    product: the convolution or product of an input and a kernel.
    own: f32[n, ..., c / devices], what was here of the input.
    whole: f32[n, ..., c], that of all devices, in their order.
    kernel: f32[..., c, out].
    place: i32[], of this device among those that have a share.
    devices: that have one.

  Returns:
    f32[n, ..., out].
  """
  size = own.shape[FEATURES]
  rows = kernel.ndim + INPUTS
  own_rows = lax.dynamic_slice_in_dim(kernel, place * size, size, rows)
  others = _take_others(whole, place, size, devices, whole.ndim + FEATURES)
  other_rows = _take_others(kernel, place, size, devices, rows)
  return product(own, own_rows) + product(others, other_rows)


def _take_others(
  x: jax.Array, place: jax.Array, size: int, devices: int, axis: int
) -> jax.Array:
  """The shares of all other devices, from the next one on."""
  if devices > 2:  # behind the last comes the first
    again = lax.slice_in_dim(x, 0, (devices - 2) * size, axis=axis)
    x = jnp.concatenate([x, again], axis)
  start = (place + 1) % devices * size
  return lax.dynamic_slice_in_dim(x, start, (devices - 1) * size, axis)
