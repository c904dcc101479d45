"""Draws a split network as Figure 2 of the 2012 paper drew it.

One row per device, the layers as boxes with their sizes on that device, and
arrows only where something crosses devices.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import matplotlib.style
from matplotlib import figure, lines, patches

from alexnet_jax.cli import command
from alexnet_jax.inspect import grid
from alexnet_jax.inspect import scene as scene_lib
from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib

DOTS_PER_INCH = 200

Dashes = str | tuple[float, tuple[float, ...]]

# A color-blind safe set (Okabe and Ito 2008) of different lightness, and a
# dash pattern each, so that the kinds differ in gray as well.
COLORS = {
  "ink": "#1a1a1a",
  "quiet": "#6b6b6b",
  "all_gather": "#0072b2",
  "reduce_scatter": "#8f4a78",
  "all_to_all": "#008060",
  "sum": "#d55e00",
}
DASHES = {
  "all_gather": "-",
  "reduce_scatter": (0, (5, 1.5)),
  "all_to_all": (0, (6, 1.5, 1.5, 1.5)),
  "sum": "-",
}
CARD, CARD_EDGE = "#f6f6f4", "#d4d4d0"
FRONT, TOP, RIGHT, WINDOW = "#dbe3ec", "#edf1f6", "#c3cfdc", "#8fa3ba"
EDGE = "#4a5868"
PARTIAL = (0, (2.5, 1.5))
HATCH = "/////"

# Outlines instead of text in SVG: no viewer's fonts can shift the picture.
STYLE = {
  "font.family": "DejaVu Sans",
  "svg.fonttype": "path",
  "svg.hashsalt": "alexnet_jax",
  "hatch.linewidth": 0.6,
  "lines.dash_capstyle": "butt",
}


def draw(
  network: wiring.Network,
  layout: layout_lib.Layout,
  plan: Sequence[plan_lib.Collective],
  *,
  batch_size: int,
  path: str,
) -> None:
  """Writes a picture of a network on a layout.

  Args:
    network: the network.
    layout: a layout that `check.check` has accepted for it.
    plan: what `plan.make_plan` lists for the two.
    batch_size: images in a step, over all devices.
    path: file to write, `.svg` or `.png`. The same layout gives the same file.

  Raises:
    ValueError: the file cannot be drawn to.
  """
  command.check_picture_path(path, flag="picture")
  scene = scene_lib.make_scene(network, layout, plan, batch_size=batch_size)
  metadata = {"Date": None} if path.endswith(".svg") else None
  with matplotlib.style.context(["default", STYLE]):
    to_figure(scene).savefig(path, dpi=DOTS_PER_INCH, metadata=metadata)


def to_figure(scene: scene_lib.Scene) -> figure.Figure:
  """The scene as a figure of its size."""
  drawn = figure.Figure(figsize=(scene.width, scene.height))
  canvas = _Canvas(drawn, scene)
  for row in scene.rows:
    canvas.card(row)
  for y in scene.rules:
    canvas.rule(y)
  for box in scene.boxes:
    canvas.box(box)
  for link in scene.links:
    canvas.link(link)
  for arrow in scene.arrows:
    canvas.arrow(arrow.kind, arrow.start, arrow.end)
  for mark in scene.marks:
    canvas.mark(mark)
  for label in scene.labels:
    canvas.label(label)
  return drawn


class _Canvas:
  """Axes in inches, y downwards, and how each part of a scene looks."""

  def __init__(self, drawn: figure.Figure, scene: scene_lib.Scene):
    self.width = scene.width
    self.axes = drawn.add_axes((0, 0, 1, 1))
    self.axes.set(xlim=(0, scene.width), ylim=(scene.height, 0))
    self.axes.set_axis_off()

  def line(
    self,
    points: Sequence[grid.Point],
    color: str,
    *,
    width: float,
    dashes: Dashes = "-",
    layer: int = 1,
  ) -> None:
    xs, ys = zip(*points, strict=True)
    self.axes.add_line(
      lines.Line2D(xs, ys, color=color, lw=width, ls=dashes, zorder=layer)
    )

  def shape(
    self,
    points: Sequence[grid.Point],
    color: str,
    *,
    dashes: Dashes = "-",
    hatch: str | None = None,
  ) -> None:
    self.axes.add_patch(
      patches.Polygon(
        points,
        facecolor=color,
        edgecolor=EDGE,
        lw=0.7,
        ls=dashes,
        hatch=hatch,
        joinstyle="round",
        zorder=2,
      )
    )

  def rule(self, y: float) -> None:
    ends = [(scene_lib.MARGIN, y), (self.width - scene_lib.MARGIN, y)]
    self.line(ends, CARD_EDGE, width=0.6)

  def card(self, row: grid.Row) -> None:
    """A card for a device, a pile of them for a group."""
    x, y = scene_lib.MARGIN, row.y - row.height / 2
    for shift in (0.1, 0.05, 0.0) if len(row.devices) > 1 else (0.0,):
      self.axes.add_patch(
        patches.FancyBboxPatch(
          (x + shift, y + shift),
          self.width - 2 * x,
          row.height,
          boxstyle="round,pad=0,rounding_size=0.08",
          facecolor=CARD,
          edgecolor=CARD_EDGE,
          lw=0.7,
          zorder=0,
        )
      )

  def box(self, box: grid.Box) -> None:
    right, up = box.slant
    x, y, to = box.x, box.y - box.reach + up, box.x + box.width
    end = y + box.height
    dashes = PARTIAL if box.partial else "-"
    hatch = HATCH if box.repeated else None
    top = [(x, y), (to, y), (to + right, y - up), (x + right, y - up)]
    side = [(to, y), (to, end), (to + right, end - up), (to + right, y - up)]
    front = [(x, y), (to, y), (to, end), (x, end)]
    colors = ("white",) * 3 if box.partial else (TOP, RIGHT, FRONT)
    self.shape(top, colors[0], dashes=dashes)
    self.shape(side, colors[1], dashes=dashes)
    self.shape(front, colors[2], dashes=dashes, hatch=hatch)

  def link(self, link: scene_lib.Link) -> None:
    if len(link.starts) > 2:
      self.shape(link.starts, WINDOW)
    for start in link.starts:
      self.line(
        [start, link.end],
        COLORS["quiet"],
        width=0.6,
        dashes=(0, (3, 2)),
        layer=3,
      )

  def arrow(self, kind: str, start: grid.Point, end: grid.Point) -> None:
    self.axes.add_patch(
      patches.FancyArrowPatch(
        start,
        end,
        arrowstyle="-|>,head_length=3.2,head_width=1.5",
        color=COLORS[kind],
        lw=1.1,
        ls=DASHES[kind],
        shrinkA=0,
        shrinkB=5 if kind in grid.SUMS else 0,
        zorder=4,
      )
    )

  def mark(self, mark: scene_lib.Mark) -> None:
    color, (x, y) = COLORS[mark.kind], (mark.x, mark.y)
    end = x + mark.length, y
    match mark.sign:
      case "plus":
        self.plus((x, y), color)
      case "loop":
        self.loop((x, y), end, color)
      case "leader":
        ends = [(x, y + 0.02), (x, y + mark.length)]
        self.line(ends, color, width=0.7, dashes=(0, (1, 1.5)))
      case "swatch":
        corner = x, y - mark.length / 2
        square = patches.Rectangle(
          corner, mark.length, mark.length, facecolor=color, edgecolor="none"
        )
        self.axes.add_patch(square)
      case "link":
        self.link(scene_lib.Link(starts=((x, y),), end=end))
      case "arrow":
        if mark.kind in grid.SUMS:
          end = end[0] - 0.06, y
          self.plus(end, color)
        self.arrow(mark.kind, (x, y), end)
      case "repeated":
        self.shape(_frame(mark), FRONT, hatch=HATCH)
      case "partial":
        self.shape(_frame(mark), "white", dashes=PARTIAL)

  def plus(self, middle: grid.Point, color: str) -> None:
    circle = patches.Circle(
      middle, 0.06, facecolor="white", edgecolor=color, lw=1.0, zorder=5
    )
    self.axes.add_patch(circle)
    x, y = middle
    for dx, dy in ((0.035, 0), (0, 0.035)):
      ends = [(x - dx, y - dy), (x + dx, y + dy)]
      self.line(ends, color, width=1.0, layer=6)

  def loop(self, start: grid.Point, end: grid.Point, color: str) -> None:
    self.axes.add_patch(
      patches.FancyArrowPatch(
        start,
        end,
        connectionstyle="arc3,rad=-1.2",
        arrowstyle="<|-|>,head_length=3,head_width=1.5",
        color=color,
        lw=1.1,
        shrinkA=0,
        shrinkB=0,
        zorder=5,
      )
    )

  def label(self, label: scene_lib.Label) -> None:
    self.axes.text(
      label.x,
      label.y,
      label.text,
      ha=label.align,
      va="center_baseline",
      size=label.size,
      weight="bold" if label.bold else "normal",
      color=COLORS[label.tone],
      zorder=7,
    )


def _frame(mark: scene_lib.Mark) -> list[grid.Point]:
  """A small rectangle for the legend."""
  x, y, to = mark.x, mark.y, mark.x + mark.length
  return [(x, y - 0.07), (to, y - 0.07), (to, y + 0.07), (x, y + 0.07)]
