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
    arrive: how the input arrives: `gather`, `gather, overlapped` or `sum`;
      `gather` if one device has all features.
    kernel: shape of the stored shard of the kernel.
    parameter_bytes: of the stored shards of all parameters, float32.
    images: whose outputs are computed here.
    activation_bytes: of the outputs before pooling, in the type of the
      computation; after the sum, if partial results are summed.
    flops: of the convolutions or products: forward, and backward for the
      kernel and for all inputs but the image. 2 for each multiplication.
    times_computed: how often the mesh computes the layer; 1 if nothing is
      repeated.
  """

  arrive: str
  kernel: tuple[int, ...]
  parameter_bytes: int
  images: int
  activation_bytes: int
  flops: int
  times_computed: int


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
    passes = 2 if route.reads_images else 3
    arrive = "gather"
    if parts > 1:
      arrive = route.arrive + ", overlapped" * route.overlap_gather
    loads[name] = DeviceLoad(
      arrive=arrive,
      kernel=shards[plan_lib.KERNEL],
      parameter_bytes=FLOAT32 * sum(map(math.prod, shards.values())),
      images=images,
      activation_bytes=plan_lib.DTYPE_BYTES[compute_dtype]
      * images
      * (sizes.outputs // layout.size(route.output_sharding.features)),
      flops=2 * passes * images * sizes.multiplications // parts,
      times_computed=layout.devices // (layout.size(placement.batch) * parts),
    )
  return loads


def repeated_fraction(loads: Mapping[str, DeviceLoad]) -> float:
  """Returns the part of the work that repeats other devices' work, 0 to 1."""
  done = sum(load.flops for load in loads.values())
  needed = sum(load.flops / load.times_computed for load in loads.values())
  return 1 - needed / done
