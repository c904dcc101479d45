"""What a picture of a split network shows, and where: inches, y downwards.

Computed from network, layout and plan alone. A row is a device, or a group of
devices along mesh axes that are not told apart; a column is a layer. Between
two columns lies a gap, and only there do arrows go from row to row.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib

IMAGE, LOSS = "image", "loss"
SUMS = ("sum", "reduce_scatter")
MAX_ROWS = 4

MARGIN = 0.3
HEADS = 1.75  # width of the rows' names and the table's heads, on the left
LINE = 0.155  # from one line of text to the next
GAP, CROSSED_GAP = 0.42, 0.7  # the second for each exchange
SLANT = (0.3, 0.26)  # of a cuboid's third edge, by its height
DAMPING = 0.45  # sizes are drawn by this power, or small ones would vanish


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
  """One line of text; `y` is its middle, `tone` is a kind, `ink` or `quiet`."""

  x: float
  y: float
  text: str
  align: str = "center"
  size: float = 8.5
  bold: bool = False
  tone: str = "ink"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One device, or the devices along all axes that are not in `place`.

  Attributes:
    place: mesh axis -> position along it, for the axes that are told apart.
    devices: their numbers, counted through the mesh, slowest axis first.
    y: its middle.
    height: of the card.
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
    slant: from a corner of the front right and up to one of the back.
  """

  row: int
  layer: str
  side: int
  features: int
  repeated: bool
  partial: bool
  x: float
  y: float
  width: float
  height: float
  slant: tuple[float, float]

  @property
  def reach(self) -> float:
    """From the middle to the top or the bottom."""
    return (self.height + self.slant[1]) / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrow:
  """Part of an exchange: from row to row, or from its label to the rows."""

  layer: str
  kind: str
  axes: tuple[str, ...]
  source: int
  target: int
  start: tuple[float, float]
  end: tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
  """What a layer reads of its own row: dashes from some points to one."""

  starts: tuple[tuple[float, float], ...]
  end: tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
  """A sign of its own: `plus` (a sum ends here), `loop` (an exchange inside
  the group of a row), `swatch`; in the legend also `arrow`, `link`,
  `repeated` and `partial`."""

  sign: str
  kind: str
  x: float
  y: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
  """All that is drawn. `rules` are the heights of horizontal lines."""

  width: float
  height: float
  rows: tuple[Row, ...]
  boxes: tuple[Box, ...]
  links: tuple[Link, ...]
  arrows: tuple[Arrow, ...]
  leaders: tuple[Arrow, ...]
  marks: tuple[Mark, ...]
  rules: tuple[float, ...]
  labels: tuple[Label, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Crossing:
  """An exchange of an activation with its way back; either may be None."""

  forward: plan_lib.Exchange | None
  backward: plan_lib.Exchange | None

  def lines(self) -> list[Label]:
    """Its label, at the origin."""
    texts = []
    if self.forward:
      kind = self.forward.kind
      texts = [
        *_over(self.forward),
        f"{self.forward.elements_per_image:,} per image",
        to_text(self.forward.sent_bytes),
      ]
      if self.backward:
        texts.append(f"back: {hyphened(self.backward.kind)}")
    else:
      kind = self.backward.kind
      texts = ["on the way back", *_over(self.backward)]
    if self.backward:
      texts.append(to_text(self.backward.sent_bytes))
    head = Label(x=0, y=0, text=hyphened(kind), bold=True, tone=kind)
    return [head, *(Label(x=0, y=0, text=text) for text in texts)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Column:
  """A layer's place: the gap before it, then its boxes from x to x + width."""

  name: str
  gap: float
  x: float
  width: float
  crossings: tuple[_Crossing, ...]

  @property
  def middle(self) -> float:
    return self.x + self.width / 2

  @property
  def stages(self) -> list[plan_lib.Exchange]:
    return [crossing.forward for crossing in self.crossings if crossing.forward]
