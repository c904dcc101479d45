"""The tables and lines that the doctor prints."""

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


def make_versions_table(
  group: group_lib.Group, found: Facts
) -> rich.table.Table:
  """Makes a table of versions and settings; a row per value that differs."""
  table = summary.make_table("versions and settings", "", "")
  table.show_header = False
  for name in dict.fromkeys(name for own in found for name in own):
    values = [own.get(name, "-") for own in found]
    for value in dict.fromkeys(values):
      indices = [i for i, other in enumerate(values) if other == value]
      suffix = f"  (process {diagnosis.list_numbers(indices)})"
      is_common = len(indices) == group.count
      table.add_row(name, value if is_common else value + suffix)
  return table


def make_processes_table(found: Facts) -> rich.table.Table:
  """Makes a table with a row per process."""
  table = summary.make_table(
    "processes",
    *("process", "host", "address", "> pid", "> devices", "kind", "> cores"),
    *("> memory\nfree", "> memory\nin all"),
  )
  for index, own in enumerate(found):
    table.add_row(
      *(str(index), own["host"], own["address"] or "-", str(own["pid"])),
      *(str(own["devices"]), own["kind"], str(own["cores"])),
      machine.format_bytes(own["memory_free"]),
      machine.format_bytes(own["memory_total"]),
    )
  return table


def make_links_table(axes: Facts) -> rich.table.Table:
  """Makes a table of the mesh axes: what a step sends, and how fast."""
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


def describe_data(found: Mapping[str, Any]) -> str:
  """Returns a line on the set as a process has found it."""
  if found["fingerprint"] is None:
    return (
      f"data: {found['dataset']} does not exist yet; it is made at the first "
      f"run, in {found['folder']}"
    )
  sizes = found["fingerprint"]
  return (
    f"data: {found['dataset']} in {found['folder']}, "
    f"{sizes['training_images']:,} training and "
    f"{sizes['validation_images']:,} validation images; the first record of "
    "each split can be read"
  )


def describe_workdir(
  group: group_lib.Group, found: Mapping[str, Any]
) -> list[str]:
  """Returns lines on a workdir that can be written."""
  path, folder, run = found["path"], found["folder"], found["run"]
  what = "it" if folder == path else f"{folder} above it"
  access = f"{what} can be written to"
  if group.count > 1:
    access = f"every process sees {what} and can write to it"
  state = "exists" if folder == path else "does not exist yet"
  lines = [f"workdir: {path} {state}; {access}"]
  if run is not None:
    step = run["step"]
    lines.append(
      f"workdir: it has a run of layout {run['layout']}, network "
      f"{run['wiring']}, on {run['dataset']}, batch size {run['batch_size']}, "
      + (f"saved at step {step}" if step else "without a checkpoint")
    )
  return lines


def describe_memory(held: Mapping[str, int], activations: int) -> list[str]:
  """Returns lines on the bytes that a run keeps on one device."""
  total = machine.format_bytes(sum(held.values()))
  parts = ", ".join(
    f"{machine.format_bytes(size)} {what}" for what, size in held.items()
  )
  return [
    f"memory: one device holds {parts}: {total}",
    f"memory: a step adds gradients, {machine.format_bytes(activations)} of "
    "activations, and more; see inspect",
  ]


def describe_problems(problems: Sequence[str]) -> list[str]:
  """Returns the last lines."""
  if not problems:
    return ["a run would start"]
  return ["problems:", *(f"  {problem}" for problem in problems)]


def _number(value: float | None, factor: float) -> str:
  """Formats three digits, or all before the decimal point."""
  if value is None:
    return "-"
  value *= factor
  return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
