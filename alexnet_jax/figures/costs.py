"""Where the time and the bytes of a step go, layer by layer, as bars.

All numbers are of one device, and the same for all devices. They follow from
network, layout and batch; times are predicted for a machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib import axes as axes_lib
from matplotlib import figure, ticker

from alexnet_jax.figures import charts
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.planner import price
from alexnet_jax.program import summary

# A color-blind safe palette (Okabe and Ito 2008), of colors that can be seen on
# white and on black.
_COLORS = {
  "forward": "#0072b2",
  "backward": "#d55e00",
  "gradients and weights": "#009e73",
  "exchange": "#cc79a7",
  "update": "#808080",
}
_PLAIN = "#808080"
# Inches: of a figure, of a bar, and of what is above and below a panel's bars.
_WIDTH, _BAR, _AROUND, _LEGEND = 5.0, 0.17, 0.62, 0.3

# {name of a part: its values by layer}; parts are stacked.
Parts = Mapping[str, Sequence[float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCost:
  """What one device does for a layer in a step.

  Attributes:
    layer: its name; also `loss` and `update`, if these send.
    forward_flops, backward_flops: of the convolution or product, 2 for each
      multiplication.
    parameter_bytes: of the stored shards of all parameters.
    activation_bytes: of the outputs that are kept, before pooling.
    forward_bytes, backward_bytes: sent of activations, statistics and edges.
    gradient_bytes: sent for gradients and gathered weights.
  """

  layer: str
  forward_flops: int = 0
  backward_flops: int = 0
  parameter_bytes: int = 0
  activation_bytes: int = 0
  forward_bytes: int = 0
  backward_bytes: int = 0
  gradient_bytes: int = 0

  @property
  def flops(self) -> int:
    return self.forward_flops + self.backward_flops

  @property
  def sent_bytes(self) -> int:
    return self.forward_bytes + self.backward_bytes + self.gradient_bytes


def find_costs(
  workload: price.Workload, layout: layout_lib.Layout
) -> list[LayerCost]:
  """Finds the costs of each layer, in order.

  Args:
    layout: a layout that `check.check` has accepted.
  """
  costs = {}
  for name, load in workload.find_loads(layout).items():
    forward = load.flops // load.passes
    costs[name] = LayerCost(
      layer=name,
      forward_flops=forward,
      backward_flops=load.flops - forward,
      parameter_bytes=load.parameter_bytes,
      activation_bytes=load.activation_bytes,
    )
  for one in workload.make_plan(layout):
    field = f"{one.direction}_bytes"
    if one.tensor in plan_lib.PARAMETERS:
      field = "gradient_bytes"
    cost = costs.get(one.layer, LayerCost(layer=one.layer))
    sent = getattr(cost, field) + one.sent_bytes
    costs[one.layer] = dataclasses.replace(cost, **{field: sent})
  return [*costs.values()]


def to_figure(costs: Sequence[LayerCost]) -> figure.Figure:
  """Draws a panel each for computing, parameters, activations and sending.

  The last one is left out where nothing is sent.
  """

  def collect(field: str, unit: float) -> list[float]:
    return [getattr(cost, field) / unit for cost in costs]

  panels: list[tuple[str, str, Parts]] = [
    (
      "computes",
      "GFLOP",
      {
        "forward": collect("forward_flops", 1e9),
        "backward": collect("backward_flops", 1e9),
      },
    ),
    ("holds parameters", "MB", {"": collect("parameter_bytes", 1e6)}),
    ("keeps activations", "MB", {"": collect("activation_bytes", 1e6)}),
    (
      "sends",
      "MB",
      {
        "forward": collect("forward_bytes", 1e6),
        "backward": collect("backward_bytes", 1e6),
        "gradients and weights": collect("gradient_bytes", 1e6),
      },
    ),
  ]
  if not any(cost.sent_bytes for cost in costs):
    panels.pop()
  return _draw([cost.layer for cost in costs], panels)


def to_time_figure(prediction: price.Prediction) -> figure.Figure:
  """Draws the predicted milliseconds of each layer, if nothing overlaps."""
  rows = find_times(prediction)

  def collect(*fields: str) -> list[float]:
    return [
      1e3 * sum(getattr(row, field) for field in fields)
      for row in rows.values()
    ]

  parts = {
    "forward": collect("forward"),
    "backward": collect("backward"),
    "update": collect("update"),
    "exchange": collect("exchange"),
    "gradients and weights": collect("gradients"),
  }
  parts = {name: values for name, values in parts.items() if any(values)}
  return _draw([*rows], [("takes", "ms", parts)])


def find_times(prediction: price.Prediction) -> dict[str, price.LayerTime]:
  """Returns the times of the augmentation and of each layer, in order."""
  return {
    "augmentation": price.LayerTime(forward=prediction.augmentation),
    **prediction.layers,
  }


def _draw(
  layers: Sequence[str], panels: Sequence[tuple[str, str, Parts]]
) -> figure.Figure:
  """Draws panels of bars, one bar for each layer, at most two beside others.

  Args:
    panels: (title, unit, parts) of each.
  """
  across = min(2, len(panels))
  down = -(-len(panels) // across)
  height = down * (_BAR * len(layers) + _AROUND) + _LEGEND
  with matplotlib.rc_context(charts.SETTINGS):
    drawn = figure.Figure(figsize=(_WIDTH, height), layout="constrained")
    drawn.patch.set_alpha(0)
    grid = drawn.subplots(down, across, squeeze=False, sharey=True).ravel()
    for unused in grid[len(panels) :]:
      unused.set_axis_off()
    handles = {}
    for panel, (title, unit, parts) in zip(grid, panels, strict=False):
      handles |= _draw_bars(panel, layers, parts)
      total = sum(map(sum, parts.values()))
      panel.set_title(
        f"{title}: {summary.to_short(total)} {unit}",
        loc="left",
        size=9,
        weight="bold",
        color="black",
      )
    drawn.legend(
      [*handles.values()],
      [*handles],
      loc="outside lower left",
      ncols=len(handles),
      frameon=False,
      fontsize=8,
      handlelength=1,
      columnspacing=1,
      labelcolor="black",
    )
  return drawn


def _draw_bars(
  panel: axes_lib.Axes, layers: Sequence[str], parts: Parts
) -> dict:
  """Draws stacked bars; returns {part: handle of the legend}."""
  handles, start = {}, np.zeros(len(layers))
  for name, values in parts.items():
    bars = panel.barh(
      range(len(layers)),
      values,
      left=start,
      height=0.72,
      color=_COLORS.get(name, _PLAIN),
    )
    start = start + values
    if name:
      handles[name] = bars
  panel.set_yticks(range(len(layers)), layers)
  panel.set_ylim(len(layers) - 0.4, -0.6)
  panel.xaxis.set_major_locator(ticker.MaxNLocator(4))
  panel.xaxis.set_major_formatter(ticker.FuncFormatter(charts.format_tick))
  panel.set_xlim(left=0)
  panel.patch.set_alpha(0)
  panel.tick_params(colors="black", length=2)
  panel.tick_params(axis="y", length=0)
  panel.spines[["top", "right"]].set_visible(False)
  return handles
