"""How long a run takes from its command to the end of its first step.

Measured in processes of their own, by `start_probe.py`, first with an empty
compilation cache, cold, and then with what that start has left in it, warm.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

# In their order: Python and the imports, flags and config; devices, set,
# checks; what is said first, and keys; trace and lower the step; compile it or
# read it; hold it to the plan; the initial state, and checkpoints opened.
IMPORTS, SET_UP, TABLES = "imports", "devices and data", "tables, keys"
LOWER, COMPILE, AUDIT = "trace, lower", "compile or read", "audit"
STATE, BATCH, STEP = "initial state", "first batch", "first step"
PHASES = (IMPORTS, SET_UP, TABLES, LOWER, COMPILE, AUDIT, STATE, BATCH, STEP)
STARTS = ("cold", "warm")

# Flags of a start, besides those of its config.
_FLAGS = (
  "config",
  "data_dir",
  "simulate_devices",
  "xla_options",
  "implementations",
)
_PROBE = "alexnet_jax.bench.start_probe"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
  """What was measured.

  Attributes:
    seconds: of each phase, by start and phase, round by round.
    from_cache: whether the step came from the cache, by start, likewise.
  """

  seconds: dict[str, dict[str, list[float]]]
  from_cache: dict[str, list[bool]]

  def median(self, start: str, phase: str) -> float:
    """Seconds of a phase."""
    return statistics.median(self.seconds[start][phase])

  def totals(self, start: str) -> list[float]:
    """Seconds of all phases, round by round."""
    return [
      sum(each) for each in zip(*self.seconds[start].values(), strict=True)
    ]


def measure(argv: Sequence[str], *, rounds: int) -> Speed:
  """Starts a run so many times in either way.

  Args:
    argv: flags, of which those that a start knows are passed on.
    rounds: of a cold and a warm start each.

  Raises:
    OSError: a start has failed.
  """
  flags = keep_flags(argv)
  seconds = {start: {phase: [] for phase in PHASES} for start in STARTS}
  from_cache = {start: [] for start in STARTS}
  for _ in range(rounds):
    with tempfile.TemporaryDirectory() as folder:
      for start in STARTS:
        marks, found = _start(flags, folder, start)
        from_cache[start].append(found)
        for phase, taken in find_phases(marks).items():
          seconds[start][phase].append(taken)
  return Speed(seconds=seconds, from_cache=from_cache)


def find_phases(marks: dict[str, float]) -> dict[str, float]:
  """Seconds of each phase.

  Args:
    marks: when each was over, and `start`, when the first began.
  """
  times = [marks["start"], *(marks[phase] for phase in PHASES)]
  return {
    phase: end - begin
    for phase, begin, end in zip(PHASES, times[:-1], times[1:], strict=True)
  }


def keep_flags(argv: Sequence[str]) -> list[str]:
  """Of these flags, those that a start knows, each with its value."""
  kept, takes_next = [], False
  for word in argv:
    if takes_next and not word.startswith("-"):
      kept.append(word)
    takes_next = False
    name, equals, _ = word.lstrip("-").partition("=")
    is_known = name in _FLAGS or name.startswith("config.")
    if word.startswith("-") and is_known:
      kept.append(word)
      takes_next = not equals
  return kept


def _start(
  flags: Sequence[str], folder: str, start: str
) -> tuple[dict[str, float], bool]:
  """The marks of a start, and whether its step came from the cache."""
  command = [
    *(sys.executable, "-m", _PROBE, *flags),
    f"--workdir={os.path.join(folder, start)}",
    f"--compilation_cache={os.path.join(folder, 'cache')}",
  ]
  began = time.time()
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    said = done.stderr.strip().splitlines() or ["it says nothing"]
    raise ChildProcessError(
      f"a start of the run ended with code {done.returncode}: "
      f"{said[-1].removeprefix('error: ')}"
    )
  found = json.loads(done.stdout.splitlines()[-1])
  return {"start": began, **found["marks"]}, found["from_cache"]
