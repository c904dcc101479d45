"""Compares layouts, meshes and batches before any run.

    python -m alexnet_jax.compare --config=configs/one_device.py:imagenet \\
      --layouts=data_parallel,two_column,one_weird_trick \\
      --devices=2,8 --batch_sizes=128,1024

Prints a table of what one device sends, planned and in the compiled step, what
it computes and holds, and which part of the work is repeated; then the batches
from which another layout sends least. Each layout is tried on every mesh of its
axes that it allows. Exits with 1 if a step does not communicate as planned.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import sys
from collections.abc import Mapping, Sequence

import jax
import ml_collections
from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.compare import chart, comparison
from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.program import compiled_step, summary
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib

_CONFIG = command.define_config()
_SIMULATE_DEVICES = command.define_simulate_devices()
_TOPOLOGY = command.define_topology()
_LAYOUTS = command.define_list(
  "layouts", [], "Names of layouts. Default: the catalog and the config's."
)
_DEVICES = command.define_list("devices", ["2", "4", "8"], "Device counts.")
_BATCH_SIZES = command.define_list(
  "batch_sizes", [], "Images in a step. Default: the config's."
)
_COMPILE = flags.DEFINE_bool(
  "compile", True, "Compile every step, for its memory and its audit."
)
_CHART = command.define_path(
  "chart", "Draw what is sent over the batch to this file, .svg or .png."
)
_FORMAT = command.define_format()

# The rows of each number of devices and batch; the lines of each number.
Groups = Sequence[Sequence[comparison.Row]]
Traffic = Mapping[int, Sequence[comparison.Traffic]]


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  with command.exit_on_error(ValueError, TypeError, OSError, ImportError):
    config = _CONFIG.value
    network, layout = settings.check(config)
    settings.check_single(config, command="compare")
    layouts = settings.choose_layouts(layout, _LAYOUTS.value)
    workload = comparison.Workload(
      network=network,
      exchange_dtype=config.exchange_dtype,
      norms=config.optimizer.trust_coefficient is not None,
    )
    counts = command.parse_counts("devices", _DEVICES.value)
    sizes = command.parse_counts(
      "batch_sizes", _BATCH_SIZES.value or [config.batch_size]
    )
    if _CHART.value:
      command.check_path(_CHART.value, flag="chart", endings=command.PICTURES)
    cases = {
      (count, size): _find_layouts(workload, layouts, count, size)
      for count, size in itertools.product(counts, sizes)
    }
    devices = None
    if _COMPILE.value:
      devices = command.choose_devices(
        max(counts),
        set_by="--devices",
        simulated=_SIMULATE_DEVICES.value,
        topology_name=_TOPOLOGY.value,
      )
    groups = [
      _make_group(config, workload, fitting, size, devices)
      for (_, size), fitting in cases.items()
    ]
    traffic = {
      count: comparison.find_traffic(
        workload, cases[count, sizes[0]], batch_size=sizes[0]
      )
      for count in counts
    }
    if _CHART.value:
      chart.draw(
        traffic,
        batch_sizes=sizes,
        network=network.name,
        exchange_dtype=config.exchange_dtype,
        path=_CHART.value,
      )
  if _FORMAT.value == "json":
    print(command.to_json(_to_json(network, groups, traffic)))
  else:
    _print_tables(network, groups, traffic)
  agrees = all(row.agrees is not False for rows in groups for row in rows)
  sys.exit(0 if agrees else 1)


def _find_layouts(
  workload: comparison.Workload,
  layouts: Sequence[layout_lib.Layout],
  count: int,
  size: int,
) -> list[layout_lib.Layout]:
  """Finds the layouts on meshes of `count` devices that a batch fits.

  Raises:
    ValueError: no layout fits.
  """
  fitting = list(
    comparison.find_layouts(workload, layouts, count, batch_size=size)
  )
  if not fitting:
    raise ValueError(
      f"none of the layouts {', '.join(layout.name for layout in layouts)} "
      f"splits {workload.network.name} over {count} devices with a batch of "
      f"{size}. Set --layouts, --devices or --batch_sizes."
    )
  return fitting


def _make_group(
  config: ml_collections.ConfigDict,
  workload: comparison.Workload,
  layouts: Sequence[layout_lib.Layout],
  batch_size: int,
  devices: Sequence[jax.Device] | None,
) -> list[comparison.Row]:
  """Makes the rows of one device count and one batch, least bytes first."""
  rows = []
  config = copy.deepcopy(config)
  config.batch_size = batch_size
  for layout in layouts:
    row = comparison.make_row(workload, layout, batch_size=batch_size)
    if _COMPILE.value:
      compiled, audit = compiled_step.compile_step(
        run_lib.make_program(config, workload.network, layout, devices=devices)
      )
      row = dataclasses.replace(
        row,
        compiled_bytes=sum(sent.sent_bytes for sent in audit.compiled),
        memory_bytes=compiled_step.find_memory(compiled).get("peak"),
        agrees=audit.agrees,
      )
    rows.append(row)
  return sorted(rows, key=lambda row: row.planned_bytes)


def _print_tables(
  network: wiring.Network, groups: Groups, traffic: Traffic
) -> None:
  console = command.make_console()
  table = summary.make_table(
    f"network {network.name}: one device in one step, in MB of 10^6 bytes",
    *("layout", "mesh", "> batch", "> activations", "> parameters", "> sent"),
    *("> compiled", "> x least", "> memory", "> GFLOP", "> repeated"),
  )
  for rows in groups:
    sent = [row.planned_bytes for row in rows if row.planned_bytes]
    for row in rows:
      compiled = _to_mb(row.compiled_bytes)
      table.add_row(
        row.layout.name,
        layout_lib.format_mesh(row.layout.mesh),
        f"{row.batch_size:,}",
        *map(_to_mb, (row.activation_bytes, row.parameter_bytes)),
        _to_mb(row.planned_bytes),
        f"{compiled}, UNPLANNED" if row.agrees is False else compiled,
        f"{row.planned_bytes / min(sent):.2f}" if sent else "-",
        _to_mb(row.memory_bytes),
        f"{row.flops / 1e9:,.1f}",
        f"{row.repeated:.1%}",
      )
    table.add_section()
  command.print_table(console, table)
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
  if _CHART.value:
    command.print_line(console, f"\nthe chart is in {_CHART.value}")


def _to_json(network: wiring.Network, groups: Groups, traffic: Traffic) -> dict:
  """Returns what the tables show."""
  return {
    "network": network.name,
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


def _to_mb(number: int | None) -> str:
  return "-" if number is None else f"{number / 1e6:,.2f}"


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)
