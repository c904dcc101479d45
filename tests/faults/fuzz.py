"""Runs with random values in random fields: each ends well, or in one line.

    python -m tests.faults.fuzz --runs=500 --seed=0

Each run is a process of its own, `alexnet_jax.main` on a few of the embedded
digits, with one to three fields or flags set on the command line to values of
right and wrong types. It is forked from this process, which has imported all
that `main` needs and has not used JAX: this saves the time of the imports.
Each run must keep these promises:

- it comes to its end with nothing on standard error, or it ends with an error
  of one line, which names what was set or, if the run had begun, the step whose
  loss is not finite;
- a run that was refused leaves nothing behind, and one that began leaves a
  valid workdir.

The same seed and number give the same run. Exits with 1 if a promise is broken,
and prints the command line of each such run.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import re
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence

from absl import flags

from alexnet_jax.cli import command
from tests import processes
from tests.faults import forked, random_settings

CONFIGS = ("one_device", "two_device")
# An eighth of the width, three steps of four images.
SMALL = {
  "network.width": 0.125,
  "batch_size": 4,
  "data.train_split": "train[:12]",
  "data.validation_split": "validation[:6]",
  "num_epochs": 1.0,
  "optimizer.drop_epochs": (0.5,),
  "log_every_steps": 1,
}
_NOT_FINITE = re.compile(r"\b(nan|inf)\b|not finite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """The end of a run.

  Attributes:
    result: one word or a few, as "refused"; or the promise that is broken.
    is_broken: whether a promise is.
  """

  number: int
  arguments: list[str]
  result: str
  is_broken: bool
  ended: forked.Ended


def define_flags() -> None:
  flags.DEFINE_integer("runs", 100, "Number of runs.", lower_bound=1)
  flags.DEFINE_integer("first_run", 0, "Number of the first.", lower_bound=0)
  flags.DEFINE_integer("seed", 0, "Seed of what is drawn.")
  flags.DEFINE_integer("at_once", 2, "Runs at a time.", lower_bound=1)
  flags.DEFINE_float("limit_seconds", 60.0, "Time after which a run hangs.")


def main() -> None:
  given = flags.FLAGS
  folder = pathlib.Path(tempfile.mkdtemp(prefix="fuzz"))
  seconds = collections.defaultdict(list)
  is_broken = False
  for outcome in run_all(
    folder,
    seed=given.seed,
    numbers=range(given.first_run, given.first_run + given.runs),
    at_once=given.at_once,
    limit_seconds=given.limit_seconds,
  ):
    seconds[outcome.result].append(outcome.ended.seconds)
    if outcome.is_broken:
      is_broken = True
      print(f"run {outcome.number}: {outcome.result}")
      print(f"  {shlex.join(outcome.arguments)}")
      print(f"  {outcome.ended.errors[-1500:].strip()}", flush=True)
  shutil.rmtree(folder)
  print("| end | runs | longest |\n| --- | ---: | ---: |")
  for result, times in sorted(seconds.items()):
    print(f"| {result} | {len(times)} | {max(times):.1f} s |")
  sys.exit(1 if is_broken else 0)


def run_all(
  folder: pathlib.Path,
  *,
  seed: int,
  numbers: Sequence[int],
  at_once: int,
  limit_seconds: float,
) -> Iterator[Outcome]:
  """Runs each of some numbers; yields outcomes as the runs end."""
  names, cases = [], []
  for number in numbers:
    drawn, arguments = make_arguments(seed, number, folder)
    workplace = folder / str(number) / "here"
    workplace.mkdir(parents=True)
    names.append(drawn)
    cases.append(
      forked.Case(module="main", arguments=arguments, folder=workplace)
    )
  for ended in forked.run_all(
    cases, at_once=at_once, limit_seconds=limit_seconds
  ):
    case = cases[ended.index]
    configs = [*case.folder.parent.rglob("config.json")]
    fault = find_fault(names[ended.index], case.folder, ended, configs)
    result = "broke off" if configs else "refused"
    yield Outcome(
      number=numbers[ended.index],
      arguments=case.arguments,
      result=fault or ("ran to its end" if ended.code == 0 else result),
      is_broken=fault is not None,
      ended=ended,
    )
    shutil.rmtree(case.folder.parent)


def make_arguments(
  seed: int, number: int, folder: pathlib.Path
) -> tuple[list[str], list[str]]:
  """Returns the flags that a run draws, and all its arguments."""
  config, drawn = random_settings.draw(seed, number, CONFIGS)
  given = {
    "--config": str(processes.ROOT / f"configs/{config}.py"),
    "--workdir": "workdir",
    "--data_dir": str(folder / "data"),
    "--compilation_cache": str(folder / "cache"),
    **{f"--config.{name}": str(value) for name, value in SMALL.items()},
  }
  for flag in drawn:
    if flag.startswith("--config."):  # comes after the fields of SMALL
      given.pop(flag, None)
  given |= drawn
  return [*drawn], [f"{flag}={value}" for flag, value in given.items()]


def find_fault(
  names: Sequence[str],
  folder: pathlib.Path,
  ended: forked.Ended,
  configs: Sequence[pathlib.Path],
) -> str | None:
  """Returns which promise is broken, or None.

  Args:
    names: flags that the run drew.
    folder: where it ran.
    ended: its end.
    configs: every config.json that it has left.
  """
  code, errors = ended.code, ended.errors
  if code is None:
    return "hangs"
  if "Traceback" in errors:
    return "traceback"
  if code < 0:
    return f"ended by {signal.Signals(-code).name}"
  if code not in (0, 1):
    return f"exit code {code}"
  for file in configs:
    try:
      json.loads(file.read_text())
    except ValueError:
      return "config.json is no JSON"
  if code == 0:
    if errors:
      return "writes to standard error"
    return None if configs else "no config.json"
  if not errors.startswith("error: ") or errors.count("\n") != 1:
    return "not one line of error"
  if configs and _NOT_FINITE.search(errors):
    return None  # whatever has made it so: the line says what may have
  if not any(random_settings.is_named(name, errors) for name in names):
    return "line names nothing that was set"
  if not configs and (folder / "workdir").exists():
    return "workdir of a run that was refused"
  return None


if __name__ == "__main__":
  define_flags()
  command.parse_flags(sys.argv)
  main()
