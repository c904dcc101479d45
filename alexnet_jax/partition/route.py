"""What happens around each layer, on the way of an image to the loss.

The one place where a layout becomes communication: `exchange.py` performs the
routes and `plan.py` counts them; neither decides anything.
"""

from __future__ import annotations

import dataclasses

from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import moves as moves_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Route:
  """What happens around one layer.

  Attributes:
    moves: bring the input, in order.
    arrived: how the input lies where the layer is computed.
    leaves: how the output lies.
    joins_positions: whether the layer reads a map as one row of units.
    sums: axes over which partial results are added.
    scatters: whether the sum is left split by features, for the next layer.
    sum_elements: of one partial result on one device.
    sum_images: whose partial results these are.
    reads_images: whether the layer reads the image, which needs no gradient.
  """

  moves: tuple[moves_lib.Move, ...]
  arrived: moves_lib.Lie
  leaves: moves_lib.Lie
  joins_positions: bool = False
  sums: tuple[str, ...] = ()
  scatters: bool = False
  sum_elements: int = 0
  sum_images: int = 0
  reads_images: bool = False


def find_routes(
  network: wiring.Network, layout: layout_lib.Layout, *, batch_size: int
) -> dict[str, Route]:
  """The route into every layer, and into the `loss`.

  Args:
    network: the network.
    layout: a layout that `fit.check` has accepted for it.
    batch_size: images in a step, over all devices.

  Returns:
    {layer: Route}, in the order of computation; last, `loss`, which reads
    whole logits.

  Raises:
    ValueError: two layers name their axes in orders that do not fit together.
  """
  routes = {}
  sizes = network.sizes()
  names = list(sizes)
  lie = moves_lib.Lie(batch=layout.placement(names[0]).batch)
  for name, following in zip(names, [*names[1:], None], strict=True):
    layer, placement = network.layer(name), layout.placement(name)
    size = sizes[name]
    joins = not layer.window and size.positions > 1
    sums = placement.features if placement.arrive == "sum" else ()
    own = placement.features if layer.reads == "own" else ()
    moves, arrived = moves_lib.find_moves(
      name,
      lie,
      moves_lib.Lie(batch=placement.batch, features=own or sums),
      layout,
      elements=batch_size * size.positions * size.channels,
      images=batch_size,
      # The input rows of a fully connected layer are split at positions.
      target=(moves_lib.POSITIONS if joins and sums else moves_lib.CHANNELS),
      spread=() if own or sums else placement.features,
    )
    scatters = bool(sums) and _reads_share(network, layout, following, sums)
    features = placement.features if scatters or not sums else ()
    leaves = moves_lib.Lie(
      batch=placement.batch,
      features=features,
      copies=tuple(
        axis for axis in arrived.copies if axis not in placement.features
      ),
    )
    images = batch_size // layout.size(placement.batch)
    routes[name] = Route(
      moves=moves,
      joins_positions=joins,
      arrived=arrived,
      sums=sums,
      scatters=scatters,
      sum_elements=images * size.outputs,
      sum_images=images,
      reads_images=layer.reads == "image",
      leaves=leaves,
    )
    lie = leaves
  moves, arrived = moves_lib.find_moves(
    "loss",
    lie,
    moves_lib.Lie(batch=lie.batch),
    layout,
    elements=batch_size * network.layers[-1].features,
    images=batch_size,
    target=moves_lib.CHANNELS,
    spread=(),
  )
  routes["loss"] = Route(moves=moves, arrived=arrived, leaves=arrived)
  return routes


def _reads_share(
  network: wiring.Network,
  layout: layout_lib.Layout,
  name: str | None,
  axes: tuple[str, ...],
) -> bool:
  """Whether each device along the axes reads just its share of the input."""
  if name is None:
    return False
  placement = layout.placement(name)
  own = network.layer(name).reads == "own" or placement.arrive == "sum"
  return own and placement.features == axes
