"""Reads the curves of runs, and names what these runs differ in."""

from __future__ import annotations

import collections
import csv
import dataclasses
import glob
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from alexnet_jax.checkpoints import reports
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.data import atomic

# What a curve can be drawn over: of the flag --x -> the end of its name in
# `reports.read_curves`.
AXES = {
  "step": "step",
  "epoch": "epoch",
  "seconds": "elapsed_seconds",
  "images": "images_seen",
}
# Fields that say what a run has read, and not what it was asked for.
_FOUND = "found."
# Fields that all differ alike: beyond this many, one stands for them, as the
# name of a network for its rows.
_MAX_ALIKE = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """A run, as it is plotted.

  Attributes:
    workdir: its path.
    fields: of its config, by full name.
    curves: see `reports.read_curves`.
  """

  workdir: str
  fields: Mapping[str, Any]
  curves: Mapping[str, np.ndarray]

  def find_names(self) -> list[str]:
    """Returns the names of the curves, without those of their axes."""
    axes = {
      f"{kind}_{axis}" for kind in reports.KINDS for axis in AXES.values()
    }
    return [name for name in self.curves if name not in axes]

  def find_axis(self, curve: str, axis: str) -> np.ndarray | None:
    """Returns where a curve has its values; None: the run does not say.

    Args:
      curve: a name in `curves`.
      axis: of `AXES`.
    """
    steps = len(self.curves[curve])
    kind = next(
      (kind for kind in reports.KINDS if curve.startswith(f"{kind}_")),
      "training",  # as the learning rate
    )
    values = self.curves.get(f"{kind}_{AXES[axis]}")
    return values if values is not None and len(values) == steps else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Legend:
  """Names of runs, by what they differ in.

  Attributes:
    title: the field, if the runs differ in one; else "".
    labels: of each run, no two alike.
    values: of each run, the number of that one field; None: it is no number.
    differing: all fields in which the runs differ, {name: value of each run}.
  """

  title: str
  labels: Sequence[str]
  values: Sequence[float] | None
  differing: Mapping[str, Sequence[Any]]


def find_workdirs(
  patterns: Iterable[str] | None,
) -> tuple[list[str], list[str]]:
  """Finds the workdirs that paths and patterns such as runs/sweep/* name.

  Args:
    patterns: also several in one, A,B, where nothing has that name; None: none.

  Returns:
    The workdirs in the order of the patterns, those of a pattern in that of
    their names, 2 before 10; and the folders of patterns that are no workdirs.

  Raises:
    ValueError: nothing is given, a path is no workdir, or a pattern finds none.
  """
  given = [*itertools.chain.from_iterable(map(_split_list, patterns or ()))]
  if not given:
    raise ValueError(
      "no run is given, expected workdirs. Set --workdir='runs/*'."
    )
  found: dict[str, None] = {}
  others = []
  for pattern in given:
    if os.path.isdir(pattern) or not glob.has_magic(pattern):
      paths = [pattern]
    else:
      paths = sorted(filter(os.path.isdir, glob.glob(pattern)), key=_to_key)
    workdirs = [path for path in paths if _is_workdir(path)]
    if not workdirs:
      raise ValueError(
        f"there is no run in {pattern!r}, expected the workdir of one, with "
        f"its {workdir_lib.CONFIG_FILE}, or a pattern of such. Set --workdir."
      )
    others += [path for path in paths if path not in workdirs]
    found |= dict.fromkeys(map(os.path.normpath, workdirs))
  return [*found], others


def _split_list(pattern: str) -> list[str]:
  """Splits A,B, unless that is a name."""
  is_name = os.path.lexists(pattern) or glob.glob(pattern)
  return [pattern] if is_name else list(filter(None, pattern.split(",")))


def _is_workdir(path: str) -> bool:
  return os.path.isfile(os.path.join(path, workdir_lib.CONFIG_FILE))


def _to_key(text: str) -> list[tuple[int, int, str]]:
  """Returns a key that sorts numbers in a text by their value."""
  return [
    (0, int(part), "") if part.isdecimal() else (1, 0, part)
    for part in re.split(r"(\d+)", text)
  ]


def read(workdir: str) -> Run:
  """Reads a run.

  Raises:
    OSError, ValueError: its config or its curves cannot be read.
  """
  return Run(
    workdir=workdir,
    fields=workdir_lib.read_config(workdir) or {},
    curves=reports.read_curves(workdir),
  )


def find_differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
  """Returns {field: its value in each run} where these differ; None: unset.

  Fields of the data set that a run has found are left out.
  """
  names = dict.fromkeys(name for run in runs for name in run.fields)
  different = {}
  for name in names:
    values = [run.fields.get(name) for run in runs]
    if not name.startswith(_FOUND) and len({*map(_to_text, values)}) > 1:
      different[name] = values
  return different


def sort(runs: Sequence[Run]) -> list[Run]:
  """Sorts runs by the values of the fields in which they differ."""
  shown = _choose_shown(find_differences(runs)).values()

  def to_key(index: int) -> list:
    values = [values[index] for values in shown]
    return [
      (0, value, [])
      if isinstance(value, int | float)
      else (1, 0, _to_key(_to_text(value)))
      for value in values
    ]

  return [runs[index] for index in sorted(range(len(runs)), key=to_key)]


def make_legend(runs: Sequence[Run]) -> Legend:
  """Names each run by the fields in which the runs differ."""
  differing = find_differences(runs)
  shown = _choose_shown(differing)
  if len(shown) == 1:
    ((title, values),) = shown.items()
    labels = list(map(_to_text, values))
  else:
    title, values = "", []
    labels = [
      ", ".join(
        f"{name}={_to_text(values[index])}" for name, values in shown.items()
      )
      for index in range(len(runs))
    ]
  is_number = values and all(type(value) in (int, float) for value in values)
  # Runs of one config, as on two machines, are told apart by their folders.
  counts = collections.Counter(labels)
  labels = [
    label
    if label and counts[label] == 1
    else " ".join([label, run.workdir]).strip()
    for label, run in zip(labels, runs, strict=True)
  ]
  return Legend(
    title=title,
    labels=labels,
    values=list(map(float, values)) if is_number else None,
    differing=differing,
  )


def _choose_shown(
  differing: Mapping[str, Sequence[Any]],
) -> dict[str, Sequence[Any]]:
  """Leaves out fields of which many differ in the same way as another."""
  alike = collections.defaultdict(list)
  for name, values in differing.items():
    texts = list(map(_to_text, values))
    alike[tuple(map(texts.index, texts))].append(name)
  shown = set()
  for names in alike.values():
    # The field that names what many follow from is in the outermost group.
    first = min(names, key=lambda name: name.count("."))
    shown.update(names if len(names) <= _MAX_ALIKE else [first])
  return {name: values for name, values in differing.items() if name in shown}


def _to_text(value: Any) -> str:
  """Writes a value as on the command line; lists as tuples."""
  if isinstance(value, list):
    return f"({', '.join(map(_to_text, value))})"
  return f"{value}"


def smooth(values: np.ndarray, weight: float) -> np.ndarray:
  """Averages a curve exponentially, as TensorBoard does, without a bias to 0.

  Args:
    values: f64[reports]; NaN is left out, and stays.
    weight: 0 <= weight < 1, of what is before a value.

  Returns:
    f64[reports].
  """
  smoothed = np.full_like(values, np.nan)
  total = scale = 0.0
  for index, value in enumerate(values):
    if np.isfinite(value):
      total = weight * total + (1 - weight) * value
      scale = weight * scale + (1 - weight)
      smoothed[index] = total / scale
  return smoothed


def write_csv(
  path: str, runs: Sequence[Run], legend: Legend, curves: Sequence[str]
) -> None:
  """Writes the values of curves, one in a row, as metrics.jsonl has them.

  The columns are the workdir, the fields in which the runs differ, the curve's
  name, the axes of `AXES` by their names in metrics.jsonl, and the value.
  Empty: the run has no such value. A curve of several runs at once is
  NAME/0, NAME/1, and so on.
  """
  with (
    atomic.replace(path) as partial,
    open(partial, "w", newline="") as opened,
  ):
    writer = csv.writer(opened, lineterminator="\n")
    fields = list(legend.differing)
    writer.writerow(["workdir", *fields, "curve", *AXES.values(), "value"])
    for index, run in enumerate(runs):
      own = [json.dumps(legend.differing[name][index]) for name in fields]
      for curve in curves:
        if curve not in run.curves:
          continue
        axes = [run.find_axis(curve, axis) for axis in AXES]
        for name, values in split_columns(curve, run.curves[curve]).items():
          for row, value in enumerate(values):
            place = ["" if one is None else _to_cell(one[row]) for one in axes]
            writer.writerow([run.workdir, *own, name, *place, _to_cell(value)])


def split_columns(curve: str, values: np.ndarray) -> dict[str, np.ndarray]:
  """Returns {name: f64[reports]}: of each of several runs, or of the one."""
  if values.ndim == 1:
    return {curve: values}
  return {f"{curve}/{k}": values[:, k] for k in range(values.shape[1])}


def _to_cell(value: np.generic) -> str:
  """Writes a number so that reading it gives the same number; NaN as ""."""
  number = value.item()
  if isinstance(number, float) and number.is_integer() and abs(number) < 2**53:
    return f"{number:.0f}"
  return "" if number != number else repr(number)
