"""The time of exchanges for people and for programs."""

from __future__ import annotations

import dataclasses
import statistics

import rich.table

from alexnet_jax.bench import exchanges, shown


def show(found: exchanges.Speed) -> shown.Shown:
  """What is measured, as data, as tables, and what these mean."""
  tables = [_step_table(found), _plan_table(found)]
  return shown.Shown(_to_data(found), tables, _to_lines(found))


def _to_data(found: exchanges.Speed) -> dict:
  """What the tables show, as data, and the seconds of every round."""
  return {
    "platform": found.platform,
    "devices": found.devices,
    "batch_size": found.batch_size,
    "step_seconds": statistics.median(found.step),
    "silent_seconds": statistics.median(found.silent),
    "exposed_seconds": found.exposed(),
    "alone_seconds": found.all_alone(),
    "step_seconds_of_rounds": found.step,
    "silent_seconds_of_rounds": found.silent,
    "exchanges": [
      dataclasses.asdict(exchange)
      | {
        "sent_bytes": exchange.sent_bytes,
        "seconds": statistics.median(seconds),
        "seconds_of_rounds": seconds,
      }
      for exchange, seconds in zip(found.plan, found.alone, strict=True)
    ],
  }


def _step_table(found: exchanges.Speed) -> rich.table.Table:
  """A row for the step, and for the one that sends nothing."""
  table = rich.table.Table(
    title=f"\na step of {found.batch_size} images, in ms",
    title_justify="left",
    box=None,
  )
  table.add_column("step")
  for header in ("median", "lowest", "highest"):
    table.add_column(header, justify="right")
  for name, seconds in (
    ("with its exchanges", found.step),
    ("silent", found.silent),
  ):
    times = (statistics.median(seconds), min(seconds), max(seconds))
    table.add_row(name, *map(_ms, times))
  table.add_row("exposed", _ms(found.exposed()))
  return table


def _plan_table(found: exchanges.Speed) -> rich.table.Table:
  """A row for each exchange of the plan, alone."""
  table = rich.table.Table(
    title="\neach exchange alone", title_justify="left", box=None
  )
  for header in ("layer", "direction", "tensor", "kind", "axes"):
    table.add_column(header)
  for header in ("bytes sent", "median, ms", "lowest", "highest", "MB/s"):
    table.add_column(header, justify="right")
  for exchange, seconds in zip(found.plan, found.alone, strict=True):
    middle = statistics.median(seconds)
    table.add_row(
      exchange.layer,
      exchange.direction,
      exchange.tensor,
      exchange.kind.replace("_", "-"),
      ", ".join(exchange.axes),
      f"{exchange.sent_bytes:,}",
      *map(_ms, (middle, min(seconds), max(seconds))),
      f"{exchange.sent_bytes / middle / 1e6:,.1f}",
    )
  sent = sum(exchange.sent_bytes for exchange in found.plan)
  table.add_section()
  table.add_row(
    *("sum", "", "", "", "", f"{sent:,}", _ms(found.all_alone()), "", ""),
    f"{sent / found.all_alone() / 1e6:,.1f}",
  )
  return table


def _to_lines(found: exchanges.Speed) -> list[str]:
  """What the tables mean."""
  share = found.exposed() / statistics.median(found.step)
  lines = [
    f"exchanges add {share:.1%} to what a step takes: median of "
    f"{len(found.step)} rounds, on {found.devices} devices ({found.platform})",
    "the silent step has something local of the same shapes in the place of "
    "each exchange; what it computes is wrong, and is thrown away",
    f"alone, one after the other, they take {_ms(found.all_alone())} ms; what "
    "is not exposed is hidden behind computation, or combined",
  ]
  if found.platform == "cpu":
    lines.append(
      "simulated devices exchange through the memory of one machine, and wait "
      "for each other's computation: nothing follows for real links"
    )
  return lines


def _ms(seconds: float) -> str:
  return f"{1e3 * seconds:,.2f}"
