"""Draws a layout in the style of Figure 2 of the 2012 paper.

There is one row per device. Layers are boxes with their sizes on that device,
and arrows show what is sent between devices.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import matplotlib.style
from matplotlib import figure, lines, patches

from alexnet_jax.figures import charts
from alexnet_jax.figures import hosts as hosts_lib
from alexnet_jax.figures import layout_grid as grid
from alexnet_jax.figures import layout_scene as scene_lib
from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib

Dashes = str | tuple[float, tuple[float, ...]]

# Colors near a color-blind safe palette (Okabe and Ito 2008), and dashes for
# each, so that the kinds differ in gray as well. A page turns black into the
# color of its text. The others can be read on white and on #111: their contrast
# is 3.9 or more. Faces of boxes and cards are translucent.
COLORS = {
  "ink": "#000000",
  "quiet": "#767676",
  "all_gather": "#0a7abc",
  "reduce_scatter": "#a5568c",
  "all_to_all": "#00875f",
  "sum": "#d55e00",
}
DASHES = {
  "all_gather": "-",
  "reduce_scatter": (0, (5, 1.5)),
  "all_to_all": (0, (6, 1.5, 1.5, 1.5)),
  "sum": "-",
}
CARD, CARD_EDGE, FRAME_EDGE = "#8080780f", "#80807855", "#8c8c86"
FRONT, TOP, RIGHT, WINDOW = "#5b80a838", "#5b80a81c", "#5b80a85c", "#5b80a8a0"
EDGE = "#6a7d92"
PARTIAL = (0, (2.5, 1.5))
HATCH = "/////"
# Of exchanges, and of those between hosts.
LINE_WIDTHS = {False: 1.1, True: 2.6}

# Text as outlines in SVG, which looks the same whatever fonts a viewer has.
STYLE = {
  "font.family": "DejaVu Sans",
  "text.parse_math": False,  # a $ in a name is no formula
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
  hosts: hosts_lib.Hosts | None = None,
) -> None:
  """Draws a network on a layout; the same arguments give the same file.

  Args:
    layout: from `plan.choose_placements`: without `features`.
    plan: from `plan.make_plan` for the two.
    path: `.svg` or `.png`.
    hosts: of the devices; None: they are not shown.

  Raises:
    OSError: the file cannot be written.
  """
  with matplotlib.style.context(["default", STYLE]):
    drawn = to_figure(network, layout, plan, batch_size=batch_size, hosts=hosts)
    drawn.patch.set_facecolor("white")
    charts.save(drawn, path)


def to_figure(
  network: wiring.Network,
  layout: layout_lib.Layout,
  plan: Sequence[plan_lib.Collective],
  *,
  batch_size: int,
  hosts: hosts_lib.Hosts | None = None,
) -> figure.Figure:
  """Makes the figure, without a background; arguments as for `draw`."""
  scene = scene_lib.make_scene(
    network, layout, plan, batch_size=batch_size, hosts=hosts
  )
  with matplotlib.style.context(["default", STYLE]):
    drawn = draw_scene(scene)
  drawn.patch.set_facecolor("none")
  return drawn


def draw_scene(scene: scene_lib.Scene) -> figure.Figure:
  """Draws a scene in its size; in a context of `STYLE`."""
  result = figure.Figure(figsize=(scene.width, scene.height))
  canvas = _Canvas(result, scene)
  for frame in scene.frames:
    canvas.add_frame(frame)
  for row in scene.rows:
    canvas.add_card(row)
  for y in scene.rules:
    ends = [(scene_lib.MARGIN, y), (scene.width - scene_lib.MARGIN, y)]
    canvas.add_line(ends, CARD_EDGE, width=0.6)
  for box in scene.boxes:
    canvas.add_box(box)
  for link in scene.links:
    canvas.add_link(link)
  for arrow in scene.arrows:
    canvas.add_arrow(arrow.kind, arrow.start, arrow.end, crosses=arrow.crosses)
  for mark in scene.marks:
    canvas.add_mark(mark)
  for label in scene.labels:
    canvas.add_label(label)
  return result


class _Canvas:
  """Axes in inches, y downwards, with the looks of each part of a scene."""

  def __init__(self, target: figure.Figure, scene: scene_lib.Scene):
    self._width = scene.width
    self._axes = target.add_axes((0, 0, 1, 1))
    self._axes.set(xlim=(0, scene.width), ylim=(scene.height, 0))
    self._axes.set_axis_off()

  def add_line(
    self,
    points: Sequence[grid.Point],
    color: str,
    *,
    width: float,
    dashes: Dashes = "-",
    layer: int = 1,
  ) -> None:
    xs, ys = zip(*points, strict=True)
    self._axes.add_line(
      lines.Line2D(xs, ys, color=color, lw=width, ls=dashes, zorder=layer)
    )

  def _add_polygon(
    self,
    points: Sequence[grid.Point],
    color: str,
    *,
    dashes: Dashes = "-",
    hatch: str | None = None,
  ) -> None:
    self._axes.add_patch(
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

  def add_frame(self, frame: scene_lib.Frame) -> None:
    x = scene_lib.MARGIN - 0.14
    self._axes.add_patch(
      patches.FancyBboxPatch(
        (x, frame.y),
        self._width - 2 * x,
        frame.height,
        boxstyle="round,pad=0,rounding_size=0.1",
        facecolor="none",
        edgecolor=FRAME_EDGE,
        lw=1.0,
        zorder=0,
      )
    )

  def add_card(self, row: grid.Row) -> None:
    """Adds a card for a device, or a pile of them for a group."""
    x, y = scene_lib.MARGIN, row.y - row.height / 2
    right, bottom = self._width - x, y + row.height
    # Of the cards below only what stands out: they would shine through.
    for shift in (0.1, 0.05) if len(row.devices) > 1 else ():
      edge = [
        (right + shift, y + shift + 0.03),
        (right + shift, bottom + shift),
        (x + shift + 0.03, bottom + shift),
      ]
      self.add_line(edge, CARD_EDGE, width=0.7, layer=0)
    self._axes.add_patch(
      patches.FancyBboxPatch(
        (x, y),
        right - x,
        row.height,
        boxstyle="round,pad=0,rounding_size=0.08",
        facecolor=CARD,
        edgecolor=CARD_EDGE,
        lw=0.7,
        zorder=0,
      )
    )

  def add_box(self, box: grid.Box) -> None:
    right, up = box.slant
    x, y, to = box.x, box.y - box.reach + up, box.x + box.width
    end = y + box.height
    dashes = PARTIAL if box.partial else "-"
    hatch = HATCH if box.repeated else None
    top = [(x, y), (to, y), (to + right, y - up), (x + right, y - up)]
    side = [(to, y), (to, end), (to + right, end - up), (to + right, y - up)]
    front = [(x, y), (to, y), (to, end), (x, end)]
    colors = ("none",) * 3 if box.partial else (TOP, RIGHT, FRONT)
    self._add_polygon(top, colors[0], dashes=dashes)
    self._add_polygon(side, colors[1], dashes=dashes)
    self._add_polygon(front, colors[2], dashes=dashes, hatch=hatch)

  def add_link(self, link: scene_lib.Link) -> None:
    if len(link.starts) > 2:
      self._add_polygon(link.starts, WINDOW)
    for start in link.starts:
      ends, dashes = [start, link.end], (0, (3, 2))
      self.add_line(ends, COLORS["quiet"], width=0.6, dashes=dashes, layer=3)

  def add_arrow(
    self,
    kind: str,
    start: grid.Point,
    end: grid.Point,
    *,
    crosses: bool = False,
  ) -> None:
    self._add_fancy_arrow(
      start,
      end,
      arrowstyle="-|>,head_length=3.2,head_width=1.5",
      color=COLORS[kind],
      ls=DASHES[kind],
      shrinkB=5 if kind in grid.SUMS else 0,
      zorder=4,
      crosses=crosses,
    )

  def _add_fancy_arrow(
    self, start, end, *, shrinkB=0, crosses=False, **looks
  ) -> None:
    width = LINE_WIDTHS[crosses]
    self._axes.add_patch(
      patches.FancyArrowPatch(
        start, end, lw=width, shrinkA=0, shrinkB=shrinkB, **looks
      )
    )

  def add_mark(self, mark: scene_lib.Mark) -> None:
    color, (x, y) = COLORS[mark.kind], (mark.x, mark.y)
    to = x + mark.length
    frame = [(x, y - 0.07), (to, y - 0.07), (to, y + 0.07), (x, y + 0.07)]
    match mark.sign:
      case "plus":
        self._add_plus((x, y), color)
      case "loop":
        self._add_fancy_arrow(
          (x, y),
          (to, y),
          connectionstyle="arc3,rad=-1.2",
          arrowstyle="<|-|>,head_length=3,head_width=1.5",
          color=color,
          zorder=5,
          crosses=mark.crosses,
        )
      case "leader":
        ends = [(x, y + 0.02), (x, y + mark.length)]
        self.add_line(ends, color, width=0.7, dashes=(0, (1, 1.5)))
      case "swatch":
        corner = x, y - mark.length / 2
        square = patches.Rectangle(
          corner, mark.length, mark.length, facecolor=color, edgecolor="none"
        )
        self._axes.add_patch(square)
      case "link":
        self.add_link(scene_lib.Link(starts=((x, y),), end=(to, y)))
      case "arrow":
        if mark.kind in grid.SUMS:
          to -= 0.06
          self._add_plus((to, y), color)
        self.add_arrow(mark.kind, (x, y), (to, y))
      case "crossing":
        self.add_line([(x, y), (to, y)], color, width=LINE_WIDTHS[True])
      case "repeated":
        self._add_polygon(frame, FRONT, hatch=HATCH)
      case "partial":
        self._add_polygon(frame, "none", dashes=PARTIAL)

  def _add_plus(self, middle: grid.Point, color: str) -> None:
    circle = patches.Circle(
      middle, 0.06, facecolor="none", edgecolor=color, lw=1.0, zorder=5
    )
    self._axes.add_patch(circle)
    x, y = middle
    for dx, dy in ((0.035, 0), (0, 0.035)):
      ends = [(x - dx, y - dy), (x + dx, y + dy)]
      self.add_line(ends, color, width=1.0, layer=6)

  def add_label(self, label: scene_lib.Label) -> None:
    self._axes.text(
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
