"""The files that a command is asked to write."""

from __future__ import annotations

import os
from collections.abc import Sequence


def check_path(path: str, *, flag: str, endings: Sequence[str]) -> None:
  """Refuses a file that cannot be written, before anything is computed.

  Raises:
    ValueError: it has another ending, or cannot be written.
  """
  if not path.endswith(tuple(endings)):
    raise ValueError(
      f"the file {path!r} does not end in {' or '.join(endings)}. Set --{flag}."
    )
  folder = os.path.dirname(path) or "."
  if not os.access(folder, os.W_OK) or os.path.isdir(path):
    raise ValueError(
      f"the file {path!r} cannot be written: {folder!r} is no folder, or not "
      f"yours. Set --{flag}."
    )
