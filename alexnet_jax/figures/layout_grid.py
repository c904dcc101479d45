"""Finds the rows and columns of the picture, and the exchanges between them.

A row is a device, or a group of devices if there are many; a column is a layer,
with the shard of it that one device has. Between two columns there is a gap, in
which exchanges go from row to row. In inches, y downwards.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from alexnet_jax.figures import hosts as hosts_lib
from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib

IMAGE, LOSS = "image", "loss"
SUMS = ("sum", "reduce_scatter")
MAX_ROWS = 4

TEXT, UNITS_TEXT = 0.62, 0.46  # width of the text above and below maps, units
FRAME = (0.3, 0.16)  # inside the frame of a host, above and below its rows
GAP, STAGE = 0.45, 0.75  # between columns: without exchange, for each exchange
SLANT = (0.3, 0.26)  # of a cuboid's third edge, relative to its height
DAMPING = 0.4  # sizes are drawn to this power, or small ones would vanish

Point = tuple[float, float]
# The exchanges of an activation, forward and backward; either may be None.
Crossing = tuple[plan_lib.Collective | None, plan_lib.Collective | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One device, or the devices along all axes that are not in `position`.

  Attributes:
    position: mesh axis -> index along it, for the axes that rows distinguish.
    devices: their numbers, counted through the mesh, slowest axis first.
    hosts: on which they are; () if hosts are not shown. Those of two rows are
      the same or all different.
    y: its middle.
    height: of its card.
  """

  position: Mapping[str, int]
  devices: tuple[int, ...]
  hosts: tuple[int, ...] = ()
  y: float = 0.0
  height: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
  """One device's shard of the output of one layer.

  Attributes:
    layer: its name, `image`, or `loss` for the logits that the loss reads.
    side: of the map in pixels, drawn as a cuboid; 1 for units, drawn as a slab.
    features: maps or units on this device.
    complete: maps or units on all devices.
    repeated: whether several devices compute the same.
    partial: whether the values are partial sums.
    x: left edge of the front; width and height are of the front, too.
    y: middle, slanted edge included.
    slant: from a corner of the front, right and up to one of the back.
  """

  row: int = 0
  layer: str
  side: int
  features: int
  complete: int
  repeated: bool = False
  partial: bool = False
  x: float = 0.0
  y: float = 0.0
  width: float
  height: float
  slant: Point

  @property
  def reach(self) -> float:
    """The distance from the middle to the top and to the bottom."""
    return (self.height + self.slant[1]) / 2

  def window(self, size: float) -> tuple[Point, ...]:
    """Returns the corners of a window in the middle of the right face."""
    x = self.x + self.width + self.slant[0] / 2
    right, up = (size / 2 * length for length in self.slant)
    half = size / 2 * self.height
    return (
      (x - right, self.y + up - half),
      (x - right, self.y + up + half),
      (x + right, self.y - up + half),
      (x + right, self.y - up - half),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
  """The gap before a layer's box, and the box.

  Attributes:
    box: of any row; row and y are to be replaced.
    window: side of the layer's window relative to the map that it reads, in
      [0, 1]; 0 if it has none.
    crossings: the exchanges in the gap, in order.
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
    """Each exchange of the forward pass, with its part of the gap."""
    forward = [forward for forward, _ in self.crossings if forward]
    step = (self.start - self.gap) / max(len(forward), 1)
    return [
      (exchange, self.gap + index * step, self.gap + (index + 1) * step)
      for index, exchange in enumerate(forward)
    ]


def find_rows(
  network: wiring.Network,
  layout: layout_lib.Layout,
  hosts: hosts_lib.Hosts | None = None,
) -> list[Row]:
  """Finds the rows: one per device, or per group of devices if they are many.

  While there are more than `MAX_ROWS`, rows stop distinguishing axes: first
  those that split no layer's features, then the largest. Of a single axis that
  splits features, the first two positions and the last one have rows.

  Args:
    layout: from `plan.choose_placements`: without `features`.
    hosts: their rows stand together.
  """
  feature_axes = {
    axis
    for placement in map(layout.placement, network.layers)
    for axis in placement.outputs + placement.inputs
  }
  axes = [axis for axis, size in layout.mesh.items() if size > 1]
  while layout.size(axes) > MAX_ROWS and (
    len(axes) > 1 or axes[0] not in feature_axes
  ):
    axes.remove(
      max(axes, key=lambda a: (a not in feature_axes, layout.mesh[a]))
    )
  ranges = [range(layout.mesh[axis]) for axis in axes]
  if layout.size(axes) > MAX_ROWS:
    ranges = [(0, 1, layout.mesh[axes[0]] - 1)]
  devices = [
    dict(zip(layout.mesh, indices, strict=True))
    for indices in itertools.product(*map(range, layout.mesh.values()))
  ]
  rows = []
  for indices in itertools.product(*ranges):
    position = dict(zip(axes, indices, strict=True))
    numbers = tuple(
      number
      for number, device in enumerate(devices)
      if position.items() <= device.items()
    )
    rows.append(
      Row(
        position=position,
        devices=numbers,
        hosts=hosts.find(position) if hosts else (),
      )
    )
  return sorted(rows, key=lambda row: row.hosts)


def arrange_rows(
  rows: Sequence[Row], y: float, unit: float
) -> tuple[list[Row], float]:
  """Gives every row its y and height; returns where the last one ends, too."""
  height = unit * (1 + SLANT[1]) + 0.6
  arranged = []
  for row, before in zip(rows, [None, *rows], strict=False):
    if before:
      y += 0.5 if is_gap(before, row) else 0.2
      y += FRAME[1] if row.hosts != before.hosts else 0.0
    if row.hosts and (not before or row.hosts != before.hosts):
      y += FRAME[0]
    arranged.append(dataclasses.replace(row, y=y + height / 2, height=height))
    y += height
  return arranged, y + 0.3 + (FRAME[1] if rows[0].hosts else 0.0)


def is_gap(before: Row, row: Row) -> bool:
  """Whether there are devices without a row between two rows."""
  return len(row.position) == 1 and any(
    row.position[axis] > index + 1 for axis, index in before.position.items()
  )


def find_crossings(
  network: wiring.Network, plan: Sequence[plan_lib.Collective]
) -> dict[str, list[Crossing]]:
  """Finds the exchanges of activations before each layer, and before the loss.

  A sum belongs behind its layer, so before the next one, or before the loss.
  Exchanges of the backward pass alone come first. The sums of the loss itself
  are left out.
  """
  names = [*(layer.name for layer in network.layers), LOSS]
  crossings = {name: [] for name in names}
  exchanges = [
    exchange
    for exchange in plan
    if exchange.tensor == plan_lib.ACTIVATION and exchange.images
  ]
  backward = [e for e in exchanges if e.direction == plan_lib.BACKWARD]
  for exchange in exchanges:
    if exchange.direction == plan_lib.BACKWARD:
      continue
    name = exchange.layer
    if exchange.kind in SUMS:
      name = names[names.index(name) + 1]
    transpose = dataclasses.replace(
      exchange,
      direction=plan_lib.BACKWARD,
      kind=plan_lib.TRANSPOSES.get(exchange.kind, ""),
    )
    if transpose in backward:
      backward.remove(transpose)
    else:
      transpose = None
    crossings[name].append((exchange, transpose))
  for exchange in backward:
    crossings[exchange.layer].insert(0, (None, exchange))
  return crossings


def find_columns(
  network: wiring.Network,
  layout: layout_lib.Layout,
  plan: Sequence[plan_lib.Collective],
  *,
  widths: Mapping[str, float],
  x: float,
  unit: float,
) -> list[Column]:
  """Finds the columns from the image to the last layer, or to the loss.

  Args:
    layout: from `plan.choose_placements`: without `features`.
    plan: its exchanges widen the gaps.
    widths: of the texts above the boxes of some columns; they widen the gaps.
    x: where the columns begin.
    unit: height of the image.
  """
  crossings = find_crossings(network, plan)
  partial = {
    exchange.layer
    for exchange in plan
    if exchange.tensor == plan_lib.ACTIVATION
    and exchange.direction == plan_lib.FORWARD
    and exchange.kind in SUMS
  }
  sizes = network.sizes()
  channels = network.image_channels
  shards = {IMAGE: (network.image_size, channels, channels)}
  windows, repeated = {}, set()
  for layer in network.layers:
    name, size = layer.name, sizes[layer.name]
    placement, features = layout.placement(layer), size.kernel[-1]
    features //= layout.size(placement.outputs)
    if layout.size(placement.axes) < layout.devices:
      repeated.add(name)
    shards[name] = size.map_side, features, size.kernel[-1]
    windows[name] = layer.window / math.sqrt(size.positions)
  if crossings[LOSS]:
    shards[LOSS] = 1, *[network.layers[-1].features] * 2
  columns, gap = [], x
  for name, (side, features, complete) in shards.items():
    most = max(
      size.kernel[-1]
      for size in sizes.values()
      if (size.map_side > 1) == (side > 1)
    )
    box = Box(
      layer=name,
      side=side,
      features=features,
      complete=complete,
      repeated=name in repeated,
      partial=name in sizes and name in partial,
      **_measure(side / network.image_size, features / most, side > 1, unit),
    )
    start = gap
    if name != IMAGE:
      sends = sum(forward is not None for forward, _ in crossings[name])
      start += sends * STAGE or (STAGE if crossings[name] else GAP)
    length = box.width + box.slant[0]
    room = max(length + 0.1, TEXT if side > 1 else UNITS_TEXT)
    if columns:
      before = columns[-1]
      apart = (widths.get(before.box.layer, 0) + widths.get(name, 0)) / 2
      start = max(start, before.middle + apart + 0.06 - room / 2)
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


def _measure(
  side: float, features: float, is_map: bool, unit: float
) -> dict[str, float | Point]:
  """Returns width, height and slant of a box.

  Args:
    side: of the map, relative to that of the image.
    features: relative to the largest number of maps, or of units.
    is_map: draw a cuboid, not a slab.
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
