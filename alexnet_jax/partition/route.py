"""What happens around each layer, on the way of an image to the loss.

The one place where a layout becomes communication: `exchange.py` performs the
routes and `plan.py` counts them; neither decides anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import resharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Route:
  """What happens around one layer.

  Attributes:
    moves: bring the input, in order.
    arrived: how the input lies where the layer is computed.
    leaves: how the output lies.
    arrive: `gather` or `sum`; which of them, where a layout leaves it open.
    own_first: whether the layer starts with the features that are here, while
      the last move gathers all.
    sums: axes over which partial results are added.
    scatters: whether the sum is left split by features, for the next layer.
    sum_elements: of one partial result on one device.
    sum_images: whose partial results these are.
    reads_images: whether the layer reads the image, which needs no gradient.
  """

  moves: tuple[resharding.Move, ...]
  arrived: resharding.Lie
  leaves: resharding.Lie
  arrive: str = "gather"
  own_first: bool = False
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
    layout: a layout that `check.check` has accepted for it.
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
  lie = resharding.Lie(batch=layout.placement(names[0]).batch)
  for name, following in zip(names, [*names[1:], None], strict=True):
    layer, placement = network.layer(name), layout.placement(name)
    size = sizes[name]
    images = batch_size // layout.size(placement.batch)
    ways = {
      way: _bring(layer, size, lie, placement, layout, batch_size, way)
      for way in _find_ways(layer, size, placement, layout)
    }
    arrive = next(iter(ways))
    if len(ways) > 1:
      arrive = _find_fewest(
        ways,
        layout,
        devices=layout.size(placement.features),
        outputs=images * size.outputs,
        is_last=following is None,
      )
    moves, arrived = ways[arrive]
    sums = placement.features if arrive == "sum" else ()
    scatters = bool(sums) and _leaves_shares(
      network, layout, name, following, sums
    )
    features = placement.features if scatters or not sums else ()
    leaves = resharding.Lie(
      batch=placement.batch,
      features=features,
      copies=tuple(
        axis for axis in arrived.copies if axis not in placement.features
      ),
    )
    routes[name] = Route(
      moves=moves,
      arrive=arrive,
      own_first=(
        placement.own_first
        and layer.reads == "all"
        and _gathers_features(moves, layout)
      ),
      arrived=arrived,
      sums=sums,
      scatters=scatters,
      sum_elements=images * size.outputs,
      sum_images=images,
      reads_images=layer.reads == "image",
      leaves=leaves,
    )
    lie = leaves
  moves, arrived = resharding.find_moves(
    "loss",
    lie,
    resharding.Lie(batch=lie.batch),
    layout,
    elements=batch_size * network.layers[-1].features,
    images=batch_size,
    spread=(),
  )
  routes["loss"] = Route(moves=moves, arrived=arrived, leaves=arrived)
  return routes


def _gathers_features(
  moves: Sequence[resharding.Move], layout: layout_lib.Layout
) -> bool:
  """Whether the last move joins the features of several devices."""
  return bool(moves) and (
    (moves[-1].kind, moves[-1].source) == ("all_gather", resharding.CHANNELS)
    and layout.size(moves[-1].axes) > 1
  )


def _find_ways(
  layer: wiring.Layer,
  size: wiring.Sizes,
  placement: layout_lib.Placement,
  layout: layout_lib.Layout,
) -> tuple[str, ...]:
  """How an input may arrive under a placement accepted by `check.check`."""
  if placement.arrive != "fewest":
    return (placement.arrive,)
  devices = layout.size(placement.features)
  if devices == 1 or layer.reads != "all" or size.channels % devices:
    return ("gather",)
  if layer.features % devices:
    return ("sum",)
  return ("gather", "sum")


def _bring(
  layer: wiring.Layer,
  size: wiring.Sizes,
  lie: resharding.Lie,
  placement: layout_lib.Placement,
  layout: layout_lib.Layout,
  batch_size: int,
  arrive: str,
) -> tuple[tuple[resharding.Move, ...], resharding.Lie]:
  """The moves of the input, and how it then lies."""
  reads_share = layer.reads == "own" or arrive == "sum"
  features = placement.features
  return resharding.find_moves(
    layer.name,
    lie,
    resharding.Lie(
      batch=placement.batch, features=features if reads_share else ()
    ),
    layout,
    elements=batch_size * size.positions * size.channels,
    images=batch_size,
    spread=() if reads_share else features,
  )


def _find_fewest(
  ways: Mapping[str, tuple[Sequence[resharding.Move], resharding.Lie]],
  layout: layout_lib.Layout,
  *,
  devices: int,
  outputs: int,
  is_last: bool,
) -> str:
  """The way in which a device sends fewest elements; of equals, `gather`.

  Args:
    ways: name -> moves of the input.
    layout: for the mesh.
    devices: that share the layer.
    outputs: of the whole layer on the images of one device.
    is_last: whether the loss follows, which reads whole outputs.
  """

  def sent(way: str) -> int:
    moves, _ = ways[way]
    of_input = sum(move.sent_elements(layout.size(move.axes)) for move in moves)
    # A sum, or its two halves; outputs of the last layer are gathered, and
    # their gradient scattered. Those of others move on alike.
    moves_outputs = way == "sum" or is_last
    return of_input + moves_outputs * 2 * outputs * (devices - 1) // devices

  return min(ways, key=sent)


def _leaves_shares(
  network: wiring.Network,
  layout: layout_lib.Layout,
  name: str,
  following: str | None,
  axes: tuple[str, ...],
) -> bool:
  """Whether a sum over the axes leaves each device its share of the outputs.

  So it is where the next layer splits its features over the same axes. If that
  reads just its share, nothing more is sent; if it gathers, as much is sent
  between the two as for whole sums, and what follows the sum is computed once.
  """
  if following is None:
    return False
  outputs = network.layer(name).features
  splits = layout.placement(following).features == axes
  return splits and outputs % layout.size(axes) == 0
