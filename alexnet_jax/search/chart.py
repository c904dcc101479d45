"""Draws which kind of layout is fastest, over the batch and a link's speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import matplotlib
import numpy as np
import rich.progress
from matplotlib import colors, figure, patches

from alexnet_jax.figures import charts
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.planner import price, search
from alexnet_jax.search import report

# Speeds of the link, as multiples of its own.
FACTORS = tuple(2.0**power for power in range(-5, 6))


def draw(
  workload: price.Workload,
  machine: machine_lib.Machine,
  devices: int,
  *,
  goal: search.Goal,
  batch_sizes: Sequence[int],
  path: str,
  progress: rich.progress.Progress,
) -> None:
  """Searches at every batch and speed, and draws a map of what is fastest.

  Args:
    devices: two or more.
    batch_sizes: the columns of the map.
    path: .svg or .png.
  """
  link = machine.find_links(devices)[-1]
  task = progress.add_task("map", total=len(batch_sizes) * len(FACTORS))
  kinds: list[str] = []
  cells = np.full((len(FACTORS), len(batch_sizes)), -1)
  texts = {}
  for column, size in enumerate(batch_sizes):
    sized = dataclasses.replace(workload, batch_size=size)
    space, pricer = search.Space(sized, devices), price.Pricer(machine, sized)
    for row, factor in enumerate(FACTORS):
      scaled = pricer.scale_link(link.name, factor)
      found = space.find_fastest(scaled, goal=goal)
      progress.advance(task)
      if found is None:
        continue
      kind = report.describe_kind(found.layout, workload.network)
      if kind not in kinds:
        kinds.append(kind)
      cells[row, column] = kinds.index(kind)
      texts[row, column] = f"{1e3 * goal.measure(found.prediction):.3g}"
  # The font of matplotlib's own size.
  settings = charts.SETTINGS | {"font.size": 10}
  with matplotlib.rc_context(settings):
    drawn = _to_figure(cells, texts, kinds, batch_sizes, link)
    drawn.suptitle(
      f"The fastest layout of {workload.network.name} on {devices} devices of "
      f"{machine.name}",
      fontsize="medium",
    )
    charts.save(drawn, path)


def _to_figure(
  cells: np.ndarray,
  texts: dict[tuple[int, int], str],
  kinds: Sequence[str],
  batch_sizes: Sequence[int],
  link: machine_lib.Link,
) -> figure.Figure:
  rows, columns = cells.shape
  drawn = figure.Figure(
    figsize=(max(5.5, 1.4 + 0.8 * columns), 1.6 + 0.34 * (rows + len(kinds))),
    layout="constrained",
  )
  axes = drawn.subplots()
  shades = matplotlib.colormaps["Pastel1"].colors + (
    matplotlib.colormaps["Pastel2"].colors
  )
  palette = [shades[number % len(shades)] for number in range(len(kinds))]
  axes.imshow(
    np.ma.masked_less(cells, 0),
    cmap=colors.ListedColormap(palette),
    norm=colors.BoundaryNorm(np.arange(len(kinds) + 1) - 0.5, len(kinds)),
    origin="lower",
    aspect="auto",
  )
  for (row, column), text in texts.items():
    axes.text(column, row, text, ha="center", va="center", fontsize=7)
  axes.set_xticks(range(columns), [f"{size:,}" for size in batch_sizes])
  gigabytes = [factor * link.bytes_per_second / 1e9 for factor in FACTORS]
  axes.set_yticks(range(rows), [f"{speed:.3g}" for speed in gigabytes])
  axes.set_xlabel("images in a step; in the cells: ms of a step")
  axes.set_ylabel(f"{link.name}, GB/s of one link")
  axes.spines[:].set_visible(False)
  axes.legend(
    handles=[
      patches.Patch(color=color, label=kind)
      for color, kind in zip(palette, kinds, strict=True)
    ],
    loc="upper center",
    bbox_to_anchor=(0.5, -0.13),
    frameon=False,
    fontsize="small",
  )
  return drawn
