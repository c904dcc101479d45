"""Runs with random values in random fields: each ends well, or in one line.

    python -m tests.faults.fuzz --runs=500 --seed=0

Every run is a process of its own, `alexnet_jax.main` on a few of the embedded
digits, with one to three fields of the config, or flags, set on the command
line to values of right and wrong types. To be quick, it is forked from this
process, which has imported all that `main` needs and has not used JAX. What is
promised of each run:

- it comes to its end, with nothing on standard error, or it ends with an error
  of one line, which names what was set or, of a run that had begun, the step
  whose loss is not finite;
- a run that was refused leaves nothing behind, and one that began leaves a
  workdir that is whole.

The same seed and number of a run give the same run. Ends with 1 where the
promise is broken, with the command line of each such run.
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

import rich.console
import rich.table
from absl import flags

from alexnet_jax.cli import command
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
_ENDED, _REFUSED, _BROKE_OFF = "ran to its end", "refused", "broke off"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """How a run has ended.

  Attributes:
    kind: `_ENDED`, `_REFUSED`, `_BROKE_OFF` after it had begun.
    fault: what breaks the promise; None: nothing.
    seconds: from its start to its end.
    errors: its standard error.
  """

  number: int
  arguments: list[str]
  kind: str
  fault: str | None
  seconds: float
  errors: str


def define_flags() -> None:
  flags.DEFINE_integer("runs", 100, "How many.", lower_bound=1)
  flags.DEFINE_integer("first_run", 0, "Number of the first.", lower_bound=0)
  flags.DEFINE_integer("seed", 0, "Of what is drawn.")
  flags.DEFINE_integer("at_once", 2, "Runs at a time.", lower_bound=1)
  flags.DEFINE_float("limit_seconds", 60.0, "After which a run hangs.")
  flags.DEFINE_string("markdown", None, "Write the counts to this file too.")


def main() -> None:
  given = flags.FLAGS
  folder = pathlib.Path(tempfile.mkdtemp(prefix="fuzz"))
  outcomes = []
  for outcome in run_all(
    folder,
    seed=given.seed,
    numbers=range(given.first_run, given.first_run + given.runs),
    at_once=given.at_once,
    limit_seconds=given.limit_seconds,
  ):
    outcomes.append(outcome)
    if outcome.fault:
      print(f"run {outcome.number}: {outcome.fault}")
      print(f"  {shlex.join(outcome.arguments)}")
      print(f"  {outcome.errors[-1500:].strip()}", flush=True)
  shutil.rmtree(folder)
  table = rich.table.Table(title=f"{given.runs} runs of seed {given.seed}")
  for header in ("end", "runs", "longest"):
    table.add_column(header, justify="left" if header == "end" else "right")
  rows = _count(outcomes)
  for row in rows:
    table.add_row(*row)
  console = rich.console.Console()
  console.print(table)
  if given.markdown:
    lines = ["| end | runs | longest |", "| --- | ---: | ---: |"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    pathlib.Path(given.markdown).write_text("\n".join(lines) + "\n")
  sys.exit(1 if any(outcome.fault for outcome in outcomes) else 0)


def _count(outcomes: list[Outcome]) -> list[tuple[str, str, str]]:
  """Rows of a table: how runs ended, how many, and the longest of them."""
  seconds: dict[str, list[float]] = collections.defaultdict(list)
  for outcome in outcomes:
    seconds[outcome.fault or outcome.kind].append(outcome.seconds)
  return [
    (kind, str(len(of_kind)), f"{max(of_kind):.1f} s")
    for kind, of_kind in sorted(seconds.items())
  ]


def run_all(
  folder: pathlib.Path,
  *,
  seed: int,
  numbers: Sequence[int],
  at_once: int,
  limit_seconds: float,
) -> Iterator[Outcome]:
  """Runs each of some numbers; yields how they end, as they do."""
  names, cases = [], []
  for number in numbers:
    drawn, arguments = make_arguments(seed, number, folder)
    place = folder / str(number) / "here"
    place.mkdir(parents=True)
    names.append(drawn)
    cases.append(forked.Case(module="main", arguments=arguments, folder=place))
  for ended in forked.run_all(
    cases, at_once=at_once, limit_seconds=limit_seconds
  ):
    place = cases[ended.index].folder
    kept = [*place.parent.rglob("config.json")]
    yield Outcome(
      number=numbers[ended.index],
      arguments=cases[ended.index].arguments,
      kind=_ENDED if ended.code == 0 else _BROKE_OFF if kept else _REFUSED,
      fault=find_fault(names[ended.index], place, ended, kept),
      seconds=ended.seconds,
      errors=ended.errors,
    )
    shutil.rmtree(place.parent)


def make_arguments(
  seed: int, number: int, folder: pathlib.Path
) -> tuple[list[str], list[str]]:
  """The names of what a run sets, and all its arguments."""
  config, drawn = random_settings.draw(seed, number, CONFIGS)
  fields = {
    f"--config.{name}": str(value)
    for name, value in SMALL.items()
    if f"--config.{name}" not in drawn
  }
  places = {
    "--workdir": "workdir",
    "--data_dir": str(folder / "data"),
    "--compilation_cache": str(folder / "cache"),
  }
  given = (
    {"--config": str(forked.ROOT / f"configs/{config}.py")} | places | fields
  )
  return [*drawn], [
    f"{name}={value}" for name, value in (given | drawn).items()
  ]


def find_fault(
  names: Sequence[str],
  place: pathlib.Path,
  ended: forked.Ended,
  kept: Sequence[pathlib.Path],
) -> str | None:
  """What breaks the promise; None: nothing.

  Args:
    names: of the fields and flags that were set.
    place: where the run was.
    ended: how it has ended.
    kept: every config.json that it has left.
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
  for file in kept:
    try:
      json.loads(file.read_text())
    except ValueError:
      return "config.json is no JSON"
  if code == 0:
    if errors:
      return "says something on standard error"
    return None if kept else "no config.json"
  if not errors.startswith("error: ") or errors.count("\n") != 1:
    return "not one line of error"
  if kept and _NOT_FINITE.search(errors):
    return None  # whatever has made it so: the line says what may have
  if not any(random_settings.is_named(name, errors) for name in names):
    return "line names nothing that was set"
  if not kept and (place / "workdir").exists():
    return "workdir of a run that was refused"
  return None


if __name__ == "__main__":
  define_flags()
  command.parse_flags(sys.argv)
  main()
