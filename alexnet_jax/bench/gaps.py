"""When the devices had no step under way, and what the host did meanwhile.

A gap lies between the end of a step and the start of the next one, where the
host starts it later than that. All times are of one clock, in seconds.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

# What a host does between two steps.
INPUT, REPORT, CHECKPOINT, ELSE = "input", "report", "checkpoint", "else"
ACTIVITIES = (INPUT, REPORT, CHECKPOINT, ELSE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
  """What was noted of a run, of its first step on.

  Attributes:
    started: when the host started each step.
    ended: when the devices had done it.
    switches: (time, activity): from then on the host did this; ascending.
    reports: steps after which there was a report.
    checkpoints: steps after which there was a checkpoint.
  """

  started: Sequence[float]
  ended: Sequence[float]
  switches: Sequence[tuple[float, str]]
  reports: Sequence[int] = ()
  checkpoints: Sequence[int] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaps:
  """What is spent outside the steps of a run, in seconds.

  Attributes:
    steps: that are counted.
    wall: from the end of the last step that is not counted to that of the last.
    spent: in gaps, by activity.
    step_seconds: of each counted step, from the start or the end of the one
      before, whichever is later, to its end.
    reports: in that time.
    checkpoints: in that time.
  """

  steps: int
  wall: float
  spent: dict[str, float]
  step_seconds: list[float]
  reports: int
  checkpoints: int

  @property
  def share(self) -> float:
    """Of the wall time, 0 to 1."""
    return sum(self.spent.values()) / self.wall

  def share_at(self, *, report_every: int, checkpoint_every: int) -> float:
    """The same at another pace of reports and checkpoints, 0 to 1.

    Args:
      report_every: steps between two reports.
      checkpoint_every: steps between two checkpoints.
    """
    per_step = (self.spent[INPUT] + self.spent[ELSE]) / self.steps
    if self.reports:
      per_step += self.spent[REPORT] / self.reports / report_every
    if self.checkpoints:
      per_step += self.spent[CHECKPOINT] / self.checkpoints / checkpoint_every
    busy = (self.wall - sum(self.spent.values())) / self.steps
    return per_step / (busy + per_step)


def find_gaps(record: Record, *, warm: int) -> Gaps:
  """Adds up the gaps before all steps but the first.

  Args:
    record: of a run.
    warm: steps at its beginning that are left out, 1 or more.
  """
  started, ended = record.started, record.ended
  spent = dict.fromkeys(ACTIVITIES, 0.0)
  step_seconds = []
  for step in range(warm, len(ended)):
    begin, end = ended[step - 1], started[step]
    step_seconds.append(ended[step] - max(begin, end))
    for activity, seconds in split(begin, end, record.switches).items():
      spent[activity] += seconds

  def count(steps: Iterable[int]) -> int:
    # What follows the last step is in no gap.
    return sum(warm <= step < len(ended) for step in steps)

  return Gaps(
    steps=len(ended) - warm,
    wall=ended[-1] - ended[warm - 1],
    spent=spent,
    step_seconds=step_seconds,
    reports=count(record.reports),
    checkpoints=count(record.checkpoints),
  )


def split(
  begin: float, end: float, switches: Sequence[tuple[float, str]]
) -> Mapping[str, float]:
  """How long the host did what from `begin` to `end`; nothing if that is not.

  Args:
    begin: not before the first switch.
    end: of the time.
    switches: as those of `Record`.
  """
  spent: dict[str, float] = {}
  index = bisect.bisect_right(switches, begin, key=lambda switch: switch[0]) - 1
  while begin < end:
    _, activity = switches[index]
    later = switches[index + 1 :][:1]
    until = min([end, *(time for time, _ in later)])
    spent[activity] = spent.get(activity, 0.0) + until - begin
    begin, index = until, index + 1
  return spent
