"""Draws curves of several runs over each other, one panel for each curve."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import figure, ticker

from alexnet_jax.figures import charts
from alexnet_jax.figures import runs as runs_lib

Color = tuple[float, float, float]

# Of runs beyond the number of colors.
_STYLES = ("-", "--", "-.", ":")
_MARKERS = "osD^vP*X"
# Above this, lines alone: markers would be a band.
_MAX_MARKED = 40
_LABELS = {
  "step": "step",
  "epoch": "epoch",
  "seconds": "seconds in training, validations and saves",
  "images": "training images seen",
}
# Inches of a panel, and characters of a legend that are as wide.
_WIDTH, _HEIGHT, _CHARACTERS = 5.6, 3.6, 66
# Characters that are as wide as the line beside an entry.
_LINE = 8


def draw(
  runs: Sequence[runs_lib.Run],
  legend: runs_lib.Legend,
  *,
  axis: str,
  curves: Sequence[str],
  smoothing: float,
  path: str,
  kind: str,
) -> None:
  """Draws the curves of runs.

  Args:
    runs: each has one of the curves or more.
    axis: of `runs.AXES`.
    curves: names in metrics.jsonl; each gets a panel.
    smoothing: see `runs.smooth`; the values themselves are drawn pale behind
      the smoothed ones. 0: no smoothing.
    path: of the file.
    kind: svg, png or pdf.
  """
  with matplotlib.rc_context(charts.SETTINGS):
    drawn = to_figure(
      runs, legend, axis=axis, curves=curves, smoothing=smoothing
    )
    charts.save(drawn, path, kind=kind)


def to_figure(
  runs: Sequence[runs_lib.Run],
  legend: runs_lib.Legend,
  *,
  axis: str,
  curves: Sequence[str],
  smoothing: float,
) -> figure.Figure:
  """Makes the figure; arguments as for `draw`."""
  across = min(len(curves), 2)
  down = math.ceil(len(curves) / across)
  width = across * _CHARACTERS - _LINE
  labels = [
    textwrap.fill(charts.to_label(text), width) for text in legend.labels
  ]
  longest = min(max(map(len, legend.labels)), width) + _LINE
  entries = max(1, min(len(runs), across * _CHARACTERS // longest))
  lines = sum(label.count("\n") + 1 for label in labels)
  rows = math.ceil(lines / entries) + bool(legend.title)
  drawn = figure.Figure(
    figsize=(_WIDTH * across, _HEIGHT * down + 0.2 * rows),
    layout="constrained",
  )
  panels = drawn.subplots(down, across, squeeze=False).ravel()
  for unused in panels[len(curves) :]:
    unused.remove()
  looks = _choose_looks(legend)
  handles = {}
  for panel, curve in zip(panels, curves, strict=False):
    for run, label, look in zip(runs, labels, looks, strict=True):
      line = _draw_curve(panel, run, curve, axis, smoothing, look)
      if line is not None:
        handles.setdefault(label, line)
    if panel is not panels[0]:
      panel.sharex(panels[0])
    panel.set_xlabel(_LABELS[axis])
    panel.set_ylabel(curve.replace("_", " "))
    panel.xaxis.set_major_formatter(ticker.FuncFormatter(charts.format_tick))
    if curve.endswith("_error"):
      panel.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    panel.grid(color="0.92", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
  drawn.legend(
    [*handles.values()],
    [*handles],
    title=charts.to_label(legend.title) if legend.title else None,
    loc="outside lower center",
    ncols=entries,
    frameon=False,
    fontsize="small",
    handlelength=3,
  )
  return drawn


def _draw_curve(panel, run, curve, axis, smoothing, look):
  """Draws a curve of a run; returns its line, or None if it has none."""
  if curve not in run.curves:
    return None
  places = run.find_axis(curve, axis)
  if places is None:
    return None
  line = None
  for values in runs_lib.split_columns(curve, run.curves[curve]).values():
    there = np.isfinite(values)
    marked = there.sum() <= _MAX_MARKED
    x, y = places[there], values[there]
    if smoothing:
      panel.plot(x, y, color=look["color"], alpha=0.25, linewidth=0.8)
      y = runs_lib.smooth(y, smoothing)
    (drawn,) = panel.plot(
      *(x, y),
      linewidth=1.3,
      markersize=3,
      **look | ({} if marked else {"marker": None}),
    )
    line = line or drawn
  return line


def _choose_looks(legend: runs_lib.Legend) -> list[dict]:
  """Chooses color, line and marker of each run.

  Runs that differ in one number have the colors of its order; others have ten
  colors that differ most. Marker and line also tell them apart without color.
  """
  count = len(legend.labels)
  if legend.values is None or count < 3:
    colors = matplotlib.colormaps["tab10"].colors
    chosen = [colors[index % len(colors)] for index in range(count)]
    styles = [_STYLES[index // len(colors) % 4] for index in range(count)]
  else:
    order = {v: k for k, v in enumerate(sorted({*legend.values}))}
    shades = matplotlib.colormaps["viridis"]
    # The end of the scale is too pale on white.
    chosen = [
      shades(0.9 * order[value] / max(1, len(order) - 1))
      for value in legend.values
    ]
    styles = ["-"] * count
  return [
    {
      "color": color,
      "linestyle": style,
      "marker": _MARKERS[index % len(_MARKERS)],
    }
    for index, (color, style) in enumerate(zip(chosen, styles, strict=True))
  ]
