"""Runs commands in processes forked from one that has imported everything.

    python -m tests.faults.forked CASES

A command that refuses its input spends most of its time on imports. This
process imports what the commands do and forks. It never uses JAX, so that no
thread of JAX is running. Each fork continues as `python -m alexnet_jax.MODULE`
would, to the end of the interpreter. The file CASES holds a JSON list
of `Case`; the output is a JSON list of `Ended` in that order.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import pathlib
import resource
import runpy
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence

# Imported for the forks.
from alexnet_jax.bench import input  # noqa: F401
from alexnet_jax.compare import chart, comparison  # noqa: F401
from alexnet_jax.data import preparation  # noqa: F401
from alexnet_jax.doctor import examination  # noqa: F401
from alexnet_jax.evaluate import tables  # noqa: F401
from alexnet_jax.report import (
  costs,  # noqa: F401
  curves,  # noqa: F401
  facts,  # noqa: F401
  kernels,  # noqa: F401
  layers,  # noqa: F401
  layout,  # noqa: F401
  mistakes,  # noqa: F401
  page,  # noqa: F401
)
from alexnet_jax.training import (
  evaluation,  # noqa: F401
  train,  # noqa: F401
)
from tests import processes

# A value that asks for more ends its process, not the machine.
_MEMORY_BYTES = 8 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """A command to run: its module below alexnet_jax, and an existing folder."""

  module: str
  arguments: Sequence[str]
  folder: pathlib.Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
  """The end of a command.

  Attributes:
    index: of its case.
    code: exit code; below 0 a signal; None if it was still running.
  """

  index: int
  code: int | None
  out: str
  errors: str
  seconds: float


def run_all(
  cases: Sequence[Case], *, at_once: int, limit_seconds: float
) -> Iterator[Ended]:
  """Runs commands, some at a time; yields their ends in the order they come.

  No context manager may be open at the call: a fork leaves by `sys.exit`, and
  would clean up what belongs to its parent.
  """
  waiting, running = list(enumerate(cases)), {}
  # JAX warns of forks because of threads that it does not have here.
  warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
  gc.freeze()  # else each fork copies the memory that its collector marks
  while waiting or running:
    while waiting and len(running) < at_once:
      index, case = waiting.pop(0)
      sys.stdout.flush()
      process = os.fork()
      if not process:
        _become(case)
      running[process] = index, case, time.monotonic()
    for process, (index, case, began) in list(running.items()):
      ended, status = os.waitpid(process, os.WNOHANG)
      seconds = time.monotonic() - began
      is_late = not ended and seconds > limit_seconds
      if is_late:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
      if ended or is_late:
        del running[process]
        code = None if is_late else os.waitstatus_to_exitcode(status)
        out, errors = (
          path.read_text(errors="replace") for path in _find_streams(case)
        )
        yield Ended(
          index=index, code=code, out=out, errors=errors, seconds=seconds
        )
    time.sleep(0.02)


def _find_streams(case: Case) -> tuple[pathlib.Path, pathlib.Path]:
  return case.folder.with_suffix(".out"), case.folder.with_suffix(".errors")


def _become(case: Case) -> None:
  """Continues as the command; does not return."""
  for stream, path in enumerate(_find_streams(case), start=1):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, stream)
    os.close(file)
  resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
  os.chdir(case.folder)
  sys.path.insert(0, str(processes.ROOT))
  sys.argv = [f"{case.module}.py", *case.arguments]
  module = f"alexnet_jax.{case.module}"
  runpy.run_module(module, run_name="__main__", alter_sys=True)
  sys.exit()


def main() -> None:
  cases = [
    Case(**{**case, "folder": pathlib.Path(case["folder"])})
    for case in json.loads(pathlib.Path(sys.argv[1]).read_text())
  ]
  ends = [*run_all(cases, at_once=2, limit_seconds=100)]
  ends.sort(key=lambda ended: ended.index)
  print(json.dumps([dataclasses.asdict(ended) for ended in ends]))


if __name__ == "__main__":
  main()
