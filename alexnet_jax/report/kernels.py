"""The section on the first layer's kernels: Figure 3, and what columns prefer.

`figures/kernels.py` defines the measures and the test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from alexnet_jax.figures import kernel_charts, kernels
from alexnet_jax.network import wiring
from alexnet_jax.report import section
from alexnet_jax.training import loaded_run

NAME, TITLE = "kernels", "What the first layer has learned"
# Below it a difference is called more than chance.
_LEVEL = 0.05
_UNKNOWN = "–"


def make_section(run: loaded_run.LoadedRun) -> section.Section:
  """Makes the section; of a first layer that is no convolution, a sentence."""
  layer, columns = run.network.layers[0], run.network.columns
  if layer.kind != "conv":
    return section.Section(
      name=NAME,
      title=TITLE,
      text=[f"{layer.name} is fully connected: it has no kernels to be shown."],
    )
  augmentation = run.program.augmentation
  kernel = kernels.find_seen(
    run.parameters[layer.name]["kernel"],
    color_order=augmentation.color_order,
    color_stds=augmentation.statistics.stds,
  )
  measures = kernels.measure(kernel)
  compared = kernels.compare(measures, columns) if columns > 1 else []
  is_gray = kernel.shape[2] == 1
  parts: list[section.Drawing | section.Table] = [
    _draw_kernels(layer, kernel, measures, columns)
  ]
  drawn = kernel_charts.draw_measures(measures, columns)
  if drawn is not None:
    parts.append(
      section.Drawing(
        name="kernel_measures",
        figure=drawn,
        kind="svg",
        caption=f"Each dot is a learned kernel of {layer.name}; lines are "
        f"means{' of the columns' if columns > 1 else ''}.",
        alternative=" ".join(
          _describe_means(measures, columns) or ["No kernel is learned."]
        ),
        table=_list_kernels(measures, columns),
      )
    )
  if compared:
    parts.append(_make_table(measures, compared, columns))
  return section.Section(
    name=NAME,
    title=TITLE,
    text=[
      _introduce(layer, measures, columns, is_gray=is_gray),
      *([_conclude(compared, columns)] if columns > 1 else []),
    ],
    parts=parts,
  )


def _introduce(
  layer: wiring.Layer,
  measures: kernels.Measures,
  columns: int,
  *,
  is_gray: bool,
) -> str:
  maps, learned = len(measures.energy), int(measures.is_learned.sum())
  text = f"{layer.name} has {maps} kernels of "
  if layer.window < 2:
    text += (
      "one pixel, which have a color, but neither an orientation nor a "
      "frequency."
    )
  else:
    inside = f", {maps // columns} in each of {columns} columns"
    text += (
      f"{layer.window} x {layer.window} pixels{inside * (columns > 1)}. "
      f"{learned or 'None'} of them {'is' if learned < 2 else 'are'} learned, "
      "which means here that neighboring weights are correlated by "
      f"{kernels.MIN_SMOOTHNESS:g} or more."
    )
    if learned < maps:
      text += (
        " The others are still mostly the noise that they started as; they "
        "come last, and are left out of the measures."
        if learned
        else " They are still mostly the noise that they started as."
      )
  if is_gray:
    text += (
      " The pictures of this run are gray, so a kernel's color meets nothing; "
      "what is shown and measured is how kernels act on gray."
    )
  return text


def _draw_kernels(
  layer: wiring.Layer,
  kernel: np.ndarray,
  measures: kernels.Measures,
  columns: int,
) -> section.Drawing:
  is_gray = kernel.shape[2] == 1
  from_to = "from low to high frequency" if is_gray else "from gray to color"
  means = _describe_means(measures, columns)
  return section.Drawing(
    name="kernels",
    figure=kernel_charts.draw_kernels(
      kernel, columns, order=kernels.sort(measures, columns)
    ),
    kind="svg",
    caption=f"The kernels of {layer.name}"
    f"{', a group for each column' * (columns > 1)}, each scaled by itself, "
    f"sorted {from_to}, what is still noise last. After Figure 3 of Krizhevsky "
    "et al. 2012.",
    alternative=f"{len(measures.energy)} kernels of {layer.window} x "
    f"{layer.window} pixels as small pictures. {' '.join(means)}".rstrip(),
  )


def _describe_means(measures: kernels.Measures, columns: int) -> list[str]:
  """Returns a sentence for each measure that can be said."""
  sentences = []
  for name in ("color", "selectivity", "frequency"):
    means = [
      _to_text(one.mean() if one.size else math.nan)
      for one in measures.split(name, columns)
    ]
    if set(means) != {_UNKNOWN}:
      where = f" in column {', '.join(map(str, range(columns)))}"
      sentences.append(
        f"Mean {kernels.COMPARED[name]}{where * (columns > 1)}: "
        f"{', '.join(means)}."
      )
  return sentences


def _conclude(compared: Sequence[kernels.Comparison], columns: int) -> str:
  tested = [one for one in compared if one.p is not None]
  if not tested:
    return (
      "Whether the columns differ cannot be said: one of them has fewer than "
      "two learned kernels."
    )
  differing = [one for one in tested if one.adjusted_p < _LEVEL]
  if differing:
    names = ", ".join(kernels.COMPARED[one.name] for one in differing)
    text = f"The columns differ by more than chance in {names}."
  else:
    least = min(tested, key=lambda one: one.adjusted_p)
    text = (
      "The columns differ by no more than chance in what was measured; the "
      f"smallest adjusted p is {kernels.format_p(least.adjusted_p)}, for "
      f"{kernels.COMPARED[least.name]}."
    )
  color = next((one for one in tested if one.name == "color"), None)
  if color is not None and columns == 2:
    text += (
      " In 2012 one column was largely color-agnostic and the other largely "
      "color-specific in every run; here the mean shares of color are "
      f"{_to_text(color.means[0])} and {_to_text(color.means[1])} "
      f"(p = {kernels.format_p(color.p)})."
    )
  return text


def _make_table(
  measures: kernels.Measures,
  compared: Sequence[kernels.Comparison],
  columns: int,
) -> section.Table:
  learned = np.split(measures.is_learned, columns)
  rows = [["learned kernels", *(str(one.sum()) for one in learned), "", ""]]
  for one in compared:
    if one.name == "direction":
      shown = [
        _UNKNOWN
        if np.isnan(mean)
        else f"{kernels.to_orientation(mean):.0f}° ({_to_text(abs(mean))})"
        for mean in one.means
      ]
    else:
      shown = list(map(_to_text, one.means))
    rows.append(
      [
        f"mean {kernels.COMPARED[one.name]}",
        *shown,
        *map(kernels.format_p, (one.p, one.adjusted_p)),
      ]
    )
  if columns > 2:
    what = "the variance between columns"
  else:
    what = "the difference of the means, two-sided"
  return section.Table(
    header=[
      "measure",
      *(f"column {index}" for index in range(columns)),
      "p",
      "adjusted p",
    ],
    rows=rows,
    caption="What the kernels of each column prefer. p: probability of so "
    "large a difference if kernels were in columns by chance, from "
    f"{kernels.PERMUTATIONS:,} permutations of {what}; adjusted for the number "
    "of measures by Holm's method. Color is the part of a kernel's energy that "
    "is not gray; frequencies are in cycles per pixel; the orientation is that "
    "of the bars (0° flat, 90° upright), and in brackets how much the column's "
    "kernels agree on it, 0 to 1.",
    numeric=range(1, columns + 3),
  )


def _list_kernels(measures: kernels.Measures, columns: int) -> section.Table:
  """Lists the measures of each kernel, in the order of the network."""
  own = len(measures.energy) // columns
  rows = []
  for index, learned in enumerate(measures.is_learned):
    values = (
      getattr(measures, name)[index]
      for name in ("energy", "smoothness", "color", "selectivity")
    )
    degrees = measures.orientation[index]
    rows.append(
      [
        *([str(index // own)] if columns > 1 else []),
        str(index % own),
        "yes" if learned else "no",
        *map(_to_text, values),
        _UNKNOWN if np.isnan(degrees) else f"{degrees:.0f}°",
        _to_text(measures.frequency[index]),
        _to_text(measures.bandwidth[index]),
      ]
    )
  header = [
    *(["column"] if columns > 1 else []),
    *("kernel", "learned", "energy", "smoothness", "color", "selectivity"),
    *("orientation", "frequency", "bandwidth"),
  ]
  return section.Table(
    header=header,
    rows=rows,
    caption="Measures of each kernel, in the order of the network.",
    numeric=[index for index, name in enumerate(header) if name != "learned"],
  )


def _to_text(value: float) -> str:
  return _UNKNOWN if math.isnan(value) else f"{value:.3g}"
