"""A real run, watched: what of its time is spent outside the steps.

The run is that of `train.train`, with its data, reports and checkpoints, in a
directory for the time being. Validations are left out, and it ends with its
last step, before the checkpoint that would follow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import jax
import ml_collections
import rich.console

from alexnet_jax.bench import gaps as gaps_lib
from alexnet_jax.bench import startup, turns
from alexnet_jax.checkpoints import members
from alexnet_jax.data import pipeline
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.program import summary
from alexnet_jax.training import loop as loop_lib
from alexnet_jax.training import run as run_lib
from alexnet_jax.training import train

# Steps that are left out: of the first two, memory and threads are new.
WARM = 2
# So few, and there is no room for reports and a checkpoint.
FEWEST = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
  """What was measured.

  Attributes:
    gaps: between steps.
    batch_size: images in a step.
    report_every: steps between two reports, in the run that was measured.
    checkpoint_every: steps between two checkpoints, there.
    own_report_every: steps between two reports, as the config has it.
    own_checkpoint_every: steps between two checkpoints, as the config has it.
    folder: where the directory of the run was.
    platform: of the devices.
  """

  gaps: gaps_lib.Gaps
  batch_size: int
  report_every: int
  checkpoint_every: int
  own_report_every: int
  own_checkpoint_every: int
  folder: str
  platform: str

  def own_share(self) -> float:
    """The share outside the steps at the pace that the config has, 0 to 1."""
    return self.gaps.share_at(
      report_every=self.own_report_every,
      checkpoint_every=self.own_checkpoint_every,
    )


def measure(
  config: ml_collections.ConfigDict, *, steps: int, **options
) -> Speed:
  """Trains for so many steps and adds up what was not spent in them.

  Args:
    config: of a single run; reports and checkpoints come more often where they
      would not come within these steps.
    steps: of the run, `FEWEST` or more.
    **options: others of `run.prepare`.

  Raises:
    ValueError, TypeError, OSError: see `run.prepare`.
    audit.PlanMismatch, FloatingPointError, source.RecordError: see `train`.
  """
  fitted = fit(config, steps)
  watch = StepTimeline()
  with (
    tempfile.TemporaryDirectory() as folder,
    open(os.devnull, "w") as nowhere,
  ):
    run = run_lib.prepare(
      fitted,
      group=group_lib.alone(),
      workdir=os.path.join(folder, "workdir"),
      **options,
    )
    with watch.running():
      train.train(
        # The schedule stays that of the whole run.
        dataclasses.replace(run, num_steps=steps),
        rich.console.Console(file=nowhere, width=120),
        make_loop=functools.partial(WatchedLoop, watch),
      )
  return Speed(
    gaps=gaps_lib.find_gaps(watch.record(), warm=WARM),
    batch_size=config.batch_size,
    report_every=fitted.log_every_steps,
    checkpoint_every=fitted.checkpoint_every_steps,
    own_report_every=config.log_every_steps,
    own_checkpoint_every=config.checkpoint_every_steps,
    folder=tempfile.gettempdir(),
    platform=run.program.mesh.devices.flat[0].platform,
  )


def fit(
  config: ml_collections.ConfigDict, steps: int
) -> ml_collections.ConfigDict:
  """The config with reports and a checkpoint within so many steps.

  Returns:
    A copy; without validations.
  """
  fitted = config.copy_and_resolve_references()
  fitted.log_every_steps = min(config.log_every_steps, steps // 4)
  fitted.checkpoint_every_steps = min(
    config.checkpoint_every_steps, steps // 2 + 1
  )
  fitted.keep_every_steps = None
  fitted.eval_every_steps = steps
  return fitted


# A thread that notes an end need not wait longer for Python's lock.
_SWITCH_SECONDS = 2e-4


class StepTimeline:
  """Notes when steps start and end, and what the host does between.

  The end of a step is noted by a thread that waits for the totals of one after
  the other, and is late by as long as that thread waits for Python's lock.
  """

  def __init__(self):
    self._switches = [(time.perf_counter(), gaps_lib.ELSE)]
    self._started: list[float] = []
    self._ended: list[float] = []
    self._due: queue.SimpleQueue[jax.Array | None] = queue.SimpleQueue()
    self._reports: list[int] = []
    self._checkpoints: list[int] = []

  @contextlib.contextmanager
  def running(self) -> Iterator[None]:
    """Watches what is done within."""
    thread = threading.Thread(target=self._note_ends)
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    thread.start()
    try:
      yield
    finally:
      self._due.put(None)
      thread.join()
      sys.setswitchinterval(before)

  def _note_ends(self) -> None:
    while (totals := self._due.get()) is not None:
      jax.block_until_ready(totals)
      self._ended.append(time.perf_counter())

  def switch(self, activity: str) -> None:
    """From now on the host does this."""
    self._switches.append((time.perf_counter(), activity))

  @contextlib.contextmanager
  def doing(self, activity: str) -> Iterator[None]:
    """Within, the host does this, and then again what it did before."""
    _, before = self._switches[-1]
    self.switch(activity)
    yield
    self.switch(before)

  def start(self) -> None:
    """A step is started now."""
    self._started.append(time.perf_counter())

  def follow(self, totals: jax.Array) -> None:
    """The step that was started last ends when its totals are there."""
    self._due.put(totals)

  def reported(self, number: int) -> None:
    """There was a report after a step."""
    self._reports.append(number)

  def saved(self, number: int) -> None:
    """There was a checkpoint after a step."""
    self._checkpoints.append(number)

  def record(self) -> gaps_lib.Record:
    """What was noted, once it no longer runs."""
    return gaps_lib.Record(
      started=self._started,
      ended=self._ended,
      switches=self._switches,
      reports=self._reports,
      checkpoints=self._checkpoints,
    )


class WatchedLoop(loop_lib.Loop):
  """The loop of a run, under a watch.

  Before it starts, it saves a checkpoint elsewhere: the first one compiles.

  Args:
    watch: that notes what it does.
    run: of the loop.
    train_step: of it.
    **rest: of the arguments of `loop.Loop`.
  """

  def __init__(
    self,
    watch: StepTimeline,
    run: run_lib.Run,
    *,
    train_step: jax.stages.Compiled,
    **rest,
  ):
    def take(*arguments):
      watch.start()
      state, totals = train_step(*arguments)
      watch.follow(totals)
      return state, totals

    super().__init__(run, train_step=take, **rest)
    self._watch = watch
    with tempfile.TemporaryDirectory() as folder:
      first = members.open_checkpoints(folder, run.program, keep=1)
      first.save(1, self.state)
      first.close()

  def take_steps(self, console: rich.console.Console) -> None:
    self._watch.switch(gaps_lib.INPUT)
    super().take_steps(console)

  def _take_step(self, number: int, batch: pipeline.Batch) -> None:
    self._watch.switch(gaps_lib.ELSE)
    super()._take_step(number, batch)

  def _follow_up(self, number: int) -> None:
    if number < self._run.num_steps:
      if self._is_due(number, self._run.config.checkpoint_every_steps):
        self._watch.saved(number)
        with self._watch.doing(gaps_lib.CHECKPOINT):
          super()._follow_up(number)
      else:
        super()._follow_up(number)
    self._watch.switch(gaps_lib.INPUT)

  def _report(self, number: int) -> None:
    self._watch.reported(number)
    with self._watch.doing(gaps_lib.REPORT):
      super()._report(number)


_SAID = {
  gaps_lib.INPUT: "waits for input",
  gaps_lib.REPORT: "reports",
  gaps_lib.CHECKPOINT: "saves a checkpoint",
  gaps_lib.ELSE: "does anything else",
}


def show_run(found: Speed) -> turns.Shown:
  """A row for each activity of the host."""
  gaps = found.gaps
  table = summary.make_table(
    f"{gaps.steps} steps of {found.batch_size} images: no step under way",
    *("while the host", "> ms", "> of the time", "> times"),
  )
  times = {
    gaps_lib.INPUT: gaps.steps,
    gaps_lib.REPORT: gaps.reports,
    gaps_lib.CHECKPOINT: gaps.checkpoints,
    gaps_lib.ELSE: gaps.steps,
  }
  for activity, seconds in gaps.spent.items():
    table.add_row(
      *(_SAID[activity], f"{1e3 * seconds:,.1f}"),
      *(f"{seconds / gaps.wall:.2%}", f"{times[activity]:,}"),
    )
  table.add_section()
  spent = sum(gaps.spent.values())
  table.add_row("all", f"{1e3 * spent:,.1f}", f"{gaps.share:.2%}", "")
  median, lowest, highest = turns.milliseconds(gaps.step_seconds)
  rate = found.batch_size * gaps.steps / gaps.wall
  lines = [
    f"{gaps.wall:.2f} s of a real run, {rate:,.1f} images/s; a step takes "
    f"{median} ms ({lowest} to {highest}) from its start or the end of the one "
    "before",
    f"with a report every {found.report_every} steps and a checkpoint every "
    f"{found.checkpoint_every}, {gaps.share:.2%} of the time is spent outside "
    f"the steps; with one every {found.own_report_every:,} and "
    f"{found.own_checkpoint_every:,}, as the config has it, "
    f"{found.own_share():.2%}",
    f"left out: the first {WARM} steps, compiling, validations, what "
    f"follows the last step; checkpoints were in {found.folder} (TMPDIR)",
    *(
      [
        "what the host does beside a step, as reading the next images or "
        "writing a checkpoint, makes the step longer here: both are on the "
        "same cores. That is no gap; `--what=step` has the step alone"
      ]
      if found.platform == "cpu"
      else []
    ),
  ]
  data = {
    "batch_size": found.batch_size,
    "steps": gaps.steps,
    "wall_seconds": gaps.wall,
    "images_per_second": rate,
    "gap_seconds": gaps.spent,
    "gap_share": gaps.share,
    "gap_share_at_own_cadence": found.own_share(),
    "reports": gaps.reports,
    "checkpoints": gaps.checkpoints,
    "log_every_steps": found.report_every,
    "checkpoint_every_steps": found.checkpoint_every,
    "step_seconds": turns.of_rounds(gaps.step_seconds),
    "platform": found.platform,
  }
  return turns.Shown(data, [table], lines)


def show_startup(found: startup.Speed) -> turns.Shown:
  """A row for each phase."""
  table = summary.make_table(
    "start to first step, in s",
    *("phase", *(f"> {start}" for start in startup.STARTS)),
  )
  for phase in startup.PHASES:
    table.add_row(
      phase, *(f"{found.median(start, phase):.2f}" for start in startup.STARTS)
    )
  table.add_section()
  totals = {start: found.totals(start) for start in startup.STARTS}
  medians = {start: turns.spread(all_)[0] for start, all_ in totals.items()}
  table.add_row("all", *(f"{medians[start]:.2f}" for start in startup.STARTS))
  rounds = len(totals["cold"])
  lines = [
    f"medians of {rounds} {'rounds' if rounds > 1 else 'round'} of two "
    "processes, from the command to the end of the first step: cold with an "
    "empty compilation cache, warm with what the cold one has left in it",
    *(
      f"{start}: {min(totals[start]):.2f} to {max(totals[start]):.2f} s"
      for start in startup.STARTS
    ),
    *(
      ["the warm start has NOT found its step in the cache"]
      if not all(found.from_cache["warm"])
      else []
    ),
  ]
  data = {
    start: {
      "seconds": {
        phase: turns.of_rounds(found.seconds[start][phase])
        for phase in startup.PHASES
      },
      "total_seconds": turns.of_rounds(totals[start]),
      "step_from_cache": found.from_cache[start],
    }
    for start in startup.STARTS
  }
  return turns.Shown(data, [table], lines)
