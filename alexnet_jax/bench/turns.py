"""Several things measured in turns, so that what slows one down slows all."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import rich.table

# What is shorter is repeated, so that a clock and a start do not count.
SHORTEST_SECONDS = 0.005
MOST_REPEATS = 50


def take_turns(
  calls: Mapping[str, Callable[[], object]], *, rounds: int, in_order: bool
) -> dict[str, list[float]]:
  """Seconds of single calls, round by round; each is called twice before.

  Args:
    calls: what to measure; each returns its arrays.
    rounds: in each all take their turn, in the next the other way around.
    in_order: whether devices compute one call after the other by themselves.
      Where they do, as GPUs and TPUs, repeats are started ahead, and what the
      host takes for a start is hidden as it is in a step.

  Returns:
    Those of each call.
  """
  repeats = {}
  for name, call in calls.items():
    jax.block_until_ready(call())
    seconds = _time(call, 1, in_order)
    wanted = math.ceil(SHORTEST_SECONDS / max(seconds, 1e-9))
    repeats[name] = min(wanted, MOST_REPEATS)
  found = {name: [] for name in calls}
  for number in range(rounds):
    for name in reversed(calls) if number % 2 else calls:
      found[name].append(_time(calls[name], repeats[name], in_order))
  return found


def _time(call: Callable[[], object], repeats: int, in_order: bool) -> float:
  """Seconds of one of several calls."""
  begin = time.perf_counter()
  for _ in range(repeats):
    result = call()
    if not in_order:
      jax.block_until_ready(result)
  jax.block_until_ready(result)
  return (time.perf_counter() - begin) / repeats


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
