"""Starts a training in its own process and follows it through its files.

The process answers no questions: its output, `metrics.jsonl` and the folder of
checkpoints say where it is, also after it was killed.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from alexnet_jax.checkpoints import reader
from tests import processes

# Where a kill can meet a run, in the order in which a run gets there.
PHASES = (
  *("start-up", "compilation", "restoring or first steps", "training"),
  *("validation", "saving", "end"),
)
# How Orbax names a folder that it is still writing.
_UNFINISHED = re.compile(r"\d+\.orbax-checkpoint-tmp")
_POLL_SECONDS = 0.01


class Attempt:
  """A run from one start to its end or its kill.

  Args:
    flags: of `alexnet_jax.main`.
    workdir: the same as in `flags`.
    log: file for the output of this attempt.
    eval_every_steps: of its config.
    limit_seconds: time without any change after which the run hangs.
  """

  def __init__(
    self,
    flags: Sequence[str],
    *,
    workdir: pathlib.Path,
    log: pathlib.Path,
    eval_every_steps: int,
    limit_seconds: float,
  ):
    self._workdir, self._log = workdir, log
    self._eval_every, self._limit_seconds = eval_every_steps, limit_seconds
    self.expected_step = reader.find_latest_step(str(workdir))
    self._lines_before = len(processes.read_reports(workdir))
    self._unfinished_before = self._find_unfinished()
    self._reports_before = self._count_reports()
    with open(log, "w") as output:
      self.process = subprocess.Popen(
        [sys.executable, "-m", "alexnet_jax.main", *flags],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=output,
        stderr=subprocess.STDOUT,
      )

  @property
  def output(self) -> str:
    return self._log.read_text()

  @property
  def is_planned(self) -> bool:
    """Whether it has printed its plan, which comes before the compilation."""
    return "which part of each layer one device computes" in self.output

  @property
  def is_compiled(self) -> bool:
    return "audit: " in self.output

  @property
  def reports(self) -> int:
    """Number of reports on training steps since this start."""
    return self._count_reports() - self._reports_before

  def wait(
    self,
    until: Callable[[], bool] = lambda: False,
    *,
    seconds: float = 1e9,
  ) -> bool:
    """Waits for a condition or a time, but not longer than the process runs.

    Returns:
      Whether the process has ended by itself.

    Raises:
      TimeoutError: the process hangs; it has been killed.
    """
    end, state, changed = time.monotonic() + seconds, None, time.monotonic()
    while self.process.poll() is None:
      if time.monotonic() >= end or until():
        return False
      if (now := self._find_state()) != state:
        state, changed = now, time.monotonic()
      if time.monotonic() - changed > self._limit_seconds:
        self.kill(9)
        raise TimeoutError(f"no change for {self._limit_seconds:g} seconds")
      time.sleep(_POLL_SECONDS)
    return True

  def kill(self, number: int, *, limit_seconds: float = 60) -> str:
    """Sends a signal and waits for the end; returns the phase it came in.

    Raises:
      TimeoutError: it does not end in time; it has been killed.
    """
    phase = self._find_phase()
    self.process.send_signal(number)
    try:
      self.process.wait(limit_seconds)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()
      raise TimeoutError(
        f"it did not end within {limit_seconds:g} seconds of signal {number}"
      ) from None
    # A folder that is unfinished now was so when the kill came, except for
    # those that an earlier kill has left.
    is_saving = self._find_unfinished() - self._unfinished_before
    return "saving" if is_saving else phase

  def find_fault(self) -> str | None:
    """Returns what is wrong with the step the run resumed from, if it is known.

    It must resume from the newest complete checkpoint that it found, and start
    anew where there was none.
    """
    output, step = self.output, self.expected_step
    if step is None:
      resumed = "resumes after step" in output
      return "resumed, but there was no checkpoint" if resumed else None
    expected = f"resumes after step {step} of"
    if expected in output or f"finished already, at step {step};" in output:
      return None
    shown = re.search(r"(resumes after|finished already).*|step \d+/.*", output)
    return shown and f"expected: {expected} ..., but it said: {shown[0][:80]}"

  def find_damage(self) -> list[str]:
    """Returns its lines about damaged checkpoints."""
    return re.findall(r".*(?:broken-\d|damaged checkpoint).*", self.output)

  def _find_state(self):
    """Changes as long as the run is alive."""
    files = (self._log, self._workdir / "metrics.jsonl")
    return [
      file.stat().st_size for file in files if file.exists()
    ], self._list()

  def _count_reports(self) -> int:
    file = self._workdir / "metrics.jsonl"
    return file.read_bytes().count(b'"training_loss"') if file.exists() else 0

  def _list(self) -> list[str]:
    folder = self._workdir / "checkpoints"
    return sorted(os.listdir(folder)) if folder.is_dir() else []

  def _find_unfinished(self) -> set[tuple[str, int]]:
    """Returns names and inodes of checkpoints that are still being written."""
    found = set()
    for name in filter(_UNFINISHED.search, self._list()):
      with contextlib.suppress(FileNotFoundError):  # finished meanwhile
        file = self._workdir / "checkpoints" / name
        found.add((name, file.stat().st_ino))
    return found

  def _find_phase(self) -> str:
    if self.process.poll() is not None or "the run is in " in self.output:
      return "end"
    if not self.is_compiled:
      return "compilation" if self.is_planned else "start-up"
    lines = processes.read_reports(self._workdir)[self._lines_before :]
    if not lines:
      return "restoring or first steps"
    # The training of a step is reported before its validation, which follows.
    is_due = lines[-1]["step"] % self._eval_every == 0
    is_trained = "training_loss" in lines[-1]
    return "validation" if is_due and is_trained else "training"
