"""A file of one JSON value per line, to which a run appends.

A process that is killed, or a disk that is full, can leave the last line cut.
"""

from __future__ import annotations

import os


def repair(path: str) -> int:
  """Takes a last line that is cut off a file, so that another can follow.

  Returns:
    The bytes that were taken off; 0 where the file is whole or not there.
  """
  if not os.path.isfile(path):
    return 0
  with open(path, "rb+") as file:
    content = file.read()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
      file.truncate(whole)
  return len(content) - whole
