"""The time from the command of a run to the end of its first step.

Measured in processes of their own (`start_probe.py`): a cold start with an
empty compilation cache, then a warm one with the cache that it has filled.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import rich.table

from alexnet_jax.program import summary

# In their order: Python, imports, flags and config; devices, data set and
# checks; the tables that a run prints, and keys; trace and lower the step;
# compile it or read it from the cache; compare it with the plan; initial state,
# and checkpoints opened; first batch; first step.
IMPORTS, SET_UP, TABLES = "imports", "devices and data", "tables, keys"
LOWER, COMPILE, AUDIT = "trace, lower", "compile or read", "audit"
STATE, BATCH, STEP = "initial state", "first batch", "first step"
PHASES = (IMPORTS, SET_UP, TABLES, LOWER, COMPILE, AUDIT, STATE, BATCH, STEP)
STARTS = ("cold", "warm")

# Flags of the probe, besides fields of its config.
_FLAGS = "config data_dir simulate_devices xla_options implementations".split()
_PROBE = "alexnet_jax.bench.start_probe"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartTime:
  """One kind of start.

  Attributes:
    seconds: of each phase, round by round.
    step_from_cache: whether the compiled step came from the cache, likewise.
  """

  seconds: dict[str, list[float]]
  step_from_cache: list[bool]

  @property
  def total_seconds(self) -> list[float]:
    """Seconds of all phases, round by round."""
    return [sum(phases) for phases in zip(*self.seconds.values(), strict=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartupTimes:
  """Both kinds of start: with an empty compilation cache, and a filled one."""

  cold: StartTime
  warm: StartTime

  def tables(self) -> list[rich.table.Table]:
    table = summary.make_table(
      "start to first step, in s",
      *("phase", *(f"> {start}" for start in STARTS)),
    )

    def add_row(name: str, *seconds: list[float]) -> None:
      table.add_row(name, *(f"{statistics.median(it):.2f}" for it in seconds))

    for phase in PHASES:
      add_row(phase, self.cold.seconds[phase], self.warm.seconds[phase])
    table.add_section()
    add_row("all", self.cold.total_seconds, self.warm.total_seconds)
    return [table]

  def lines(self) -> list[str]:
    rounds = len(self.cold.total_seconds)
    lines = [
      f"medians of {rounds} {'rounds' if rounds > 1 else 'round'} of two "
      "processes, from the command to the end of the first step: cold with an "
      "empty compilation cache, warm with the cache that the cold one filled"
    ]
    for name in STARTS:
      totals = getattr(self, name).total_seconds
      lines.append(f"{name}: {min(totals):.2f} to {max(totals):.2f} s")
    if not all(self.warm.step_from_cache):
      lines.append("the warm start has NOT found its step in the cache")
    return lines


def measure(argv: Sequence[str], *, rounds: int) -> StartupTimes:
  """Starts a run cold and warm, once in each round.

  Flags that the probe does not know are left out.

  Raises:
    OSError: a start has failed.
  """
  flags = select_flags(argv)
  times = {
    name: StartTime(seconds={p: [] for p in PHASES}, step_from_cache=[])
    for name in STARTS
  }
  for _ in range(rounds):
    with tempfile.TemporaryDirectory() as folder:
      for name in STARTS:
        marks, from_cache = _start(flags, folder, name)
        times[name].step_from_cache.append(from_cache)
        for phase, seconds in to_phases(marks).items():
          times[name].seconds[phase].append(seconds)
  return StartupTimes(**times)


def to_phases(marks: dict[str, float]) -> dict[str, float]:
  """Returns the seconds of each phase.

  Args:
    marks: when each phase was over, and `start`, when the first began.
  """
  return {
    phase: marks[phase] - marks[before]
    for before, phase in itertools.pairwise(("start", *PHASES))
  }


def select_flags(argv: Sequence[str]) -> list[str]:
  """Returns the flags that the probe knows, each with its value."""
  selected, takes_next = [], False
  for word in argv:
    if takes_next and not word.startswith("-"):
      selected.append(word)
    takes_next = False
    name, equals, _ = word.lstrip("-").partition("=")
    is_known = name in _FLAGS or name.startswith("config.")
    if word.startswith("-") and is_known:
      selected.append(word)
      takes_next = not equals
  return selected


def _start(
  flags: Sequence[str], folder: str, name: str
) -> tuple[dict[str, float], bool]:
  """The marks of a start, and whether its step came from the cache."""
  command = [
    *(sys.executable, "-m", _PROBE, *flags),
    f"--workdir={os.path.join(folder, name)}",
    f"--compilation_cache={os.path.join(folder, 'cache')}",
  ]
  began = time.time()
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    raise ChildProcessError(
      f"a start of the run ended with code {done.returncode}: "
      f"{last.removeprefix('error: ')}"
    )
  found = json.loads(done.stdout.splitlines()[-1])
  return {"start": began, **found["marks"]}, found["from_cache"]
