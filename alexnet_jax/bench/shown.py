"""What a measurement is shown as: data, tables, and what these mean."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import rich.table


class Shown(NamedTuple):
  """One measurement, for programs and for people.

  Attributes:
    data: as JSON has it; all that the tables show, and every round.
    tables: for people.
    lines: what the tables mean.
  """

  data: dict[str, Any]
  tables: list[rich.table.Table]
  lines: list[str]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
  """Median, lowest and highest."""
  return statistics.median(values), min(values), max(values)


def milliseconds(seconds: Sequence[float]) -> list[str]:
  """Median, lowest and highest, as three cells."""
  return [f"{1e3 * value:,.1f}" for value in spread(seconds)]


def of_rounds(values: Sequence[float]) -> dict[str, Any]:
  """Median, lowest and highest, and what they are of, as data."""
  median, lowest, highest = spread(values)
  return {
    "median": median,
    "lowest": lowest,
    "highest": highest,
    "rounds": list(values),
  }
