"""Draws a confusion matrix, and the classes by their error.

Drawings are transparent, with text in one ink.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import colors, figure

from alexnet_jax.figures import charts, confusion

# Classes up to which a matrix has their names, and up to which it has counts.
MOST_NAMED, MOST_COUNTED = 40, 20
# Inches of a figure, of a row of a chart, and of names and scales beside a
# matrix.
_WIDTH, _ROW, _BESIDE = 6.4, 0.2, 2.5
# Inches of a cell: of few classes; at least where there are names.
_CELL, _LEAST_CELL = 0.55, 0.15


def draw_matrix(
  matrix: np.ndarray,
  class_names: Sequence[str],
  *,
  classes: Sequence[int] | None = None,
) -> figure.Figure:
  """Draws the shares of each true class's images, on a logarithmic scale.

  Args:
    matrix: from `confusion.count`, at least two classes.
    class_names: of all classes; shown of up to `MOST_NAMED`.
    classes: that are drawn; None: all. Shares are of all images of a class.
  """
  shares, counts = confusion.to_shares(matrix), matrix
  if classes is None:
    size = confusion.find_cell(len(matrix))
    classes = range(len(matrix))
    if size > 1:
      shares = confusion.to_shares(confusion.merge(matrix, size))
  else:
    chosen = np.ix_(classes, classes)
    shares, counts = shares[chosen], matrix[chosen]
  names = [charts.shorten(class_names[one]) for one in classes]
  with matplotlib.rc_context(charts.SETTINGS):
    return _draw_shares(shares, counts, names)


def _draw_shares(
  shares: np.ndarray, counts: np.ndarray, names: Sequence[str]
) -> figure.Figure:
  """Draws shares f64[n, n] of some classes, or of cells of several."""
  count = len(names)
  is_named = count <= MOST_NAMED
  side = min(_CELL * count, _WIDTH - _BESIDE)
  side = max(side, _LEAST_CELL * count) if is_named else _WIDTH - 1.2
  drawn = figure.Figure(
    figsize=(max(_WIDTH, side + _BESIDE), side + (1.8 if is_named else 0.8)),
    layout="compressed",
    facecolor="none",
  )
  axes = drawn.subplots()
  low = confusion.find_lowest(shares)
  axes.imshow(confusion.to_colors(shares, low), interpolation="none")
  axes.set_facecolor("none")
  axes.set(xlabel="predicted class", ylabel="true class")
  if is_named:
    places = range(count)
    axes.set_xticks(places, names, rotation=90, fontsize=7.5)
    axes.set_yticks(places, names, fontsize=7.5)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#808080", linewidth=0.3, alpha=0.6)
    axes.tick_params(which="minor", length=0)
  else:
    axes.set(xticks=[], yticks=[])
  if count <= MOST_COUNTED:
    for row, column in np.argwhere(counts):
      axes.text(
        *(column, row, f"{counts[row, column]:,}"),
        ha="center",
        va="center",
        fontsize=9 if count <= 10 else 6,
      )
  for place, (color, label) in enumerate(
    ((confusion.CORRECT, "correct"), (confusion.WRONG, "taken for another"))
  ):
    inset = axes.inset_axes(
      (1 + (0.18 + 0.3 * place) / side, 0, 0.14 / side, 1)
    )
    _draw_scale(inset, color, label, low, is_last=place == 1)
  return drawn


def _draw_scale(
  axes, color: str, label: str, low: float, *, is_last: bool
) -> None:
  """Draws the opacities of a hue from a share of `low` to 1."""
  strip = np.empty((64, 1, 4))
  strip[..., :3] = colors.to_rgb(color)
  strip[:, 0, 3] = np.linspace(confusion.FAINT, confusion.FULL, 64)
  lowest = math.log10(low)
  axes.imshow(
    strip,
    aspect="auto",
    origin="lower",
    extent=(0, 1, lowest, 0),
    interpolation="none",
  )
  axes.set_facecolor("none")
  ticks = [n for n in (0.0001, 0.001, 0.01, 0.1, 1) if n >= low]
  ticks = [low, *(n for n in ticks if n > 1.8 * low)]
  labels = [f"{100 * n:.2g} %" if n < 1 else "100 %" for n in ticks]
  axes.set_yticks([math.log10(n) for n in ticks], labels if is_last else [])
  axes.yaxis.tick_right()
  axes.set(xticks=[])
  axes.set_xlabel(label, rotation=90, fontsize=8)


def draw_classes(
  class_names: Sequence[str],
  errors: Sequence[float],
  intervals: Sequence[tuple[float, float]],
  *,
  overall: float,
) -> figure.Figure:
  """Draws the error of each class with its interval, the first on top.

  Args:
    class_names: of the classes that are drawn.
    errors: 0..1.
    intervals: of the errors.
    overall: the error on all images, 0..1.
  """
  with matplotlib.rc_context(charts.SETTINGS):
    drawn = figure.Figure(
      figsize=(_WIDTH, max(1.6, 0.9 + _ROW * len(errors))),
      layout="constrained",
      facecolor="none",
    )
    axes = drawn.subplots()
    axes.set_facecolor("none")
    places = np.arange(len(errors))
    ends = 100 * np.asarray(intervals).reshape(-1, 2)
    axes.hlines(places, ends[:, 0], ends[:, 1], color="black", linewidth=0.9)
    axes.plot(
      100 * np.asarray(errors), places, "o", color=confusion.WRONG, markersize=5
    )
    axes.axvline(
      100 * overall, color=confusion.CORRECT, linewidth=1, linestyle="--"
    )
    axes.set_yticks(places, map(charts.shorten, class_names))
    axes.set(
      xlabel="top-1 error in %; line: 95 % interval; dashed: all classes",
      xlim=(-2, 102),
      ylim=(len(errors) - 0.4, -0.6),
    )
    axes.grid(axis="x", color="#808080", alpha=0.35, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn
