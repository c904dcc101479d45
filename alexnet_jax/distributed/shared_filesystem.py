"""Checks that all processes of a run see one folder and may write to it.

Process 0 writes a file that all the others have to see, and each of these
writes one that process 0 has to see. All files are removed again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time

from alexnet_jax.distributed import group as group_lib

# Network file systems may show a new file late.
SHOWN_SECONDS = 10.0
_RETRY_SECONDS = 0.2
_PREFIX = ".alexnet_jax-doctor"


def find_problems(
  group: group_lib.Group,
  folder: str,
  *,
  shown_seconds: float = SHOWN_SECONDS,
) -> list[str | None]:
  """Checks a folder; all processes call this.

  Args:
    group: the processes.
    folder: an existing folder; the path that process 0 passes counts.
    shown_seconds: for a file to be seen by another process.

  Returns:
    What is wrong in each process, None where nothing is; the same in all.
  """
  with contextlib.ExitStack() as written:
    offer, problem = None, None
    if group.is_first:
      offer = {"folder": folder, "token": secrets.token_hex(16)}
      path = _path(offer, 0)
      problem = _write(written, path, offer["token"])
    (offer, problem), *_ = group.gather("shared/offer", [offer, problem])
    if problem is not None:
      return [problem, *[None] * (group.count - 1)]
    problem = None
    if not group.is_first:
      if _sees(_path(offer, 0), offer["token"], shown_seconds):
        problem = _write(written, _path(offer, group.index), offer["token"])
      else:
        problem = (
          f"a file that process 0 has made in {offer['folder']} is not seen "
          f"within {shown_seconds:g} s: the path is another folder here. Set "
          "--workdir to a directory that all hosts share."
        )
    problems = group.gather("shared/seen", problem)
    if group.is_first:
      for index in range(1, group.count):
        path = _path(offer, index)
        if problems[index] is None and not _sees(
          path, offer["token"], shown_seconds
        ):
          problems[index] = (
            f"a file that it has made in {offer['folder']} is not seen by "
            f"process 0 within {shown_seconds:g} s. Set --workdir to a "
            "directory that all hosts share."
          )
    # The files are removed after this: no process looks for one any more.
    return group.gather("shared/verdict", problems)[0]


def _path(offer: dict[str, str], index: int) -> str:
  name = f"{_PREFIX}-{offer['token'][:8]}-{index}"
  return os.path.join(offer["folder"], name)


def _write(written: contextlib.ExitStack, path: str, token: str) -> str | None:
  """Writes a file, removed with `written`; returns the problem if it cannot."""
  written.callback(_remove, path)
  try:
    with open(path, "x") as file:
      file.write(token)
  except OSError as error:
    return (
      f"no file can be made in {os.path.dirname(path)} ({error.strerror}). Set "
      "--workdir to a directory that every process may write to."
    )
  return None


def _sees(path: str, token: str, seconds: float) -> bool:
  end = time.monotonic() + seconds
  while True:
    with contextlib.suppress(OSError):
      os.listdir(os.path.dirname(path))  # makes NFS look again
      with open(path) as file:
        if file.read() == token:
          return True
    if time.monotonic() > end:
      return False
    time.sleep(_RETRY_SECONDS)


def _remove(path: str) -> None:
  with contextlib.suppress(OSError):
    os.remove(path)
