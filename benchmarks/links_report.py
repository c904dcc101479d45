"""Compares predicted with measured steps, from a file of `benchmarks.links`.

    python -m benchmarks.links_report --json=links.jsonl --plot=links.svg

The machine is what the file has of one batch size and one rate: the parts of a
step, and what each kind of collective takes at `--rate` and without a limit. A
prediction for another rate changes the speed of the link and nothing else. No
step is used to make a prediction.

Steps of one network, batch and rate are a group: of each, Kendall's tau between
predicted and measured times, and by how much the layout that is predicted to be
the fastest is slower than the fastest.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import rich.table
from absl import app, flags
from matplotlib import figure
from scipy import stats

from alexnet_jax.cli import command
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.planner import price
from alexnet_jax.program import summary
from alexnet_jax.settings import build, settings
from benchmarks import links, links_cases, links_network

# Collectives that send so much or more tell the time of a byte.
_LARGE_BYTES = 2**16
# A layout may be so much slower than the fastest and still count as that.
_CLOSE = 0.05

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """A step that was measured and predicted; seconds."""

  network: str
  batch_size: int
  rate: str
  layout: str
  measured: float
  predicted: float
  sent_bytes: int

  @property
  def group(self) -> tuple[str, int, str]:
    return self.network, self.batch_size, self.rate

  @property
  def error(self) -> float:
    """Part of the measured time."""
    return self.predicted / self.measured - 1


def make_machine(lines: Sequence[Line], rate: str) -> machine_lib.Machine:
  """Makes the machine of two hosts; its link has the given rate.

  Args:
    lines: of the file.
    rate: at which collectives were measured.

  Raises:
    ValueError: the file lacks what the machine is made of.
  """
  measured = {line["rate"] for line in lines if line["kind"] == "collective"}
  if not {rate, links_network.UNSHAPED} <= measured or len(measured) < 2:
    raise ValueError(
      f"--rate is {rate!r}, but the file has collectives at "
      f"{', '.join(sorted(measured)) or 'no rate'}, expected a rate of these "
      f"and {links_network.UNSHAPED}. Set --rate."
    )
  if rate == links_network.UNSHAPED:
    raise ValueError("--rate is unshaped, expected a limited rate. Set --rate.")
  parts = [line for line in lines if line["kind"] == "parts"]
  if not parts:
    raise ValueError(
      "the file has no parts of a step. Run benchmarks.links to its end."
    )
  link = machine_lib.Link(
    name="network",
    unit_devices=1,
    joins_devices=None,
    bytes_per_second=links_network.to_bytes_per_second(rate),
    shared_by=1,
    latency_seconds=0.0,
    software={
      kind: _fit(lines, kind, rate) for kind in machine_lib.COLLECTIVES
    },
  )
  return machine_lib.Machine(
    name="two_hosts",
    description="two processes with one core each",
    platform="cpu",
    devices=links_cases.DEVICES,
    memory_bytes=1e12,
    peak_flops_per_second={"float32": parts[0]["flops_per_second"]},
    utilization=dict.fromkeys(machine_lib.KINDS, 1.0),
    memory_bytes_per_second=parts[0]["bytes_per_second"],
    launch_seconds=0.0,
    links=(link,),
    measured=tuple(
      machine_lib.Measured(**one) for part in parts for one in part["measured"]
    ),
  )


def _fit(lines: Sequence[Line], kind: str, rate: str) -> machine_lib.Software:
  """Finds what a kind of collective costs.

  Whether one process is late enough for gloo to send one direction after the
  other changes from step to step, so each size counts with the mean of both.
  """
  times: dict[str, dict[int, list[float]]] = collections.defaultdict(
    lambda: collections.defaultdict(list)
  )
  for line in lines:
    if line["kind"] == "collective" and line["collective"] == kind:
      median = statistics.median(line["seconds"])
      times[line["rate"]][line["planned_bytes"]].append(median)
  free = times[links_network.UNSHAPED]
  seconds = statistics.mean(free[min(free)])

  def find_slope(times: dict[int, list[float]]) -> float:
    return statistics.median(
      (statistics.mean(found) - seconds) / size
      for size, found in times.items()
      if size >= _LARGE_BYTES
    )

  return machine_lib.Software(
    seconds=seconds,
    overlapped_seconds_per_byte=find_slope(free),
    link_times=max(
      1.0,
      find_slope(times[rate]) * links_network.to_bytes_per_second(rate),
    ),
  )


def predict(lines: Sequence[Line], machine: machine_lib.Machine) -> list[Step]:
  """Predicts every step that the file has."""
  cases = {line["case"]: line for line in lines if line["kind"] == "case"}
  steps = []
  pricers: dict[tuple, price.Pricer] = {}
  for line in lines:
    if line["kind"] != "step":
      continue
    case = cases[line["case"]]
    key = case["network"], case["batch_size"], line["rate"]
    if key not in pricers:
      config = links_cases.make_config(*key[:2])
      workload = build.make_workload(config, settings.make_network(config))
      (link,) = machine.links
      link = dataclasses.replace(
        link,
        bytes_per_second=links_network.to_bytes_per_second(line["rate"]),
      )
      shaped = dataclasses.replace(machine, links=(link,))
      pricers[key] = price.Pricer(shaped, workload)
    workload = pricers[key].workload
    layout = links_cases.from_fields(case["layout"], workload.network)
    steps.append(
      Step(
        network=key[0],
        batch_size=key[1],
        rate=key[2],
        layout=layout.name,
        measured=statistics.median(line["seconds"]),
        predicted=price.predict(pricers[key], layout).seconds,
        sent_bytes=case["planned_bytes"],
      )
    )
  return steps


def to_groups(steps: Iterable[Step]) -> dict[tuple, list[Step]]:
  groups = collections.defaultdict(list)
  # Cases visit the rates forward and backward in turns.
  for step in sorted(steps, key=lambda step: links.RATES.index(step.rate)):
    groups[step.group].append(step)
  return dict(sorted(groups.items(), key=lambda group: group[0][:2]))


def make_table(steps: Sequence[Step]) -> rich.table.Table:
  """Makes a row per group: errors, rank, and the choice."""
  table = summary.make_table(
    "predicted and measured steps",
    *("network", "> batch", "> rate", "> layouts", "> ms, fastest"),
    *("> slowest", "> mean error", "> bias", "> worst", "> Kendall's tau"),
    *("predicted fastest", "> is slower by"),
  )
  for (network, batch_size, rate), group in to_groups(steps).items():
    measured = [step.measured for step in group]
    errors = [step.error for step in group]
    chosen = min(group, key=lambda step: step.predicted)
    table.add_row(
      network,
      f"{batch_size}",
      rate,
      f"{len(group)}",
      f"{1e3 * min(measured):,.0f}",
      f"{1e3 * max(measured):,.0f}",
      f"{statistics.mean(map(abs, errors)):.1%}",
      f"{statistics.mean(errors):+.1%}",
      f"{max(errors, key=abs):+.1%}",
      f"{find_tau(group):.2f}" if len(group) > 1 else "-",
      chosen.layout,
      f"{chosen.measured / min(measured) - 1:.1%}",
    )
  return table


def find_tau(group: Sequence[Step]) -> float:
  """Returns Kendall's tau-b between predicted and measured times."""
  return stats.kendalltau(
    [step.predicted for step in group], [step.measured for step in group]
  ).statistic


def make_lines(steps: Sequence[Step]) -> list[str]:
  errors = [step.error for step in steps]
  groups = [group for group in to_groups(steps).values() if len(group) > 1]
  close = sum(
    min(group, key=lambda step: step.predicted).measured
    <= (1 + _CLOSE) * min(step.measured for step in group)
    for group in groups
  )
  worst = max(steps, key=lambda step: abs(step.error))
  lines = [
    f"{len(steps)} steps: mean absolute error "
    f"{statistics.mean(map(abs, errors)):.1%}, worst {worst.error:+.1%} "
    f"({worst.layout}, {worst.network}, batch {worst.batch_size}, "
    f"{worst.rate})",
  ]
  if not groups:
    return lines
  return [
    *lines,
    f"Kendall's tau: {min(map(find_tau, groups)):.2f} at the least, "
    f"{statistics.median(map(find_tau, groups)):.2f} in the median of "
    f"{len(groups)} groups",
    f"the layout that is predicted to be the fastest is, or is within "
    f"{_CLOSE:.0%} of it, in {close} of {len(groups)} groups",
  ]


def draw(steps: Sequence[Step], path: str) -> None:
  """Draws predicted over measured times."""
  with matplotlib.rc_context({"svg.hashsalt": "alexnet_jax"}):
    drawn = figure.Figure(figsize=(5.5, 5), layout="constrained")
    axes = drawn.subplots()
    rates = sorted({step.rate for step in steps}, key=links.RATES.index)
    for rate in rates:
      those = [step for step in steps if step.rate == rate]
      axes.plot(
        [step.measured for step in those],
        [step.predicted for step in those],
        "o",
        markersize=3,
        label=rate,
      )
    ends = [
      pick(pick(step.measured, step.predicted) for step in steps)
      for pick in (min, max)
    ]
    axes.plot(ends, ends, color="0.5", linewidth=0.8)
    for factor in (0.9, 1.1):
      axes.plot(
        ends, [factor * end for end in ends], ":", color="0.5", linewidth=0.8
      )
    axes.set(
      xscale="log",
      yscale="log",
      xlabel="measured, s",
      ylabel="predicted, s (dotted: 10 %)",
      title="Steps of two processes over links of known rates",
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    metadata = {"Date": None} if path.endswith("svg") else {}
    drawn.savefig(path, dpi=200, metadata=metadata)


def define_flags() -> None:
  command.define_path("json", "The file of benchmarks.links.", required=True)
  command.define_path("plot", "Draw predicted over measured, .svg or .png.")
  flags.DEFINE_string("rate", "1gbit", "Rate whose collectives were measured.")
  flags.DEFINE_boolean("steps", False, "Also print every step.")


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  values = flags.FLAGS
  with command.exit_on_error(ValueError, OSError):
    if values.plot:
      command.check_path(values.plot, flag="plot", endings=command.PICTURES)
    text = pathlib.Path(values.json).read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    machine = make_machine(lines, values.rate)
    steps = predict(lines, machine)
    if values.plot:
      draw(steps, values.plot)
  console = command.make_console()
  for kind, costs in machine.links[0].software.items():
    command.print_line(
      console,
      f"{kind}: {1e3 * costs.seconds:.3f} ms, "
      f"{costs.link_times:.2f} times what a byte takes on the link, at least "
      f"{1e9 * costs.overlapped_seconds_per_byte:.2f} ns",
    )
  if values.steps:
    for step in sorted(steps, key=lambda step: step.group):
      command.print_line(
        console,
        f"{step.network} {step.batch_size} {step.rate} {step.layout}: "
        f"{1e3 * step.measured:,.0f} ms measured, "
        f"{1e3 * step.predicted:,.0f} predicted, {step.error:+.1%}",
      )
  command.print_table(console, make_table(steps))
  console.print()
  for line in make_lines(steps):
    command.print_line(console, line)


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)
