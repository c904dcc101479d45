"""The cores of this machine."""

from __future__ import annotations

import os


def count_cores() -> int:
  """Counts the cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):  # not on every system
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
