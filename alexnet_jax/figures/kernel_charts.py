"""Draws the kernels of a first layer, and what those of each column prefer."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import figure, ticker

from alexnet_jax.figures import charts, kernels, layout

# Of columns: told apart by color-blind readers, on white and on black.
COLORS = (
  *(layout.COLORS[name] for name in ("sum", "all_gather", "all_to_all")),
  "#cc79a7",  # of the same palette
)
# Measures that are drawn, and their axes.
_AXES = {
  "color": "share of color",
  "frequency": "cycles per pixel",
  "selectivity": "orientation selectivity",
}
# Inches of the kernels of a row, and of a panel of measures.
_WIDTH, _PANEL = 6.4, 2.0
# Pixels along each side of a weight, so that viewers that smooth keep edges.
_SCALE = 4


def draw_kernels(
  kernel: np.ndarray, columns: int, *, order: Sequence[Sequence[int]] | None
) -> figure.Figure:
  """Draws the kernels of each column as a group, the first column on top.

  Args:
    kernel, columns, order: see `kernels.tile`.
  """
  tiles = kernels.tile(kernel, columns, scale=_SCALE, order=order)
  ratios = [one.shape[0] / one.shape[1] for one in tiles]
  with matplotlib.rc_context(charts.SETTINGS):
    drawn = figure.Figure(
      figsize=(_WIDTH, _WIDTH * sum(ratios) + 0.28 * columns),
      layout="constrained",
    )
    drawn.patch.set_alpha(0)
    panels = drawn.subplots(columns, squeeze=False).ravel()
    for index, (panel, sheet) in enumerate(zip(panels, tiles, strict=True)):
      panel.imshow(sheet, interpolation="none")
      panel.set_axis_off()
      if columns > 1:
        panel.set_title(f"column {index}", loc="left", fontsize=9)
  return drawn


def draw_measures(
  measures: kernels.Measures, columns: int
) -> figure.Figure | None:
  """Draws measures of the learned kernels by column, and their means.

  A dot is a kernel; dots of equal values lie beside each other.

  Returns:
    None: nothing can be said of any kernel.
  """
  shown = {
    name: label
    for name, label in _AXES.items()
    if any(one.size for one in measures.split(name, columns))
  }
  if not shown:
    return None
  with matplotlib.rc_context(charts.SETTINGS):
    drawn = figure.Figure(
      figsize=(_PANEL * len(shown) + 0.4, 0.9 + 0.45 * columns),
      layout="constrained",
    )
    drawn.patch.set_alpha(0)
    panels = drawn.subplots(1, len(shown), sharey=True, squeeze=False).ravel()
    for panel, (name, label) in zip(panels, shown.items(), strict=True):
      for index, values in enumerate(measures.split(name, columns)):
        _draw_column(panel, values, index)
      panel.set_xlabel(label)
      panel.set_xlim(left=0)
      if name != "frequency":
        panel.set_xlim(right=1)
      panel.xaxis.set_major_formatter(ticker.FuncFormatter(charts.format_tick))
      panel.patch.set_alpha(0)
      panel.spines[["top", "right", "left"]].set_visible(False)
      panel.tick_params(axis="y", length=0)
      panel.set_ylim(columns - 0.5, -0.5)
      panel.set_yticks(
        range(columns),
        [f"column {k}" if columns > 1 else "" for k in range(columns)],
      )
  return drawn


def _draw_column(panel, values: np.ndarray, index: int) -> None:
  """Draws the values of a column in a row, and a line at their mean."""
  color = COLORS[index % len(COLORS)]
  # By turns above and below in the order of the values: neighbors lie apart.
  heights = np.empty(len(values))
  heights[np.argsort(values)] = (np.arange(len(values)) % 5 - 2) / 9
  panel.scatter(
    values, index + heights, s=9, color=color, alpha=0.75, linewidths=0
  )
  if values.size:
    mean = values.mean()
    panel.plot([mean] * 2, [index - 0.38, index + 0.38], color="black", lw=1.4)
