"""The directory of a run: it can be written, and it belongs to one config."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

# Fields that may differ between two starts of one run: where it is computed,
# how long it goes on, what it says meanwhile, and what becomes of records that
# are lost. All others change results.
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
  "keep_best",
  "keep_every_steps",
)

# Those of them that change results under a schedule of the learning rate: it
# ends with the run, or goes by the validations.
BOUND = {
  "exponential": ("num_epochs",),
  "polynomial": ("num_epochs",),
  "cosine": ("num_epochs",),
  "plateau": ("validate_every_steps", "validation_views"),
}

_FILE = "config.json"
# Systems take four times as much, and what lies in it has longer names.
_LONGEST_PATH = 1000

# What a run has where its directory is older than the field.
_EARLIER = {"ensemble": 1}


def check(path: str) -> None:
  """Refuses a directory that cannot be written; writes nothing.

  Raises:
    OSError: says why.
  """
  if len(path) > _LONGEST_PATH:
    raise _cannot_write(
      f"{path[:20]}...",
      f"its name has {len(path)} characters, expected {_LONGEST_PATH} or fewer",
    )
  try:
    os.lstat(path)
  except (FileNotFoundError, NotADirectoryError):
    pass  # what is above it says more
  except OSError as error:
    raise _cannot_write(path, error.strerror) from error
  above = find_existing(path)
  if not os.path.isdir(above):
    raise _cannot_write(path, f"{above} is no directory")
  if not os.access(above, os.W_OK | os.X_OK):
    raise _cannot_write(path, f"{above} is not yours to write to")


def find_existing(path: str) -> str:
  """The path itself, or the nearest above it that there is."""
  above = os.path.abspath(path)
  while not os.path.lexists(above):
    above = os.path.dirname(above)
  return above


def to_fields(
  config: Mapping[str, Any], found: Mapping[str, Any]
) -> dict[str, Any]:
  """What a directory keeps of its run; as JSON has it: tuples are lists."""
  fields = traverse_util.flatten_dict({**config, "found": found}, sep=".")
  return json.loads(json.dumps(fields))


def read(path: str) -> dict[str, Any] | None:
  """What a directory keeps of its run; None where it holds none.

  Raises:
    OSError, ValueError: it cannot be read.
  """
  file = os.path.join(path, _FILE)
  if not os.path.exists(file):
    return None
  with open(file, "rb") as kept:
    try:
      fields = json.load(kept)
    except ValueError as error:  # also of bytes that are no text
      raise ValueError(
        f"{file!r} is no JSON: {error}. Restore it, set --workdir, or go on "
        "with the config as it is given now: --accept_changes."
      ) from error
  if not isinstance(fields, dict):
    raise ValueError(
      f"{file!r} holds no fields, expected those of a run by name. Restore it, "
      "or set --workdir."
    )
  return fields


def make(path: str) -> None:
  """Makes the directory if it is not there.

  Raises:
    OSError: it cannot be made.
  """
  try:
    os.makedirs(path, exist_ok=True)
  except OSError as error:
    raise _cannot_write(path, error.strerror) from error


def keep(
  path: str, fields: Mapping[str, Any], *, aside: str | None = None
) -> None:
  """Keeps the fields of a run in its directory, from one moment to the next.

  Args:
    path: of the directory.
    fields: from `to_fields`.
    aside: the name that the file of before gets, unless there is one of that
      name; None: it is replaced.

  Raises:
    OSError: the directory cannot be written.
  """
  file = os.path.join(path, _FILE)
  try:
    if aside is not None and os.path.exists(file):
      earlier = os.path.join(path, aside)
      if not os.path.exists(earlier):
        _write(earlier, pathlib.Path(file).read_bytes())
    _write(file, json.dumps(fields, indent=2).encode())
  except OSError as error:
    raise _cannot_write(path, error.strerror) from error


def _write(file: str, contents: bytes) -> None:
  """Writes a file, from one moment to the next."""
  with open(f"{file}.partial", "wb") as now:
    now.write(contents)
    now.flush()
    # Before the name is given: else a crash of the machine could leave a file
    # that has its name, and nothing in it.
    os.fsync(now.fileno())
  os.replace(f"{file}.partial", file)


def _cannot_write(path: str, reason: str) -> OSError:
  return OSError(
    f"the workdir {path!r} cannot be written: {reason}. Set --workdir."
  )


def check_same(
  path: str, earlier: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
  """Refuses the directory of a run whose fields give other results.

  Args:
    path: of the directory.
    earlier: what it keeps, from `read`.
    now: of this run, from `to_fields`.

  Raises:
    ValueError: names the fields.
  """
  differences = find_differences(earlier, now)
  if differences:
    raise ValueError(
      f"the workdir {path!r} belongs to a run of another config "
      f"({'; '.join(differences)}). Set --workdir to start another run, or "
      "these fields back to go on with that one, or --accept_changes to go on "
      "with them as they are."
    )


def find_differences(
  earlier: Mapping[str, Any], now: Mapping[str, Any]
) -> list[str]:
  """A line for each field that gives other results; as of `check_same`."""
  bound = BOUND.get(now.get("optimizer.schedule"), ())
  free = [name for name in FREE if name not in bound]
  earlier, now = _EARLIER | earlier, _EARLIER | now
  if earlier.get("data.seed") != now.get("data.seed"):
    # Unset, it is that of the run: the order may be the same one.
    earlier, now = map(_name_order_seed, (earlier, now))
  return [
    f"{name}: {earlier.get(name)} there, {now.get(name)} here"
    for name in sorted(earlier.keys() | now.keys())
    if earlier.get(name) != now.get(name)
    and not any(name == each or name.startswith(f"{each}.") for each in free)
  ]


def _name_order_seed(fields: Mapping[str, Any]) -> dict[str, Any]:
  seed = fields.get("data.seed")
  return {**fields, "data.seed": fields.get("seed") if seed is None else seed}
