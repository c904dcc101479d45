"""What a run keeps of its data set, so that it is complete without the set.

`data.json` in a workdir has the class names and the statistics of the pixels;
`mean_image.npy` beside it the mean image, if there is one. Both hold data only,
and are checked when they are read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from alexnet_jax.data import atomic
from alexnet_jax.data import statistics as statistics_lib

FILE, IMAGE_FILE = "data.json", "mean_image.npy"
# Largest side of a mean image in pixels: that of configs, settings/fields.py.
_MAX_PIXELS = 2**13
_AGAIN = (
  "Copy it again from where the run was trained, or resume the run once where "
  "its data set is, which writes it."
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RunData:
  """Facts about the data of a run that predictions need.

  Attributes:
    class_names: by label; numbers if the set names no classes.
    statistics: of the training split, as the augmentation started from them.
  """

  class_names: tuple[str, ...]
  statistics: statistics_lib.Statistics


def exists(workdir: str) -> bool:
  """Whether a workdir has such facts; those of earlier versions have not."""
  return os.path.lexists(os.path.join(workdir, FILE))


def write(workdir: str, data: RunData, *, flag: str = "workdir") -> None:
  """Writes the facts to a workdir that exists, each file atomically.

  Nothing is written if its files are those already.

  Args:
    flag: that names the workdir, for errors.

  Raises:
    OSError: the workdir cannot be written.
  """
  statistics = data.statistics
  image = statistics.mean_image
  fields = {
    "class_names": data.class_names,
    "mean": statistics.mean,
    "directions": statistics.directions,
    "stds": statistics.stds,
    "mean_image": None if image is None else IMAGE_FILE,
    # Of all numbers, those of the mean image too.
    "statistics": statistics.fingerprint(),
  }
  fields["checksum"] = _compute_checksum(fields)
  if _is_written(workdir, fields):
    return
  try:
    if image is not None:
      with (
        atomic.replace(os.path.join(workdir, IMAGE_FILE)) as path,
        open(path, "wb") as file,  # `np.save` would add an ending to the path
      ):
        np.save(file, np.asarray(image, np.float32), allow_pickle=False)
    with atomic.replace(os.path.join(workdir, FILE)) as path:
      pathlib.Path(path).write_text(json.dumps(fields, indent=2))
  except OSError as error:
    raise OSError(
      f"the workdir {workdir!r} cannot be written: {error.strerror}. Set "
      f"--{flag}."
    ) from error


def _is_written(workdir: str, fields: Mapping[str, Any]) -> bool:
  """Whether a workdir has these facts, and its files are intact."""
  with contextlib.suppress(OSError, ValueError):
    there = _read_fields(os.path.join(workdir, FILE))
    read(workdir, fields)  # the mean image too
    return there["checksum"] == fields["checksum"]
  return False


def read(
  workdir: str,
  found: Mapping[str, Any],
  *,
  num_classes: int | None = None,
) -> RunData:
  """Reads and checks the facts in a workdir.

  Args:
    workdir: of a run.
    found: of its config.json; see `run.fingerprint_data`. Statistics of None
      are not compared.
    num_classes: of its network; None: not compared.

  Raises:
    OSError: a file is missing or cannot be read.
    ValueError: a file is damaged, or is of another run.
  """
  path = os.path.join(workdir, FILE)
  fields = _read_fields(path)
  names = tuple(fields["class_names"])
  if num_classes is not None and len(names) != num_classes:
    raise ValueError(
      f"{path!r} has {len(names)} class names, but the network of the run has "
      f"{num_classes} classes: it is of another run. {_AGAIN}"
    )
  image = None
  if fields["mean_image"] is not None:
    image = _read_image(os.path.join(workdir, IMAGE_FILE))
  statistics = statistics_lib.Statistics(
    mean=tuple(fields["mean"]),
    mean_image=image,
    directions=tuple(map(tuple, fields["directions"])),
    stds=tuple(fields["stds"]),
  )
  if statistics.fingerprint() != fields["statistics"]:
    # The checksum says that the other numbers are as they were written.
    raise ValueError(
      f"{os.path.join(workdir, IMAGE_FILE)!r} is damaged: it is not the mean "
      f"image that {FILE} was written with. {_AGAIN}"
    )
  expected = found["statistics"]
  if expected not in (None, fields["statistics"]):
    raise ValueError(
      f"{path!r} has the statistics {fields['statistics']}, but the run was "
      f"trained with {expected}: it is of another run. {_AGAIN}"
    )
  return RunData(class_names=names, statistics=statistics)


def _compute_checksum(fields: Mapping[str, Any]) -> str:
  """Hashes all fields but the checksum itself."""
  rest = {name: value for name, value in fields.items() if name != "checksum"}
  text = json.dumps(rest, sort_keys=True)
  return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _read_fields(path: str) -> dict[str, Any]:
  """Reads data.json; its fields are known, of the right types and intact."""
  try:
    text = pathlib.Path(path).read_bytes()
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f"there is no {path!r}, so that the class names and the statistics of "
      "the pixels are not known: an earlier version of alexnet_jax wrote this "
      "run. Resume it once where its data set is, which writes the file; a "
      "finished run trains no further."
    ) from error
  except OSError as error:
    raise OSError(
      f"{path!r} cannot be read: {error.strerror}. Make it readable."
    ) from error
  try:
    fields = json.loads(text)
  except (ValueError, RecursionError) as error:  # also for bytes, no text
    raise _make_error(path, "it is no JSON; it may end early") from error
  if not isinstance(fields, dict):
    raise _make_error(path, "it has no fields")
  for name, (accepts, expected) in _FIELDS.items():
    if name not in fields:
      raise _make_error(path, f"it lacks {name}")
    if not accepts(fields[name]):
      raise _make_error(path, f"its {name} is not {expected}")
  if unknown := sorted(fields.keys() - _FIELDS.keys()):
    raise _make_error(path, f"it has an unknown field {unknown[0]!r}")
  if _compute_checksum(fields) != fields["checksum"]:
    raise _make_error(path, "its checksum is that of other values")
  return fields


def _read_image(path: str) -> np.ndarray:
  """Reads a mean image, f32[side, side, 3]."""
  try:
    # Mapped, so that a damaged header takes no memory.
    image = np.load(path, mmap_mode="r", allow_pickle=False)
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f"there is no {path!r}, which {FILE} beside it names. {_AGAIN}"
    ) from error
  except OSError as error:
    raise OSError(
      f"{path!r} cannot be read: {error.strerror or error}. Make it readable."
    ) from error
  except Exception as error:  # what np.load raises depends on the damage
    reason = "it is no array of numbers; it may end early"
    raise _make_error(path, reason) from error
  shape = getattr(image, "shape", None)  # an archive of arrays has none
  is_image = shape is not None and image.dtype == np.float32
  if not is_image or shape[1:] != (*shape[:1], 3) or shape[0] > _MAX_PIXELS:
    raise _make_error(path, "it is not f32[side, side, 3]")
  return np.array(image, order="C")


def _make_error(path: str, reason: str) -> ValueError:
  return ValueError(f"{path!r} is damaged: {reason}. {_AGAIN}")


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _is_number(value: Any) -> bool:
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return is_number and abs(value) < 1e6  # False for nan


def _is_triple(value: Any) -> bool:
  return isinstance(value, list) and len(value) == 3


def _is_color(value: Any) -> bool:
  return _is_triple(value) and all(map(_is_number, value))


# Name -> a test of its value, and what it accepts.
_FIELDS = {
  "class_names": (
    lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "a list of names",
  ),
  "mean": (_is_color, "three numbers"),
  "directions": (
    lambda value: _is_triple(value) and all(map(_is_color, value)),
    "three times three numbers",
  ),
  "stds": (_is_color, "three numbers"),
  "mean_image": (
    lambda value: value in (None, IMAGE_FILE),
    f"null or {IMAGE_FILE}",
  ),
  "statistics": (_is_text, "a fingerprint"),
  "checksum": (_is_text, "a checksum"),
}
