"""Refuses a data set whose name or metadata would run code or leave its folder.

TFDS imports the Python module that a set's metadata name for a feature, and
for a name with a namespace it downloads and runs a builder. Both are refused
before TFDS sees them. The rest of a set is JSON, protocol buffers, and pictures
in formats for which no program is started (`decode.FORMATS`).
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath
from tensorflow_datasets.core import naming
from tensorflow_datasets.core.utils import file_utils

# Features may be classes of this package only.
_TRUSTED = "tensorflow_datasets."


def check_name(name: str, *, data_dir: str | None, field: str) -> None:
  """Refuses a set that would run code.

  The ValueError names `field`, the config field or flag with the name.
  """
  try:
    parsed, _ = naming.parse_builder_name_kwargs(name)
  except ValueError as error:
    raise ValueError(
      f"dataset {name!r} cannot be opened (invalid name), expected NAME, "
      f"NAME/CONFIG or NAME:VERSION of TFDS. Set {field}."
    ) from error
  if parsed.namespace:
    raise ValueError(
      f"dataset {name!r} is in the namespace {parsed.namespace!r}, for which "
      f"TFDS fetches code and runs it, expected a set of TFDS. Set {field}."
    )
  for root in file_utils.list_data_dirs(data_dir):
    folder = os.path.join(os.fspath(root), parsed.name)
    find = _find_in_bucket if is_bucket(folder) else _find_in_folder
    for path in find(folder, "features.json"):
      _check_features(path)


def is_bucket(folder: str | os.PathLike) -> bool:
  """Tests for an address such as gs://bucket/folder."""
  return "://" in os.fspath(folder)


def _find_in_folder(folder: str, name: str) -> list[str]:
  """Finds all files of a name below a folder."""
  return glob.glob(f"{glob.escape(folder)}/**/{name}", recursive=True)


def _find_in_bucket(address: str, name: str) -> list[str]:
  """As `_find_in_folder`; the first contact with the bucket.

  Raises:
    OSError: says why it cannot be read.
  """
  scheme = address.partition("://")[0]
  try:
    found = [
      os.path.join(folder, name)
      for folder, _, names in epath.Path(address).walk(on_error=_refuse)
      if name in names
    ]
  except ImportError as error:
    raise OSError(
      f"{address} cannot be read: {error}. Install that package, or set "
      "--data_dir to a folder."
    ) from error
  except Exception as error:  # of any package that reads buckets
    raise OSError(
      f"{address} cannot be read ({type(error).__name__}: {error}). Check its "
      "name and your access to it, or set --data_dir."
    ) from error
  # gcsfs leaves the scheme out; TensorFlow, if epath finds it, does not.
  return [path if "://" in path else f"{scheme}://{path}" for path in found]


def _refuse(error: OSError) -> None:
  """Raises an error of a listing; a folder may be missing."""
  if not isinstance(error, FileNotFoundError):
    raise error


def _check_features(path: str) -> None:
  try:
    features = json.loads(epath.Path(path).read_bytes())
  except ValueError as error:
    raise ValueError(
      f"{path} is not JSON ({error}). Prepare the set again, or set --data_dir."
    ) from error
  for name in _find_classes(features):
    if not name.startswith(_TRUSTED):
      raise ValueError(
        f"{path} names {name!r} as the class of a feature, expected a class "
        "of TFDS: TFDS would import it, which runs code. Prepare the set "
        "again, or set --data_dir."
      )


def _find_classes(value: Any) -> Iterator[str]:
  """Yields the names of Python classes anywhere in a JSON value."""
  if isinstance(value, dict):
    for key, inner in value.items():
      # TFDS wrote the second form until 2021.
      if isinstance(inner, str) and (
        key == "pythonClassName" or (key == "type" and "." in inner)
      ):
        yield inner
      yield from _find_classes(inner)
  elif isinstance(value, list):
    for inner in value:
      yield from _find_classes(inner)


def check_inside(paths: Iterable[str], folder: str, *, what: str) -> None:
  """Refuses files outside a folder; `what` describes them in the message."""
  inside = os.path.join(os.path.abspath(folder), "")
  for path in paths:
    if not os.path.abspath(path).startswith(inside):
      raise ValueError(
        f"{what} has the file {path}, which is not in {folder}: the metadata "
        "of the set are wrong. Prepare it again, or set --data_dir."
      )
