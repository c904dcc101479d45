"""Draws curves of runs over each other.

    python -m alexnet_jax.plot --workdir='runs/sweep/*' --x=epoch \\
      --y=validation_top1_error --out=curves.svg --csv=curves.csv

The legend names the runs by the fields of their configs in which they differ.
Several curves get a panel each. The CSV file has the values that are drawn,
before any smoothing. Also draws a run that is still training.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.data import atomic
from alexnet_jax.figures import curves as curves_lib
from alexnet_jax.figures import runs as runs_lib

_WORKDIR = command.define_workdirs()
_X = flags.DEFINE_enum(
  "x", "epoch", [*runs_lib.AXES], "What the curves are drawn over."
)
_Y = command.define_list(
  "y",
  ["validation_top1_error"],
  "Curves, by their names in metrics.jsonl, such as training_loss.",
)
_SMOOTHING = command.define_smoothing()
_OUT = command.define_path("out", "The picture: .svg, .png or .pdf.")
_CSV = command.define_path("csv", "Write the values of the curves, .csv.")
# A paper takes PDF.
_ENDINGS = (*command.PICTURES, ".pdf")


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  with command.exit_on_error(ValueError, TypeError, OSError):
    _check_flags()
    curves = [*dict.fromkeys(_Y.value)]
    workdirs, others = runs_lib.find_workdirs(_WORKDIR.value)
    found = [runs_lib.read(workdir) for workdir in workdirs]
    runs, problems = _choose_runs(found, curves, _X.value)
    legend = runs_lib.make_legend(runs)
    if _OUT.value:
      with atomic.replace(_OUT.value) as partial:
        curves_lib.draw(
          runs,
          legend,
          axis=_X.value,
          panels=[[curve] for curve in curves],
          smoothing=_SMOOTHING.value,
          path=partial,
          kind=os.path.splitext(_OUT.value)[1].removeprefix("."),
        )
    if _CSV.value:
      runs_lib.write_csv(_CSV.value, runs, legend, curves)
  console = command.make_console()
  if others:
    command.print_line(console, f"no runs: {', '.join(others)}")
  for line in problems:
    command.print_line(console, line)
  command.print_line(console, _describe(runs, legend))
  for what, path in (("picture", _OUT.value), ("values", _CSV.value)):
    if path:
      verb = "is" if what == "picture" else "are"
      command.print_line(console, f"the {what} {verb} in {path}")


def _check_flags() -> None:
  """Checks what can be checked before a run is read.

  Raises:
    ValueError: a flag is missing or has another value.
  """
  if not _Y.value:
    raise ValueError(
      "--y is empty, expected names of curves. Set --y=training_loss."
    )
  command.check_smoothing(_SMOOTHING.value)
  if not _OUT.value and not _CSV.value:
    raise ValueError(
      "no file to write is given. Set --out=curves.svg, --csv=curves.csv, or "
      "both."
    )
  for path, flag, endings in (
    (_OUT.value, "out", _ENDINGS),
    (_CSV.value, "csv", (".csv",)),
  ):
    if path:
      command.check_path(path, flag=flag, endings=endings)


def _choose_runs(
  found: Sequence[runs_lib.Run], curves: Sequence[str], axis: str
) -> tuple[list[runs_lib.Run], list[str]]:
  """Chooses the runs that have one of the curves.

  Returns:
    These in the order of the legend, and a line for each curve that some runs
    lack.

  Raises:
    ValueError: no run has one of the curves.
  """
  problems = []
  chosen = set()  # workdirs
  for curve in curves:
    without, unplaced = [], []
    for run in found:
      if curve not in run.curves:
        without.append(run.workdir)
      elif run.find_axis(curve, axis) is None:
        unplaced.append(run.workdir)
      else:
        chosen.add(run.workdir)
    if len(without) == len(found):
      known = dict.fromkeys(name for run in found for name in run.find_names())
      there = f"but {', '.join(known)}" if known else "and no other"
      raise ValueError(
        f"no run has a curve {curve!r}, {there}. Set --y, or wait for the "
        "first report."
      )
    if len(without) + len(unplaced) == len(found):
      raise ValueError(
        f"the reports of {unplaced[0]!r} do not say at which "
        f"{runs_lib.AXES[axis]} they are, as an earlier version wrote them. "
        "Set --x=step."
      )
    if without:
      problems.append(f"without {curve}: {', '.join(without)}")
    if unplaced:
      problems.append(
        f"without {runs_lib.AXES[axis]} of {curve}, as an earlier version "
        f"wrote them (--x=step shows them): {', '.join(unplaced)}"
      )
  runs = [run for run in found if run.workdir in chosen]
  return runs_lib.sort(runs), problems


def _describe(runs: Sequence[runs_lib.Run], legend: runs_lib.Legend) -> str:
  """Says in one line how many runs there are, and what they differ in."""
  if len(runs) == 1:
    return f"one run: {runs[0].workdir}"
  if not legend.differing:
    return f"{len(runs)} runs of one config"
  names = ", ".join(legend.differing)
  return f"{len(runs)} runs, which differ in {names}"


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)
