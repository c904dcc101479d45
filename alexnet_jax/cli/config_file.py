"""Writes config files, and checks that they say what they should."""

from __future__ import annotations

import os
import tempfile

import ml_collections
from flax import traverse_util

from alexnet_jax.cli import flag_parsing


def write(path: str, text: str, expected: ml_collections.ConfigDict) -> bool:
  """Writes a config file, if it gives a config as expected.

  Args:
    text: of the file, which defines `get_config`.

  Returns:
    Whether it does; else nothing is written.

  Raises:
    OSError: the file cannot be written.
    ValueError: the file has an error.
  """
  folder = os.path.dirname(path) or "."
  handle, partial = tempfile.mkstemp(dir=folder, suffix=".py")
  try:
    with os.fdopen(handle, "w") as file:
      file.write(text)
    written = flag_parsing.load_config(partial, flag="write")
    if written.to_dict() != expected.to_dict():
      return False
    os.replace(partial, path)
    return True
  finally:
    if os.path.exists(partial):
      os.remove(partial)


def find_changes(config: dict, base: dict) -> dict:
  """Returns what a config has other than the base, without its layout."""
  flat, known = (
    traverse_util.flatten_dict(one, keep_empty_nodes=True)
    for one in (config, base)
  )
  changed = {
    key: value
    for key, value in flat.items()
    if key[0] != "layout" and (key not in known or known[key] != value)
  }
  return traverse_util.unflatten_dict(changed)
