"""Curves of runs over each other: loss, errors, learning rate."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import matplotlib
import numpy as np

from alexnet_jax.figures import charts
from alexnet_jax.figures import curves as curves_lib
from alexnet_jax.figures import runs as runs_lib
from alexnet_jax.report import section as section_lib

# What training and validation both report.
_SHARED = re.compile(r"(?:training|validation)_(loss|top\d+_error)")
_RATE = "learning_rate"
# Of `runs.AXES`, in words.
_AXES = {
  "step": "step",
  "epoch": "epoch",
  "seconds": "time in training",
  "images": "training images seen",
}


def make_section(
  runs: Sequence[runs_lib.Run],
  legend: runs_lib.Legend,
  *,
  axis: str,
  smoothing: float,
) -> section_lib.Section:
  """Makes the section, with a drawing for each quantity.

  Args:
    runs: in the order of the legend.
    axis: of `runs.AXES`.
    smoothing: see `runs.smooth`.
  """
  if len(runs) == 1:
    legend = dataclasses.replace(legend, labels=[""])
  problems = [
    line for run in runs if (line := _find_problem(run, axis)) is not None
  ]
  drawings = []
  with matplotlib.rc_context(charts.SETTINGS):
    for name, curves in _find_panels(runs).items():
      if any(
        curve in run.curves and run.find_axis(curve, axis) is not None
        for run in runs
        for curve in curves
      ):
        drawings.append(
          _draw(name, curves, runs, legend, axis=axis, smoothing=smoothing)
        )
  text = []
  if drawings:
    text.append(
      "Solid lines are validations, dashed ones means over the training steps "
      "since the report before, with augmentation and dropout. Steps that were "
      "taken again after a stop count once."
    )
    if smoothing:
      text.append(
        "The lines are exponential moving averages with a weight of "
        f"{smoothing:g} before each value; the values themselves are pale."
      )
  return section_lib.Section(
    name="curves", title="Curves", text=[*text, *problems], parts=drawings
  )


def _find_problem(run: runs_lib.Run, axis: str) -> str | None:
  """Says why a run has no curve; None: it has one."""
  if not run.find_names():
    return (
      f"The run in {run.workdir} has no curves: its metrics.jsonl is missing, "
      "has no report yet, or cannot be read."
    )
  if not any(
    run.find_axis(name, axis) is not None for name in run.find_names()
  ):
    return (
      f"The reports of the run in {run.workdir} do not say at which "
      f"{runs_lib.AXES[axis]} they are, as an earlier version wrote them. Set "
      "--x=step."
    )
  return None


def _find_panels(runs: Sequence[runs_lib.Run]) -> dict[str, list[str]]:
  """Returns {quantity: its curves}, those of validations first."""
  names = {name for run in runs for name in run.find_names()}
  shared = {found[1] for name in names if (found := _SHARED.fullmatch(name))}
  panels = {
    quantity: [
      name
      for kind in ("validation", "training")
      if (name := f"{kind}_{quantity}") in names
    ]
    # Loss, then top1_error before top5_error.
    for quantity in sorted(
      shared, key=lambda one: (one != "loss", len(one), one)
    )
  }
  return panels | ({_RATE: [_RATE]} if _RATE in names else {})


def _draw(
  name: str,
  curves: Sequence[str],
  runs: Sequence[runs_lib.Run],
  legend: runs_lib.Legend,
  *,
  axis: str,
  smoothing: float,
) -> section_lib.Drawing:
  title = curves_lib.to_words(name)
  values = [_summarize(run, curves) for run in runs]
  header = dict.fromkeys(column for one in values for column in one)
  return section_lib.Drawing(
    name=f"curve_{name}",
    figure=curves_lib.to_figure(
      runs,
      legend,
      axis=axis,
      panels=[curves],
      # Rates are no noise.
      smoothing=0.0 if name == _RATE else smoothing,
    ),
    kind="svg",
    caption=f"{title[0].upper()}{title[1:]} by {_AXES[axis]}.",
    alternative=f"Chart of the {title} by {_AXES[axis]}. "
    + " ".join(
      f"{label or 'Values'}: {', '.join(f'{k} {v}' for k, v in one.items())}."
      for label, one in zip(legend.labels, values, strict=True)
      if one
    ),
    table=section_lib.Table(
      header=[legend.title or "run", *header],
      rows=[
        [label or run.workdir, *(one.get(column, "") for column in header)]
        for label, run, one in zip(legend.labels, runs, values, strict=True)
      ],
      numeric=range(1, len(header) + 1),
      caption=f"First, lowest and last {title} of each run.",
    ),
  )


def _summarize(run: runs_lib.Run, curves: Sequence[str]) -> dict[str, str]:
  """Returns {what: value} of the curves of a run."""
  summary = {}
  for curve in curves:
    values = run.curves.get(curve)
    if values is None or not np.isfinite(values).any():
      continue
    values = values[np.isfinite(values)]
    kind = "" if curve == _RATE else f"{curve.partition('_')[0]}, "
    for what, value in (
      ("first", values[0]),
      ("lowest", values.min()),
      ("last", values[-1]),
    ):
      summary[f"{kind}{what}"] = curves_lib.format_value(curve, value)
  return summary
