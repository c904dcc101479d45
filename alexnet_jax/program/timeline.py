"""Reads a trace of steps: what each device and the host did, and when.

A trace names the instructions of the compiled program. The text of the program
has the scope of each, so that its time belongs to a layer, and a collective has
the name that it has in the plan: `conv3 forward all-gather column`.

On a CPU an instruction says which device ran it, and in which run of the
program. Threads may complete it after it has been started. An event of its own
tells when, but may be late, as the thread first starts what follows. So an
instruction ends at the latest where another one that reads its result begins.
GPUs and TPUs have a plane each, and steps are told apart by what begins them.
This follows the format of their traces, and was not tried on one.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import functools
import gzip
import itertools
import json
import math
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import rich.table

from alexnet_jax.partition import collectives
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.program import program as program_lib
from alexnet_jax.program import step as step_lib
from alexnet_jax.program import summary

# What the host does, as `profiler.py` annotates it.
STEP, START, WAIT = "train", "start of a step", "wait for the last step"
COMPUTE, EXCHANGE = "compute", "exchange"
# Outside every layer: the optimizer, random numbers, and what the compiler has
# rewritten without its name.
REST = "rest"
# Before the name of an instruction that threads have completed.
_END = "end: "

# [start, end) in nanoseconds since the start of the trace.
Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
  """One run of an instruction on a device.

  Attributes:
    name: as in the plan for a collective; else layer, direction, instruction.
    names: of all collectives that it performs, several if they were combined.
    instruction: of the compiled program.
    kind: COMPUTE or EXCHANGE.
    layer, direction: REST and `forward` outside every layer.
    device: its number in the mesh, of all processes, from 0.
    step: number of the step.
    start, end: nanoseconds since the start of the trace.
  """

  name: str
  names: tuple[str, ...]
  instruction: str
  scope: str
  kind: str
  layer: str
  direction: str
  device: int
  step: int
  start: float
  end: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceTime:
  """Seconds of one device in a step: the mean of the steps of a trace.

  Attributes:
    step: from the first instruction of a step to that of the next one; of the
      last step, to its end.
    compute, exchange: in which it did only this.
    overlap: in which it did both.
    idle: in which it did neither.
  """

  step: float
  compute: float
  exchange: float
  overlap: float
  idle: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timeline:
  """The trace of some steps of one process.

  Attributes:
    process: its index.
    steps: that should be in the trace.
    layers: names, in the order of tables.
    spans: of all devices of this process, by start.
    host: (name, step or None, interval) of the host's annotations, by start.
    begin: nanoseconds since 1970, at the start of the trace.
    planned: names of the planned collectives.
  """

  process: int
  steps: range
  layers: tuple[str, ...]
  spans: tuple[Span, ...]
  host: tuple[tuple[str, int | None, Interval], ...]
  begin: int
  planned: tuple[str, ...]

  @property
  def devices(self) -> list[int]:
    return sorted({span.device for span in self.spans})

  def find_exchanges(self) -> dict[str, list[Span]]:
    """Returns the runs of each exchange by name, in the order of the plan."""
    found: dict[str, list[Span]] = {name: [] for name in self.planned}
    for span in self.spans:
      for name in span.names:
        found.setdefault(name, []).append(span)
    return {name: spans for name, spans in found.items() if spans}

  def find_device_times(self) -> dict[int, DeviceTime]:
    """Returns what each device does in a step."""
    times = {}
    for device in self.devices:
      spans = [span for span in self.spans if span.device == device]
      count = len({span.step for span in spans})
      window = max(span.end for span in spans) - spans[0].start
      compute, exchange = (
        _length(_intervals(span for span in spans if span.kind == kind))
        for kind in (COMPUTE, EXCHANGE)
      )
      busy = _length(_intervals(spans))
      seconds = (
        nanoseconds / count / 1e9
        for nanoseconds in (
          window,
          busy - exchange,
          busy - compute,
          compute + exchange - busy,
          window - busy,
        )
      )
      names = ("step", "compute", "exchange", "overlap", "idle")
      times[device] = DeviceTime(**dict(zip(names, seconds, strict=True)))
    return times

  def find_layer_times(self) -> dict[str, dict[tuple[str, str], float]]:
    """Returns {layer: {(kind, direction): seconds}}: means of a step.

    Of all devices of this process. Instructions of one layer that run at the
    same time on a device count once.
    """
    groups = collections.defaultdict(list)
    for span in self.spans:
      place = (span.layer, span.kind, span.direction)
      groups[(*place, span.device)].append(span)
    times: dict = {layer: {} for layer in (*self.layers, REST)}
    runs = 1e9 * max(1, len({(s.device, s.step) for s in self.spans}))
    for (layer, kind, direction, _), spans in groups.items():
      of_layer = times.setdefault(layer, {})
      seconds = _length(_intervals(spans)) / runs
      of_layer[kind, direction] = of_layer.get((kind, direction), 0.0) + seconds
    return {layer: found for layer, found in times.items() if found}

  @functools.cached_property
  def tables(self) -> list[rich.table.Table]:
    """Tables of the time of devices, of layers and of exchanges."""
    first, last = self.steps[0], self.steps[-1]
    devices = summary.make_table(
      f"trace of steps {first} to {last}: ms of a step",
      *("device", "> step", "> compute", "> exchange", "> both", "> idle"),
    )
    device_times = self.find_device_times()
    for device, time in device_times.items():
      numbers = dataclasses.astuple(time)
      devices.add_row(str(device), *(f"{1e3 * x:,.2f}" for x in numbers))
    layers = summary.make_table(
      "by layer: ms of a step, mean of these devices",
      *("layer", "> compute, forward", "> backward"),
      *("> exchange, forward", "> backward", "> of the step"),
    )
    mean_step = sum(time.step for time in device_times.values())
    mean_step /= max(1, len(device_times))
    for layer, found in self.find_layer_times().items():
      cells = [
        f"{1e3 * found[key]:,.2f}"
        if (key := (kind, direction)) in found
        else ""
        for kind in (COMPUTE, EXCHANGE)
        for direction in (plan_lib.FORWARD, plan_lib.BACKWARD)
      ]
      share = sum(found.values()) / mean_step if mean_step else 0.0
      layers.add_row(layer, *cells, f"{share:.1%}")
    tables = [devices, layers]
    found = self.find_exchanges()
    if found:
      exchanges = summary.make_table(
        "exchanges, with the wait for other devices",
        *("exchange", "> times", "> mean ms", "> lowest", "> highest"),
        "> beside compute",
      )
      compute = {
        device: _merge(
          _intervals(
            span
            for span in self.spans
            if (span.device, span.kind) == (device, COMPUTE)
          )
        )
        for device in self.devices
      }
      for name, spans in found.items():
        lengths = [(span.end - span.start) / 1e6 for span in spans]
        beside = sum(
          _overlap((span.start, span.end), compute[span.device])
          for span in spans
        )
        mean = sum(lengths) / len(lengths)
        exchanges.add_row(
          *(name, f"{len(spans):,}", f"{mean:,.3f}", f"{min(lengths):,.3f}"),
          f"{max(lengths):,.3f}",
          f"{beside / 1e6 / max(sum(lengths), 1e-9):.0%}",
        )
      tables.append(exchanges)
    return tables

  def lines(self) -> list[str]:
    """Sentences on the host, and on what the trace lacks."""
    lines = []
    steps = _lengths(self.host, STEP)
    starts, waits = _lengths(self.host, START), _lengths(self.host, WAIT)
    if steps:
      per_step = 1e3 / len(steps)
      alone = self._find_host_alone() / len(steps) * 1e3
      rest = per_step * (sum(steps) - sum(starts) - sum(waits))
      lines.append(
        f"host: {per_step * sum(starts):,.2f} ms to start a step, {rest:,.2f} "
        "ms of a step for input, reports and waiting for earlier steps; no "
        f"device computes or exchanges during {alone:,.2f} ms of a step"
      )
    if len(steps) != len(self.steps):
      lines.append(
        f"the trace has {len(steps)} of {len(self.steps)} steps of the host"
      )
    if not self.spans:
      lines.append("the trace has no instructions of the step")
    for device in self.devices:
      found = {span.step for span in self.spans if span.device == device}
      if missing := [step for step in self.steps if step not in found]:
        lines.append(f"device {device}: no step {missing[0]} in the trace")
    found = self.find_exchanges()
    if missing := [name for name in self.planned if name not in found]:
      lines.append(
        "planned, and not found under these names, as the compiler combined, "
        f"replaced or renamed them: {', '.join(missing)}"
      )
    return lines

  def _find_host_alone(self) -> float:
    """Seconds during the steps in which no device does anything."""
    if not self.spans:
      return 0.0
    window = (
      min(span.start for span in self.spans),
      max(span.end for span in self.spans),
    )
    return (window[1] - window[0] - _length(_intervals(self.spans))) / 1e9

  def to_text(self) -> str:
    """Returns the tables and lines as a text."""
    lines = []
    for table in self.tables:
      columns = [
        [str(column.header), *map(str, column.cells)]
        for column in table.columns
      ]
      lines.append(str(table.title).strip())
      widths = [max(map(len, cells)) for cells in columns]
      for first, *cells in zip(*columns, strict=True):
        row = [first.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]
        lines.append(" " + "  ".join(row))
      lines.append("")
    return "\n".join((*lines, *self.lines(), ""))

  def write_trace(self, path: str) -> None:
    """Writes a trace for Perfetto, as gzipped JSON in Chrome's trace format.

    Its times are microseconds since 1970, so that the parts of processes whose
    clocks agree fit together.
    """
    with gzip.open(path, "wt", encoding="utf-8") as opened:
      events = [*self._make_events()]
      json.dump({"displayTimeUnit": "ms", "traceEvents": events}, opened)

  def _make_events(self) -> Iterator[dict]:
    host = f"host of process {self.process}"
    threads = {(host, "steps"): 0}
    rows: dict[int, list[float]] = collections.defaultdict(list)
    for span in self.spans:
      place = f"device {span.device} of process {self.process}"
      # Instructions that run at the same time need a row each.
      ends = rows[span.device]
      free = (row for row, end in enumerate(ends) if end <= span.start)
      row = next(free, len(ends))
      ends[row:] = [span.end, *ends[row + 1 :]]
      name = f"instructions {row + 1}"
      thread = threads.setdefault((place, name), len(threads))
      arguments = {
        "step": span.step,
        "instruction": span.instruction,
        "scope": span.scope,
      }
      if len(span.names) > 1:
        arguments["exchanges"] = list(span.names)
      yield self._make_event(
        span.name, (span.start, span.end), place, thread, span.kind, arguments
      )
    for device in self.devices:
      place = f"device {device} of process {self.process}"
      thread = threads.setdefault((place, "steps"), len(threads))
      for step, interval in self._find_device_steps(device).items():
        yield self._make_event(
          f"step {step}", interval, place, thread, "step", {"step": step}
        )
    for name, step, interval in self.host:
      name = name if step is None else f"step {step}"
      yield self._make_event(name, interval, host, 0, "host", {"step": step})
    for (place, line), thread in threads.items():
      common = {"ph": "M", "pid": self._find_pid(place), "tid": thread}
      yield common | {"name": "process_name", "args": {"name": place}}
      yield common | {"name": "thread_name", "args": {"name": line}}

  def _make_event(
    self, name, interval, place, thread, category, arguments
  ) -> dict:
    start, end = interval
    return {
      "ph": "X",
      "name": name,
      "cat": category,
      "ts": (self.begin + start) / 1e3,
      "dur": (end - start) / 1e3,
      "pid": self._find_pid(place),
      "tid": thread,
      "args": arguments,
    }

  def _find_pid(self, place: str) -> int:
    """A number of its own for the host and for each device of each process."""
    number = re.match(r"device (\d+)", place)
    return 1000 * self.process + (int(number[1]) + 1 if number else 0)

  def _find_device_steps(self, device: int) -> dict[int, Interval]:
    steps: dict[int, Interval] = {}
    for span in self.spans:
      if span.device == device:
        start, end = steps.get(span.step, (span.start, span.end))
        steps[span.step] = (min(start, span.start), max(end, span.end))
    return steps


def read(
  path: str,
  *,
  hlo: str,
  program: program_lib.Program,
  steps: range,
  process: int = 0,
) -> Timeline:
  """Reads the trace of some steps of a program.

  Args:
    path: the `.xplane.pb` of one process.
    hlo: text of the compiled step, which has run once for each of `steps`.
    steps: their numbers.
    process: its index.
  """
  names = [layer.name for layer in program.network.layers]
  names += [plan_lib.LOSS, plan_lib.UPDATE]
  layers = (step_lib.AUGMENT, *names)
  operations = collectives.read_operations(
    hlo, layers, dict(program.mesh.shape)
  )
  module = re.search(r"^HloModule ([\w.\-]+)", hlo, re.MULTILINE)
  numbers = _number_devices(program.mesh)
  begin, events, host, ends = 0, [], [], {}
  for plane in jax.profiler.ProfileData.from_file(path).planes:
    begin = dict(plane.stats).get("profile_start_time", begin)
    for line in plane.lines:
      for event in line.events:
        if event.name in (STEP, START, WAIT):
          step = dict(event.stats).get("step_num")
          host.append((event.name, step, (event.start_ns, _end(event))))
          continue
        if event.name.startswith(_END):
          ends[dict(event.stats).get("_c")] = event.start_ns
          continue
        found = _read_event(event, plane.name, numbers)
        if (
          found
          and found.name in operations
          and found.module
          in (
            None,
            module and module[1],
          )
        ):
          events.append(found)
  spans = _make_spans(events, operations, steps, ends)
  return Timeline(
    process=process,
    steps=steps,
    layers=layers,
    spans=tuple(sorted(spans, key=lambda span: span.start)),
    host=tuple(sorted(host, key=lambda found: found[2])),
    begin=begin,
    planned=tuple(dict.fromkeys(map(collectives.make_name, program.plan))),
  )


@dataclasses.dataclass(frozen=True)
class _Event:
  """An event of a trace that names an instruction."""

  name: str
  module: str | None
  device: int
  run: int | None
  context: int | None  # that its end has, too
  start: float
  end: float


def _end(event) -> float:
  return event.start_ns + event.duration_ns


def _number_devices(mesh: jax.sharding.Mesh) -> dict[str, int]:
  """Returns the number in the mesh of each device, as a trace names it.

  An instruction of a CPU has the id of its device. An accelerator has a plane
  with its number on its host.
  """
  numbers = {}
  for number, device in enumerate(mesh.devices.flat):
    if device.process_index == jax.process_index():
      is_cpu = device.platform == "cpu"
      local = device.id if is_cpu else device.local_hardware_id
      numbers[str(local)] = number
  return numbers


def _read_event(event, plane: str, numbers: Mapping[str, int]) -> _Event | None:
  """Reads an event; None if it is not an instruction on a device."""
  number = re.fullmatch(r"/device:\w+:(\d+)", plane)
  stats = dict(event.stats)
  name = stats.get("hlo_op")
  if name is None and number:  # a TPU's is the text of the instruction
    match = re.match(r"%([\w.\-]+) = ", event.name)
    name = match and match[1]
  found = number[1] if number else str(stats.get("device_ordinal"))
  if name is None or found not in numbers:
    return None
  return _Event(
    name,
    stats.get("hlo_module"),
    numbers[found],
    None if number else stats.get("run_id"),
    stats.get("_p"),
    event.start_ns,
    _end(event),
  )


def _make_spans(
  events: Sequence[_Event],
  operations: Mapping[str, collectives.Operation],
  steps: range,
  ends: Mapping[int | None, float],
) -> Iterator[Span]:
  by_device = collections.defaultdict(list)
  for event in sorted(events, key=lambda event: (event.start, -event.end)):
    by_device[event.device].append(event)
  for device, found in by_device.items():
    names = {event.name for event in found}
    readers = _find_readers(operations, names)
    starts = collections.defaultdict(list)
    for event in found:
      starts[event.name].append(event.start)
    for event, step in zip(found, _number_steps(found, steps), strict=True):
      operation = operations[event.name]
      reads = [
        _find_next(starts[name], event.start) for name in readers[event.name]
      ]
      completed = min((ends.get(event.context, 0.0), *reads))
      if names.intersection(operation.inner):  # a loop: these count instead
        continue
      sent = tuple(map(collectives.make_name, operation.collectives))
      words = (operation.layer, operation.direction) if operation.layer else ()
      name = " ".join((*words, event.name))
      if sent:
        name = sent[0] + (f" and {len(sent) - 1} more" if sent[1:] else "")
      yield Span(
        name=name,
        names=tuple(dict.fromkeys(sent)),
        instruction=event.name,
        scope=operation.scope,
        kind=EXCHANGE if sent else COMPUTE,
        layer=operation.layer or REST,
        direction=operation.direction,
        device=device,
        step=step,
        start=event.start,
        end=max(event.end, completed),
      )


def _find_readers(
  operations: Mapping[str, collectives.Operation], names: set[str]
) -> dict[str, set[str]]:
  """Returns which of some instructions read the result of each of them.

  Also by way of instructions that are not among them, as of a bitcast.
  """
  readers = collections.defaultdict(set)
  for name in names:
    seen, left = set(), [*operations[name].operands]
    while left:
      operand = left.pop()
      if operand in names:
        readers[operand].add(name)
      elif operand in operations and operand not in seen:
        seen.add(operand)
        left.extend(operations[operand].operands)
  return readers


def _number_steps(events: Sequence[_Event], steps: range) -> list[int]:
  """Returns the step of each event of one device; events are by start."""
  if all(event.run is not None for event in events):
    runs = dict.fromkeys(event.run for event in events)
    numbers = dict(zip(runs, itertools.count(steps.start), strict=False))
    return [numbers[event.run] for event in events]
  # The first instruction that runs once in each step begins it.
  times = collections.Counter(event.name for event in events)
  first = next((e.name for e in events if times[e.name] == len(steps)), None)
  found, number = [], steps.start - 1
  for event in events:
    number += event.name == first
    found.append(max(number, steps.start))
  return found


def _find_next(rising: Sequence[float], time: float) -> float:
  """Returns the first number that is greater than a time, or infinity."""
  index = bisect.bisect_right(rising, time)
  return rising[index] if index < len(rising) else math.inf


def _intervals(spans: Iterable[Span]) -> list[Interval]:
  return [(span.start, span.end) for span in spans]


def _merge(intervals: Iterable[Interval]) -> list[Interval]:
  """Returns the intervals in order, those that touch as one."""
  merged: list[Interval] = []
  for start, end in sorted(intervals):
    if merged and start <= merged[-1][1]:
      merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
    else:
      merged.append((start, end))
  return merged


def _length(intervals: Iterable[Interval]) -> float:
  """Nanoseconds that are in any of the intervals."""
  return sum(end - start for start, end in _merge(intervals))


def _overlap(interval: Interval, merged: Sequence[Interval]) -> float:
  """Nanoseconds of an interval that are in any of those from `_merge`."""
  start, end = interval
  first = bisect.bisect_right(merged, start, key=operator.itemgetter(1))
  last = bisect.bisect_left(merged, end, key=operator.itemgetter(0))
  return sum(
    min(end, other_end) - max(start, other_start)
    for other_start, other_end in merged[first:last]
  )


def _lengths(
  host: Iterable[tuple[str, int | None, Interval]], name: str
) -> list[float]:
  """Seconds of each of the host's annotations of a name."""
  return [
    (end - start) / 1e9 for found, _, (start, end) in host if found == name
  ]
