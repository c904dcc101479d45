"""How long a step waits for its exchanges, and how long each takes alone.

The step takes turns with one that sends nothing and computes the same shapes,
see `partition/silent.py`: what it takes longer is the time of exchanges that no
computation hides.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping

from alexnet_jax.bench import steps, turns
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.partition import silent, timing
from alexnet_jax.program import compiler_options
from alexnet_jax.program import program as program_lib

STEP, SILENT = "step", "silent"
_TYPES = {size: name for name, size in plan_lib.PRECISIONS.items()}


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
  plan: tuple[plan_lib.Exchange, ...]
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
  exchange = silent.SilentExchange.instead_of(program.exchange)
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
    calls[name] = steps.Steps(other, compiled).start
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


def _size(exchange: plan_lib.Exchange) -> tuple:
  """What the time of an exchange depends on."""
  return (
    exchange.kind,
    exchange.axes,
    exchange.elements,
    exchange.bytes_per_element,
  )
