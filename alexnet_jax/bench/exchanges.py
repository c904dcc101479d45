"""How long a step waits for its exchanges, and how long each takes alone.

The step takes turns with one that sends nothing and computes the same shapes,
see `partition/timing.py`: what it takes longer is the time of exchanges that no
computation hides.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping

import rich.table

from alexnet_jax.bench import step as step_lib
from alexnet_jax.bench import turns
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.partition import timing
from alexnet_jax.program import compiler_options
from alexnet_jax.program import program as program_lib

STEP, SILENT = "step", "silent"
_TYPES = {size: name for name, size in plan_lib.DTYPE_BYTES.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
  """Seconds, round by round.

  Attributes:
    step: of steps.
    silent: of steps that send nothing.
    alone: of each exchange of the plan by itself, in its order.
    plan: the exchanges of a step.
    batch_size: images in a step, over all devices.
    devices: of the mesh.
    platform: gpu, tpu or cpu.
  """

  step: list[float]
  silent: list[float]
  alone: tuple[list[float], ...]
  plan: tuple[plan_lib.Collective, ...]
  batch_size: int
  devices: int
  platform: str

  def exposed(self) -> float:
    """Seconds of a step that it waits for exchanges: median of the rounds."""
    pairs = zip(self.step, self.silent, strict=True)
    return statistics.median(step - silent for step, silent in pairs)

  def all_alone(self) -> float:
    """Seconds of all exchanges, one after the other: sum of the medians."""
    return sum(map(statistics.median, self.alone))


def silence(program: program_lib.Program) -> program_lib.Program:
  """The program with a step that sends nothing; its numbers are wrong."""
  exchange = timing.SilentExchange.instead_of(program.exchange)
  return dataclasses.replace(program, exchange=exchange)


def measure(
  program: program_lib.Program,
  options: Mapping[str, compiler_options.Value],
  *,
  rounds: int,
) -> Speed:
  """Measures the step with its exchanges and without, and each exchange.

  Args:
    program: of the step.
    options: for the compiler.
    rounds: how often each is measured.

  Raises:
    ValueError: the layout exchanges nothing.
  """
  if not program.plan:
    raise ValueError(
      f"layout '{program.layout.name}' has {program.mesh.size} device, which "
      "exchanges nothing, expected several. Set config.layout.name or "
      "config.layout.mesh."
    )
  calls = {}
  for name, other in ((STEP, program), (SILENT, silence(program))):
    compiled = other.trace().lower().compile(compiler_options=dict(options))
    calls[name] = step_lib.Steps(other, compiled).start
  for exchange in program.plan:
    # Those of one kind and size are measured once.
    if _size(exchange) not in calls:
      calls[_size(exchange)] = timing.make_collective(
        program.mesh,
        exchange.kind,
        exchange.axes,
        exchange.elements,
        dtype=_TYPES[exchange.bytes_per_element],
      )
  platform = program.mesh.devices.flat[0].platform
  seconds = turns.take_turns(calls, rounds=rounds, in_order=platform != "cpu")
  return Speed(
    step=seconds[STEP],
    silent=seconds[SILENT],
    alone=tuple(seconds[_size(exchange)] for exchange in program.plan),
    plan=program.plan,
    batch_size=program.batch_size,
    devices=program.mesh.size,
    platform=platform,
  )


def _size(exchange: plan_lib.Collective) -> tuple:
  """What the time of an exchange depends on."""
  return (
    exchange.kind,
    exchange.axes,
    exchange.elements,
    exchange.bytes_per_element,
  )


def show(found: Speed) -> turns.Shown:
  """What is measured, as data, as tables, and what these mean."""
  tables = [_step_table(found), _plan_table(found)]
  return turns.Shown(_to_data(found), tables, _to_lines(found))


def _to_data(found: Speed) -> dict:
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


def _step_table(found: Speed) -> rich.table.Table:
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


def _plan_table(found: Speed) -> rich.table.Table:
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


def _to_lines(found: Speed) -> list[str]:
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
