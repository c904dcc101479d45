"""Exposed communication: how long a step waits for its exchanges.

The step takes turns with a silent one, which sends nothing and computes the
same shapes (`partition/timing.py`). The difference is communication that no
computation hides. Each exchange is also measured alone.
"""

from __future__ import annotations

import dataclasses
import operator
import statistics

import rich.table

from alexnet_jax.bench import report, turns
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.partition import timing
from alexnet_jax.program import compiled_step, summary
from alexnet_jax.program import program as program_lib

_DTYPES = {size: name for name, size in plan_lib.DTYPE_BYTES.items()}
# What the time of a collective depends on.
_key = operator.attrgetter("kind", "axes", "elements", "bytes_per_element")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectiveTime:
  """Seconds of a planned collective that runs alone, round by round."""

  collective: plan_lib.Collective
  seconds: list[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExchangeTimes(report.ProgramResult):
  """Seconds of steps with and without communication, round by round."""

  step_seconds: list[float]
  silent_seconds: list[float]
  exchanges: tuple[CollectiveTime, ...]

  @property
  def exposed_seconds(self) -> float:
    """Communication of a step that computation does not hide: median."""
    return report.median_of_rounds(
      operator.sub, self.step_seconds, self.silent_seconds
    )

  @property
  def alone_seconds(self) -> float:
    """All exchanges one after the other: sum of the medians."""
    return sum(statistics.median(each.seconds) for each in self.exchanges)

  def tables(self) -> list[rich.table.Table]:
    steps = summary.make_table(
      f"a step of {self.batch_size} images, in ms",
      *("step", "> median", "> lowest", "> highest"),
    )
    steps.add_row("with its exchanges", *report.spread_ms(self.step_seconds))
    steps.add_row("silent", *report.spread_ms(self.silent_seconds))
    steps.add_row("exposed", report.to_ms(self.exposed_seconds))
    alone = summary.make_table(
      "each exchange alone",
      *("layer", "direction", "tensor", "kind", "axes", "> bytes sent"),
      *("> median, ms", "> lowest", "> highest", "> MB/s"),
    )
    for each in self.exchanges:
      planned = each.collective
      rate = planned.sent_bytes / statistics.median(each.seconds)
      alone.add_row(
        *(planned.layer, planned.direction, planned.tensor),
        planned.kind.replace("_", "-"),
        ", ".join(planned.axes),
        f"{planned.sent_bytes:,}",
        *report.spread_ms(each.seconds),
        f"{rate / 1e6:,.1f}",
      )
    sent = sum(each.collective.sent_bytes for each in self.exchanges)
    alone.add_section()
    alone.add_row(
      *("sum", "", "", "", "", f"{sent:,}"),
      *(report.to_ms(self.alone_seconds), "", ""),
      f"{sent / self.alone_seconds / 1e6:,.1f}",
    )
    return [steps, alone]

  def lines(self) -> list[str]:
    share = self.exposed_seconds / statistics.median(self.step_seconds)
    lines = [
      f"exchanges add {share:.1%} to the time of a step: median of "
      f"{len(self.step_seconds)} rounds, on {self.devices} devices "
      f"({self.platform})",
      "the silent step replaces each exchange by a local operation of the same "
      "shapes; its results are wrong, and are thrown away",
      f"alone, one after the other, exchanges take "
      f"{report.to_ms(self.alone_seconds)} ms; what is not exposed is hidden "
      "behind computation, or combined",
    ]
    if self.platform == "cpu":
      lines.append(
        "simulated devices exchange through the memory of one machine and wait "
        "for each other's computation: this says nothing about real links"
      )
    return lines


def make_silent(program: program_lib.Program) -> program_lib.Program:
  """Returns the program without communication; its results are wrong."""
  exchange = timing.SilentExchange(
    program.routes,
    program.specs,
    exchange_dtype=program.exchange_dtype,
    kernels_in_rows=program.exchange.kernels_in_rows,
  )
  return dataclasses.replace(program, exchange=exchange)


def measure(
  program: program_lib.Program, options: report.Options, *, rounds: int
) -> ExchangeTimes:
  """Measures the step with its exchanges and without, and each exchange.

  Raises:
    ValueError: the layout exchanges nothing.
  """
  if not program.plan:
    raise ValueError(
      f"layout '{program.layout.name}' has {program.mesh.size} device and "
      "exchanges nothing, expected several devices. Set config.layout.name or "
      "config.layout.mesh."
    )
  calls = {}
  for name, variant in (("step", program), ("silent", make_silent(program))):
    # The audit of the silent step, which lacks all of its plan, is of no use.
    compiled, _ = compiled_step.compile_step(variant, options=options)
    calls[name] = turns.StepRunner(variant, compiled).start
  # Collectives of one kind and size are measured once.
  for key in dict.fromkeys(map(_key, program.plan)):
    *arguments, itemsize = key
    calls[key] = timing.make_collective(
      program.mesh, *arguments, dtype=_DTYPES[itemsize]
    )
  platform = program.mesh.devices.flat[0].platform
  seconds = turns.take_turns(calls, rounds=rounds, in_order=platform != "cpu")
  return ExchangeTimes(
    **report.describe(program, options),
    step_seconds=seconds["step"],
    silent_seconds=seconds["silent"],
    exchanges=tuple(
      CollectiveTime(collective=planned, seconds=seconds[_key(planned)])
      for planned in program.plan
    ),
  )
