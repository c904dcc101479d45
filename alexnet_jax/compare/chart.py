"""Draws what layouts send over the batch, one panel per device count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib import figure, ticker

from alexnet_jax.cli import command
from alexnet_jax.compare import comparison

_STYLES = ("-", "--", "-.", ":")
_SETTINGS = {
  "svg.hashsalt": "alexnet_jax",
  "font.family": "DejaVu Sans",
  "font.size": 9,
}


def draw(
  traffic: Mapping[int, Sequence[comparison.Traffic]],
  *,
  batch_sizes: Sequence[int],
  network: str,
  exchange_dtype: str,
  path: str,
) -> None:
  """Draws bytes sent by one device over the batch, both logarithmic.

  Args:
    traffic: number of devices -> lines of the layouts.
    batch_sizes: marked in the panels, which go on by a factor of 16 either way.
    path: .svg or .png.

  Raises:
    ValueError: the file cannot be written.
  """
  command.check_path(path, flag="chart", endings=command.PICTURES)
  names = sorted(
    {line.layouts[0].name for lines in traffic.values() for line in lines}
  )
  with matplotlib.rc_context(_SETTINGS):
    drawn = figure.Figure(
      figsize=(5.2 * len(traffic), 6.0), layout="constrained"
    )
    panels = drawn.subplots(1, len(traffic), sharey=True, squeeze=False)[0]
    for panel, (devices, lines) in zip(panels, traffic.items(), strict=True):
      _draw_panel(panel, lines, names, batch_sizes)
      panel.set_title(f"{devices} devices", fontsize="medium")
    panels[0].set_ylabel(
      f"MB that one device sends in a step, {exchange_dtype}"
    )
    drawn.suptitle(f"What each layout sends: {network}", fontsize="large")
    drawn.savefig(
      path, dpi=200, metadata={"Date": None} if path.endswith("svg") else {}
    )


def _to_label(text: str) -> str:
  """Escapes what is special in a legend: a formula, and a hidden entry."""
  escaped = text.replace("$", r"\$")
  return f" {escaped}" if escaped.startswith("_") else escaped


def _draw_panel(panel, lines, names, batch_sizes) -> None:
  colors = matplotlib.colormaps["tab10"].colors
  batch = np.geomspace(
    max(1, min(batch_sizes) / 16), 16 * max(batch_sizes), 200
  )
  drawn = dict.fromkeys(names, 0)
  for line in sorted(lines, key=lambda line: -line.at(batch[-1])):
    name = line.layouts[0].name
    panel.plot(
      batch,
      line.at(batch) / 1e6,
      _STYLES[drawn[name] % len(_STYLES)],
      color=colors[names.index(name) % len(colors)],
      label=_to_label(comparison.describe(line).replace(" = ", "\n= ")),
    )
    drawn[name] += 1
  for size in batch_sizes:
    panel.axvline(size, color="0.85", linewidth=0.8, zorder=0)
  for overtaking in comparison.find_overtakings(lines):
    if batch[0] < overtaking.batch_size < batch[-1]:
      sent = overtaking.below.at(overtaking.batch_size) / 1e6
      panel.plot(overtaking.batch_size, sent, "o", color="0.2", markersize=3)
  panel.set(xscale="log", yscale="log", xlabel="images in a step")
  panel.xaxis.set_major_locator(ticker.LogLocator(base=4, numticks=12))
  panel.xaxis.set_minor_locator(ticker.NullLocator())
  for axis in (panel.xaxis, panel.yaxis):
    axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:,.10g}"))
  panel.legend(
    fontsize="small",
    frameon=False,
    loc="upper center",
    bbox_to_anchor=(0.5, -0.12),
  )
  panel.spines[["top", "right"]].set_visible(False)
