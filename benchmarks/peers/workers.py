"""Worker processes that take turns, so that a slow machine slows all of them.

`worker.py` is the other end. Workers start one after the other; between its
turns a worker waits in a read. In each round every worker has one turn, and the
order alternates.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import math
import os
import select
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_STOP_SECONDS = 10.0
_LONGEST_OUTPUT = 300


class WorkerError(RuntimeError):
  """A worker has ended, hangs, or gives an answer that is not expected."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
  """How a worker is started.

  Attributes:
    arguments: the command.
    environment: of it; None: that of this process.
  """

  arguments: Sequence[str]
  environment: Mapping[str, str] | None = None


@dataclasses.dataclass(kw_only=True)
class Measured:
  """The measurements of a variant.

  Attributes:
    facts: that its worker reported at its start; {} if it was never ready.
    seconds: of a step, by round.
    ratios: its seconds divided by those of the reference in the same round.
    idle_cpu_seconds: most CPU time that it used during the turns of others.
    missing: why it was not started; None: it was.
    error: why it failed; None: it did not.
  """

  facts: dict[str, Any] = dataclasses.field(default_factory=dict)
  seconds: list[float] = dataclasses.field(default_factory=list)
  ratios: list[float] = dataclasses.field(default_factory=list)
  idle_cpu_seconds: float = 0.0
  missing: str | None = None
  error: str | None = None

  def median(self) -> float:
    return statistics.median(self.seconds)

  def ratio(self) -> float:
    """The median of the ratios of the rounds."""
    return statistics.median(self.ratios)

  def join(self, later: Measured) -> Measured:
    """Joins the rounds of a variant that was measured twice."""
    return Measured(
      facts=self.facts or later.facts,
      seconds=self.seconds + later.seconds,
      ratios=self.ratios + later.ratios,
      idle_cpu_seconds=max(self.idle_cpu_seconds, later.idle_cpu_seconds),
      error=self.error or later.error,
    )


class Worker:
  """A process that runs steps on request.

  Args:
    name: of its variant.
    command: that starts it.
    limit_seconds: a worker hangs if it does not answer for so long.

  Attributes:
    facts: that it reported at its start.

  Raises:
    WorkerError: it does not get ready.
  """

  def __init__(self, name: str, command: Command, *, limit_seconds: float):
    self._name, self._limit = name, limit_seconds
    self._output, self._unread = tempfile.TemporaryFile(), b""
    try:
      self._process = subprocess.Popen(
        command.arguments,
        env=command.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._output,
      )
    except OSError as error:
      self._output.close()
      raise WorkerError(f"{name} cannot be started: {error}") from error
    try:
      self.facts = self._read()
      if not self.facts.pop("ready", False):
        raise self._to_error(f"printed {self.facts}, expected its facts")
    except WorkerError:
      self.close()
      raise

  def take_turn(self, *, untimed: int, timed: int) -> dict[str, float]:
    """Has it run steps; returns its answer.

    Raises:
      WorkerError: there is none, or its loss is not finite.
    """
    with contextlib.suppress(BrokenPipeError):  # reading says why
      self._process.stdin.write(f"{untimed} {timed}\n".encode())
      self._process.stdin.flush()
    answer = self._read()
    if not math.isfinite(answer["loss"]):
      raise self._to_error(f"has a loss of {answer['loss']}")
    return answer

  def close(self) -> None:
    """Lets it end, or kills it."""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    try:
      self._process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._process.stdout.close()
    self._output.close()

  def _read(self) -> dict[str, Any]:
    until = time.monotonic() + self._limit
    stdout = self._process.stdout.fileno()
    while b"\n" not in self._unread:
      left = max(0.0, until - time.monotonic())
      if not select.select([stdout], [], [], left)[0]:
        self._process.kill()
        raise self._to_error(f"has not answered for {self._limit:g} s")
      some = os.read(stdout, 2**16)
      if not some:
        raise self._to_error(f"ended with code {self._process.wait()}")
      self._unread += some
    line, _, self._unread = self._unread.partition(b"\n")
    try:
      return json.loads(line)
    except ValueError:
      raise self._to_error(
        f"printed {line.decode()!r}, expected JSON"
      ) from None

  def _to_error(self, what: str) -> WorkerError:
    self._output.seek(0)
    lines = self._output.read().decode(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "nothing")
    shown = " ".join(last.split())[-_LONGEST_OUTPUT:]
    return WorkerError(f"{self._name} {what}; its last output: {shown}")


def measure(
  commands: Mapping[str, Command],
  *,
  reference: str,
  rounds: int,
  untimed: int,
  timed: int,
  limit_seconds: float,
  log: Callable[[str], None],
) -> dict[str, Measured]:
  """Starts the workers one by one, and has them take turns.

  A worker that fails is left out from then on; the others continue.

  Args:
    commands: of the variants, by name.
    reference: the one that the others are compared with.
    rounds: turns of each.
    untimed: steps that begin a turn and are not timed.
    timed: steps of a turn that are timed together.
    limit_seconds: a worker hangs if it does not answer for so long.
    log: is called with each line of progress.

  Raises:
    WorkerError: the reference fails.
  """
  measured = collections.defaultdict(Measured)
  workers: dict[str, Worker] = {}

  def fail(name: str, error: WorkerError) -> None:
    if name == reference:
      raise error
    log(str(error))
    measured[name].error = str(error)
    if name in workers:
      workers.pop(name).close()

  with contextlib.ExitStack() as stack:
    stack.callback(lambda: [worker.close() for worker in workers.values()])
    for name, command in commands.items():
      log(f"starting {name}")
      try:
        workers[name] = Worker(name, command, limit_seconds=limit_seconds)
        measured[name].facts = workers[name].facts
      except WorkerError as error:
        fail(name, error)
    for number in range(rounds):
      seconds = {}
      for name in list(workers)[:: -1 if number % 2 else 1]:
        try:
          answer = workers[name].take_turn(untimed=untimed, timed=timed)
        except WorkerError as error:
          fail(name, error)
          continue
        seconds[name] = answer["seconds"]
        measured[name].idle_cpu_seconds = max(
          measured[name].idle_cpu_seconds, answer["idle_cpu_seconds"]
        )
      for name, step_seconds in seconds.items():
        measured[name].seconds.append(step_seconds)
        measured[name].ratios.append(step_seconds / seconds[reference])
      log(f"round {number + 1} of {rounds}")
  return {name: measured[name] for name in commands}
