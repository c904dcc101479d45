"""Compares layouts, meshes and batches before any run.

    python -m alexnet_jax.compare --config=configs/one_device.py:imagenet \\
      --layouts=data_parallel,two_column,one_weird_trick \\
      --devices=2,8 --batch_sizes=128,1024 --machine=dgx_h100

Prints tables of what one device sends, planned and in the compiled step, what
it computes and holds, and which part of the work is repeated; with a machine,
what a step takes there; then the batches from which another layout sends least.
Each layout is tried on every mesh of its axes that it allows. Exits with 1 if a
step does not communicate as planned.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence

import jax
import ml_collections
import rich.progress
from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.compare import chart, comparison, tables
from alexnet_jax.data import ilsvrc, sets
from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.planner import price
from alexnet_jax.program import compiled_step
from alexnet_jax.settings import build, settings
from alexnet_jax.training import run as run_lib

_CONFIG = command.define_config()
_SIMULATE_DEVICES = command.define_simulate_devices()
_TOPOLOGY = command.define_topology()
_LAYOUTS = command.define_list(
  "layouts", [], "Names of layouts. Default: the catalog and the config's."
)
_DEVICES = command.define_list(
  "devices", ["2", "4", "8"], "Device counts. With --hosts: all of these."
)
_BATCH_SIZES = command.define_list(
  "batch_sizes", [], "Images in a step. Default: the config's."
)
_MACHINE = command.define_machine()
_HOSTS = command.define_hosts()
_COMPILE = flags.DEFINE_bool(
  "compile", True, "Compile every step, for its memory and its audit."
)
_CHART = command.define_path(
  "chart", "Draw what is sent over the batch to this file, .svg or .png."
)
_FORMAT = command.define_format()

# (devices, batch) -> the rows, before anything is compiled.
Groups = Mapping[tuple[int, int], Sequence[comparison.Row]]


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  with command.exit_on_error(ValueError, TypeError, OSError, ImportError):
    config = _CONFIG.value
    network, layout = settings.check(config)
    settings.check_single(config, command="compare")
    layouts = settings.choose_layouts(layout, _LAYOUTS.value)
    machine = command.load_machine(_MACHINE.value, _HOSTS.value)
    counts = _choose_counts(machine)
    sizes = command.parse_counts(
      "batch_sizes", _BATCH_SIZES.value or [config.batch_size]
    )
    if _CHART.value:
      command.check_path(_CHART.value, flag="chart", endings=command.PICTURES)
    workload = build.make_workload(config, network)
    workloads = {
      size: dataclasses.replace(workload, batch_size=size) for size in sizes
    }
    groups = {
      (count, size): _make_rows(
        config, workloads[size], layouts, count, machine=machine
      )
      for count, size in itertools.product(counts, sizes)
    }
    epoch = _find_epoch(config) if machine else None
    devices = None
    if _COMPILE.value:
      devices = command.choose_devices(
        max(counts),
        set_by="--devices",
        simulated=_SIMULATE_DEVICES.value,
        topology_name=_TOPOLOGY.value,
      )
    is_json = _FORMAT.value == "json"
    console = command.make_console(file=sys.stderr if is_json else None)
    done = []
    for rows in _compile(config, network, groups, devices, console):
      done.append(rows)
      if not is_json:
        command.print_table(
          console, tables.make_bytes_table(network.name, rows)
        )
        if machine:
          command.print_table(
            console, tables.make_time_table(rows, machine, epoch)
          )
    traffic = {
      count: comparison.find_traffic(
        workloads[sizes[0]], [row.layout for row in groups[count, sizes[0]]]
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
  if is_json:
    found = tables.to_json(
      network.name, done, traffic, machine=machine, epoch=epoch
    )
    print(command.to_json(found))
  else:
    if machine:
      console.print()
      for line in tables.describe_time(epoch):
        command.print_line(console, line)
    tables.print_traffic(console, traffic)
    if _CHART.value:
      command.print_line(console, f"\nthe chart is in {_CHART.value}")
  agrees = all(row.agrees is not False for rows in done for row in rows)
  sys.exit(0 if agrees else 1)


def _choose_counts(machine: machine_lib.Machine | None) -> list[int]:
  """Chooses the numbers of devices; with --hosts, all that these have.

  Raises:
    ValueError: --devices has no counts, or more than --hosts has.
  """
  if _HOSTS.value and not _DEVICES.present:
    return [machine.devices]
  counts = command.parse_counts("devices", _DEVICES.value)
  if _HOSTS.value and max(counts) > machine.devices:
    raise ValueError(
      f"--devices has {max(counts)}, but --hosts={_HOSTS.value} are "
      f"{machine.devices} devices. Set --devices or --hosts."
    )
  return counts


def _find_epoch(config: ml_collections.ConfigDict) -> tables.Epoch:
  """Finds the images of an epoch: those of the config's set, if it is here."""
  name, split = config.data.name, config.data.train_split
  images = sets.count_images(name, split)
  if images is None:
    return tables.Epoch(
      images=ilsvrc.IMAGES["train"], dataset="ImageNet (ILSVRC 2012)"
    )
  return tables.Epoch(images=images, dataset=f"{name}, {split}")


def _make_rows(
  config: ml_collections.ConfigDict,
  workload: price.Workload,
  layouts: Sequence[layout_lib.Layout],
  count: int,
  *,
  machine: machine_lib.Machine | None,
) -> list[comparison.Row]:
  """Makes a row of each layout on each mesh of `count` devices that it fits.

  The fastest first, if there is a machine, else those that send least.

  Raises:
    ValueError: no layout fits, or the machine does not.
  """
  fitting = list(comparison.find_layouts(workload, layouts, count))
  if not fitting:
    raise ValueError(
      f"none of the layouts {', '.join(layout.name for layout in layouts)} "
      f"splits {workload.network.name} over {count} devices with a batch of "
      f"{workload.batch_size}. Set --layouts, --devices or --batch_sizes."
    )
  pricer = price.Pricer(machine, workload) if machine else None
  rows = [
    comparison.make_row(
      workload,
      layout,
      pricer=pricer,
      order=tuple(layout.mesh)
      if settings.keeps_order(config, layout)
      else None,
    )
    for layout in fitting
  ]
  if machine:
    return sorted(rows, key=lambda row: row.prediction.seconds)
  return sorted(rows, key=lambda row: row.planned_bytes)


def _compile(
  config: ml_collections.ConfigDict,
  network: wiring.Network,
  groups: Groups,
  devices: Sequence[jax.Device] | None,
  console: command.PlainConsole,
) -> Iterator[list[comparison.Row]]:
  """Yields each group as soon as all of its steps are compiled.

  Args:
    devices: to compile for; None: nothing is compiled.
    console: has a bar if it is a terminal.
  """
  if devices is None:
    yield from map(list, groups.values())
    return
  with rich.progress.Progress(
    rich.progress.TextColumn("compiles"),
    rich.progress.MofNCompleteColumn(),
    rich.progress.BarColumn(),
    rich.progress.TimeElapsedColumn(),
    rich.progress.TextColumn("{task.fields[text]}", markup=False),
    console=console,
    disable=not console.is_terminal,
    transient=True,
  ) as bar:
    task = bar.add_task(
      "compiles", total=sum(map(len, groups.values())), text=""
    )
    for (count, size), rows in groups.items():
      compiled = []
      for row in rows:
        bar.update(
          task, text=f"{row.layout.name}, {count} devices, {size:,} images"
        )
        compiled.append(_compile_row(config, network, row, devices))
        bar.advance(task)
      yield compiled


def _compile_row(
  config: ml_collections.ConfigDict,
  network: wiring.Network,
  row: comparison.Row,
  devices: Sequence[jax.Device],
) -> comparison.Row:
  config = copy.deepcopy(config)
  config.batch_size = row.batch_size
  compiled, audit = compiled_step.compile_step(
    run_lib.make_program(config, network, row.layout, devices=devices)
  )
  return dataclasses.replace(
    row,
    compiled_bytes=sum(sent.sent_bytes for sent in audit.compiled),
    memory_bytes=compiled_step.find_memory(compiled).get("peak"),
    agrees=audit.agrees,
  )


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)
