"""What a picture of a split network shows, and where: inches, y downwards.

Computed from network, layout and plan alone, around the rows and columns of
`grid.py`. From top to bottom: a title; what crosses devices, in words, each
above its gap; the layers' names; a card per row; a table of what belongs to
single layers; a legend; a total.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

from alexnet_jax.inspect import captions, grid
from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib

MARGIN = 0.3
HEADS = 1.7  # width of the rows' names and the table's heads, on the left
INDENT = 0.15  # of these
LINE = 0.155  # from one line of text to the next
NOTE = 0.08  # above the words on an exchange


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
class Arrow:
  """Part of an exchange of a layer, from one row to another."""

  layer: str
  kind: str
  axes: tuple[str, ...]
  source: int
  target: int
  start: grid.Point
  end: grid.Point


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
  """What a layer reads of its own row: dashes from some points to one."""

  starts: tuple[grid.Point, ...]
  end: grid.Point


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
  """A small sign.

  `plus`: a sum ends here. `loop`: an exchange inside the group of a row.
  `leader`: from a label, `length` downwards, to its arrows. `swatch`: a spot
  of color. In the legend also `arrow`, `link`, `repeated` and `partial`.
  """

  sign: str
  x: float
  y: float
  kind: str = "quiet"
  length: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
  """All that is drawn; `rules` are the heights of horizontal lines."""

  width: float
  height: float
  rows: tuple[grid.Row, ...]
  boxes: tuple[grid.Box, ...]
  links: tuple[Link, ...]
  arrows: tuple[Arrow, ...]
  marks: tuple[Mark, ...]
  rules: tuple[float, ...]
  labels: tuple[Label, ...]


def make_scene(
  network: wiring.Network,
  layout: layout_lib.Layout,
  plan: Sequence[plan_lib.Collective],
  *,
  batch_size: int,
) -> Scene:
  """Arranges the picture, from top to bottom.

  Args:
    network: the network.
    layout: a layout that `check.check` has accepted for it.
    plan: what `plan.make_plan` lists for the two.
    batch_size: images in a step, over all devices.

  Returns:
    The scene.
  """
  rows = grid.find_rows(layout)
  unit = 0.95 if len(rows) < 3 else 0.72
  columns = grid.find_columns(
    network, layout, plan, x=MARGIN + HEADS, unit=unit
  )
  width = max(columns[-1].end + 0.2 + MARGIN, 9.5)
  name, source = captions.title(network, layout, batch_size)
  labels = [
    Label(x=MARGIN, y=0.38, text=name, align="left", size=15, bold=True),
    Label(x=MARGIN, y=0.66, text=source, align="left", size=9.5, tone="quiet"),
  ]
  marks, boxes, links, arrows = [], [], [], []

  notes_end = 0.9 + max(map(_notes_height, columns))
  heads = notes_end + 0.2
  rows, table_start = grid.stand(rows, heads + 0.55, unit)
  cards = rows[0].y - rows[0].height / 2
  for column in columns:
    words, leaders = _notes(column, notes_end, cards)
    labels += [*words, *_head(network, column, heads)]
    marks += leaders
  if marks:
    y = notes_end - LINE * len(captions.NOTES)
    labels += _stack(MARGIN, y, captions.NOTES, align="left")

  for index, row in enumerate(rows):
    labels += _name(layout, row)
    before = None
    for column in columns:
      box = dataclasses.replace(column.box, row=index, y=row.y)
      boxes.append(box)
      labels += _sizes(box, column.middle)
      if before:
        links.append(_link(column, before, box))
      before = box
      for stage in column.stages:
        arrows += _arrows(stage, rows, index)
        marks += _signs(stage, row)
  labels += _likewise(rows)

  y, rules = table_start, []
  for entry in captions.table(network, layout, plan, batch_size):
    rules.append(y)
    height = 0.1 + LINE * len(entry.head)
    entry_labels, entry_marks = _entry(entry, columns, y, height)
    labels, marks = labels + entry_labels, marks + entry_marks
    y += height
  rules.append(y)
  legend_labels, legend_marks, y = _legend(
    boxes, arrows, marks, y + 0.25, width
  )
  y += 0.28
  labels.append(
    Label(x=MARGIN, y=y, text=captions.total(plan), align="left", bold=True)
  )
  return Scene(
    width=width,
    height=y + MARGIN,
    rows=tuple(rows),
    boxes=tuple(boxes),
    links=tuple(links),
    arrows=tuple(arrows),
    marks=(*marks, *legend_marks),
    rules=tuple(rules),
    labels=(*labels, *legend_labels),
  )


def _stack(
  x: float,
  y: float,
  texts: Iterable[str],
  *,
  tone: str = "ink",
  ink: str = "",
  align: str = "center",
) -> list[Label]:
  """Lines below each other; the first is bold and has a tone of its own.

  The others are quiet, but for those equal to `ink`.
  """
  labels = []
  for index, text in enumerate(texts):
    if index:
      tone = "ink" if text == ink else "quiet"
    middle = y + LINE * (index + 0.5)
    labels.append(
      Label(x=x, y=middle, text=text, align=align, bold=not index, tone=tone)
    )
  return labels


def _notes_height(column: grid.Column) -> float:
  notes = [captions.crossing(*crossing) for crossing in column.crossings]
  return sum(NOTE + LINE * len(lines) for lines in notes)


def _notes(
  column: grid.Column, end: float, leaders_end: float
) -> tuple[list[Label], list[Mark]]:
  """What crosses in a column's gap, in words above a height.

  The words of each exchange stand above its part of the gap, those of a later
  one below those of an earlier one, so that all leaders have a free way down.
  """
  labels, marks, y = [], [], end - _notes_height(column)
  stages = {stage: (x + to) / 2 for stage, x, to in column.stages}
  for forward, backward in column.crossings:
    lines = captions.crossing(forward, backward)
    exchange = forward or backward
    kind, sent = exchange.kind, captions.to_text(exchange.sent_bytes)
    x = stages.get(forward, (column.gap + column.start) / 2)
    labels += _stack(x, y + NOTE, lines, tone=kind, ink=sent)
    y += NOTE + LINE * len(lines)
    if forward:
      length = leaders_end - y
      marks.append(Mark(sign="leader", kind=kind, x=x, y=y, length=length))
  return labels, marks


def _head(
  network: wiring.Network, column: grid.Column, y: float
) -> list[Label]:
  name = column.box.layer
  texts = {grid.IMAGE: ["image"], grid.LOSS: ["logits"]}.get(name)
  return _stack(column.middle, y, texts or captions.layer(network.layer(name)))


def _name(layout: layout_lib.Layout, row: grid.Row) -> list[Label]:
  hidden = {
    axis: size
    for axis, size in layout.mesh.items()
    if size > 1 and axis not in row.place
  }
  texts = captions.device(row.place, row.devices, hidden)
  y = row.y - LINE * len(texts) / 2
  return _stack(MARGIN + INDENT, y, texts, align="left")


def _likewise(rows: Sequence[grid.Row]) -> list[Label]:
  """A line between two rows for those that are not shown."""
  return [
    Label(
      x=MARGIN + INDENT,
      y=(before.y + row.y) / 2,
      text=captions.likewise(before.place, row.place),
      align="left",
      tone="quiet",
    )
    for before, row in itertools.pairwise(rows)
    if grid.is_gap(before, row)
  ]


def _sizes(box: grid.Box, x: float) -> list[Label]:
  """The side of a map above its box, the number of maps or units below."""
  texts = [(0.12, captions.features(box.layer, box.side, box.features))]
  if box.side > 1:
    texts.append((-0.12, f"{box.side} × {box.side}"))
  return [
    Label(x=x, y=box.y + math.copysign(box.reach, far) + far, text=text)
    for far, text in texts
  ]


def _link(column: grid.Column, before: grid.Box, box: grid.Box) -> Link:
  """From a box to the next one; from a window in it to a convolution."""
  starts = before.window(0.0)[:1]
  if column.window:
    starts = before.window(min(max(column.window, 0.3), 0.7))
  return Link(starts=starts, end=(box.x, box.y))


def _arrows(
  stage: tuple[plan_lib.Collective, float, float],
  rows: Sequence[grid.Row],
  index: int,
) -> list[Arrow]:
  """What one row receives in one exchange."""
  exchange, x, to = stage
  target = rows[index]
  return [
    Arrow(
      layer=exchange.layer,
      kind=exchange.kind,
      axes=exchange.axes,
      source=source,
      target=index,
      start=(x, row.y),
      end=(to, target.y),
    )
    for source, row in enumerate(rows)
    if source != index
    and all(
      axis in exchange.axes or target.place[axis] == place
      for axis, place in row.place.items()
    )
  ]


def _signs(
  stage: tuple[plan_lib.Collective, float, float], row: grid.Row
) -> list[Mark]:
  exchange, x, to = stage
  kind, marks = exchange.kind, []
  if not set(exchange.axes) <= set(row.place):
    x = (x + to) / 2 - 0.12
    marks.append(Mark(sign="loop", kind=kind, x=x, y=row.y - 0.04, length=0.24))
  if kind in grid.SUMS:
    marks.append(Mark(sign="plus", kind=kind, x=to, y=row.y))
  return marks


def _entry(
  entry: captions.Entry, columns: Sequence[grid.Column], y: float, height: float
) -> tuple[list[Label], list[Mark]]:
  """A row of the table: its head on the left, a cell under each layer."""
  middle = y + height / 2
  x, top = MARGIN + INDENT, middle - LINE * len(entry.head) / 2
  labels = [
    Label(x=x, y=top + LINE * (index + 0.5), text=text, align="left")
    for index, text in enumerate(entry.head)
  ]
  marks = []
  for column in columns:
    if column.box.layer in entry.cells:
      text = entry.cells[column.box.layer]
      labels.append(Label(x=column.middle, y=middle, text=text))
  if entry.kind:
    marks.append(
      Mark(sign="swatch", kind=entry.kind, x=MARGIN, y=middle, length=0.08)
    )
  return labels, marks


def _legend(
  boxes: Sequence[grid.Box],
  arrows: Sequence[Arrow],
  marks: Sequence[Mark],
  y: float,
  width: float,
) -> tuple[list[Label], list[Mark], float]:
  """The signs that occur, with their meaning; returns the last line's y."""
  entries = [("link", "quiet")]
  kinds = [each.kind for each in (*arrows, *marks) if each.kind != "quiet"]
  for kind in dict.fromkeys(kinds):
    drawn = any(arrow.kind == kind for arrow in arrows)
    entries.append(("arrow" if drawn else "swatch", kind))
  for sign, occurs in (
    ("loop", any(mark.sign == "loop" for mark in marks)),
    ("partial", any(box.partial for box in boxes)),
    ("repeated", any(box.repeated for box in boxes)),
  ):
    entries += [(sign, "quiet")] if occurs else []
  labels, legend_marks, x = [], [], MARGIN
  for sign, kind in entries:
    text = captions.SIGNS.get(sign) or captions.named(kind)
    length = {"swatch": 0.08, "loop": 0.24}.get(sign, 0.36)
    end = x + length + 0.1 + 0.067 * len(text)
    if end > width - MARGIN:
      x, y, end = MARGIN, y + 0.25, MARGIN + end - x
    at = y + 0.06 if sign == "loop" else y
    legend_marks.append(Mark(sign=sign, kind=kind, x=x, y=at, length=length))
    labels.append(Label(x=x + length + 0.1, y=y, text=text, align="left"))
    x = end + 0.3
  return labels, legend_marks, y
