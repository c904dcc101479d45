"""Gaps between steps: times without a running step, and what the host did then.

There is a gap where the host starts a step after the end of the one before. All
times are seconds of one clock.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable

# What the host does between two steps.
INPUT, REPORT, CHECKPOINT, ELSE = "input", "report", "checkpoint", "else"
ACTIVITIES = (INPUT, REPORT, CHECKPOINT, ELSE)


@dataclasses.dataclass(kw_only=True)
class Timeline:
  """Times of a run, from its first step on.

  Attributes:
    switches: (time, activity), ascending: the host's activity from then on.
    started: when the host started each step.
    ended: when the devices had finished it.
    reports: numbers of the steps that were followed by a report.
    checkpoints: numbers of the steps that were followed by a checkpoint.
  """

  switches: list[tuple[float, str]]
  started: list[float] = dataclasses.field(default_factory=list)
  ended: list[float] = dataclasses.field(default_factory=list)
  reports: list[int] = dataclasses.field(default_factory=list)
  checkpoints: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaps:
  """Time spent outside the steps of a run.

  Attributes:
    steps: that are counted.
    wall_seconds: from the end of the last warm-up step to that of the last
      step.
    gap_seconds: spent in gaps, by activity.
    step_seconds: of each counted step, to its end from its start or from the
      end of the step before, whichever is later.
    reports, checkpoints: how many there were in that time.
  """

  steps: int
  wall_seconds: float
  gap_seconds: dict[str, float]
  step_seconds: list[float]
  reports: int
  checkpoints: int

  @property
  def gap_share(self) -> float:
    """Gaps as a part of the wall time, 0 to 1."""
    return sum(self.gap_seconds.values()) / self.wall_seconds

  def gap_share_at(
    self, *, log_every_steps: int, checkpoint_every_steps: int
  ) -> float:
    """Estimates `gap_share` at another cadence of reports and checkpoints."""
    gaps = self.gap_seconds
    per_step = (gaps[INPUT] + gaps[ELSE]) / self.steps
    if self.reports:
      per_step += gaps[REPORT] / self.reports / log_every_steps
    if self.checkpoints:
      per_step += gaps[CHECKPOINT] / self.checkpoints / checkpoint_every_steps
    busy = (self.wall_seconds - sum(gaps.values())) / self.steps
    return per_step / (busy + per_step)


def find_gaps(timeline: Timeline, *, warm: int) -> Gaps:
  """Adds up the gaps before all steps but the first `warm` ones, 1 or more."""
  started, ended = timeline.started, timeline.ended
  spent = dict.fromkeys(ACTIVITIES, 0.0)
  step_seconds = []
  for step in range(warm, len(ended)):
    begin, end = ended[step - 1], started[step]
    step_seconds.append(ended[step] - max(begin, end))
    for (start, activity), (stop, _) in itertools.pairwise(
      [*timeline.switches, (math.inf, "")]
    ):
      spent[activity] += max(min(stop, end) - max(start, begin), 0.0)

  def count(steps: Iterable[int]) -> int:
    # What follows the last step is not in a gap.
    return sum(warm <= step < len(ended) for step in steps)

  return Gaps(
    steps=len(ended) - warm,
    wall_seconds=ended[-1] - ended[warm - 1],
    gap_seconds=spent,
    step_seconds=step_seconds,
    reports=count(timeline.reports),
    checkpoints=count(timeline.checkpoints),
  )
