"""What one device receives, holds and computes of each layer."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping

from alexnet_jax.network import wiring
from alexnet_jax.partition import check, resharding
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.partition import specs as specs_lib

FLOAT32 = plan_lib.DTYPE_BYTES["float32"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceLoad:
  """What one device holds and computes of one layer in a training step.

  Two are equal if the device does the same, whatever the axes are called.

  Attributes:
    placement: of the layer, without `features`: these are outputs or inputs.
    overlaps: whether it computes with its own inputs while others arrive.
    inputs: channels or units of the input that are read here.
    outputs: maps or units that are computed here.
    is_partial: whether these are partial sums.
    kernel: shape of the stored shard of the kernel.
    parameters: values in the stored shards of all parameters.
    images: whose outputs are computed here.
    kept_images: whose outputs are kept here: fewer, if partial sums are
      scattered over images.
    values: outputs for each of these that are kept here, before pooling, after
      partial sums are added.
    activation_bytes: of these values of all these images, in the type of the
      computation.
    multiplications: of the convolution or product, for each image, forward.
    unpadded: the part of these whose factor is no zero of the padding, 0 to 1.
    passes: forward, and backward for the kernel, if it is trained, and for the
      input, if it has a gradient.
    times_computed: how often the mesh computes the layer; 1 if nothing is
      repeated.
  """

  placement: layout_lib.Placement = dataclasses.field(compare=False)
  overlaps: bool
  inputs: int
  outputs: int
  is_partial: bool
  kernel: tuple[int, ...]
  parameters: int
  images: int
  kept_images: int
  values: int
  activation_bytes: int
  multiplications: int
  unpadded: float
  passes: int
  times_computed: int

  @property
  def parameter_bytes(self) -> int:
    """Of the stored shards; parameters are float32 always."""
    return FLOAT32 * self.parameters

  @property
  def flops(self) -> int:
    """Of the convolution or product: 2 for each multiplication."""
    return 2 * self.passes * self.images * self.multiplications


def find_loads(
  network: wiring.Network,
  layout: layout_lib.Layout,
  *,
  batch_size: int,
  compute_dtype: str = "float32",
  exchange_dtype: str = "float32",
) -> dict[str, DeviceLoad]:
  """Finds one device's load of every layer, the same for all devices.

  Args:
    layout: a layout that `check.check` has accepted for it.
    batch_size: images in a step, over all devices.
    compute_dtype, exchange_dtype: keys of `plan.DTYPE_BYTES`.
  """
  routes = plan_lib.choose_routes(
    network, layout, batch_size=batch_size, exchange_dtype=exchange_dtype
  )
  sizes = network.sizes()
  return {
    layer.name: find_load(
      network,
      layout,
      layer,
      routes[layer.name],
      size=sizes[layer.name],
      compute_dtype=compute_dtype,
    )
    for layer in network.layers
  }


def find_load(
  network: wiring.Network,
  layout: layout_lib.Layout,
  layer: wiring.Layer,
  route: resharding.LayerRoute,
  *,
  size: wiring.Sizes,
  compute_dtype: str,
) -> DeviceLoad:
  """Finds one device's load of a layer from its route.

  Args:
    size: of the layer.
    compute_dtype: a key of `plan.DTYPE_BYTES`.
  """
  placement = route.placement
  specs = specs_lib.make_layer_specs(network, layer, size, route)
  shards = {
    tensor: specs_lib.shard_shape(shape, specs.parameters[tensor], layout)
    for tensor, shape in size.shapes.items()
  }
  outputs = layout.size(placement.outputs)
  parts = outputs * layout.size(placement.inputs)
  values = size.outputs // layout.size(route.output_sharding.features)
  return DeviceLoad(
    placement=placement,
    overlaps=route.overlap_gather,
    inputs=size.channels // layout.size(route.input_sharding.features),
    outputs=size.kernel[-1] // outputs,
    is_partial=layout.size(placement.inputs) > 1,
    kernel=shards[plan_lib.KERNEL],
    parameters=sum(map(math.prod, shards.values())),
    images=route.images,
    kept_images=route.kept_images,
    values=values,
    activation_bytes=(
      plan_lib.DTYPE_BYTES[compute_dtype] * route.kept_images * values
    ),
    multiplications=size.multiplications // parts,
    unpadded=_unpadded_fraction(layer, size),
    passes=1 + route.trained + route.input_gradient,
    times_computed=(layout.devices // (layout.size(placement.batch) * parts)),
  )


def _unpadded_fraction(layer: wiring.Layer, sizes: wiring.Sizes) -> float:
  """Returns the part of the multiplications that are not by padding, 0 to 1."""
  if not layer.window:
    return 1.0
  side = math.isqrt(sizes.positions)
  starts = [
    layer.stride * index - layer.padding[0] for index in range(sizes.map_side)
  ]
  read = sum(
    min(start + layer.window, side) - max(start, 0) for start in starts
  )
  return (read / (sizes.map_side * layer.window)) ** 2  # of two directions


def describe_arrivals(
  network: wiring.Network, layout: layout_lib.Layout, routes: plan_lib.Routes
) -> dict[str, tuple[str, ...]]:
  """Says what each layer, and the loss, receives from other devices, in order.

  Args:
    layout, routes: of the network, from `plan.choose_routes`.

  Returns:
    {layer: steps}, the last one for `loss`: what is gathered or exchanged
    before the layer, what becomes of its partial sums after it, and the maps
    that it normalizes with; for example `inputs: partial sums scattered to
    fc7's inputs over model`. Empty: nothing arrives.
  """
  arrivals = {}
  for name, following in itertools.pairwise(routes):
    route = routes[name]
    arrivals[name] = (
      *_describe_reshards(layout, route),
      *_describe_sums(layout, route, following, routes),
      *_describe_halo(layout, network.layer(name), route),
    )
  loss = plan_lib.LOSS
  return arrivals | {loss: tuple(_describe_reshards(layout, routes[loss]))}


def _describe_reshards(
  layout: layout_lib.Layout, route: resharding.LayerRoute
) -> Iterator[str]:
  """Yields what arrives for the input of a layer, or of the loss, in order."""
  words = {resharding.BATCH: "images", resharding.CHANNELS: "features"}
  for reshard in route.reshards:
    if reshard.sends and layout.size(reshard.axes) > 1:
      what = words[reshard.source]
      how = "gathered"
      if reshard.kind == "all_to_all":
        how = f"exchanged for {words[reshard.target]}"
      yield f"{what} {how} {_over(layout, reshard.axes)}"


def _describe_sums(
  layout: layout_lib.Layout,
  route: resharding.LayerRoute,
  following: str,
  routes: plan_lib.Routes,
) -> Iterator[str]:
  """Yields what becomes of a layer's partial sums.

  Args:
    following: the next layer, or the loss.
  """
  sums = []
  for kind, axes, dimension in route.additions:
    if layout.size(axes) == 1:
      continue
    over = _over(layout, axes)
    if kind == "sum":
      sums.append(f"summed {over}")
      continue
    if dimension == resharding.BATCH:
      sums.append(f"scattered to {following}'s images {over}")
    elif set(axes) <= set(routes[following].input_sharding.features):
      sums.append(f"scattered to {following}'s inputs {over}")
    else:
      sums.append(f"scattered {over}, for {following} to gather")
  if sums:
    yield f"inputs: partial sums {', then '.join(sums)}"


def _describe_halo(
  layout: layout_lib.Layout, layer: wiring.Layer, route: resharding.LayerRoute
) -> Iterator[str]:
  """Yields the maps of neighbors with which a layer is normalized."""
  if layer.halo and layout.size(route.halo_axes) > 1:
    maps = f"{layer.halo} map{'s' if layer.halo > 1 else ''}"
    over = _over(layout, route.halo_axes)
    yield f"to normalize: {maps} of each neighbor {over}"


def _over(layout: layout_lib.Layout, axes: Iterable[str]) -> str:
  return f"over {' x '.join(plan_lib.crossed_axes(axes, layout.mesh))}"


def find_fitting(
  network: wiring.Network,
  layout: layout_lib.Layout,
  devices: int,
  *,
  batch_size: int,
  exchange_dtype: str = "float32",
) -> Iterator[layout_lib.Layout]:
  """Yields a layout on each mesh of that many devices that it allows.

  Args:
    batch_size, exchange_dtype: as for `plan.make_plan`.
  """
  for candidate in layout_lib.find_meshes(layout, devices):
    try:
      check.check(candidate, network, batch_size=batch_size)
      plan_lib.choose_routes(
        network,
        candidate,
        batch_size=batch_size,
        exchange_dtype=exchange_dtype,
      )
    except ValueError:
      continue  # it does not fit, or the orders of axes of two layers do not
    yield candidate


def find_distinct(
  network: wiring.Network,
  layouts: Iterable[layout_lib.Layout],
  *,
  batch_size: int,
  exchange_dtype: str = "float32",
  norms: bool = False,
) -> list[layout_lib.Layout]:
  """Leaves out layouts that come to the same as another one of these.

  Two do if a device sends, computes and holds the same, whatever the axes are
  called. Of these it keeps the one with the fewest axes of one device:
  `data_parallel`, and no other layout with one device along `model`.

  Args:
    layouts: layouts that `check.check` has accepted for the network.
    batch_size, exchange_dtype, norms: as for `plan.make_plan`.
  """
  layouts, plainest = list(layouts), {}
  options = {"batch_size": batch_size, "exchange_dtype": exchange_dtype}
  for layout in sorted(
    layouts, key=lambda layout: list(layout.mesh.values()).count(1)
  ):
    places = plan_lib.crossed_axes(layout.mesh, layout.mesh)
    plan = [
      dataclasses.replace(
        one, axes=tuple(str(places.index(axis)) for axis in one.axes)
      )
      for one in plan_lib.make_plan(network, layout, norms=norms, **options)
    ]
    loads = find_loads(network, layout, **options).values()
    plainest.setdefault((*plan, *loads), layout)
  kept = list(plainest.values())
  return [layout for layout in layouts if layout in kept]


def repeated_fraction(loads: Mapping[str, DeviceLoad]) -> float:
  """Returns the part of the work that repeats other devices' work, 0 to 1."""
  done = sum(load.flops for load in loads.values())
  needed = sum(load.flops / load.times_computed for load in loads.values())
  return 1 - needed / done
