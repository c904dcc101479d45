"""Draws curves of several runs over each other, one or several in a panel."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import axes, figure, lines, ticker

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
  panels: Sequence[Sequence[str]],
  smoothing: float,
  path: str,
  kind: str,
) -> None:
  """Draws the curves of runs.

  Args:
    runs: each has one of the curves or more.
    axis: of `runs.AXES`.
    panels: of each its curves, by their names in metrics.jsonl. Of several,
      those of the training are dashed and have no markers.
    smoothing: see `runs.smooth`; the values themselves are drawn pale behind
      the smoothed ones. 0: no smoothing.
    path: of the file.
    kind: svg, png or pdf.
  """
  with matplotlib.rc_context(charts.SETTINGS):
    drawn = to_figure(
      runs, legend, axis=axis, panels=panels, smoothing=smoothing
    )
    charts.save(drawn, path, kind=kind)


def to_figure(
  runs: Sequence[runs_lib.Run],
  legend: runs_lib.Legend,
  *,
  axis: str,
  panels: Sequence[Sequence[str]],
  smoothing: float,
) -> figure.Figure:
  """Makes the figure; arguments as for `draw`.

  A single run may have an empty label: there is no legend then.
  """
  across = min(len(panels), 2)
  down = math.ceil(len(panels) / across)
  width = across * _CHARACTERS - _LINE
  labels = [
    textwrap.fill(charts.to_label(text), width) for text in legend.labels
  ]
  longest = min(max(map(len, legend.labels)), width) + _LINE
  entries = max(1, min(len(runs), across * _CHARACTERS // longest))
  total = sum(label.count("\n") + 1 for label in labels)
  rows = math.ceil(total / entries) + bool(legend.title)
  drawn = figure.Figure(
    figsize=(_WIDTH * across, _HEIGHT * down + 0.2 * rows),
    layout="constrained",
  )
  places = drawn.subplots(down, across, squeeze=False).ravel()
  for unused in places[len(panels) :]:
    unused.remove()
  looks = _choose_looks(legend)
  handles = {}
  for panel, curves in zip(places, panels, strict=False):
    for curve in curves:
      is_training = len(curves) > 1 and curve.startswith("training_")
      for run, label, look in zip(runs, labels, looks, strict=True):
        if is_training:
          look = look | {"linestyle": "--", "marker": None}
        line = _draw_curve(panel, run, curve, axis, smoothing, look)
        if line is not None:
          handles.setdefault(label, line)
    if panel is not places[0]:
      panel.sharex(places[0])
    panel.set_xlabel(_LABELS[axis])
    panel.set_ylabel(_name_panel(curves))
    panel.xaxis.set_major_formatter(ticker.FuncFormatter(charts.format_tick))
    if curves[0].endswith("_error"):
      panel.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    # On white and on black.
    panel.grid(color="0.5", alpha=0.25, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
      _explain_lines(panel, curves)
  if not any(legend.labels):
    return drawn
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


def _name_panel(curves: Sequence[str]) -> str:
  """Names an axis: "training loss"; "loss" for training and validation."""
  names = [curve.partition("_")[2] for curve in curves]
  shown = names[0] if len(curves) > 1 and len({*names}) == 1 else curves[0]
  return to_words(shown)


def to_words(name: str) -> str:
  """Writes the name of a curve: "validation_top1_error" has "top-1 error"."""
  return re.sub(r"\btop(\d+)", r"top-\1", name.replace("_", " "))


def format_value(name: str, value: float) -> str:
  """Formats a value of a curve: an error as `2.50%`, others as `0.1234`."""
  return f"{value:.2%}" if name.endswith("_error") else f"{value:.4g}"


def _explain_lines(panel: axes.Axes, curves: Sequence[str]) -> None:
  """Says which lines of a panel are of the training, and which are not."""
  names = [curve.partition("_")[0] for curve in curves]
  shown = [
    lines.Line2D(
      [], [], color="black", linestyle="--" if name == "training" else "-"
    )
    for name in names
  ]
  panel.legend(shown, names, frameon=False, fontsize="small", handlelength=3)


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
    # The ends of the scale are too pale on white, and too dark on black.
    chosen = [
      shades(0.2 + 0.65 * order[value] / max(1, len(order) - 1))
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
