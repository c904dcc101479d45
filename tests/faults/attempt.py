"""One start of a training in a process of its own, watched through its files.

Nothing is asked of the process: what it has said, `metrics.jsonl` and the
folder of checkpoints tell where it is, also after it was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from alexnet_jax.checkpoints import reader

# Where a kill can meet a run, in the order in which a run comes there.
PHASES = (
  *("start-up", "compilation", "restoring or first steps", "training"),
  *("validation", "saving", "end"),
)
# How Orbax names a folder that it still writes.
_UNFINISHED = re.compile(r"\d+\.orbax-checkpoint-tmp")
# What is printed before the step compiles, and after.
_PLAN, _AUDIT = "plan, a step of", "audit: "
_REPORT = b'"training_loss"'
_POLL_SECONDS = 0.01


class Attempt:
  """A run from one start to its end or its kill.

  Args:
    flags: of `alexnet_jax.main`.
    workdir: the same as in `flags`.
    log: a file for what it says, of this attempt alone.
    eval_every_steps: of its config.
  """

  def __init__(
    self,
    flags: Sequence[str],
    *,
    workdir: pathlib.Path,
    log: pathlib.Path,
    eval_every_steps: int,
  ):
    self._workdir, self._log = workdir, log
    self._validate_every = eval_every_steps
    self.expected_step = reader.find_latest_step(str(workdir))
    self._lines_before = len(read_metrics(workdir))
    self._unfinished_before = self._find_unfinished()
    self._reports_before = self._count_reports()
    with open(log, "w") as said:
      self.process = subprocess.Popen(
        [sys.executable, "-m", "alexnet_jax.main", *flags],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=said,
        stderr=subprocess.STDOUT,
      )

  @property
  def said(self) -> str:
    return self._log.read_text()

  @property
  def is_compiled(self) -> bool:
    return _AUDIT in self.said

  @property
  def is_planned(self) -> bool:
    return _PLAN in self.said

  @property
  def reports(self) -> int:
    """On its training, since this start."""
    return self._count_reports() - self._reports_before

  def wait(
    self,
    until: Callable[[], bool],
    *,
    seconds: float,
    limit_seconds: float,
  ) -> bool:
    """Waits for something, for the end of the process, or for a while.

    Args:
      until: what is waited for.
      seconds: the longest that is waited.
      limit_seconds: without a sign of life, after which the run hangs.

    Raises:
      TimeoutError: it hangs; it has been killed.

    Returns:
      Whether the process has ended by itself.
    """
    end, sign, seen = time.monotonic() + seconds, None, time.monotonic()
    while self.process.poll() is None:
      if time.monotonic() >= end or until():
        return False
      if (now := self._find_sign()) != sign:
        sign, seen = now, time.monotonic()
      if time.monotonic() - seen > limit_seconds:
        self.kill(9)
        raise TimeoutError(f"no sign of life for {limit_seconds:g} seconds")
      time.sleep(_POLL_SECONDS)
    return True

  def kill(self, number: int, *, limit_seconds: float = 60) -> str:
    """Sends a signal and waits for the end; says in which phase it came.

    Raises:
      TimeoutError: it does not end within a time; it has been killed.
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
    # A folder that is unfinished now was so when the kill came, but for what
    # an earlier kill has left.
    is_saving = self._find_unfinished() - self._unfinished_before
    return "saving" if is_saving else phase

  def find_fault(self) -> str | None:
    """As `find_fault`, of this attempt."""
    return find_fault(self.said, self.expected_step)

  def find_damage(self) -> list[str]:
    """Lines in which it says that a checkpoint was damaged."""
    return re.findall(r".*(?:broken-\d|damaged checkpoint).*", self.said)

  def _find_sign(self):
    """What changes while a run lives."""
    return (
      self._log.stat().st_size,
      self._find_size("metrics.jsonl"),
      *sorted(_list(self._workdir / "checkpoints")),
    )

  def _count_reports(self) -> int:
    file = self._workdir / "metrics.jsonl"
    return file.read_bytes().count(_REPORT) if file.exists() else 0

  def _find_size(self, name: str) -> int:
    file = self._workdir / name
    return file.stat().st_size if file.exists() else 0

  def _find_unfinished(self) -> set[tuple[str, int]]:
    """Names and inodes of checkpoints that are no checkpoints yet."""
    folder = self._workdir / "checkpoints"
    names = [name for name in _list(folder) if _UNFINISHED.search(name)]
    found = set()
    for name in names:
      with contextlib.suppress(FileNotFoundError):  # finished meanwhile
        found.add((name, (folder / name).stat().st_ino))
    return found

  def _find_phase(self) -> str:
    said = self.said
    if self.process.poll() is not None or "the run is in " in said:
      return "end"
    if not self.is_compiled:
      return "compilation" if self.is_planned else "start-up"
    lines = read_metrics(self._workdir)[self._lines_before :]
    if not lines:
      return "restoring or first steps"
    newest = lines[-1]
    validates = newest["step"] % self._validate_every == 0
    # The training of a step is reported before its validation, which follows.
    if validates and "training_loss" in newest:
      return "validation"
    return "training"


def find_fault(said: str, newest_step: int | None) -> str | None:
  """What is wrong with where a run went on; None where nothing is, or unknown.

  It goes on after the newest complete checkpoint that it found, or from the
  start where there was none.

  Args:
    said: by the run, maybe cut off.
    newest_step: of that checkpoint.
  """
  if newest_step is None:
    if "goes on after step" in said:
      return "went on from a checkpoint where there was none"
    return None
  expected = f"goes on after step {newest_step} of"
  if expected in said or f"finished already, at step {newest_step};" in said:
    return None
  shown = re.search(r"(goes on after|finished already).*|step \d+/.*", said)
  return shown and f"expected: {expected} ..., but it said: {shown[0][:80]}"


def read_metrics(workdir: pathlib.Path) -> list[Mapping[str, float]]:
  """The lines of `metrics.jsonl`; one that was cut off by a kill is no line."""
  file = workdir / "metrics.jsonl"
  lines = file.read_text().splitlines() if file.exists() else []
  return [
    json.loads(line) for line in lines if line[:1] == "{" and line[-1:] == "}"
  ]


def _list(folder: pathlib.Path) -> list[str]:
  return os.listdir(folder) if folder.is_dir() else []
