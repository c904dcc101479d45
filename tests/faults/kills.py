"""Kills one training again and again, and holds its end against a straight run.

    python -m tests.faults.kills --kills=50 --data_dir=data

The training of `make demo`, with a checkpoint every ten steps: once straight
through, and once killed at random moments, each time started again by the same
command. A third of the kills come while it starts, the others are spread over
the rest of the training. At the end, parameters, optimizer and statistics are
compared bit for bit. Prints the section of docs/reliability.md; ends with 1
where a promise is broken.

`--signal=TERM` asks instead of killing. `--layouts=one_device,two_column` draws
another layout for each start. Each step is then equal to rounding only, which
a training multiplies (1e-7 in a step is 1e-1 of a momentum after 50), so that
the validations of the two ends are what can be compared.
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

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from alexnet_jax.checkpoints import reader
from alexnet_jax.cli import command
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from tests.faults import attempt as attempt_lib

# What this sets where the command line does not: reports, so that a repeated
# step is seen, and checkpoints so often that kills meet them.
_FIELDS = {
  "log_every_steps": 1,
  "checkpoint_every_steps": 10,
  "max_to_keep": 2,
}
# Of the kills, which come before the first report of a start.
_EARLY_SHARE = 1 / 3
_SIGNALS = ("KILL", "TERM", "INT")


@dataclasses.dataclass
class Counts:
  """What came of the kills.

  Attributes:
    phases: where the kills met the run.
    lost: starts that did not go on from the newest complete checkpoint.
    failed: starts that ended otherwise than by the signal, or hung.
    damaged: lines about damaged checkpoints.
    late: starts that ended before their kill.
  """

  phases: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  lost: list[str] = dataclasses.field(default_factory=list)
  failed: list[str] = dataclasses.field(default_factory=list)
  damaged: list[str] = dataclasses.field(default_factory=list)
  hung: int = 0
  late: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
  """Of the straight run.

  Attributes:
    start_seconds: until its first report, without the compilation.
    step_seconds: for each step, with all that comes between them.
  """

  start_seconds: float
  step_seconds: float
  num_steps: int


def define_flags() -> None:
  command.define_config("configs/two_device.py")
  flags.DEFINE_integer("kills", 50, "Kills.", lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Of the moments.")
  flags.DEFINE_enum("signal", "KILL", _SIGNALS, "What is sent.")
  flags.DEFINE_list(
    "layouts", [], "Of each start, drawn. Default: the config's."
  )
  flags.DEFINE_float("limit_seconds", 200, "Without a sign of life: it hangs.")
  flags.DEFINE_string("data_dir", "data", "Where TFDS keeps its sets.")
  flags.DEFINE_string("workdir", None, "Kept if set; else a temporary folder.")


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  config = flags.FLAGS.config
  for name, value in _FIELDS.items():
    if name not in _overrides():
      config[name] = value
  with command.in_one_line(ValueError, TypeError):
    settings.check(config)
    settings.check_single(config, command="kills")
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(flags.FLAGS.workdir or temporary).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    pace = run_straight(config, folder)
    straight_seconds = time.monotonic() - begin
    counts = run_killed(config, folder, pace)
    minutes = (time.monotonic() - begin - straight_seconds) / 60
    difference = None if counts.hung else find_difference(config, folder, pace)
    kept = report(config, folder, counts, difference, minutes)
  sys.exit(0 if kept else 1)


def _overrides() -> dict:
  return config_flags.get_override_values(flags.FLAGS["config"])


def _start(
  config, folder: pathlib.Path, name: str, number: int, layout: str | None
) -> attempt_lib.Attempt:
  """Starts the run called `name`, for the time `number`."""
  workdir = folder / name
  fields = _FIELDS | _overrides() | ({"layout.name": layout} if layout else {})
  return attempt_lib.Attempt(
    [
      f"--config={config_flags.get_config_filename(flags.FLAGS['config'])}",
      *(f"--config.{field}={value}" for field, value in fields.items()),
      f"--workdir={workdir}",
      f"--data_dir={flags.FLAGS.data_dir}",
      f"--compilation_cache={folder / 'compiled'}",
    ],
    workdir=workdir,
    log=folder / f"{name}_{number}.txt",
    eval_every_steps=config.eval_every_steps,
  )


def run_straight(config, folder: pathlib.Path) -> Pace:
  """Runs to the end without a kill; compiles, for all starts after it.

  Raises:
    SystemExit: the run fails.
  """
  run = _start(config, folder, "straight", 0, None)
  times = [time.monotonic()]
  for reached in (
    lambda: run.is_planned,
    lambda: run.is_compiled,
    lambda: run.reports > 0,
    lambda: False,
  ):
    run.wait(reached, seconds=1e9, limit_seconds=flags.FLAGS.limit_seconds)
    times.append(time.monotonic())
  if run.process.returncode != 0:
    sys.exit(f"error: the straight run failed: {run.said[-500:]}")
  begin, planned, compiled, trained, end = times
  steps = reader.find_latest_step(str(folder / "straight"))
  return Pace(
    start_seconds=planned - begin + trained - compiled,
    step_seconds=(end - trained) / steps,
    num_steps=steps,
  )


def run_killed(config, folder: pathlib.Path, pace: Pace) -> Counts:
  """Starts and kills the run, and lets it come to its end."""
  draws = random.Random(flags.FLAGS.seed)
  kills, limit = flags.FLAGS.kills, flags.FLAGS.limit_seconds
  counts = Counts()
  for number in range(kills + 1):
    layouts = flags.FLAGS.layouts
    layout = draws.choice(layouts) if layouts else None
    run = _start(config, folder, "killed", number, layout)
    try:
      if number == kills:
        run.wait(lambda: False, seconds=1e9, limit_seconds=limit)
      else:
        done = _wait_for_moment(
          run,
          draws,
          pace,
          kills_left=kills - number,
          every=config.log_every_steps,
        )
        phase = run.kill(getattr(signal, f"SIG{flags.FLAGS.signal}"))
        counts.late += done
        counts.phases[phase] += 1
        where = f"after step {run.expected_step}" if run.expected_step else ""
        print(f"kill {number + 1}: {phase} {where}", file=sys.stderr)
    except TimeoutError as error:
      counts.hung += 1
      counts.failed.append(f"start {number + 1} hung: {error}")
      return counts
    if fault := run.find_fault():
      counts.lost.append(f"start {number + 1}: {fault}")
    counts.damaged += run.find_damage()
    if run.process.returncode not in _expected_codes(number == kills):
      counts.failed.append(
        f"start {number + 1} ended with {run.process.returncode}: "
        f"{' '.join(run.said[-200:].split())}"
      )
  return counts


def _expected_codes(is_last: bool) -> tuple[int, ...]:
  number = getattr(signal, f"SIG{flags.FLAGS.signal}")
  return (0,) if is_last else (0, -number, 75)


def _wait_for_moment(
  run, draws, pace: Pace, *, kills_left: int, every: int
) -> bool:
  """Waits until it is to be killed; whether it has ended before.

  Args:
    run: an `Attempt`.
    draws: of the moment.
    pace: of the straight run.
    kills_left: this one included.
    every: steps between two reports.
  """
  limit = flags.FLAGS.limit_seconds
  left = pace.num_steps - (run.expected_step or 0)
  if draws.random() < _EARLY_SHARE or left <= 0:
    seconds = draws.uniform(0, pace.start_seconds)
    return run.wait(lambda: False, seconds=seconds, limit_seconds=limit)
  # So that what is left of the training lasts for the kills that are left.
  training_kills = max(1.0, (1 - _EARLY_SHARE) * kills_left)
  steps = draws.uniform(0, min(2 / training_kills, 0.9) * left)
  reports = 1 + int(steps / every)
  run.wait(lambda: run.reports >= reports, seconds=1e9, limit_seconds=limit)
  # Anywhere in a step; reports come at one place of it.
  seconds = draws.uniform(0, 2 * pace.step_seconds)
  return run.wait(lambda: False, seconds=seconds, limit_seconds=limit)


def find_difference(config, folder: pathlib.Path, pace: Pace) -> float | None:
  """The largest relative difference of a leaf; 0.0: equal bit for bit.

  Returns:
    None where the killed run has not come to the end.
  """
  network, layout = settings.check(config)
  mesh_lib.simulate_devices(layout.devices, only_cpu=True)
  program = run_lib.make_program(config, network, layout)
  ends = [str(folder / name) for name in ("straight", "killed")]
  if any(reader.find_latest_step(end) != pace.num_steps for end in ends):
    return None
  one, other = (
    jax.device_get(reader.load(end, pace.num_steps, program.abstract_state))
    for end in ends
  )
  differences = jax.tree.map(_differ, one, other)
  return max(jax.tree.leaves(differences))


def find_error(workdir: pathlib.Path) -> str:
  """Top-1 error of the newest validation."""
  lines = attempt_lib.read_metrics(workdir)
  errors = [line.get("validation_top1_error") for line in lines]
  found = [error for error in errors if error is not None]
  return f"{found[-1]:.2%}" if found else "-"


def _differ(one: np.ndarray, other: np.ndarray) -> float:
  if one.tobytes() == other.tobytes():
    return 0.0
  size = np.abs(one).max() or 1
  return max(float(np.abs(one - other).max() / size), 1e-300)


def report(
  config, folder: pathlib.Path, counts: Counts, difference, minutes: float
) -> bool:
  """Prints the section for the docs; whether all promises are kept."""
  lines = attempt_lib.read_metrics(folder / "killed")
  losses = collections.defaultdict(set)
  reports = [line for line in lines if "training_loss" in line]
  for line in reports:
    losses[line["step"]].add(line["training_loss"])
  changed = sum(len(of_step) > 1 for of_step in losses.values())
  is_equal = difference == 0 or (
    difference is not None and bool(flags.FLAGS.layouts)
  )
  end = "did not come to its end"
  if difference is not None:
    end = (
      "equal, bit for bit"
      if difference == 0
      else (f"largest relative difference {difference:.1e}")
    )
  given = [flag for flag in sys.argv[1:] if not flag.startswith("--data_dir")]
  print(
    f"`python -m tests.faults.kills {shlex.join(given)}`, {minutes:.0f} min:\n"
  )
  print("| what | of SIG" + flags.FLAGS.signal + " |\n| --- | ---: |")
  for what, value in (
    ("kills", sum(counts.phases.values()) - counts.late),
    *((f"in {phase}", counts.phases[phase]) for phase in attempt_lib.PHASES),
    ("starts that ended before their kill", counts.late),
    (
      "lost: did not go on from the newest complete checkpoint",
      len(counts.lost),
    ),
    ("hung", counts.hung),
    ("failed otherwise", len(counts.failed) - counts.hung),
    ("damaged checkpoints met", len(counts.damaged)),
    ("steps of the training", max(losses, default=0)),
    (
      "steps repeated, as far as they were reported",
      len(reports) - len(losses),
    ),
    ("repeated steps with another loss", changed),
    ("final parameters, optimizer and statistics", end),
    *(
      (f"validation error of the {name} run", find_error(folder / name))
      for name in ("straight", "killed")
    ),
  ):
    print(f"| {what} | {value} |")
  for line in counts.lost + counts.failed + counts.damaged:
    print(f"\n- {line}")
  same_losses = changed == 0 or bool(flags.FLAGS.layouts)
  return is_equal and same_losses and not counts.lost + counts.failed


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)
