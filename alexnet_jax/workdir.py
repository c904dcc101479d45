"""The directory of a run: it can be written, and it belongs to one config."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

# Fields that may differ between two starts of one run: where it is computed,
# how long it goes on, and what it says meanwhile. All others change results.
FREE = (
  "layout",
  "num_epochs",
  "data.threads",
  "data.batches_ahead",
  "report_every_steps",
  "validate_every_steps",
  "validation_views",
  "checkpoint_every_steps",
  "keep_checkpoints",
)


def claim(path: str, config: Mapping[str, Any]) -> None:
  """Makes the directory, or accepts that of the same run.

  Args:
    path: of the directory.
    config: all fields of the run; kept as `config.json`.

  Raises:
    OSError: the directory cannot be written.
    ValueError: it belongs to a run whose fields give other results.
  """
  # As JSON has them: tuples are lists there.
  fields = json.loads(json.dumps(_flatten(config)))
  file = os.path.join(path, "config.json")
  try:
    os.makedirs(path, exist_ok=True)
    if os.path.exists(file):
      with open(file) as before:
        _check_same(path, json.load(before), fields)
    partial = f"{file}.partial"
    with open(partial, "w") as now:
      json.dump(fields, now, indent=2)
    os.replace(partial, file)
  except OSError as error:
    raise OSError(
      f"the workdir {path!r} cannot be written: {error.strerror}. "
      "Set --workdir."
    ) from error


def _check_same(
  path: str, earlier: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
  differences = [
    f"{name}: {earlier.get(name)} there, {now.get(name)} here"
    for name in sorted(earlier.keys() | now.keys())
    if earlier.get(name) != now.get(name)
    and not any(name == free or name.startswith(f"{free}.") for free in FREE)
  ]
  if differences:
    raise ValueError(
      f"the workdir {path!r} belongs to a run of another config "
      f"({'; '.join(differences)}). Set --workdir to start another run, or "
      "these fields back to go on with that one."
    )


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """{"network.width": 1.0, ...}"""
  flat = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat
