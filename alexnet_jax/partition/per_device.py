"""What one device holds and computes of each layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.partition import specs as specs_lib

FLOAT32 = plan_lib.DTYPE_BYTES["float32"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceLoad:
  """What one device holds and computes of one layer in a training step.

  Attributes:
    arrive: how the input arrives from other devices: `gather`, `gather,
      overlapped` or `sum`; empty if nothing arrives.
    inputs: channels or units of the input that are read here.
    outputs: maps or units that are computed here.
    is_partial: whether these are partial sums.
    kernel: shape of the stored shard of the kernel.
    parameters: values in the stored shards of all parameters.
    images: whose outputs are computed here.
    values: outputs for each image that are kept here, before pooling; after the
      sum, if partial results are summed.
    activation_bytes: of these values of all images, in the type of the
      computation.
    multiplications: of the convolution or product, for each image, forward.
    unpadded: the part of these whose factor is no zero of the padding, 0 to 1.
    passes: forward, and backward for the kernel and for all inputs but the
      image.
    times_computed: how often the mesh computes the layer; 1 if nothing is
      repeated.
  """

  arrive: str
  inputs: int
  outputs: int
  is_partial: bool
  kernel: tuple[int, ...]
  parameters: int
  images: int
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
  specs = specs_lib.make_specs(network, layout, routes)
  loads = {}
  for name, sizes in network.sizes().items():
    placement, route = layout.placement(name), routes[name]
    shards = {
      tensor: plan_lib.shard_shape(shape, spec, layout)
      for (tensor, shape), spec in zip(
        sizes.shapes.items(), specs.parameters[name].values(), strict=True
      )
    }
    images = batch_size // layout.size(placement.batch)
    parts = layout.size(placement.features)
    is_partial = layout.size(route.sum_axes) > 1
    arrives = is_partial or any(
      reshard.sends and layout.size(reshard.axes) > 1
      for reshard in route.reshards
    )
    values = sizes.outputs // layout.size(route.output_sharding.features)
    loads[name] = DeviceLoad(
      arrive=(route.arrive + ", overlapped" * route.overlap_gather)
      if arrives
      else "",
      inputs=sizes.channels // layout.size(route.input_sharding.features),
      outputs=sizes.kernel[-1] // (1 if is_partial else parts),
      is_partial=is_partial,
      kernel=shards[plan_lib.KERNEL],
      parameters=sum(map(math.prod, shards.values())),
      images=images,
      values=values,
      activation_bytes=plan_lib.DTYPE_BYTES[compute_dtype] * images * values,
      multiplications=sizes.multiplications // parts,
      unpadded=_unpadded_fraction(network.layer(name), sizes),
      passes=2 if route.reads_images else 3,
      times_computed=layout.devices // (layout.size(placement.batch) * parts),
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


def repeated_fraction(loads: Mapping[str, DeviceLoad]) -> float:
  """Returns the part of the work that repeats other devices' work, 0 to 1."""
  done = sum(load.flops for load in loads.values())
  needed = sum(load.flops / load.times_computed for load in loads.values())
  return 1 - needed / done
