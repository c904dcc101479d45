"""How an activation gets from where it lies to where it is wanted.

An activation lies split over mesh axes; a layer wants it to lie otherwise;
each axis on which the two differ is one `Reshard`.

    lies split by  wanted by batch     wanted by features  wanted whole
    batch          -                   all-to-all          all-gather
    features       all-to-all          -                   all-gather
    whole          local slice         local slice         - (or `spread`)

`whole` comes in two kinds, which matters for the gradient only. After a
gather the devices of an axis hold equal `copies`, and the gather's transpose
adds up their gradients. What was whole from the start, or is the result of a
sum, is one array; where a layer then computes something different on each
device from it, the gradients are added there (`spread`, and every slice).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib

# Dimensions of an activation: f32[n, ..., channels].
BATCH, CHANNELS = 0, -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationSharding:
  """How an activation lies over the mesh; axes in none of these: one array.

  Attributes:
    batch: axes that split the images, slowest first.
    features: axes that split the channels or units, slowest first.
    copies: axes along which the devices hold equal copies after a gather.
  """

  batch: tuple[str, ...] = ()
  features: tuple[str, ...] = ()
  copies: tuple[str, ...] = ()

  @property
  def varying(self) -> tuple[str, ...]:
    return self.batch + self.features + self.copies


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reshard:
  """One step of an activation on its way into a layer.

  Attributes:
    kind: `all_gather`, `all_to_all`, `slice` or `spread`.
    axes: the mesh axes along which it happens.
    source: the dimension that was split before; None where none was.
    target: the dimension that is split after; None where none is.
    elements: of the array that one device holds before it.
    images: whose activations the devices along the axes hold together.
    copied: whether the devices held copies before it, after a gather.
  """

  kind: str
  axes: tuple[str, ...]
  source: int | None
  target: int | None
  elements: int
  images: int
  copied: bool

  @property
  def sends(self) -> bool:
    """Whether anything crosses devices on the way forward."""
    return self.kind in ("all_gather", "all_to_all")

  def sent_elements(self, devices: int) -> int:
    """Elements that each device sends for it, forward and backward.

    Args:
      devices: along the axes.
    """
    others = self.elements * (devices - 1)
    if self.kind == "all_gather":
      return 2 * others
    if self.kind == "all_to_all" or not self.copied:
      return 2 * others // devices
    return 0


def find_reshards(
  name: str,
  lie: ActivationSharding,
  wanted: ActivationSharding,
  layout: layout_lib.Layout,
  *,
  elements: int,
  images: int,
  spread: tuple[str, ...],
) -> tuple[tuple[Reshard, ...], ActivationSharding]:
  """The moves from one lie to another, and the lie they end in.

  Args:
    name: the layer, for errors.
    lie: how the activation lies.
    wanted: its batch and features axes where the layer is computed.
    layout: for the mesh.
    elements: of the whole activation.
    images: in the whole batch.
    spread: axes along which the layer computes different outputs.

  Returns:
    The moves in order, and how the activation then lies.

  Raises:
    ValueError: the axes of the two lies stand in orders that do not fit.
  """
  batch, features = list(lie.batch), list(lie.features)
  copies = list(lie.copies)
  moves = []

  def move(kind: str, axes: Sequence[str], source, to, copied=False) -> None:
    moves.append(
      Reshard(
        kind=kind,
        axes=tuple(axes),
        source=source,
        target=to,
        elements=elements // layout.size((*batch, *features)),
        images=images // layout.size([a for a in batch if a not in axes]),
        copied=copied,
      )
    )

  def leave(here, stays, there, enters, source: int, to: int) -> None:
    """Takes axes off one dimension, the fastest first."""
    leaving = [axis for axis in here if axis not in stays]
    if len(leaving) > 1 and here[-len(leaving) :] == leaving:
      if [axis for axis in enters if axis in leaving] == leaving:
        move("all_to_all", leaving, source, to)  # in the order they stand in
        there.extend(leaving)
        del here[-len(leaving) :]
        return
    for axis in reversed(leaving):
      _check_last(name, axis, here, layout)
      if axis in enters:
        move("all_to_all", [axis], source, to)
        there.append(axis)
      else:
        move("all_gather", [axis], source, None)
        copies.append(axis)
      here.remove(axis)

  leave(features, wanted.features, batch, wanted.batch, CHANNELS, BATCH)
  leave(batch, wanted.batch, features, wanted.features, BATCH, CHANNELS)
  for split, axes, to in (
    (batch, wanted.batch, BATCH),
    (features, wanted.features, CHANNELS),
  ):
    for axis in axes:
      if axis not in split:
        move("slice", [axis], None, to, copied=axis in copies)
        split.append(axis)
        if axis in copies:
          copies.remove(axis)
    if tuple(split) != axes:
      raise ValueError(
        f"{name} wants its input split over {_sized(axes, layout)}, but it "
        f"arrives split over {_sized(split, layout)}; the axes that both have "
        f"must stand first, in one order. Set config.layout.{name}.batch or "
        f"config.layout.{name}.features."
      )
  for axis in spread:
    if axis not in copies:
      move("spread", [axis], None, None)
      copies.append(axis)
  return tuple(moves), dataclasses.replace(wanted, copies=tuple(copies))


def _check_last(
  name: str, axis: str, split: Sequence[str], layout: layout_lib.Layout
) -> None:
  if split[-1] != axis:
    raise ValueError(
      f"{name} needs axis {axis!r} joined, but the layer before is split over "
      f"{_sized(split, layout)}, and only the last of these can be joined. "
      f"Set config.layout.{name}.batch or config.layout.{name}.features."
    )


def _sized(axes: Sequence[str], layout: layout_lib.Layout) -> str:
  """Axes with their sizes, in their order: `(a=2, b=4)`."""
  return f"({layout_lib.listed({axis: layout.mesh[axis] for axis in axes})})"


# What happens around each layer, on the way of an image to the loss.
#
# The one place where a layout becomes communication: `exchange.py` performs the
# routes and `plan.py` counts them; neither decides anything.


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRoute:
  """What happens around one layer.

  Attributes:
    moves: bring the input, in order.
    arrived: how the input lies where the layer is computed.
    leaves: how the output lies.
    arrive: `gather` or `sum`; which of them, where a layout leaves it open.
    overlap_gather: whether the layer starts with the features that are here,
      while the last move gathers all.
    sums: axes over which partial results are added.
    scatters: whether the sum is left split by features, for the next layer.
    sum_elements: of one partial result on one device.
    sum_images: whose partial results these are.
    reads_images: whether the layer reads the image, which needs no gradient.
  """

  moves: tuple[Reshard, ...]
  arrived: ActivationSharding
  leaves: ActivationSharding
  arrive: str = "gather"
  overlap_gather: bool = False
  sums: tuple[str, ...] = ()
  scatters: bool = False
  sum_elements: int = 0
  sum_images: int = 0
  reads_images: bool = False


def find_routes(
  network: wiring.Network, layout: layout_lib.Layout, *, batch_size: int
) -> dict[str, LayerRoute]:
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
  lie = ActivationSharding(batch=layout.placement(names[0]).batch)
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
    leaves = ActivationSharding(
      batch=placement.batch,
      features=features,
      copies=tuple(
        axis for axis in arrived.copies if axis not in placement.features
      ),
    )
    routes[name] = LayerRoute(
      moves=moves,
      arrive=arrive,
      overlap_gather=(
        placement.overlap_gather
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
  moves, arrived = find_reshards(
    "loss",
    lie,
    ActivationSharding(batch=lie.batch),
    layout,
    elements=batch_size * network.layers[-1].features,
    images=batch_size,
    spread=(),
  )
  routes["loss"] = LayerRoute(moves=moves, arrived=arrived, leaves=arrived)
  return routes


def _gathers_features(
  moves: Sequence[Reshard], layout: layout_lib.Layout
) -> bool:
  """Whether the last move joins the features of several devices."""
  return bool(moves) and (
    (moves[-1].kind, moves[-1].source) == ("all_gather", CHANNELS)
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
  lie: ActivationSharding,
  placement: layout_lib.Placement,
  layout: layout_lib.Layout,
  batch_size: int,
  arrive: str,
) -> tuple[tuple[Reshard, ...], ActivationSharding]:
  """The moves of the input, and how it then lies."""
  reads_share = layer.reads == "own" or arrive == "sum"
  features = placement.features
  return find_reshards(
    layer.name,
    lie,
    ActivationSharding(
      batch=placement.batch, features=features if reads_share else ()
    ),
    layout,
    elements=batch_size * size.positions * size.channels,
    images=batch_size,
    spread=() if reads_share else features,
  )


def _find_fewest(
  ways: Mapping[str, tuple[Sequence[Reshard], ActivationSharding]],
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
