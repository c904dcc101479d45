"""Rows and columns of the picture of a split network, and what crosses them.

A row is a device, or a group of devices along mesh axes that are not told
apart; a column is a layer, with the share of it that one device has. Between
two columns lies a gap, in which exchanges go from row to row. In inches, y
downwards.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib

IMAGE, LOSS = "image", "loss"
SUMS = ("sum", "reduce_scatter")
MAX_ROWS = 4

TEXT, UNITS_TEXT = 0.62, 0.46  # what stands above and below a map, or units
GAP, STAGE = 0.45, 0.75  # between columns: without exchange, for each exchange
SLANT = (0.3, 0.26)  # of a cuboid's third edge, by its height
DAMPING = 0.4  # sizes are drawn by this power, or small ones would vanish

Point = tuple[float, float]
# What crosses devices on the way forward, and back; either may be None.
Crossing = tuple[plan_lib.Collective | None, plan_lib.Collective | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One device, or the devices along all axes that are not in `place`.

  Attributes:
    place: mesh axis -> position along it, for the axes that are told apart.
    devices: their numbers, counted through the mesh, slowest axis first.
    y: its middle.
    height: of its card.
  """

  place: Mapping[str, int]
  devices: tuple[int, ...]
  y: float = 0.0
  height: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
  """What one device of a row holds of one layer's output.

  Attributes:
    row: index of the row.
    layer: its name, `image`, or `loss` for the logits that the loss reads.
    side: of the map in pixels, which makes a cuboid; 1 for units, a slab.
    features: maps or units on this device.
    repeated: whether several devices compute the same.
    partial: whether these are partial sums.
    x: left edge of the front.
    y: middle, slanted edge included.
    width: of the front.
    height: of the front.
    slant: from a corner of the front, right and up to one of the back.
  """

  row: int = 0
  layer: str
  side: int
  features: int
  repeated: bool = False
  partial: bool = False
  x: float = 0.0
  y: float = 0.0
  width: float
  height: float
  slant: Point

  @property
  def reach(self) -> float:
    """From the middle to the top and to the bottom."""
    return (self.height + self.slant[1]) / 2

  def window(self, share: float) -> tuple[Point, ...]:
    """Corners of a window in the middle of the right face."""
    x = self.x + self.width + self.slant[0] / 2
    right, up = (share / 2 * length for length in self.slant)
    half = share / 2 * self.height
    return (
      (x - right, self.y + up - half),
      (x - right, self.y + up + half),
      (x + right, self.y - up + half),
      (x + right, self.y - up - half),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
  """A layer's place: the gap before its box, and its box.

  Attributes:
    box: of any row; row and y are to be replaced.
    window: side of the layer's window by that of the map it reads, in
      [0, 1]; 0 where it has none.
    crossings: (forward, backward) of all that crosses devices in the gap, in
      order; either may be None.
    gap: where the gap begins; it ends at `start`.
    start: where the box, or the text above and below it, begins.
    end: where they end.
  """

  box: Box
  window: float
  crossings: Sequence[Crossing]
  gap: float
  start: float
  end: float

  @property
  def middle(self) -> float:
    return (self.start + self.end) / 2

  @property
  def stages(self) -> list[tuple[plan_lib.Collective, float, float]]:
    """Each exchange on the way forward, with its part of the gap."""
    sends = [forward for forward, _ in self.crossings if forward]
    step = (self.start - self.gap) / max(len(sends), 1)
    return [
      (exchange, self.gap + index * step, self.gap + (index + 1) * step)
      for index, exchange in enumerate(sends)
    ]


def find_rows(layout: layout_lib.Layout) -> list[Row]:
  """One row per device, or per group of them where they are many.

  Axes that split no layer's features are the first that are not told apart,
  then the largest, until there are `MAX_ROWS`. Of a last axis that splits
  features, the first two places and the last one have rows.
  """
  splits = {
    axis
    for name in layout_lib.LAYERS
    for axis in layout.placement(name).features
  }
  told = [axis for axis, size in layout.mesh.items() if size > 1]
  while layout.size(told) > MAX_ROWS and (
    len(told) > 1 or told[0] not in splits
  ):
    told.remove(max(told, key=lambda a: (a not in splits, layout.mesh[a])))
  ranges = [range(layout.mesh[axis]) for axis in told]
  if layout.size(told) > MAX_ROWS:
    ranges = [(0, 1, layout.mesh[told[0]] - 1)]
  places = list(itertools.product(*map(range, layout.mesh.values())))
  rows = []
  for shown in itertools.product(*ranges):
    place = dict(zip(told, shown, strict=True))
    devices = tuple(
      number
      for number, at in enumerate(places)
      if place.items() <= dict(zip(layout.mesh, at, strict=True)).items()
    )
    rows.append(Row(place=place, devices=devices))
  return rows


def stand(
  rows: Sequence[Row], y: float, unit: float
) -> tuple[list[Row], float]:
  """Gives every row its place, from y on; returns where the last one ends."""
  height = unit * (1 + SLANT[1]) + 0.6
  stood = []
  for row, before in zip(rows, [None, *rows], strict=False):
    if before:
      y += 0.5 if is_gap(before, row) else 0.2
    stood.append(dataclasses.replace(row, y=y + height / 2, height=height))
    y += height
  return stood, y + 0.3


def is_gap(before: Row, row: Row) -> bool:
  """Whether there are devices between two rows that have none."""
  return len(row.place) == 1 and any(
    row.place[axis] > place + 1 for axis, place in before.place.items()
  )


def find_crossings(
  network: wiring.Network, plan: Sequence[plan_lib.Collective]
) -> dict[str, list[Crossing]]:
  """What crosses devices before each layer: [(forward, backward), ...].

  A sum belongs behind its layer, so before the next one, or before the loss.
  What crosses on the way back only stands first. The loss's own sums, of a few
  numbers, are left out.
  """
  names = [*(layer.name for layer in network.layers), LOSS]
  found = {name: [] for name in names}
  moved = [
    exchange
    for exchange in plan
    if exchange.tensor == plan_lib.ACTIVATION and exchange.images
  ]
  back = [each for each in moved if each.direction == plan_lib.BACKWARD]
  for exchange in moved:
    if exchange.direction == plan_lib.BACKWARD:
      continue
    name = exchange.layer
    if exchange.kind in SUMS:
      name = names[names.index(name) + 1]
    wanted = dataclasses.replace(
      exchange,
      direction=plan_lib.BACKWARD,
      kind=plan_lib.TRANSPOSES.get(exchange.kind, ""),
    )
    found[name].append((exchange, wanted if wanted in back else None))
    if wanted in back:
      back.remove(wanted)
  for exchange in back:
    found[exchange.layer].insert(0, (None, exchange))
  return found


def find_columns(
  network: wiring.Network,
  layout: layout_lib.Layout,
  plan: Sequence[plan_lib.Collective],
  *,
  x: float,
  unit: float,
) -> list[Column]:
  """The columns from the image to the last layer, or to the loss.

  Args:
    network: the network.
    layout: for the share that a device has of each layer.
    plan: its exchanges widen the gaps.
    x: where they begin.
    unit: height of the image.

  Returns:
    The columns, left to right.
  """
  crossings = find_crossings(network, plan)
  partial = {
    exchange.layer
    for exchange in plan
    if exchange.tensor == plan_lib.ACTIVATION
    and exchange.direction == plan_lib.FORWARD
    and exchange.kind in ("sum", "reduce_scatter")
  }
  sizes = network.sizes()
  shares = {IMAGE: (network.image_size, network.image_channels)}
  windows = {}
  for name, size in sizes.items():
    placement, features = layout.placement(name), size.kernel[-1]
    if name not in partial:
      features //= layout.size(placement.features)
    shares[name] = size.map_side, features
    windows[name] = network.layer(name).window / math.sqrt(size.positions)
  if crossings[LOSS]:
    shares[LOSS] = 1, network.layers[-1].features
  columns, gap = [], x
  for name, (side, features) in shares.items():
    most = max(
      size.kernel[-1]
      for size in sizes.values()
      if (size.map_side > 1) == (side > 1)
    )
    box = Box(
      layer=name,
      side=side,
      features=features,
      repeated=name in sizes and _repeats(layout, name),
      partial=name in sizes and name in partial,
      **_measures(side / network.image_size, features / most, side > 1, unit),
    )
    start = gap
    if name != IMAGE:
      sends = sum(forward is not None for forward, _ in crossings[name])
      start += sends * STAGE or (STAGE if crossings[name] else GAP)
    length = box.width + box.slant[0]
    room = max(length + 0.1, TEXT if side > 1 else UNITS_TEXT)
    columns.append(
      Column(
        box=dataclasses.replace(box, x=start + (room - length) / 2),
        window=windows.get(name, 0.0),
        crossings=crossings.get(name, ()),
        gap=gap,
        start=start,
        end=start + room,
      )
    )
    gap = start + room
  return columns


def _measures(
  side: float, features: float, is_map: bool, unit: float
) -> dict[str, float | Point]:
  """Width, height and slant of a box.

  Args:
    side: of the map, by that of the image.
    features: by the largest number of maps, or of units, in the network.
    is_map: whether it becomes a cuboid, or a slab.
    unit: height of the image.
  """
  height = unit * max((side if is_map else features) ** DAMPING, 0.2)
  if not is_map:
    return {"width": 0.13, "height": height, "slant": (0.07, 0.06)}
  return {
    "width": 0.6 * max(features**DAMPING, 0.08),
    "height": height,
    "slant": (SLANT[0] * height, SLANT[1] * height),
  }


def _repeats(layout: layout_lib.Layout, name: str) -> bool:
  placement = layout.placement(name)
  split = layout.size(placement.batch) * layout.size(placement.features)
  return split < layout.devices
