"""What a measurement has found, as tables for people and as JSON for programs.

A measurement returns a frozen dataclass. Its fields hold what was measured,
round by round; its properties are derived from them. Both are keys of the JSON.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import rich.table

from alexnet_jax.program import compiler_options
from alexnet_jax.program import program as program_lib

# XLA options of a program.
Options = Mapping[str, compiler_options.Value]


class Result(Protocol):
  """A dataclass that can be printed."""

  def tables(self) -> list[rich.table.Table]:
    """The tables of the report."""

  def lines(self) -> list[str]:
    """Sentences that explain the tables."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramResult:
  """What the times of a program depend on; its measurements inherit from it.

  Attributes:
    batch_size: images in a step, over all devices.
    devices: how many compute at once.
    platform: gpu, tpu or cpu.
    implementations: as --implementations has them.
  """

  batch_size: int
  devices: int
  device_kind: str
  platform: str
  compute_dtype: str
  implementations: str
  xla_options: Options

  def on_devices(self) -> str:
    """Says on what was measured, for work of one device."""
    if self.devices == 1:
      return f"on one device ({self.platform})"
    return f"on each of {self.devices} devices, all at once ({self.platform})"


def describe(program: program_lib.Program, options: Options) -> dict[str, Any]:
  """The fields of `ProgramResult`."""
  device: jax.Device = program.mesh.devices.flat[0]
  return {
    "batch_size": program.batch_size,
    "devices": program.mesh.size,
    "device_kind": device.device_kind,
    "platform": device.platform,
    "compute_dtype": program.compute_dtype,
    "implementations": str(program.implementations),
    "xla_options": dict(options),
  }


def to_data(value: Any) -> Any:
  """Converts a result to JSON: {field or property: value}.

  A field without `repr` is left out.

  A list of floats, one of each round, becomes {"median", "lowest", "highest",
  "rounds"}.
  """
  if dataclasses.is_dataclass(value):
    names = [field.name for field in dataclasses.fields(value) if field.repr]
    for name, attribute in vars(type(value)).items():
      if isinstance(attribute, property):
        names.append(name)
    return {name: to_data(getattr(value, name)) for name in names}
  if isinstance(value, Mapping):
    return {key: to_data(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    if value and all(isinstance(item, float) for item in value):
      names = ("median", "lowest", "highest", "rounds")
      return dict(zip(names, (*spread(value), list(value)), strict=True))
    return [to_data(item) for item in value]
  return value


def spread(values: Sequence[float]) -> tuple[float, float, float]:
  """Median, lowest and highest."""
  return statistics.median(values), min(values), max(values)


def median_of_rounds(
  function: Callable[..., float], *rounds: Sequence[float]
) -> float:
  """The median of a function of the values of one round."""
  return statistics.median(
    itertools.starmap(function, zip(*rounds, strict=True))
  )


def to_ms(seconds: float, digits: int = 2) -> str:
  return f"{1e3 * seconds:,.{digits}f}"


def spread_ms(seconds: Sequence[float], digits: int = 2) -> list[str]:
  """Median, lowest and highest in milliseconds, as three cells."""
  return [to_ms(value, digits) for value in spread(seconds)]
