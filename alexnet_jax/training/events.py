"""Scalars for TensorBoard, written by the thread that reports them.

tensorboardX's own writer has a thread for that. Where the disk is full it ends
with a traceback, and the run then waits for it for ever.
"""

from __future__ import annotations

import os
import time

from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

# Between two times that all is synced to disk.
_FLUSH_SECONDS = 10.0


class Events:
  """An event file of its own.

  Args:
    folder: in which it lies.

  Raises:
    OSError: it cannot be written; as every method.
  """

  def __init__(self, folder: str):
    # Without the process, two starts within a second would share a name.
    self._writer = event_file_writer.EventsWriter(
      os.path.join(folder, "events"), f".{os.getpid()}"
    )
    self._flushed = time.monotonic()

  def add(self, name: str, value: float, step: int) -> None:
    """Adds one value of a curve."""
    self._writer.write_event(
      event_pb2.Event(
        wall_time=time.time(), step=step, summary=summary.scalar(name, value)
      )
    )
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self._writer.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    """Writes what is left."""
    self._writer.close()
