"""The section on where the time and the bytes of a step go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_collections
import numpy as np

from alexnet_jax.figures import costs
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.planner import price
from alexnet_jax.program import summary
from alexnet_jax.report import section
from alexnet_jax.settings import build, settings

NAME, TITLE = "costs", "Where a step's time and bytes go"


def make_section(
  config: ml_collections.ConfigDict,
  curves: Mapping[str, np.ndarray],
  machine: machine_lib.Machine | None = None,
) -> section.Section:
  """Makes the section on the costs of a step as the run is trained.

  Args:
    config: of the run.
    curves: of the run, see `reports.read_curves`; may be none.
    machine: for which the time is predicted; None: it is not.

  Raises:
    ValueError: the config is wrong, or the machine does not fit the layout.
  """
  network, layout = settings.check(config)
  workload = build.make_workload(config, network)
  found = costs.find_costs(workload, layout)
  text = [_describe_step(found, workload, layout)]
  parts = [_draw_costs(found, layout)]
  measured = find_measured(curves, workload.batch_size)
  if measured is not None:
    text.append(
      f"Measured in training: {summary.to_ms(measured)} ms a step, "
      f"{workload.batch_size / measured:,.0f} images/s, the median of the "
      "reports."
    )
  if machine:
    pricer = price.Pricer(machine, workload)
    prediction = price.predict(pricer, layout)
    parts.append(_draw_times(prediction, machine))
    ends = prediction.overlapped_seconds, prediction.seconds
    steps, overlap = summary.to_ms_range(*ends), ""
    if ".." in steps:
      overlap = ", if all that may overlap does .. if nothing does"
    text.append(
      f"Predicted on machine {machine.name}: {steps} ms a step{overlap}."
    )
  return section.Section(
    name=NAME,
    title=TITLE,
    text=text,
    parts=parts,
  )


def find_measured(
  curves: Mapping[str, np.ndarray], batch_size: int
) -> float | None:
  """Finds the seconds of a step, by the median rate of the reports.

  Returns:
    None if there is no report.
  """
  rates = curves.get("images_per_second", np.array([]))
  rates = rates[np.isfinite(rates) & (rates > 0)]
  return batch_size / float(np.median(rates)) if rates.size else None


def _describe_step(
  found: Sequence[costs.LayerCost],
  workload: price.Workload,
  layout: layout_lib.Layout,
) -> str:
  """Says what a device does in a step, and in which layers most."""

  def add(field: str) -> float:
    return sum(getattr(cost, field) for cost in found)

  sent = add("sent_bytes")
  several = layout.devices > 1
  sends = "sends nothing"
  if sent:
    parts = (
      (add("forward_bytes"), "activations forward"),
      (add("backward_bytes"), "their gradients backward"),
      (add("gradient_bytes"), "gradients and weights"),
    )
    listed = ", ".join(
      f"{part / sent:.0%} {name}" for part, name in parts if part
    )
    sends = f"sends {summary.with_unit(int(sent))} ({listed})"
  who = f"each of the {layout.devices:,} devices" if several else "the device"
  return (
    f"In a step of {workload.batch_size:,} images on layout {layout.name} "
    f"({layout_lib.format_mesh(layout.mesh)}), {who} computes "
    f"{summary.to_short(add('flops') / 1e9)} GFLOP (most in "
    f"{_find_most(found, 'flops')}), holds "
    f"{summary.with_unit(int(add('parameter_bytes')))} of parameters (most in "
    f"{_find_most(found, 'parameter_bytes')}), keeps "
    f"{summary.with_unit(int(add('activation_bytes')))} of activations (most "
    f"in {_find_most(found, 'activation_bytes')}), and {sends}."
  )


def _find_most(found: Sequence[costs.LayerCost], field: str) -> str:
  """Names the layer with most of something: `conv2, 31%`."""
  most = max(found, key=lambda cost: getattr(cost, field))
  total = sum(getattr(cost, field) for cost in found)
  return f"{most.layer}, {getattr(most, field) / total:.0%}"


def _draw_costs(
  found: Sequence[costs.LayerCost], layout: layout_lib.Layout
) -> section.Drawing:
  sends = any(cost.sent_bytes for cost in found)
  rows = [
    [
      cost.layer,
      summary.to_short(cost.forward_flops / 1e9),
      summary.to_short(cost.backward_flops / 1e9),
      *(
        summary.to_short(number / 1e6)
        for number in (
          cost.parameter_bytes,
          cost.activation_bytes,
          cost.forward_bytes,
          cost.backward_bytes,
          cost.gradient_bytes,
        )
      ),
    ]
    for cost in found
  ]
  header = [
    *("layer", "GFLOP forward", "GFLOP backward"),
    *("parameters, MB", "activations, MB"),
    *("sent forward, MB", "sent backward, MB", "sent for gradients, MB"),
  ]
  if not sends:
    header, rows = header[:5], [row[:5] for row in rows]
  of = "one device" if layout.devices > 1 else "the device"
  most = {
    "computing": "flops",
    "parameters": "parameter_bytes",
    "activations": "activation_bytes",
    **({"sending": "sent_bytes"} if sends else {}),
  }
  largest = [
    f"{what} {_find_most(found, field)}" for what, field in most.items()
  ]
  return section.Drawing(
    name="costs",
    figure=costs.to_figure(found),
    kind="svg",
    caption=(
      f"What {of} does in a step, layer by layer. Computed: convolutions and "
      "products, 2 FLOP for each multiplication. Activations: outputs before "
      "pooling. MB are 10^6 bytes."
    ),
    alternative=(
      f"Bars for each layer. The largest shares: {'; '.join(largest)}."
    ),
    table=section.Table(
      header=header,
      rows=rows,
      caption=f"What {of} does in a step.",
      numeric=range(1, len(header)),
    ),
  )


def _draw_times(
  prediction: price.Prediction, machine: machine_lib.Machine
) -> section.Drawing:
  times = costs.find_times(prediction)
  fields = ("forward", "backward", "update", "exchange", "gradients", "seconds")
  longest = max(times, key=lambda name: times[name].seconds)
  share = times[longest].seconds / prediction.seconds
  return section.Drawing(
    name="step_time",
    figure=costs.to_time_figure(prediction),
    kind="svg",
    caption=(
      f"Predicted milliseconds of a step on machine {machine.name}, layer by "
      "layer, if nothing overlaps."
    ),
    alternative=(
      f"Bars for each layer. {longest} takes longest, {share:.0%} of "
      f"{summary.to_ms(prediction.seconds)} ms: "
      f"{summary.to_ms(prediction.compute)} ms computing, "
      f"{summary.to_ms(prediction.exchange)} ms exchange, "
      f"{summary.to_ms(prediction.gradients)} ms gradients."
    ),
    table=section.Table(
      header=["layer, ms", *fields[:-1], "sum"],
      rows=[
        [name, *(summary.to_ms(getattr(time, field)) for field in fields)]
        for name, time in times.items()
      ],
      caption=f"Predicted milliseconds on machine {machine.name}.",
      numeric=range(1, 1 + len(fields)),
    ),
  )
