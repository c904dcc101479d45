"""Training runs in this process, and pictures of their curves."""

from __future__ import annotations

import contextlib
import json
import pathlib
import tempfile
from collections.abc import Mapping, Sequence

import matplotlib
import ml_collections
import rich.console
from matplotlib import figure

from alexnet_jax.checkpoints import reports
from alexnet_jax.cli import command
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.program import step
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from alexnet_jax.training import train

_SETTINGS = {
  "svg.hashsalt": "alexnet_jax",
  "font.family": "DejaVu Sans",
  "font.size": 9,
}
_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def train_to_end(
  config: ml_collections.ConfigDict,
  *,
  data_dir: str | None,
  simulate_devices: int | None = None,
  workdir: str | None = None,
) -> tuple[step.TrainState, list[dict[str, float]]]:
  """Trains a config from its start.

  Args:
    config: of the run.
    data_dir: the folder of the prepared datasets.
    simulate_devices: None: as many as the layout needs. Only the first run in a
      process can choose.
    workdir: of the run, which it keeps; None: a temporary directory.

  Returns:
    The final state, and the lines of `metrics.jsonl`.

  Raises:
    FloatingPointError: a loss is not finite; its attribute `lines` has the
      lines until then.
    ValueError, TypeError, OSError: with one line on what to change.
  """
  settings.check(config)
  with contextlib.ExitStack() as stack:
    if workdir is None:
      workdir = stack.enter_context(tempfile.TemporaryDirectory())
    run = run_lib.prepare(
      config,
      group=group_lib.alone(),
      workdir=workdir,
      data_dir=data_dir,
      simulate_devices=simulate_devices,
    )
    try:
      state = train.train(run, rich.console.Console(quiet=True, markup=False))
    except FloatingPointError as error:
      error.lines = _read(workdir)
      raise
    return state, _read(workdir)


def train_while_finite(
  config: ml_collections.ConfigDict, *, data_dir: str | None
) -> list[dict[str, float]]:
  """Returns the lines of `metrics.jsonl` until a loss is not finite."""
  try:
    _, lines = train_to_end(config, data_dir=data_dir)
  except FloatingPointError as error:
    lines = error.lines  # so the curve ends there
  return lines


def _read(workdir: str) -> list[dict[str, float]]:
  lines = pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return [
    line
    for line in found
    if reports.find_kind(line) in ("training", "validation")
  ]


def find_errors(
  lines: Sequence[Mapping[str, float]],
) -> tuple[list[int], list[float]]:
  """Returns the steps with a validation, and the top-1 errors there.

  Args:
    lines: of `metrics.jsonl`.
  """
  name = "validation_top1_error"
  found = [(line["step"], line[name]) for line in lines if name in line]
  return [step for step, _ in found], [error for _, error in found]


def draw(
  curves: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]],
  *,
  title: str,
  x: str,
  y: str,
  path: str,
  mark: float | None = None,
  top: float | None = None,
) -> None:
  """Draws curves; those of one name have one color and style.

  Args:
    curves: {name: for each seed, x and y values}.
    title: above the curves.
    x: label of the x axis.
    y: label of the y axis.
    path: .svg or .png.
    mark: y value of a horizontal line.
    top: upper end of the y axis; None: all values.

  Raises:
    ValueError: the file cannot be drawn to.
  """
  command.check_path(path, flag="picture", endings=command.PICTURES)
  styles = ("-", "--", "-.", ":")
  with matplotlib.rc_context(_SETTINGS):
    drawn = figure.Figure(figsize=(6.4, 4.2), layout="constrained")
    panel = drawn.subplots()
    for number, (name, seeds) in enumerate(curves.items()):
      for seed, (xs, ys) in enumerate(seeds):
        panel.plot(
          xs,
          ys,
          styles[number % len(styles)],
          color=_COLORS[number % len(_COLORS)],
          linewidth=1.2,
          label=None if seed else name,
        )
    if mark is not None:
      panel.axhline(mark, color="0.7", linewidth=0.8, zorder=0)
    panel.set(xlabel=x, ylabel=y, title=title)
    panel.set_ylim(bottom=0, top=top)
    panel.set_xlim(left=0)
    panel.legend(frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    drawn.savefig(
      path, dpi=200, metadata={"Date": None} if path.endswith("svg") else {}
    )
