"""What a run has reported of its training: the file metrics.jsonl.

A line has the values of one step, and the place of that step in the run:
`epoch`, `images_seen`, and `elapsed_seconds`, the time in training, validations
and saves, which a restart resumes. Steps that a kill has undone do not count. A
restart that adds to the file begins with a line such as
{"step": 40, "session": 2}: the second start resumes after step 40. It voids
lines above it that are of later steps.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
from collections.abc import Collection, Iterator

import numpy as np

FILE = "metrics.jsonl"
# The kinds of reports, and a value that only these have.
KINDS = {
  "training": "training_loss",
  "validation": "validation_loss",
  "checkpoint": "checkpoint_seconds",
}
# What every line says of the place of its step in the run.
PLACE = ("epoch", "elapsed_seconds", "images_seen")


def find_saved_step(workdir: str) -> int | None:
  """Returns the newest step whose checkpoint the reports know of, if any."""
  return max(
    (
      values["step"]
      for values in read_valid_lines(os.path.join(workdir, FILE))
      if "checkpoint_seconds" in values
    ),
    default=None,
  )


def read_valid_lines(path: str) -> Iterator[dict]:
  """Yields the lines with a step, without those that are damaged."""
  if not os.path.isfile(path):  # a device may have no end
    return
  # A file that cannot be read is refused where it is opened for writing.
  with contextlib.suppress(OSError), open(path, "rb") as opened:
    for line in opened:
      with contextlib.suppress(ValueError):  # a line that a kill has cut off
        values = json.loads(line)
        if isinstance(values, dict) and isinstance(values.get("step"), int):
          yield values


def read_curves(workdir: str) -> dict[str, np.ndarray]:
  """Reads the reports of a run as curves.

  A start after a kill repeats steps: what was reported of them, and of later
  ones, before that start is left out.

  Returns:
    {name in metrics.jsonl: f64[reports], or f64[reports, runs] for a list}, and
    "training_step", "validation_step" and "checkpoint_step", i64[reports]: the
    steps of the values of each kind, rising; learning_rate and
    images_per_second belong to the training. Likewise, for each kind,
    "training_epoch", "training_elapsed_seconds" and "training_images_seen",
    which the reports of earlier versions lack. NaN where a report lacks a
    value. One of several runs that were trained at once, in RUN/NAME_2, has no
    file of its own: its values are those that the file in RUN lists for it. {}
    without a file, as of a run that was imported.

  Raises:
    OSError: the file cannot be read.
    ValueError: a line is damaged.
  """
  path = os.path.join(workdir, FILE)
  if not os.path.exists(path):
    return _read_one_of_several(workdir)
  with open(path, "rb") as opened:
    lines = opened.read().split(b"\n")[:-1]  # the last one may be unfinished
  reports: dict[str, dict[int, dict]] = {}  # kind -> step -> values
  for number, line in enumerate(lines, start=1):
    try:
      values = json.loads(line)
      step = int(values.pop("step"))
      kind = find_kind(values)
      session = values.get("session")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
      raise ValueError(
        f"line {number} of {path!r} is damaged: it is no report. Remove it, or "
        "restore the file."
      ) from error
    if session is not None:
      for of_kind in reports.values():
        _drop_from(of_kind, step + 1)
      continue
    if kind is None:  # of another version
      continue
    of_kind = reports.setdefault(kind, {})
    _drop_from(of_kind, step)  # earlier versions wrote no sessions
    place = {f"{kind}_{name}": values.pop(name, None) for name in PLACE}
    of_kind[step] = values | {k: v for k, v in place.items() if v is not None}
  curves = {}
  for kind, of_kind in reports.items():
    if not of_kind:
      continue
    names = dict.fromkeys(itertools.chain(*of_kind.values()))
    name = "step"
    try:
      curves[f"{kind}_step"] = np.array([*of_kind], np.int64)
      for name in names:
        found = [values.get(name, math.nan) for values in of_kind.values()]
        shape = np.broadcast_shapes(*map(np.shape, found))
        curves[name] = np.array(
          [np.broadcast_to(value, shape) for value in found], np.float64
        )
    except (ValueError, TypeError, OverflowError) as error:
      raise ValueError(
        f"{path!r} is damaged: the values of {name!r} are not all numbers, or "
        "not as many in each line. Remove the lines that differ, or restore "
        "the file."
      ) from error
  return curves


def _read_one_of_several(workdir: str) -> dict[str, np.ndarray]:
  """As `read_curves`, for one of several runs; {} for another folder."""
  above, folder = os.path.split(os.path.realpath(workdir))
  place = re.fullmatch(r"([a-z]+)_(\d+)", folder)
  if place is None or not os.path.exists(os.path.join(above, FILE)):
    return {}
  name, index = place[1], int(place[2])
  curves, own = read_curves(above), {}
  for curve, values in curves.items():
    kind, of_run, rest = curve.partition(f"_{name}_")
    if of_run and kind in KINDS and index < values.shape[-1]:
      own[f"{kind}_{rest}"] = values[:, index]
  shared = {
    curve: values for curve, values in curves.items() if values.ndim == 1
  }
  return shared | own if own else {}


def find_kind(values: Collection[str]) -> str | None:
  """Returns "training", "validation" or "checkpoint"; None: unknown values."""
  return next((kind for kind in KINDS if KINDS[kind] in values), None)


def _drop_from(of_kind: dict[int, dict], step: int) -> None:
  """Drops the reports of a step and of later ones; they rise."""
  while of_kind and next(reversed(of_kind)) >= step:
    of_kind.popitem()
