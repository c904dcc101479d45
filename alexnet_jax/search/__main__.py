"""Finds the layout that takes the least time on a machine, exactly.

    python -m alexnet_jax.search --config=configs/one_device.py:imagenet \\
      --machine=h100_2x4 --devices=8 --config.batch_size=512 --write=best.py
    python -m alexnet_jax.main --config=best.py

Looks at every mesh of the devices with up to three axes, and at every placement
of every layer, within the memory of a device. Prints the fastest layout, the
fastest of other kinds, and each layout of the catalog on its best mesh; where
the time goes, layer by layer; and how much faster or slower a link must be
until another layout is better. Nothing is compiled: `inspect` audits what is
found, and `bench` measures it.

--machine is a name of alexnet_jax/machines, or a file that `bench
--what=machine` has written. docs/planner.md says how the time is predicted.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
import time

import rich.progress
from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.planner import price
from alexnet_jax.planner import search as search_lib
from alexnet_jax.search import chart, report, write
from alexnet_jax.settings import build, settings

_CONFIG = command.define_config()
_MACHINE = command.define_machine(required=True)
_HOSTS = command.define_hosts()
_DEVICES = flags.DEFINE_integer(
  "devices",
  None,
  "Number of devices. Default: those of --hosts, else of the machine.",
  lower_bound=1,
)
_BATCH_SIZES = command.define_list(
  "batch_sizes", [], "Images in a step. Default: the config's."
)
_MEMORY = flags.DEFINE_string(
  "memory", None, "What a device may need, as 16GB. Default: all that it has."
)
_TOP = flags.DEFINE_integer(
  "top", 5, "How many kinds of layouts to show.", lower_bound=1
)
_OVERLAP = flags.DEFINE_bool(
  "overlap",
  False,
  "Find what is fastest if all that may overlap does, instead of nothing.",
)
_WRITE = command.define_path(
  "write", "Write a config with the fastest layout to this file, .py."
)
_MAP = command.define_path(
  "map",
  "Draw which layout is fastest at which batch and speed of the outermost "
  "link to this file, .svg or .png.",
)
_FORMAT = command.define_format()


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  with command.exit_on_error(ValueError, TypeError, OSError):
    config = _CONFIG.value
    network, _ = settings.check(config)
    settings.check_single(config, command="search")
    machine = command.load_machine(_MACHINE.value, _HOSTS.value)
    devices = _DEVICES.value or machine.devices
    machine.check_devices(devices)
    sizes = command.parse_counts(
      "batch_sizes", _BATCH_SIZES.value or [config.batch_size]
    )
    if _WRITE.value:
      command.check_path(_WRITE.value, flag="write", endings=(".py",))
    if _MAP.value:
      command.check_path(_MAP.value, flag="map", endings=command.PICTURES)
    if _MAP.value and devices == 1:
      raise ValueError(
        "--map is over the speed of a link, and one device uses none. Set "
        "--devices."
      )
    if _WRITE.value and len(sizes) > 1:
      raise ValueError(
        f"--write is for one batch, and --batch_sizes has {len(sizes)}. Set "
        "one batch."
      )
    goal = search_lib.Goal(
      least="overlapped" if _OVERLAP.value else "time",
      memory_bytes=report.parse_memory(_MEMORY.value, machine.memory_bytes),
    )
    workload = build.make_workload(config, network)
    gc.disable()  # of many tuples without cycles: a third of the time
    with _show_progress() as progress:
      answers = [
        _answer(
          dataclasses.replace(workload, batch_size=size),
          machine,
          devices,
          goal,
          progress,
        )
        for size in sizes
      ]
      if _MAP.value:
        chart.draw(
          workload,
          machine,
          devices,
          goal=goal,
          batch_sizes=sizes,
          path=_MAP.value,
          progress=progress,
        )
    if _WRITE.value:
      write.write_config(_WRITE.value, config, answers[0])
  if _FORMAT.value == "json":
    print(command.to_json([report.to_json(answer) for answer in answers]))
    return
  console = command.make_console()
  for answer in answers:
    report.show(answer, console, top=_TOP.value)
  for flag in (_WRITE, _MAP):
    if flag.value:
      command.print_line(console, f"\n--{flag.name}: {flag.value} is written")


def _answer(
  workload: price.Workload,
  machine: machine_lib.Machine,
  devices: int,
  goal: search_lib.Goal,
  progress: rich.progress.Progress,
) -> report.Answer:
  """Finds everything that is shown of one batch size."""
  start = time.monotonic()
  space = search_lib.Space(workload, devices)
  pricer = price.Pricer(machine, workload)
  links = machine.find_links(devices)
  task = progress.add_task(
    f"{workload.batch_size:,} images", total=2 + 2 * len(links)
  )
  best = space.find_fastest(pricer, goal=goal)
  seconds = time.monotonic() - start
  if best is None:
    least = space.find_fastest(pricer, goal=search_lib.Goal(least="memory"))
    needed = least.prediction.memory_bytes
    raise ValueError(
      f"no layout on {devices} devices of {machine.name} does with "
      f"{report.to_gb(goal.memory_bytes)} of memory each for a batch of "
      f"{workload.batch_size}; the least is {report.to_gb(needed)}. Set "
      "--memory, --devices or config.batch_size."
    )
  progress.advance(task)
  kinds = space.find_kinds(pricer, goal=goal, best=best)
  progress.advance(task)
  changes = []
  for link in links:
    for most in report.MOST_FACTORS:
      change = space.find_change(
        pricer, best, link.name, most, goal=goal, rivals=kinds
      )
      changes.append(report.Change(link=link.name, most=most, found=change))
      progress.advance(task)
  return report.Answer(
    machine=machine,
    goal=goal,
    search_seconds=seconds,
    kinds=kinds,
    catalog=report.find_best_meshes(pricer, devices, goal),
    changes=changes,
  )


def _show_progress() -> rich.progress.Progress:
  """Makes a bar that goes when it is done; none where there is no terminal."""
  console = command.make_console(file=sys.stderr)
  return rich.progress.Progress(
    rich.progress.TextColumn("{task.description}"),
    rich.progress.BarColumn(),
    rich.progress.TimeElapsedColumn(),
    console=console,
    transient=True,
    disable=not console.is_terminal,
  )


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)
