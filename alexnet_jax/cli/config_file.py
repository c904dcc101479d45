"""Writes config files, and checks that they say what they should."""

from __future__ import annotations

import os

import ml_collections

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
  partial = f"{path}.partial.py"
  try:
    with open(partial, "w") as file:
      file.write(text)
    written = flag_parsing.load_config(partial, flag="write")
    if written.to_dict() != expected.to_dict():
      return False
    os.replace(partial, path)
    return True
  finally:
    if os.path.exists(partial):
      os.remove(partial)
