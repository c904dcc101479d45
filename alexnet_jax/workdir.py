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
  "data.unreadable",
  "data.batches_ahead",
  "report_every_steps",
  "validate_every_steps",
  "validation_views",
  "checkpoint_every_steps",
  "keep_checkpoints",
)
_NAME = "config.json"


def check(path: str, config: Mapping[str, Any]) -> None:
  """Refuses a directory that `claim` would not get; writes nothing.

  Args:
    path: of the directory.
    config: all fields of the run.

  Raises:
    OSError: the directory cannot be written.
    ValueError: it belongs to a run whose fields give other results.
  """
  above = os.path.abspath(path)
  while not os.path.lexists(above):
    above = os.path.dirname(above)
  if not os.path.isdir(above):
    raise _cannot_write(path, f"{above} is no directory")
  if not os.access(above, os.W_OK | os.X_OK):
    raise _cannot_write(path, f"{above} is not yours to write to")
  file = os.path.join(path, _NAME)
  if os.path.exists(file):
    with open(file) as before:
      _check_same(path, json.load(before), _to_fields(config))


def claim(path: str, config: Mapping[str, Any]) -> None:
  """Makes the directory, and keeps the fields of the run as `config.json`.

  Args and errors are those of `check`.
  """
  check(path, config)
  file = os.path.join(path, _NAME)
  try:
    os.makedirs(path, exist_ok=True)
    with open(f"{file}.partial", "w") as now:
      json.dump(_to_fields(config), now, indent=2)
    os.replace(f"{file}.partial", file)
  except OSError as error:
    raise _cannot_write(path, error.strerror) from error


def _cannot_write(path: str, reason: str) -> OSError:
  return OSError(
    f"the workdir {path!r} cannot be written: {reason}. Set --workdir."
  )


def _to_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """As JSON has them: tuples are lists there."""
  return json.loads(json.dumps(_flatten(config)))


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
