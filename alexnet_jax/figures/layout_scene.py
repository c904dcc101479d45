"""Arranges the picture of a layout: what it shows and where.

Computed from network, layout and plan alone, around the rows and columns of
`grid.py`. From top to bottom: a title; the exchanges in words, each above its
gap; the layers' names; a card per row; a table of what belongs to single
layers; a legend; a total. With hosts, a frame around the cards of each, and
what crosses hosts is wider. In inches, y downwards.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from alexnet_jax.figures import hosts as hosts_lib
from alexnet_jax.figures import layout_captions as captions
from alexnet_jax.figures import layout_grid as grid
from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib

MARGIN = 0.3
HEADERS = 1.7  # width of the headers of rows and table, on the left
INDENT = 0.15  # of these
LINE = 0.155  # from one line of text to the next
NOTE = 0.08  # above the words on an exchange


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
  """One line of text around `y`; `tone` is a kind, `ink` or `quiet`."""

  x: float
  y: float
  text: str
  align: str = "center"
  size: float = 8.5
  bold: bool = False
  tone: str = "ink"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrow:
  """The part of an exchange of a layer from one row to another.

  `crosses`: from one host to another.
  """

  layer: str
  kind: str
  axes: tuple[str, ...]
  source: int
  target: int
  start: grid.Point
  end: grid.Point
  crosses: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
  """What a layer reads from its own row: dashes from some points to one."""

  starts: tuple[grid.Point, ...]
  end: grid.Point


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
  """A small sign.

  `plus`: a sum ends here. `loop`: an exchange within the group of a row.
  `leader`: from a label, `length` downwards, to its arrows. `swatch`: a spot
  of color. The legend also has `arrow`, `link`, `repeated`, `partial` and
  `crossing`. `crosses`: it is of an exchange between hosts.
  """

  sign: str
  x: float
  y: float
  kind: str = "quiet"
  length: float = 0.0
  crosses: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
  """A frame around the cards of a host, or of several that are the same."""

  y: float  # of its top
  height: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
  """Everything that is drawn; `rules` are the y of horizontal lines."""

  width: float
  height: float
  rows: tuple[grid.Row, ...]
  boxes: tuple[grid.Box, ...]
  links: tuple[Link, ...]
  arrows: tuple[Arrow, ...]
  marks: tuple[Mark, ...]
  rules: tuple[float, ...]
  frames: tuple[Frame, ...]
  labels: tuple[Label, ...]


def make_scene(
  network: wiring.Network,
  layout: layout_lib.Layout,
  plan: Sequence[plan_lib.Collective],
  *,
  batch_size: int,
  hosts: hosts_lib.Hosts | None = None,
) -> Scene:
  """Arranges the picture, from top to bottom; arguments as for `draw.draw`."""
  rows = grid.find_rows(network, layout, hosts)
  unit = 0.95 if len(rows) < 3 else 0.72
  headers = {
    name: captions.layer(network, name)
    for name in (grid.IMAGE, *network.sizes(), grid.LOSS)
  }
  columns = grid.find_columns(
    *(network, layout, plan),
    widths={name: _width(*lines) for name, lines in headers.items()},
    x=MARGIN + HEADERS,
    unit=unit,
  )
  name, source = captions.title(network, layout, batch_size, hosts)
  total = captions.total(plan)
  width = max(
    columns[-1].end + 0.2 + MARGIN,
    9.5,
    2 * MARGIN + captions.width(total, bold=True),
  )
  parts = [
    Label(x=MARGIN, y=0.38, text=name, align="left", size=15, bold=True),
    Label(x=MARGIN, y=0.66, text=source, align="left", size=9.5, tone="quiet"),
  ]

  notes_end = 0.9 + max(_notes_height(column, hosts) for column in columns)
  names_start = notes_end + 0.2
  names_end = names_start + LINE * max(
    len(names) + len(texts) for names, texts in headers.values()
  )
  rows, table_start = grid.arrange_rows(rows, names_end + 0.085, unit)
  cards_start = rows[0].y - rows[0].height / 2
  for column in columns:
    parts += _notes(column, notes_end, cards_start, hosts)
    names, texts = headers[column.box.layer]
    header = [*names, *texts]
    parts += _stack(column.middle, names_start, header, bold=len(names))
  if any(isinstance(part, Mark) for part in parts):
    y = notes_end - LINE * len(captions.NOTES)
    parts += _stack(MARGIN, y, captions.NOTES, align="left")

  boxes = []
  for index, row in enumerate(rows):
    parts += _row_header(layout, row)
    before = None
    for column in columns:
      box = dataclasses.replace(column.box, row=index, y=row.y)
      boxes.append(box)
      parts += _sizes(box, column.middle)
      if before:
        parts.append(_link(column, before, box))
      before = box
      for stage in column.stages:
        parts += [*_arrows(stage, rows, index), *_signs(stage, row, hosts)]
  parts += [*_gap_labels(rows), *_frames(rows, hosts)]

  y, rules = table_start, []
  for entry in captions.table(network, layout, plan, batch_size, hosts):
    rules.append(y)
    height = 0.1 + LINE * len(entry.header)
    parts += _entry(entry, columns, y + height / 2)
    y += height
  rules.append(y)
  legend, y = _legend(boxes, parts, y + 0.25, width, hosts)
  y += 0.28
  parts.append(Label(x=MARGIN, y=y, text=total, align="left", bold=True))
  parts += legend
  labels, links, arrows, marks, frames = (
    tuple(part for part in parts if isinstance(part, kind))
    for kind in (Label, Link, Arrow, Mark, Frame)
  )
  return Scene(
    width=width,
    height=y + MARGIN,
    rows=tuple(rows),
    boxes=tuple(boxes),
    links=links,
    arrows=arrows,
    marks=marks,
    rules=tuple(rules),
    frames=frames,
    labels=labels,
  )


def _stack(
  x: float,
  y: float,
  texts: Iterable[str],
  *,
  tone: str = "ink",
  emphasized: str = "",
  align: str = "center",
  bold: int = 1,
) -> list[Label]:
  """Stacks lines of text; the first `bold` ones are bold and have the tone.

  The others are quiet, except those equal to `emphasized`.
  """
  labels = []
  for index, text in enumerate(texts):
    is_bold = index < bold
    if not is_bold:
      tone = "ink" if text == emphasized else "quiet"
    middle = y + LINE * (index + 0.5)
    labels.append(
      Label(x=x, y=middle, text=text, align=align, bold=is_bold, tone=tone)
    )
  return labels


def _width(bold: Iterable[str], others: Iterable[str]) -> float:
  """Estimates the width of a stack of lines, in inches."""
  return max(
    *(captions.width(text, bold=True) for text in bold),
    *map(captions.width, others),
    0.0,
  )


def _notes_height(column: grid.Column, hosts: hosts_lib.Hosts | None) -> float:
  notes = [captions.crossing(*crossing, hosts) for crossing in column.crossings]
  return sum(NOTE + LINE * len(lines) for lines in notes)


def _notes(
  column: grid.Column,
  end: float,
  leaders_end: float,
  hosts: hosts_lib.Hosts | None,
) -> Iterator[Label | Mark]:
  """Describes the exchanges in a column's gap, down to y = `end`.

  The words of each exchange are above its part of the gap, those of a later
  one below those of an earlier one, so that no leader crosses words.
  """
  y = end - _notes_height(column, hosts)
  stages = {stage: (x + to) / 2 for stage, x, to in column.stages}
  for forward, backward in column.crossings:
    texts = captions.crossing(forward, backward, hosts)
    exchange = forward or backward
    kind, sent = exchange.kind, captions.to_text(exchange.sent_bytes)
    x = stages.get(forward, (column.gap + column.start) / 2)
    yield from _stack(x, y + NOTE, texts, tone=kind, emphasized=sent)
    y += NOTE + LINE * len(texts)
    if forward:
      length = leaders_end - y
      yield Mark(sign="leader", kind=kind, x=x, y=y, length=length)


def _row_header(layout: layout_lib.Layout, row: grid.Row) -> list[Label]:
  group = {
    axis: size
    for axis, size in layout.mesh.items()
    if size > 1 and axis not in row.position
  }
  texts = captions.devices(row.position, row.devices, group)
  y = row.y - LINE * len(texts) / 2
  return _stack(MARGIN + INDENT, y, texts, align="left")


def _gap_labels(rows: Sequence[grid.Row]) -> list[Label]:
  """Makes a line between two rows for the devices without a row."""
  return [
    Label(
      x=MARGIN + INDENT,
      y=(before.y + row.y) / 2,
      text=captions.gap(before.position, row.position),
      align="left",
      tone="quiet",
    )
    for before, row in itertools.pairwise(rows)
    if grid.is_gap(before, row)
  ]


def _frames(
  rows: Sequence[grid.Row], hosts: hosts_lib.Hosts | None
) -> Iterator[Frame | Label]:
  """Makes a frame around the rows of each host, with its name."""
  if hosts is None:
    return
  above, below = grid.FRAME
  for numbers, of_host in itertools.groupby(rows, key=lambda row: row.hosts):
    together = list(of_host)
    first, last = together[0], together[-1]
    y = first.y - first.height / 2 - above + 0.02
    end = last.y + last.height / 2 + below
    yield Frame(y=y, height=end - y)
    text = captions.frame(hosts, numbers)
    x, y = MARGIN + INDENT, y + 0.14
    yield Label(x=x, y=y, text=text, align="left", bold=True)


def _sizes(box: grid.Box, x: float) -> list[Label]:
  """Puts the side of a map above its box, the number of features below."""
  below = captions.features(box.layer, box.side, box.features, box.complete)
  texts = [
    (0.12 + LINE * index, text, "quiet" if index else "ink")
    for index, text in enumerate(below)
  ]
  if box.side > 1:
    texts.append((-0.12, f"{box.side} × {box.side}", "ink"))
  return [
    Label(
      x=x, y=box.y + math.copysign(box.reach, far) + far, text=text, tone=tone
    )
    for far, text, tone in texts
  ]


def _link(column: grid.Column, before: grid.Box, box: grid.Box) -> Link:
  """Links a box, or a window in it for a convolution, to the next box."""
  starts = before.window(0.0)[:1]
  if column.window:
    starts = before.window(min(max(column.window, 0.3), 0.7))
  return Link(starts=starts, end=(box.x, box.y))


def _arrows(
  stage: tuple[plan_lib.Collective, float, float],
  rows: Sequence[grid.Row],
  index: int,
) -> list[Arrow]:
  """Makes an arrow for each row from which a row receives in one exchange."""
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
      crosses=row.hosts != target.hosts,
    )
    for source, row in enumerate(rows)
    if source != index
    and all(
      axis in exchange.axes or target.position[axis] == index
      for axis, index in row.position.items()
    )
  ]


def _signs(
  stage: tuple[plan_lib.Collective, float, float],
  row: grid.Row,
  hosts: hosts_lib.Hosts | None,
) -> Iterator[Mark]:
  exchange, x, to = stage
  kind = exchange.kind
  if inside := set(exchange.axes) - set(row.position):
    yield Mark(
      sign="loop",
      kind=kind,
      x=(x + to) / 2 - 0.12,
      y=row.y - 0.04,
      length=0.24,
      crosses=hosts is not None and hosts.cross(inside),
    )
  if kind in grid.SUMS:
    yield Mark(sign="plus", kind=kind, x=to, y=row.y)


def _entry(
  entry: captions.Entry, columns: Sequence[grid.Column], y: float
) -> Iterator[Label | Mark]:
  """Makes a row of the table: its header on the left, cells below layers."""
  top = y - LINE * len(entry.header) / 2
  for label in _stack(MARGIN + INDENT, top, entry.header, align="left"):
    yield dataclasses.replace(label, bold=False, tone="ink")
  for column in columns:
    if text := entry.cells.get(column.box.layer):
      yield Label(x=column.middle, y=y, text=text)
  if entry.kind:
    yield Mark(sign="swatch", kind=entry.kind, x=MARGIN, y=y, length=0.08)


def _legend(
  boxes: Sequence[grid.Box],
  parts: Sequence[Label | Link | Arrow | Mark],
  y: float,
  width: float,
  hosts: hosts_lib.Hosts | None,
) -> tuple[list[Label | Mark], float]:
  """Explains the signs that occur; returns the last line's y, too."""
  arrows = [part for part in parts if isinstance(part, Arrow)]
  marks = [part for part in parts if isinstance(part, Mark)]
  entries = [("link", "quiet")]
  drawn = {arrow.kind for arrow in arrows}
  for kind in dict.fromkeys(each.kind for each in (*arrows, *marks)):
    if kind != "quiet":
      entries.append(("arrow" if kind in drawn else "swatch", kind))
  for sign, occurs in (
    ("loop", any(mark.sign == "loop" for mark in marks)),
    ("partial", any(box.partial for box in boxes)),
    ("repeated", any(box.repeated for box in boxes)),
    ("crossing", any(part.crosses for part in (*arrows, *marks))),
  ):
    entries += [(sign, "quiet")] if occurs else []
  legend, x = [], MARGIN
  for sign, kind in entries:
    text = captions.SIGNS.get(sign) or captions.to_kind(kind)
    text = hosts.between_word if sign == "crossing" else text
    length = {"swatch": 0.08, "loop": 0.24}.get(sign, 0.36)
    end = x + length + 0.1 + 0.067 * len(text)
    if end > width - MARGIN:
      x, y, end = MARGIN, y + 0.25, MARGIN + end - x
    at = y + 0.06 if sign == "loop" else y
    legend += [
      Mark(sign=sign, kind=kind, x=x, y=at, length=length),
      Label(x=x + length + 0.1, y=y, text=text, align="left"),
    ]
    x = end + 0.3
  return legend, y
