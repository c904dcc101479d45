"""What is read of a set is data: it names no code, and no file elsewhere.

TFDS imports the Python module that the metadata of a set name for a feature,
and fetches and runs the builder of a name with a namespace. Both are refused
before TFDS sees them. All else that is read of a set is JSON, protocol buffers
and pictures, these of formats that start no program (`decode.FORMATS`).
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from tensorflow_datasets.core import naming
from tensorflow_datasets.core.utils import file_utils

# Where a class may come from.
_KNOWN = "tensorflow_datasets."


def check_name(name: str, *, data_dir: str | None, field: str) -> None:
  """Refuses a set that is more than data.

  Args:
    name: of the set, as TFDS takes it.
    data_dir: as TFDS takes it; None: TFDS's own.
    field: that the name comes from, for messages.

  Raises:
    ValueError: the name is none, or has a namespace, or the metadata of the set
      name code.
  """
  try:
    parsed, _ = naming.parse_builder_name_kwargs(name)
  except ValueError as error:
    raise ValueError(
      f"dataset {name!r} cannot be opened (this is no name), expected NAME, "
      f"NAME/CONFIG or NAME:VERSION of TFDS. Set {field}."
    ) from error
  if parsed.namespace:
    raise ValueError(
      f"dataset {name!r} is one of the namespace {parsed.namespace!r}, for "
      "which TFDS fetches code and runs it, expected a set of TFDS itself. Set "
      f"{field}."
    )
  for root in file_utils.list_data_dirs(data_dir):
    folder = glob.escape(os.path.join(os.fspath(root), parsed.name))
    for path in glob.glob(f"{folder}/**/features.json", recursive=True):
      _check_features(path)


def _check_features(path: str) -> None:
  with open(path, "rb") as file:
    try:
      features = json.load(file)
    except ValueError as error:
      raise ValueError(
        f"{path} is no JSON ({error}). Prepare the set again, or set "
        "--data_dir."
      ) from error
  for name in _find_classes(features):
    if not name.startswith(_KNOWN):
      raise ValueError(
        f"{path} says that {name!r} reads a feature, expected a class of "
        "TFDS: TFDS would import it, which runs code. Prepare the set again, "
        "or set --data_dir."
      )


def _find_classes(value: Any) -> Iterator[str]:
  """Names of Python classes, anywhere in a JSON value."""
  if isinstance(value, dict):
    for key, inner in value.items():
      # The second is what TFDS wrote until 2021.
      if isinstance(inner, str) and (
        key == "pythonClassName" or (key == "type" and "." in inner)
      ):
        yield inner
      yield from _find_classes(inner)
  elif isinstance(value, list):
    for inner in value:
      yield from _find_classes(inner)


def check_inside(paths: Iterable[str], folder: str, *, what: str) -> None:
  """Refuses files that do not lie in the folder of their set.

  Args:
    paths: that its metadata name.
    folder: of the set.
    what: they are, for messages.

  Raises:
    ValueError: names the first that does not.
  """
  inside = os.path.join(os.path.abspath(folder), "")
  for path in paths:
    if not os.path.abspath(path).startswith(inside):
      raise ValueError(
        f"{what} is to be read from {path}, which is not in {folder}: the "
        "metadata of the set are wrong. Prepare it again, or set --data_dir."
      )
