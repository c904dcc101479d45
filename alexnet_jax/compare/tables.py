"""What `compare` prints: bytes, time, and where another layout sends least."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence

import rich.console
import rich.table

from alexnet_jax.cli import command
from alexnet_jax.compare import comparison
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.program import summary

# The rows of one number of devices and one batch.
Rows = Sequence[comparison.Row]
# {devices: the lines of the layouts}
Traffic = Mapping[int, Sequence[comparison.Traffic]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epoch:
  """What an epoch is: so many images of a set."""

  images: int
  dataset: str


def make_bytes_table(network: str, rows: Rows) -> rich.console.Group:
  """Makes a row per layout of what one device sends, computes and holds."""
  table = _make_table(
    f"{network} on {_count(rows)}: MB (10^6 bytes) of one device",
    *("layout", "mesh", "> activations", "> parameters", "> sent"),
    *("> compiled", "> x least", "> memory", "> GFLOP", "> repeated"),
  )
  sent = [row.planned_bytes for row in rows if row.planned_bytes]
  is_predicted = False
  for row in rows:
    compiled, memory = _to_mb(row.compiled_bytes), _to_mb(row.memory_bytes)
    if row.memory_bytes is None and row.prediction:
      memory, is_predicted = f"~{_to_mb(row.prediction.memory_bytes)}", True
    table.add_row(
      row.layout.name,
      layout_lib.format_mesh(row.layout.mesh),
      *map(_to_mb, (row.activation_bytes, row.parameter_bytes)),
      _to_mb(row.planned_bytes),
      f"{compiled}, UNPLANNED" if row.agrees is False else compiled,
      f"{row.planned_bytes / min(sent):.2f}" if sent else "-",
      memory,
      f"{row.flops / 1e9:,.1f}",
      f"{row.repeated:.1%}",
    )
  notes = ["~: predicted, where nothing is compiled"] if is_predicted else []
  return rich.console.Group(table, *notes)


def make_time_table(
  rows: Rows, machine: machine_lib.Machine, epoch: Epoch
) -> rich.console.Group:
  """Makes a row per layout of the time that a step is predicted to take."""
  levels = [textwrap.fill(f"MB over {link.name}", 9) for link in machine.links]
  table = _make_table(
    f"{machine.name}, {_count(rows)}: predicted time in ms",
    *("layout", "mesh", "> a step", "> compute", "> exchange", "> gradients"),
    *(f"> {level}" for level in levels),
    *("> images/s", "> device-\nhours"),
  )
  crowded = []
  for row in rows:
    found, mesh = row.prediction, layout_lib.format_mesh(row.layout.mesh)
    parts = found.compute, found.exchange, found.gradients
    table.add_row(
      *(row.layout.name, mesh),
      summary.to_ms_range(found.overlapped_seconds, found.seconds),
      *(summary.to_ms(seconds) for seconds in parts),
      *map(_to_mb, found.bytes_by_level.values()),
      f"{found.images_per_second:,.0f}",
      summary.to_short(found.device_hours(epoch.images)),
    )
    memory = row.memory_bytes
    memory = found.memory_bytes if memory is None else memory
    if memory > machine.memory_bytes:
      crowded.append(f"{row.layout.name} ({mesh})")
  notes = []
  if crowded:
    notes.append(
      f"more than the {_to_mb(machine.memory_bytes)} MB of a device: "
      f"{', '.join(crowded)}"
    )
  return rich.console.Group(table, *notes)


def describe_time(epoch: Epoch) -> list[str]:
  """Explains the columns of the table of times."""
  return [
    "a step: if all that may overlap does .. if nothing does; the latter is "
    "the sum of the next three,",
    "  and of it are images/s and device-hours",
    "MB: that a device sends over each level of links, on average",
    f"device-hours: for an epoch of {epoch.images:,} images of {epoch.dataset}",
  ]


def print_traffic(console: rich.console.Console, traffic: Traffic) -> None:
  """Prints the batches from which another layout sends least."""
  for count, lines in traffic.items():
    overtakings = comparison.find_overtakings(lines)
    least = [overtaking for overtaking in overtakings if overtaking.least]
    if least:
      text = "batches from which another layout sends least"
    else:
      text = "the same layout sends least at any batch"
    console.print(f"\n{count} devices: {text}")
    for overtaking in least:
      command.print_line(
        console,
        f"  {overtaking.batch_size:>9,.0f}: below it, "
        f"{comparison.describe(overtaking.below)} sends less, above it "
        f"{comparison.describe(overtaking.above)}",
      )
    if others := len(overtakings) - len(least):
      console.print(
        f"  {others} more pairs send the same at some batch: --format=json, or "
        "fewer --layouts"
      )


def to_json(
  network: str,
  groups: Sequence[Rows],
  traffic: Traffic,
  *,
  machine: machine_lib.Machine | None,
  epoch: Epoch | None,
) -> dict:
  """Returns what the tables show."""
  found = {
    "network": network,
    "rows": [
      {
        "layout": row.layout.name,
        "mesh": dict(row.layout.mesh),
        "devices": row.layout.devices,
        "batch": row.batch_size,
        **{
          field: getattr(row, field)
          for field in (
            *("activation_bytes", "parameter_bytes", "planned_bytes"),
            *("compiled_bytes", "memory_bytes", "flops", "repeated", "agrees"),
          )
        },
        **(
          {
            "predicted": {
              **row.prediction.to_json(),
              "epoch_device_hours": row.prediction.device_hours(epoch.images),
            }
          }
          if row.prediction
          else {}
        ),
      }
      for rows in groups
      for row in rows
    ],
    "overtakings": [
      {
        "devices": count,
        "below": comparison.describe(overtaking.below),
        "above": comparison.describe(overtaking.above),
        "batch": overtaking.batch_size,
        "least": overtaking.least,
      }
      for count, lines in traffic.items()
      for overtaking in comparison.find_overtakings(lines)
    ],
  }
  if machine:
    found["machine"] = machine.name
    found["epoch"] = dataclasses.asdict(epoch)
  return found


def _make_table(title: str, *headers: str) -> rich.table.Table:
  """Makes a table whose columns are close together: there are many."""
  table = summary.make_table(title, *headers)
  table.padding = (0, 1, 0, 0)
  return table


def _count(rows: Rows) -> str:
  """Says what the rows have in common: `8 devices, 128 images in a step`."""
  devices = rows[0].layout.devices
  return (
    f"{devices:,} device{'s' if devices > 1 else ''}, "
    f"{rows[0].batch_size:,} images in a step"
  )


def _to_mb(number: float | None) -> str:
  return "-" if number is None else f"{number / 1e6:,.2f}"
