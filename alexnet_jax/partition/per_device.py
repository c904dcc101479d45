"""What one device holds and computes of each layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.partition import resharding
from alexnet_jax.partition import specs as specs_lib

FLOAT32 = plan_lib.DTYPE_BYTES["float32"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
  """One device's share of one layer in a training step.

  Attributes:
    arrive: `gather`, `gather, own first` or `sum`, how the input arrives;
      `gather` where one device has all features.
    kernel: shape of the block of the kernel that is stored here.
    parameter_bytes: of the stored blocks of all parameters, float32.
    images: whose outputs are computed here.
    activation_bytes: of the outputs that are here, before pooling, in the type
      of the computation; where partial results are added, after that.
    flops: of the convolutions or products: forward, and backward for the
      kernel and for all inputs but the image. 2 for each multiplication.
    times: how often the whole mesh computes the layer; 1 where nothing is
      repeated.
  """

  arrive: str
  kernel: tuple[int, ...]
  parameter_bytes: int
  images: int
  activation_bytes: int
  flops: int
  times: int


def find_shares(
  network: wiring.Network,
  layout: layout_lib.Layout,
  *,
  batch_size: int,
  precision: str = "float32",
) -> dict[str, Share]:
  """One device's share of every layer; all devices have equal ones.

  Args:
    network: the network.
    layout: a layout that `check.check` has accepted for it.
    batch_size: images in a step, over all devices.
    precision: of the computation, a key of `plan.DTYPE_BYTES`.

  Returns:
    {layer: Share}, first to last.
  """
  routes = resharding.find_routes(network, layout, batch_size=batch_size)
  specs = specs_lib.make_specs(network, layout, routes)
  shares = {}
  for name, sizes in network.sizes().items():
    layer, placement = network.layer(name), layout.placement(name)
    blocks = {
      tensor: plan_lib.block_shape(shape, spec, layout)
      for (tensor, shape), spec in zip(
        sizes.shapes.items(), specs.parameters[name].values(), strict=True
      )
    }
    images = batch_size // layout.size(placement.batch)
    parts = layout.size(placement.features)
    passes = 2 if layer.reads == "image" else 3
    shares[name] = Share(
      arrive=_arrives(routes[name]) if parts > 1 else "gather",
      kernel=blocks[plan_lib.KERNEL],
      parameter_bytes=FLOAT32 * sum(map(math.prod, blocks.values())),
      images=images,
      activation_bytes=plan_lib.DTYPE_BYTES[precision]
      * images
      * (sizes.outputs // layout.size(routes[name].leaves.features)),
      flops=2 * passes * images * sizes.multiplications // parts,
      times=layout.devices // (layout.size(placement.batch) * parts),
    )
  return shares


def _arrives(route: resharding.LayerRoute) -> str:
  return f"{route.arrive}, own first" if route.overlap_gather else route.arrive


def repeated_share(shares: Mapping[str, Share]) -> float:
  """Which part of the work is done a second time or more, 0 to 1."""
  done = sum(share.flops for share in shares.values())
  needed = sum(share.flops / share.times for share in shares.values())
  return 1 - needed / done
