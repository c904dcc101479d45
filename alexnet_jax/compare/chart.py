"""Draws what layouts send over the batch, one panel per device count."""

from __future__ import annotations

import collections
import zlib
from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib import figure, ticker

from alexnet_jax.compare import comparison
from alexnet_jax.figures import charts
from alexnet_jax.partition import catalog

Color = tuple[float, float, float]

# A layout has a line for each of its meshes.
_STYLES = ("-", "--", "-.", ":", (0, (8, 2)), (0, (1, 3)))
_STYLES += ((0, (6, 1, 1, 1, 1, 1)), (0, (2, 2, 6, 2)))


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
    path: .svg or .png, which `command.check_path` accepts.
  """
  with matplotlib.rc_context(charts.SETTINGS):
    drawn = to_figure(
      traffic,
      batch_sizes=batch_sizes,
      network=network,
      exchange_dtype=exchange_dtype,
    )
    charts.save(drawn, path)


def to_figure(
  traffic: Mapping[int, Sequence[comparison.Traffic]],
  *,
  batch_sizes: Sequence[int],
  network: str,
  exchange_dtype: str,
) -> figure.Figure:
  """Makes the figure; arguments as for `draw`."""
  colors = _choose_colors(
    line.layouts[0].name for lines in traffic.values() for line in lines
  )
  entries = max(
    sum(len(line.layouts) for line in lines) for lines in traffic.values()
  )
  drawn = figure.Figure(
    figsize=(5.2 * len(traffic), 4.4 + 0.17 * entries), layout="constrained"
  )
  panels = drawn.subplots(1, len(traffic), sharey=True, squeeze=False)[0]
  for panel, (devices, lines) in zip(panels, traffic.items(), strict=True):
    _draw_panel(panel, lines, colors, batch_sizes)
    panel.set_title(f"{devices} devices", fontsize="medium")
  low, high = panels[0].get_ylim()
  # With few powers of ten in sight, ticks between them are labeled, too.
  between = (2, 5) if high / low < 100 else ()
  panels[0].yaxis.set_major_locator(ticker.LogLocator(subs=(1, *between)))
  panels[0].set_ylabel(f"MB that one device sends in a step, {exchange_dtype}")
  drawn.suptitle(f"What each layout sends: {network}", fontsize="large")
  return drawn


def _choose_colors(names: Iterable[str]) -> dict[str, Color]:
  """Chooses a color for each name, the same in every chart.

  A layout of the catalog has a color of its own. Any other has one by its name,
  or the next one if another layout of this chart has it.
  """
  own = matplotlib.colormaps["tab10"].colors
  known = [layout.name for layout in catalog.LAYOUTS]
  others = matplotlib.colormaps["tab20b"].colors
  colors = {}
  for name in sorted(set(names)):
    if name in known:
      colors[name] = own[known.index(name) % len(own)]
      continue
    start = zlib.crc32(name.encode())
    turned = [others[(start + k) % len(others)] for k in range(len(others))]
    taken = set(colors.values())
    free = [color for color in turned if color not in taken]
    colors[name] = (free or turned)[0]
  return colors


def _draw_panel(panel, lines, colors, batch_sizes) -> None:
  batch = np.geomspace(
    max(1, min(batch_sizes) / 16), 16 * max(batch_sizes), 200
  )
  drawn = collections.Counter()
  for line in sorted(lines, key=lambda line: -line.at(batch[-1])):
    name = line.layouts[0].name
    panel.plot(
      batch,
      line.at(batch) / 1e6,
      linestyle=_STYLES[drawn[name] % len(_STYLES)],
      color=colors[name],
      label=charts.to_label(comparison.describe(line).replace(" = ", "\n= ")),
    )
    drawn[name] += 1
  for size in batch_sizes:
    panel.axvline(size, color="0.85", linewidth=0.8, zorder=0)
  for overtaking in comparison.find_overtakings(lines):
    if overtaking.least and batch[0] < overtaking.batch_size < batch[-1]:
      sent = overtaking.below.at(overtaking.batch_size) / 1e6
      panel.plot(overtaking.batch_size, sent, "o", color="0.2", markersize=3)
  panel.set(xscale="log", yscale="log", xlabel="images in a step")
  panel.xaxis.set_major_locator(ticker.LogLocator(base=4, numticks=12))
  panel.xaxis.set_minor_locator(ticker.NullLocator())
  for axis in (panel.xaxis, panel.yaxis):
    axis.set_major_formatter(ticker.FuncFormatter(charts.format_tick))
    axis.set_minor_formatter(ticker.NullFormatter())
  panel.legend(
    fontsize="small",
    frameon=False,
    handlelength=4,
    loc="upper center",
    bbox_to_anchor=(0.5, 0),
    borderaxespad=5,  # below the ticks and their title
  )
  panel.spines[["top", "right"]].set_visible(False)
