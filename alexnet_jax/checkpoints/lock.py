"""One writer: a run holds its directory until its process has ended.

The kernel keeps the lock and releases it with the process, however that ends.
What stands in the file is for people; a file that is left over locks nothing.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import os
import socket
import weakref

FILE = "lock"

# What a file system answers that has no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class Lock:
  """Holds a directory until the process ends, or nothing refers to this.

  Args:
    path: of the directory; it is there.

  Raises:
    OSError: another process holds it, or its file system has no locks.
  """

  def __init__(self, path: str):
    file = os.path.join(path, FILE)
    descriptor = -1
    try:
      # Not inherited by programs that this process starts.
      descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      _write_holder(descriptor)
    except OSError as error:
      if descriptor >= 0:
        os.close(descriptor)
      raise OSError(_describe(error, path, file)) from error
    self._release = weakref.finalize(self, os.close, descriptor)

  def release(self) -> None:
    """Lets others write."""
    self._release()


def _describe(error: OSError, path: str, file: str) -> str:
  """Why a directory cannot be held, and what to do."""
  if isinstance(error, BlockingIOError):
    return (
      f"the workdir {path!r} is in use by {_read_holder(file)}. Wait until "
      "that run has ended, or set --workdir to start another."
    )
  if error.errno in _NO_LOCKS:
    return (
      f"the workdir {path!r} cannot be locked, so that a second run in it "
      f"would not be noticed: {error.strerror}. Set --workdir to a folder of "
      "another file system, or mount this one with locks (Lustre: flock)."
    )
  return (
    f"the workdir {path!r} cannot be written: {error.strerror}. Set --workdir."
  )


def _write_holder(descriptor: int) -> None:
  now = datetime.datetime.now(datetime.UTC)
  holder = {
    "host": socket.gethostname(),
    "pid": os.getpid(),
    "since": now.strftime("%Y-%m-%d %H:%M:%S UTC"),
  }
  os.ftruncate(descriptor, 0)
  os.pwrite(descriptor, f"{json.dumps(holder)}\n".encode(), 0)


def _read_holder(file: str) -> str:
  """Who holds a lock, in words; it may have been taken just now."""
  try:
    with open(file) as kept:
      holder = json.load(kept)
    return (
      f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    )
  except (OSError, ValueError, LookupError, TypeError):
    return "a process that has not given its name yet"
