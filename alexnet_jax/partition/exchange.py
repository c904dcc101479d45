"""Performs the collectives of a step: no other module has any.

Called inside the mapped function of a step, on per-device arrays.
`resharding.py` and `plan.py` decide what is sent; `plan.py` counts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.network import exchange as exchange_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.partition import resharding
from alexnet_jax.partition import specs as specs_lib

LOSS = resharding.LOSS


class MeshExchange:
  """Gives each layer the input it reads, on a mesh of devices.

  Args:
    routes: from `plan.choose_routes`.
    specs: of the parameters, from `specs.make_specs`.
    exchange_dtype: type in which activations and their gradients are sent,
      `float32` or `bfloat16`, whatever they are computed in.
    kernels_in_rows: whether the kernel of a dense layer is gathered along a new
      first dimension, each shard as it lies in memory, and the rows are then
      copied to their places. For CPUs, where XLA transposes what it gathers
      along another dimension, one value at a time; kernels of convolutions,
      which are small, may take longer in rows. Compilers of accelerators may
      choose the order of dimensions instead.
  """

  def __init__(
    self,
    routes: Mapping[str, resharding.LayerRoute],
    specs: specs_lib.Specs,
    *,
    exchange_dtype: str = "float32",
    kernels_in_rows: bool = False,
  ):
    self._routes = routes
    self._specs = specs
    self._exchange_dtype = exchange_dtype
    self.kernels_in_rows = kernels_in_rows

  def multiply(
    self,
    layer: str,
    product: exchange_lib.Product,
    x: jax.Array,
    kernel: jax.Array,
  ) -> jax.Array:
    """Reshards the input of a layer, and computes its product with the kernel.

    Args:
      x: f32[n, ..., c], the output of the layer before on this device.
      kernel: f32[..., in, out], from `gather_weights`.

    Returns:
      f32[n', ..., outputs], of this device. Partial sums are added, and
      scattered over outputs or images where the next layer splits these alike.
    """
    route = self._routes[layer]
    if route.overlap_gather:
      *reshards, gather = route.reshards
      x = self._reshard(reshards, x)
      y = multiply_overlapped(
        product,
        x,
        self._reshard([gather], x),
        kernel,
        index=lax.axis_index(gather.axes),
        devices=lax.axis_size(gather.axes),
      )
    else:
      y = product(self.reshard_input(layer, x), kernel)
    return self._add_partial_sums(route, y)

  def reshard_input(self, layer: str, x: jax.Array) -> jax.Array:
    """Reshards an activation as `layer`, or the loss, reads it.

    Args:
      x: f32[n, ..., c], the output of the layer before on this device.

    Returns:
      f32[n', ..., c'], all that is read on this device.
    """
    return self._reshard(self._routes[layer].reshards, x)

  def add_halo(self, layer: str, x: jax.Array, width: int) -> jax.Array:
    """Adds the neighboring devices' maps of a layer on both sides of its own.

    Args:
      x: f32[n, h, w, maps], of this device.
      width: maps to add on each side, from 0 up to those of one device.

    Returns:
      f32[n, h, w, width + maps + width]; zeros beside the first and last map.
    """
    if not width:
      return x
    axes = self._routes[layer].halo_axes
    sides = ((0, 0),) * (x.ndim - 1) + ((width, width),)
    if not axes:
      return jnp.pad(x, sides)
    edges = jnp.concatenate([x[..., :width], x[..., -width:]], axis=-1)
    with jax.named_scope(plan_lib.EDGES):
      edges = edges.astype(self._exchange_dtype)
      edges = self._gather(edges, axes, x.ndim - 1)
    edges = jnp.pad(edges.astype(x.dtype), sides)
    # Between the zeros there are 2 * width maps of each device: its first and
    # its last. This device needs the last ones of the device before it, and the
    # first ones of the device after it.
    start = 2 * width * lax.axis_index(axes)
    before, after = (
      lax.dynamic_slice_in_dim(edges, start + skip, width, x.ndim - 1)
      for skip in (0, 3 * width)
    )
    return jnp.concatenate([before, x, after], axis=-1)

  def average(self, layer: str, x: jax.Array) -> jax.Array:
    """Averages statistics of a layer over the devices that split its images.

    Args:
      x: f32[...], from the images and the features on this device.

    Returns:
      f32[...], replicated over the devices with these features.
    """
    axes = self._specs.gradient_sums[layer][plan_lib.STATISTICS]
    if not axes:
      return x
    with jax.named_scope(plan_lib.STATISTICS):
      return self._sum(x, axes) / lax.axis_size(axes)

  def vary(self, layer: str, x: jax.Array) -> jax.Array:
    """Marks values that follow from averages as varying.

    Their gradients are summed over the devices that split the images.
    """
    axes = self._specs.gradient_sums[layer][plan_lib.STATISTICS]
    if not axes:
      return x
    with jax.named_scope(plan_lib.STATISTICS):
      return self._pvary(x, axes)

  def gather_weights(
    self, parameters: Mapping[str, Mapping[str, jax.Array]]
  ) -> dict[str, dict[str, jax.Array]]:
    """Makes the weights that the network reads, from this device's shards.

    A kernel that is stored sharded is gathered, and its gradient is
    reduce-scattered. If several devices use a parameter for different work, its
    gradient is summed over them; that of a batch normalization's scale and bias
    in `vary`. Running statistics have no gradient and stay replicated.
    """
    weights = {}
    for layer, shards in parameters.items():
      weights[layer] = {}
      for name, shard in shards.items():
        with jax.named_scope(f"{layer}/{name}"):
          if axes := self._specs.gradient_sums[layer].get(name):
            shard = self._pvary(shard, axes)
          if (layer, name) in self._specs.gathers:
            axes, dimension = self._specs.gathers[layer, name]
            shard = self._gather_kernel(shard, axes, dimension % shard.ndim)
        weights[layer][name] = shard
    return weights

  def sum_over_images(self, values: jax.Array) -> jax.Array:
    """Sums values over the images of all devices.

    Args:
      values: f32[m], sums over the images on this device.

    Returns:
      f32[m], replicated.
    """
    sharding = self._routes[LOSS].output_sharding
    if not sharding.varying:
      return values
    return self._sum(values, sharding.varying) / lax.axis_size(sharding.copies)

  def replicate(self, values: jax.Array) -> jax.Array:
    """Turns equal copies of values, after a gather, into one array.

    Args:
      values: f32[n, ...], of the images whose logits are on this device.

    Returns:
      f32[n, ...], bit for bit the values of the first of these devices.
    """
    copies = self._routes[LOSS].output_sharding.copies
    if not copies:
      return values
    is_first = lax.axis_index(copies) == 0
    return self._sum(jnp.where(is_first, values, 0.0), copies)

  def squared_norms(
    self, *trees: Mapping[str, Mapping[str, jax.Array]]
  ) -> list[dict[str, jax.Array]]:
    """Sums the squares of every kernel that is trained, over all its shards.

    Unlike the other methods, this one is called on global arrays, under the
    layout's mesh, where the update is computed. All kernels need one sum of a
    few numbers.

    Args:
      trees: {layer: {"kernel": f32[...], ...}} of the trained layers, all
        sharded as the parameters.

    Returns:
      {layer: f32[]} for each tree, replicated.
    """
    axes = self._specs.kernel_axes
    specs = {
      layer: self._specs.parameters[layer]["kernel"] for layer in trees[0]
    }

    def sum_squares(*trees):
      with jax.named_scope(f"{plan_lib.UPDATE}/{plan_lib.NORM}"):
        squares = []
        for tree in trees:
          for layer, spec in specs.items():
            square = jnp.sum(jnp.square(tree[layer]))
            split = specs_lib.spec_axes(spec)
            copies = tuple(axis for axis in axes if axis not in split)
            if copies:  # each of these devices adds its part
              square = self._pvary(square, copies)
              square /= lax.axis_size(copies)
            squares.append(square)
        stacked = jnp.stack(squares)
        return self._sum(stacked, axes) if axes else stacked

    kernels = [
      {layer: tree[layer]["kernel"] for layer in specs} for tree in trees
    ]
    sums = jax.shard_map(
      sum_squares,
      in_specs=(specs,) * len(trees),
      out_specs=self._specs.replicated,
    )(*kernels)
    rows = sums.reshape(len(trees), len(specs))
    return [dict(zip(specs, row, strict=True)) for row in rows]

  def _gather_kernel(
    self, shard: jax.Array, axes: tuple[str, ...], dimension: int
  ) -> jax.Array:
    is_of_convolution = shard.ndim == 4
    if is_of_convolution or not self.kernels_in_rows:
      return self._gather(shard, axes, dimension)
    rows = jnp.moveaxis(self._gather(shard[None], axes, 0), 0, dimension)
    before, after = shard.shape[:dimension], shard.shape[dimension + 1 :]
    return rows.reshape(*before, -1, *after)

  def _add_partial_sums(
    self, route: resharding.LayerRoute, x: jax.Array
  ) -> jax.Array:
    """Adds the partial sums of a layer whose input features are split."""
    if not route.additions:
      return x
    partial = x.astype(self._exchange_dtype)
    for _, axes, dimension in route.additions:
      if dimension is None:
        partial = self._sum(partial, axes)
      else:
        partial = self._scatter(partial, axes, dimension % x.ndim)
    return partial.astype(x.dtype)

  def _reshard(
    self, reshards: Iterable[resharding.Reshard], x: jax.Array
  ) -> jax.Array:
    for reshard in reshards:
      if not reshard.sends:
        x = self._reshard_locally(reshard, x)
        continue
      axes, source = reshard.axes, reshard.source % x.ndim
      sent = x.astype(self._exchange_dtype)
      if reshard.kind == "all_gather":
        sent = self._gather(sent, axes, source)
      else:
        sent = self._all_to_all(sent, axes, reshard.target % x.ndim, source)
      x = sent.astype(x.dtype)
    return x

  def _reshard_locally(
    self, reshard: resharding.Reshard, x: jax.Array
  ) -> jax.Array:
    """Slices an activation, or only marks it as varying; sends nothing."""
    if not reshard.copied:
      # The gradients are summed here, in no less than float32.
      wide = np.promote_types(x.dtype, np.float32)
      varying = self._pvary(x.astype(wide), reshard.axes)
      x = varying.astype(x.dtype)
    if reshard.kind == "slice":
      target = reshard.target % x.ndim
      size = x.shape[target] // lax.axis_size(reshard.axes)
      start = lax.axis_index(reshard.axes) * size
      x = lax.dynamic_slice_in_dim(x, start, size, target)
    return x

  # All communication, here and in the gradients of these. `SilentExchange` in
  # `timing.py` replaces these five.

  def _gather(
    self, x: jax.Array, axes: tuple[str, ...], dimension: int
  ) -> jax.Array:
    """All-gathers; the gradient is a `_scatter`."""
    return lax.all_gather(x, axes, axis=dimension, tiled=True)

  def _scatter(
    self, x: jax.Array, axes: tuple[str, ...], dimension: int
  ) -> jax.Array:
    """Reduce-scatters; the gradient is a `_gather`."""
    return lax.psum_scatter(x, axes, scatter_dimension=dimension, tiled=True)

  def _all_to_all(
    self, x: jax.Array, axes: tuple[str, ...], split: int, join: int
  ) -> jax.Array:
    """Splits one dimension over devices, and joins another."""
    return lax.all_to_all(
      x, axes, split_axis=split, concat_axis=join, tiled=True
    )

  def _sum(self, x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """All-reduces to one replicated array."""
    return lax.psum(x, axes)

  def _pvary(self, x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Marks a replicated array as varying; the gradient is a `_sum`."""
    return lax.pcast(x, axes, to="varying")


def multiply_overlapped(
  product: exchange_lib.Product,
  local: jax.Array,
  gathered: jax.Array,
  kernel: jax.Array,
  *,
  index: jax.Array,
  devices: int,
) -> jax.Array:
  """Computes a product as the sum of two, one of which needs nothing sent.

  The product with this device's shard of the input reads nothing that is sent;
  the product with the other shards is added to it. So a compiler can run the
  first beside the all-gather, and the gradient of the local shard beside the
  reduce-scatter.

  Args:
    local: f32[n, ..., c / devices], this device's shard of the input.
    gathered: f32[n, ..., c], the shards of all devices, in their order.
    kernel: f32[..., c, out].
    index: i32[], of this device among the `devices` that hold a shard.

  Returns:
    f32[n, ..., out].
  """
  size, rows = local.shape[-1], kernel.ndim - 2
  local_rows = lax.dynamic_slice_in_dim(kernel, index * size, size, rows)
  others = _take_others(gathered, index, size, devices, gathered.ndim - 1)
  other_rows = _take_others(kernel, index, size, devices, rows)
  return product(local, local_rows) + product(others, other_rows)


def _take_others(
  x: jax.Array, index: jax.Array, size: int, devices: int, dimension: int
) -> jax.Array:
  """Takes the shards of all other devices, from the next one on."""
  if devices > 2:  # the first follows the last
    again = lax.slice_in_dim(x, 0, (devices - 2) * size, axis=dimension)
    x = jnp.concatenate([x, again], dimension)
  start = (index + 1) % devices * size
  return lax.dynamic_slice_in_dim(x, start, (devices - 1) * size, dimension)
