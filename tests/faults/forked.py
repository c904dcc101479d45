"""Commands in processes of their own, forked from one that has imported all.

    python -m tests.faults.forked < CASES

Most of the time of a command that refuses its input goes by while it imports.
This process imports what the commands do, never uses JAX, so that no thread of
it is running, and forks: each goes on as `python -m alexnet_jax.MODULE` would,
to the end of the interpreter. CASES is a JSON list of {"module", "arguments",
"folder"}; printed is a list of {"code", "out", "errors"}, in that order.
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

from alexnet_jax.bench import input

# What commands import, so that each fork finds it there.
from alexnet_jax.compare import chart, comparison
from alexnet_jax.data import preparation
from alexnet_jax.doctor import examination
from alexnet_jax.evaluate import predict, tables
from alexnet_jax.inspect import draw
from alexnet_jax.settings import settings
from alexnet_jax.training import train

IMPORTED = (
  *(comparison, tables, predict, settings, train, examination),
  *(preparation, input, chart, draw),
)

ROOT = pathlib.Path(__file__).parents[2]
# A value that asks for more is to end its process, not the machine.
_MEMORY_BYTES = 8 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """A command to run.

  Attributes:
    module: of the package, as `main`.
    arguments: of the command.
    folder: where it runs, which there is.
  """

  module: str
  arguments: Sequence[str]
  folder: pathlib.Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
  """How a command has ended.

  Attributes:
    index: of its case.
    code: of its exit; below 0: the signal; None: it was still running.
  """

  index: int
  code: int | None
  out: str
  errors: str
  seconds: float


def run_all(
  cases: Sequence[Case], *, at_once: int, limit_seconds: float
) -> Iterator[Ended]:
  """Runs commands, some at a time; yields how they end, as they do.

  No block may be open where this is called: a fork leaves by `sys.exit`, and
  would clean up what is its parent's.
  """
  waiting, running = list(enumerate(cases)), {}
  # JAX warns of forks for the sake of threads that it does not have here.
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
      late = not ended and seconds > limit_seconds
      if late:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
      if ended or late:
        del running[process]
        out, errors = (
          path.read_text(errors="replace") for path in _find_streams(case)
        )
        yield Ended(
          index=index,
          code=None if late else os.waitstatus_to_exitcode(status),
          out=out,
          errors=errors,
          seconds=seconds,
        )
    time.sleep(0.02)


def _find_streams(case: Case) -> tuple[pathlib.Path, pathlib.Path]:
  return case.folder.with_suffix(".out"), case.folder.with_suffix(".errors")


def _become(case: Case) -> None:
  """Goes on as the command; does not return."""
  for stream, path in enumerate(_find_streams(case), start=1):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, stream)
    os.close(file)
  resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
  os.chdir(case.folder)
  sys.path.insert(0, str(ROOT))
  sys.argv = [f"{case.module}.py", *case.arguments]
  module = f"alexnet_jax.{case.module}"
  runpy.run_module(module, run_name="__main__", alter_sys=True)
  sys.exit()


def main() -> None:
  cases = [
    Case(**{**case, "folder": pathlib.Path(case["folder"])})
    for case in json.load(sys.stdin)
  ]
  done = [*run_all(cases, at_once=2, limit_seconds=100)]
  done.sort(key=lambda ended: ended.index)
  print(json.dumps([dataclasses.asdict(ended) for ended in done]))


if __name__ == "__main__":
  main()
