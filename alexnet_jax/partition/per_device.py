"""What one device holds and computes of each layer."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping

from alexnet_jax.network import wiring
from alexnet_jax.partition import check
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
    arrives: what comes from other devices, step by step, in words; see
      `describe_arrival`.
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
    passes: forward, and backward for the kernel and for all inputs but the
      image.
    times_computed: how often the mesh computes the layer; 1 if nothing is
      repeated.
  """

  placement: layout_lib.Placement = dataclasses.field(compare=False)
  arrives: tuple[str, ...] = dataclasses.field(compare=False)
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
  specs = specs_lib.make_specs(network, routes)
  loads = {}
  sizes = network.sizes()
  for layer, following in itertools.pairwise((*network.layers, None)):
    name, size = layer.name, sizes[layer.name]
    route, placement = routes[name], routes[name].placement
    shards = {
      tensor: plan_lib.shard_shape(shape, spec, layout)
      for (tensor, shape), spec in zip(
        size.shapes.items(), specs.parameters[name].values(), strict=True
      )
    }
    kept_images = route.images // layout.size(route.scatter_images)
    outputs = layout.size(placement.outputs)
    parts = outputs * layout.size(placement.inputs)
    values = size.outputs // layout.size(route.output_sharding.features)
    loads[name] = DeviceLoad(
      placement=placement,
      arrives=plan_lib.describe_arrival(
        layout, layer, route, following, routes
      ),
      overlaps=route.overlap_gather,
      inputs=size.channels // layout.size(route.input_sharding.features),
      outputs=size.kernel[-1] // outputs,
      is_partial=layout.size(placement.inputs) > 1,
      kernel=shards[plan_lib.KERNEL],
      parameters=sum(map(math.prod, shards.values())),
      images=route.images,
      kept_images=kept_images,
      values=values,
      activation_bytes=(
        plan_lib.DTYPE_BYTES[compute_dtype] * kept_images * values
      ),
      multiplications=size.multiplications // parts,
      unpadded=_unpadded_fraction(layer, size),
      passes=2 if route.reads_images else 3,
      times_computed=(layout.devices // (layout.size(placement.batch) * parts)),
    )
  return loads


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


def find_fitting(
  network: wiring.Network,
  layout: layout_lib.Layout,
  devices: int,
  *,
  batch_size: int,
) -> Iterator[layout_lib.Layout]:
  """Yields a layout on each mesh of that many devices that it allows."""
  for candidate in layout_lib.find_meshes(layout, devices):
    if check.fits(candidate, network, batch_size=batch_size):
      try:
        plan_lib.choose_routes(network, candidate, batch_size=batch_size)
      except ValueError:
        continue  # the orders of axes of two layers do not fit together
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
