"""What the doctor found, as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import rich.table

from alexnet_jax.distributed import group as group_lib
from alexnet_jax.distributed import machine
from alexnet_jax.doctor import diagnosis
from alexnet_jax.partition import timing
from alexnet_jax.program import summary

Facts = Sequence[Mapping[str, Any]]


def versions(group: group_lib.Group, found: Facts) -> rich.table.Table:
  """A row per package, one more where processes differ."""
  table = summary.make_table("versions and settings", "", "")
  table.show_header = False
  for name in dict.fromkeys(name for there in found for name in there):
    said = [there.get(name, "-") for there in found]
    for value in dict.fromkeys(said):
      who = [index for index, other in enumerate(said) if other == value]
      where = f"  (process {diagnosis.list_numbers(who)})"
      table.add_row(name, value + (where if len(who) < group.count else ""))
  return table


def processes(found: Facts) -> rich.table.Table:
  """A row per process."""
  table = summary.make_table(
    "processes",
    *("process", "host", "address", "> pid", "> devices", "kind", "> cores"),
    *("> memory\nfree", "> memory\nin all"),
  )
  for index, there in enumerate(found):
    table.add_row(
      str(index),
      there["host"],
      there["address"] or "-",
      str(there["pid"]),
      str(there["devices"]),
      there["kind"],
      str(there["cores"]),
      machine.to_size(there["memory_free"]),
      machine.to_size(there["memory_total"]),
    )
  return table


def links(axes: Facts) -> rich.table.Table:
  """A row per axis of the mesh: what a step sends, and how fast that is."""
  sizes = [size for size in timing.REPEATS if size != timing.LATENCY_BYTES]
  table = summary.make_table(
    "mesh: what one device sends in a step, how fast, and for how long",
    *("axis", "links", "> ex-\nchanges", "> bytes", "> latency\nms"),
    *(f"> MB/s,\n{size >> 20} MiB" for size in sizes),
    "> step\nms",
  )
  for row in axes:
    rates = row["bytes_per_second"] or {}
    table.add_row(
      *(f"{row['axis']}={row['devices']}", row["links"]),
      *(f"{row['exchanges']:,}", f"{row['sent_bytes']:,}"),
      _number(row["latency_seconds"], 1e3),
      *(_number(rates.get(size), 1e-6) for size in sizes),
      _number(row["step_seconds"], 1e3),
    )
  return table


def data(found: Mapping[str, Any]) -> str:
  """A line on the set as a process has found it."""
  if found["alike"] is None:
    return (
      f"data: {found['dataset']} is not there yet; it is made at the first "
      f"run, in {found['folder']}"
    )
  return (
    f"data: {found['dataset']} in {found['folder']}, "
    f"{found['alike']['training_images']:,} training and "
    f"{found['alike']['validation_images']:,} validation images; the first "
    "record of each split can be read"
  )


def workdir(group: group_lib.Group, found: Mapping[str, Any]) -> list[str]:
  """Lines on the directory of a run that can be written."""
  path, folder, run = found["path"], found["folder"], found["run"]
  what = "it" if folder == path else f"{folder} above it"
  can = f"{what} can be written to"
  if group.count > 1:
    can = f"every process sees {what} and can write to it"
  state = "there" if folder == path else "not there yet"
  lines = [f"workdir: {path} is {state}; {can}"]
  if run is not None:
    step = run["step"]
    lines.append(
      f"workdir: it holds a run of layout {run['layout']}, network "
      f"{run['wiring']}, on {run['dataset']}, batch size {run['batch_size']}, "
      + (f"saved at step {step}" if step else "without a checkpoint")
    )
  return lines


def memory(held: Mapping[str, int], activations: int) -> list[str]:
  """Lines on what a run keeps on one device; bytes."""
  total = machine.to_size(sum(held.values()))
  parts = ", ".join(
    f"{machine.to_size(size)} {what}" for what, size in held.items()
  )
  return [
    f"memory: one device holds {parts}: {total}",
    f"memory: a step adds gradients, {machine.to_size(activations)} of "
    "activations, and more; see inspect",
  ]


def verdict(problems: Sequence[str]) -> list[str]:
  """The last lines."""
  if not problems:
    return ["a run would start"]
  return ["problems:", *(f"  {problem}" for problem in problems)]


def _number(value: float | None, factor: float) -> str:
  """Three digits, or all before the point."""
  if value is None:
    return "-"
  value *= factor
  return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
