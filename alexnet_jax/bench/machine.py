"""Writes a machine file for the planner: the devices at hand and their links.

It measures each layer's product, and what follows it, in the shapes that
layouts of these devices give it; besides, the update, the augmentation, random
numbers, and collectives of several sizes along each level of links.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import json
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import rich.console
import rich.progress
import rich.table

from alexnet_jax.bench import links as links_lib
from alexnet_jax.bench import parts as parts_lib
from alexnet_jax.bench import peak, report
from alexnet_jax.data import atomic
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.distributed import machine as host_lib
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.program import program as program_lib
from alexnet_jax.program import summary

FORWARD = machine_lib.FORWARD
# To estimate how long all takes: of the peak, and to compile a function.
_UTILIZATION, _COMPILE_SECONDS = 0.8, 0.5
_LINE_SECONDS = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MachineFile:
  """A machine file that was written.

  Attributes:
    measured: parts of a step that were measured.
    kept: those that an earlier measurement had left in the file.
    seconds: that it took.
  """

  path: str
  machine: machine_lib.Machine
  measured: int
  kept: int
  seconds: float
  remarks: tuple[str, ...]

  def tables(self) -> list[rich.table.Table]:
    links = summary.make_table(
      "links, and what collectives over them take",
      *("level", "> devices", "> MB/s", "> shared by", "collective"),
      *("> few bytes, ms", "> ms for each MB sent"),
    )
    for link in self.machine.links:
      cells = [
        link.name,
        f"{link.joins_devices or self.machine.devices}",
        f"{link.bytes_per_second / 1e6:,.1f}",
        f"{link.shared_by}",
      ]
      for kind, costs in link.software.items():
        links.add_row(
          *(*cells, kind.replace("_", "-")),
          report.to_ms(costs.seconds, 3),
          report.to_ms(1e6 * costs.seconds_per_byte, 3),
        )
        cells = [""] * 4
      if not link.software:
        links.add_row(*cells, "not measured")
    compute = summary.make_table(
      "parts of a step on one device, in ms: shortest and longest",
      *("part", "geometry", "dtype", "> sizes", "> forward", "> backward"),
    )
    groups = collections.defaultdict(list)
    for one in self.machine.measured:
      groups[one.what, one.geometry, one.dtype].append(one.seconds)
    for (what, geometry, dtype), passes in groups.items():
      forward = [seconds[FORWARD] for seconds in passes]
      backward = [sum(s.values()) - s[FORWARD] for s in passes]
      compute.add_row(
        *(what, "" if geometry == what else geometry, dtype),
        f"{len(passes)}",
        *(
          " - ".join(report.to_ms(x, 3) for x in (min(times), max(times)))
          if any(times)
          else ""
          for times in (forward, backward)
        ),
      )
    return [links, compute]

  def lines(self) -> list[str]:
    machine = self.machine
    rates = ", ".join(
      f"{rate / 1e9:,.1f} GFLOP/s in {dtype}"
      for dtype, rate in machine.peak_flops_per_second.items()
    )
    parts = ", ".join(f"{k}: {v:.1%}" for k, v in machine.utilization.items())
    return [
      f"{machine.description}",
      f"of each device: {rates}; layers reach of it {parts}; "
      f"{machine.memory_bytes_per_second / 1e9:,.1f} GB/s of memory; "
      f"{host_lib.format_bytes(int(machine.memory_bytes))}; "
      f"{report.to_ms(machine.launch_seconds, 3)} ms for a call",
      *self.remarks,
      f"{self.path}: {self.measured} parts of a step measured in "
      f"{self.seconds:,.0f} s, {self.kept} kept from before",
    ]


def measure(
  program: program_lib.Program,
  options: report.Options,
  *,
  rounds: int,
  path: str,
  group: group_lib.Group,
  console: rich.console.Console,
  link_gbits: float | None = None,
) -> MachineFile:
  """Measures the machine and writes its file; in all processes together.

  Args:
    path: of the JSON file. If it exists, its measured parts are kept, unless
      they are measured again.
    console: for progress.
    link_gbits: nominal rate of the outermost link, in Gbit/s; None: the best
      rate that a collective reaches.

  Raises:
    ValueError: the file is of another machine, processes hold unequal numbers
      of devices, or there is no link that `link_gbits` could be of.
  """
  begin = time.monotonic()
  devices = [*program.mesh.devices.flat]
  before = group.run_in_first(
    "machine/before", lambda: _read_earlier(path, devices)
  )
  stamp = (
    f"measured {datetime.date.today().isoformat()}, jax {jax.__version__}, "
    f"{devices[0].device_kind}, {len(devices)} devices, batch "
    f"{program.batch_size}"
  )
  median, best = f"median of {rounds} rounds", f"best of {rounds} rounds"

  def number(value: float, note: str) -> dict[str, Any]:
    return {"value": value, "source": f"{stamp}, {note}"}

  timer = parts_lib.Timer(program, options, group, rounds=rounds)
  links, remarks = links_lib.measure(timer, devices, link_gbits, number)
  parts = parts_lib.find_parts(program)
  measured = _measure_parts(timer, parts, console)
  dtype = program.compute_dtype
  earlier = {_key(one): one for one in before.get("measured", [])}
  new = {_key(one): one for one in measured}
  compute = before.get("compute", {})
  known = compute.get("utilization", {})
  used = _find_utilization(parts, measured, timer.flops_per_second)
  data = {
    "name": pathlib.Path(path).stem,
    "description": (
      f"{devices[0].device_kind}, {len(devices)} devices, {group.count} "
      f"processes, {len(set(group.hosts))} hosts; parts of a step {stamp}, "
      f"{median}, implementations {program.implementations}"
    ),
    "platform": devices[0].platform,
    "devices": len(devices),
    "memory_bytes": timer.find_memory(number),
    "compute": {
      "peak_flops_per_second": {
        **compute.get("peak_flops_per_second", {}),
        dtype: number(
          timer.flops_per_second,
          f"{best}: product of matrices of "
          f"{peak.choose_side(devices[0].platform)}, "
          f"{peak.describe_precision(devices[0].platform, dtype)}",
        ),
      },
      # Of a kind of layer that the network lacks, as of the other.
      "utilization": {
        kind: number(used[kind], f"{median}: mean of the products of {dtype}")
        if kind in used
        else known.get(kind)
        or number(max(used.values()), "no such layer: as of the others")
        for kind in machine_lib.KINDS
      },
      "memory_bytes_per_second": number(
        timer.bytes_per_second, f"{best}: read and written in place"
      ),
      "launch_seconds": number(
        timer.launch_seconds,
        f"{median}: a call that adds two numbers on each device",
      ),
    },
    "links": links,
    "measured": [*(earlier | new).values()],
  }
  machine = machine_lib.from_json(data, name=path)
  group.run_in_first("machine/written", lambda: _write(path, data))
  return MachineFile(
    path=path,
    machine=machine,
    measured=len(new),
    kept=len(earlier.keys() - new.keys()),
    seconds=time.monotonic() - begin,
    remarks=tuple(remarks),
  )


def _read_earlier(path: str, devices: Sequence[jax.Device]) -> dict[str, Any]:
  """Reads the file of an earlier measurement; {} if there is none."""
  if not pathlib.Path(path).exists():
    return {}
  machine = machine_lib.load(path)
  found = machine.platform, machine.devices
  here = devices[0].platform, len(devices)
  if found != here:
    raise ValueError(
      f"machine file {path} is of {found[1]} devices ({found[0]}), and these "
      f"are {here[1]} ({here[0]}). Set another --json, or config.layout.mesh."
    )
  return json.loads(pathlib.Path(path).read_text())


def _write(path: str, data: Mapping[str, Any]) -> None:
  with atomic.replace(path) as partial:
    pathlib.Path(partial).write_text(json.dumps(data, indent=1) + "\n")


def _key(one: Mapping[str, Any]) -> tuple:
  work = tuple(
    one["work"][name] for name in machine_lib.PARTS[one["what"]].work
  )
  return one["what"], one["geometry"], one["dtype"], work


def _measure_parts(
  timer: parts_lib.Timer,
  parts: Sequence[parts_lib.Part],
  console: rich.console.Console,
) -> list[dict[str, Any]]:
  """Measures parts one after the other; returns entries of a machine file."""

  def expect(part: parts_lib.Part) -> float:
    calls = len(part.functions)
    flops = calls * part.flops * (timer.rounds + 2)
    rate = _UTILIZATION * timer.flops_per_second
    return flops / rate + calls * _COMPILE_SECONDS

  total = sum(map(expect, parts))
  console.print(
    f"{len(parts)} parts of a step to measure, about "
    f"{math.ceil(total / 60)} min",
    highlight=False,
  )
  measured, done, last = [], 0.0, time.monotonic()
  with rich.progress.Progress(
    rich.progress.TextColumn("parts"),
    rich.progress.BarColumn(),
    rich.progress.TimeRemainingColumn(),
    rich.progress.TextColumn("left, {task.fields[now]}", markup=False),
    console=console,
    disable=not console.is_terminal,
    transient=True,
  ) as bar:
    task = bar.add_task("parts", total=total, now="")
    for index, part in enumerate(parts):
      bar.update(task, completed=done, now=f"{part.what}: {part.geometry}")
      if not console.is_terminal and time.monotonic() - last > _LINE_SECONDS:
        last = time.monotonic()
        console.print(f"{index} of {len(parts)} parts", highlight=False)
      measured.append(timer.measure(part))
      done += expect(part)
  return measured


def _find_utilization(
  parts: Sequence[parts_lib.Part], measured: Sequence[Mapping], peak_rate: float
) -> dict[str, float]:
  """Returns {kind of layer: part of the peak that its products reach}."""
  flops, seconds = collections.Counter(), collections.Counter()
  for part, one in zip(parts, measured, strict=True):
    if part.what == "product":
      kind = "fc" if part.geometry == "fc" else "conv"
      flops[kind] += part.flops * len(one["seconds"])
      seconds[kind] += sum(one["seconds"].values())
  return {k: flops[k] / seconds[k] / peak_rate for k in flops}
