"""Files that appear under their name only when they are complete on disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def replace(path: str) -> Iterator[str]:
  """Yields a path to write to; at the end the file is synced and renamed.

  After an error the temporary file stays, and a later write replaces it.
  """
  partial = f"{path}.partial"
  yield partial
  sync(partial)
  os.replace(partial, path)


def sync(path: str) -> None:
  """Flushes a file or a folder from memory to disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
