"""Kills one training again and again, and compares its end with a straight run.

    python -m tests.faults.kills --kills=50 --data_dir=data

Runs the training of `make demo` with a checkpoint every ten steps: once without
a kill, and once killed at random moments and started again by the same command.
A third of the kills come while the run starts, the others are spread over the
rest of the training. At the end, parameters, optimizer and statistics are
compared bit for bit. Prints the section of docs/reliability.md; exits with 1 if
a promise is broken.

`--signal=TERM` sends a signal that asks the run to stop.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import random
import shlex
import signal
import sys
import tempfile
import time

from absl import app, flags
from ml_collections import config_flags

from alexnet_jax.checkpoints import reader
from alexnet_jax.cli import command
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.settings import settings
from tests import processes
from tests.faults import attempt as attempt_lib

# Set where the command line does not: reports, so that a repeated step is seen,
# and checkpoints so often that kills meet them.
_FIELDS = {
  "log_every_steps": 1,
  "checkpoint_every_steps": 10,
  "max_to_keep": 2,
}
# Fraction of the kills that come before the first report of a start.
_EARLY = 1 / 3


# Rows of the report.
_LATE = "starts that ended before their kill"
_LOST = "did not resume from the newest complete checkpoint"
_HUNG, _FAILED = "hung", "failed otherwise"
_DAMAGED = "damaged checkpoints found"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
  """Times of the straight run.

  Attributes:
    start_seconds: to its first report, without the compilation.
    step_seconds: per step, validations and checkpoints included.
  """

  start_seconds: float
  step_seconds: float
  num_steps: int


def define_flags() -> None:
  command.define_config("configs/two_device.py")
  flags.DEFINE_integer("kills", 50, "Kills.", lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Seed of the moments.")
  flags.DEFINE_enum("signal", "KILL", ("KILL", "TERM", "INT"), "Signal sent.")
  flags.DEFINE_float(
    "limit_seconds", 200, "Time without any change after which a run hangs."
  )
  flags.DEFINE_string("data_dir", "data", "Where TFDS keeps its sets.")
  flags.DEFINE_string("workdir", None, "Kept if set; else a temporary folder.")


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  config = flags.FLAGS.config
  for name, value in _FIELDS.items():
    if name not in _overrides():
      config[name] = value
  with command.exit_on_error(ValueError, TypeError):
    settings.check(config)
    settings.check_single(config, command="kills")
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(flags.FLAGS.workdir or temporary).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    pace = run_straight(config, folder)
    begin = time.monotonic()
    counts, faults = run_killed(config, folder, pace)
    minutes = (time.monotonic() - begin) / 60
    difference = find_difference(config, folder, pace)
    is_kept = report(folder, counts, difference, minutes)
  for line in faults:
    print(f"\n- {line}")
  sys.exit(0 if is_kept else 1)


def _overrides() -> dict:
  return config_flags.get_override_values(flags.FLAGS["config"])


def _start(
  config, folder: pathlib.Path, name: str, number: int
) -> attempt_lib.Attempt:
  """Starts the run `name`, for the time `number`."""
  fields = _FIELDS | _overrides()
  return attempt_lib.Attempt(
    [
      f"--config={config_flags.get_config_filename(flags.FLAGS['config'])}",
      *(f"--config.{field}={value}" for field, value in fields.items()),
      *(f"--workdir={folder / name}", f"--data_dir={flags.FLAGS.data_dir}"),
      f"--compilation_cache={folder / 'compiled'}",
    ],
    workdir=folder / name,
    log=folder / f"{name}_{number}.txt",
    eval_every_steps=config.eval_every_steps,
    limit_seconds=flags.FLAGS.limit_seconds,
  )


def run_straight(config, folder: pathlib.Path) -> Pace:
  """Runs to the end without a kill, and compiles for all later starts.

  Raises:
    SystemExit: the run fails.
  """
  run = _start(config, folder, "straight", 0)
  times = [time.monotonic()]
  for reached in (
    lambda: run.is_planned,
    lambda: run.is_compiled,
    lambda: run.reports > 0,
    lambda: False,
  ):
    run.wait(reached)
    times.append(time.monotonic())
  if run.process.returncode != 0:
    sys.exit(f"error: the straight run failed: {run.output[-500:]}")
  begin, planned, compiled, trained, end = times
  num_steps = processes.read_reports(folder / "straight")[-1]["step"]
  return Pace(
    start_seconds=planned - begin + trained - compiled,
    step_seconds=(end - trained) / num_steps,
    num_steps=num_steps,
  )


def run_killed(
  config, folder: pathlib.Path, pace: Pace
) -> tuple[collections.Counter, list[str]]:
  """Starts and kills the run, and lets the last start come to its end.

  Returns:
    Counts of kills, of the phases they came in and of faults, and a line for
    each fault.
  """
  rng = random.Random(flags.FLAGS.seed)
  number = getattr(signal, f"SIG{flags.FLAGS.signal}")
  kills, counts, lines = flags.FLAGS.kills, collections.Counter(), []

  def count(row, fault):
    counts[row] += 1
    lines.append(f"start {kill} {row}: {' '.join(fault.split())}")

  for kill in range(1, kills + 2):
    run = _start(config, folder, "killed", kill)
    try:
      if kill > kills:
        run.wait()
        codes = (0,)
      else:
        is_late = _wait_for_moment(
          run, rng, pace, kills - kill + 1, config.log_every_steps
        )
        phase = f"in {run.kill(number)}"
        counts.update([phase, _LATE if is_late else "kills"])
        codes = (0, -number, 75)
        print(f"kill {kill}: {phase}", file=sys.stderr)
    except TimeoutError as error:
      count(_HUNG, str(error))
      break
    if fault := run.find_fault():
      count(_LOST, fault)
    for line in run.find_damage():
      count(_DAMAGED, line)
    if (code := run.process.returncode) not in codes:
      count(_FAILED, f"exit code {code}, {run.output[-200:]}")
  return counts, lines


def _wait_for_moment(
  run: attempt_lib.Attempt,
  rng: random.Random,
  pace: Pace,
  kills_left: int,
  log_every_steps: int,
) -> bool:
  """Waits for the moment of the kill; returns whether the run ended before.

  Args:
    run: the run to be killed.
    rng: draws the moment.
    pace: of the straight run.
    kills_left: this one included.
    log_every_steps: of the config.
  """
  left = pace.num_steps - (run.expected_step or 0)
  if rng.random() < _EARLY or left <= 0:
    return run.wait(seconds=rng.uniform(0, pace.start_seconds))
  # The rest of the training must last for the kills that are left.
  training_kills = max(1.0, (1 - _EARLY) * kills_left)
  steps = rng.uniform(0, min(2 / training_kills, 0.9) * left)
  reports = 1 + int(steps / log_every_steps)
  run.wait(lambda: run.reports >= reports)
  # Anywhere in a step: reports come at one place of it.
  return run.wait(seconds=rng.uniform(0, 2 * pace.step_seconds))


def find_difference(config, folder: pathlib.Path, pace: Pace) -> str | None:
  """Returns in words how the two ends differ; None if they are equal."""
  workdirs = [folder / name for name in ("straight", "killed")]
  steps = {reader.find_latest_step(str(workdir)) for workdir in workdirs}
  if steps != {pace.num_steps}:
    return "did not come to its end"
  mesh_lib.simulate_devices(1, only_cpu=True)
  (_, one), (_, other) = (
    processes.read_newest(workdir, config) for workdir in workdirs
  )
  changed = [n for n in one if one[n].tobytes() != other[n].tobytes()]
  return f"not equal: {', '.join(changed)}" if changed else None


def report(
  folder: pathlib.Path,
  counts: collections.Counter,
  difference: str | None,
  minutes: float,
) -> bool:
  """Prints the section for the docs; returns whether all promises are kept."""
  lines = processes.read_reports(folder / "killed")
  losses = collections.defaultdict(list)
  for line in lines:
    if "training_loss" in line:
      losses[line["step"]].append(line["training_loss"])
  changed = sum(len(set(of_step)) > 1 for of_step in losses.values())
  repeated = sum(len(of_step) - 1 for of_step in losses.values())
  rows = {
    **{
      row: counts[row]
      for row in (
        *("kills", *(f"in {phase}" for phase in attempt_lib.PHASES)),
        *(_LATE, _LOST, _HUNG, _FAILED, _DAMAGED),
      )
    },
    "steps of the training": max(losses, default=0),
    "repeated steps, of those reported": repeated,
    "repeated steps with another loss": changed,
    "final parameters, optimizer and statistics": (
      difference or "equal, bit for bit"
    ),
    **{
      f"validation error of the {name} run": _find_error(folder / name)
      for name in ("straight", "killed")
    },
  }
  given = [flag for flag in sys.argv[1:] if not flag.startswith("--data_dir")]
  print(f"`python -m tests.faults.kills {shlex.join(given)}`,", end=" ")
  print(f"{minutes:.0f} min:\n\n| what | of SIG{flags.FLAGS.signal} |")
  print(
    "| --- | ---: |", *(f"| {a} | {b} |" for a, b in rows.items()), sep="\n"
  )
  is_broken = counts[_LOST] or counts[_HUNG] or counts[_FAILED]
  return not (difference or changed or is_broken)


def _find_error(workdir: pathlib.Path) -> str:
  """Returns the top-1 error of the newest validation."""
  for line in reversed(processes.read_reports(workdir)):
    if "validation_top1_error" in line:
      return f"{line['validation_top1_error']:.2%}"
  return "-"


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)
