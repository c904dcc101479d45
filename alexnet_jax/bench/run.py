"""A real run: how much of its time is spent outside the steps, and on what.

The run is that of `train.train`, with its data, reports and checkpoints, in a
temporary directory. It has no validations, and it ends with its last step,
before the final checkpoint.
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
from collections.abc import Callable, Iterator

import jax
import ml_collections
import rich.console
import rich.table

from alexnet_jax.bench import gaps as gaps_lib
from alexnet_jax.bench import report
from alexnet_jax.cli import command
from alexnet_jax.data import pipeline
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.program import summary
from alexnet_jax.training import loop as loop_lib
from alexnet_jax.training import run as run_lib
from alexnet_jax.training import train

# Warm-up steps that are not counted: they touch new memory and start threads.
WARM = 2
# Fewer steps leave no room for reports and a checkpoint.
FEWEST = 8
# Short, so that the thread that notes ends of steps gets Python's lock soon.
_SWITCH_SECONDS = 2e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunTime:
  """The time of a run, which had another cadence than its config.

  Attributes:
    folder: where the directory of the run was.
  """

  gaps: gaps_lib.Gaps
  batch_size: int
  log_every_steps: int
  checkpoint_every_steps: int
  config_log_every_steps: int
  config_checkpoint_every_steps: int
  folder: str
  platform: str

  @property
  def images_per_second(self) -> float:
    return self.batch_size * self.gaps.steps / self.gaps.wall_seconds

  @property
  def gap_share_of_config(self) -> float:
    """Estimated share outside the steps at the config's cadence, 0 to 1."""
    return self.gaps.gap_share_at(
      log_every_steps=self.config_log_every_steps,
      checkpoint_every_steps=self.config_checkpoint_every_steps,
    )

  def tables(self) -> list[rich.table.Table]:
    gaps = self.gaps
    table = summary.make_table(
      f"{gaps.steps} steps of {self.batch_size} images: no step is running",
      *("while the host", "> ms", "> of the time", "> times"),
    )
    for activity, name, times in (
      (gaps_lib.INPUT, "waits for input", gaps.steps),
      (gaps_lib.REPORT, "reports", gaps.reports),
      (gaps_lib.CHECKPOINT, "saves a checkpoint", gaps.checkpoints),
      (gaps_lib.ELSE, "does anything else", gaps.steps),
    ):
      seconds = gaps.gap_seconds[activity]
      share = f"{seconds / gaps.wall_seconds:.2%}"
      table.add_row(name, report.to_ms(seconds, 1), share, f"{times:,}")
    table.add_section()
    total = sum(gaps.gap_seconds.values())
    table.add_row("all", report.to_ms(total, 1), f"{gaps.gap_share:.2%}", "")
    return [table]

  def lines(self) -> list[str]:
    gaps = self.gaps
    median, lowest, highest = report.spread_ms(gaps.step_seconds, 1)
    lines = [
      f"{gaps.wall_seconds:.2f} s of a real run, {self.images_per_second:,.1f} "
      f"images/s; a step takes {median} ms ({lowest} to {highest}) from its "
      "start or the end of the step before",
      f"with a report every {self.log_every_steps} steps and a checkpoint "
      f"every {self.checkpoint_every_steps}, {gaps.gap_share:.2%} of the time "
      "is spent outside the steps; with one every "
      f"{self.config_log_every_steps:,} and "
      f"{self.config_checkpoint_every_steps:,}, as in the config, "
      f"{self.gap_share_of_config:.2%}",
      f"not counted: the first {WARM} steps, compilation, validations, what "
      f"follows the last step; checkpoints were in {self.folder} (TMPDIR)",
    ]
    if self.platform == "cpu":
      lines.append(
        "on a CPU, work beside a step, as reading the next images or writing a "
        "checkpoint, makes the step longer, as both use the same cores. This "
        "is not a gap; `--what=step` measures the step alone"
      )
    return lines


def measure(
  config: ml_collections.ConfigDict, *, steps: int, **options
) -> RunTime:
  """Trains for some steps and adds up the time between them.

  Args:
    config: of a single run; see `shorten_cadence`.
    steps: of the run, `FEWEST` or more.
    **options: other arguments of `run.prepare`.

  Raises:
    ValueError, TypeError, OSError: see `run.prepare`.
    audit.PlanMismatch, FloatingPointError, source.RecordError: see `train`.
  """
  shortened = shorten_cadence(config, steps)
  recorder = Recorder()
  with (
    tempfile.TemporaryDirectory() as folder,
    open(os.devnull, "w") as nowhere,
  ):
    run = run_lib.prepare(
      shortened,
      group=group_lib.alone(),
      workdir=os.path.join(folder, "workdir"),
      **options,
    )
    with recorder.recording():
      train.train(
        # The schedule stays that of the complete run.
        dataclasses.replace(run, num_steps=steps),
        command.make_console(file=nowhere),
        make_loop=functools.partial(RecordedLoop, recorder),
      )
  return RunTime(
    gaps=gaps_lib.find_gaps(recorder, warm=WARM),
    batch_size=config.batch_size,
    log_every_steps=shortened.log_every_steps,
    checkpoint_every_steps=shortened.checkpoint_every_steps,
    config_log_every_steps=config.log_every_steps,
    config_checkpoint_every_steps=config.checkpoint_every_steps,
    folder=tempfile.gettempdir(),
    platform=run.program.mesh.devices.flat[0].platform,
  )


def shorten_cadence(
  config: ml_collections.ConfigDict, steps: int
) -> ml_collections.ConfigDict:
  """Copies a config, with reports and a checkpoint within so many steps.

  The copy has no validations before the last step.
  """
  shortened = config.copy_and_resolve_references()
  shortened.update(
    log_every_steps=min(config.log_every_steps, steps // 4),
    checkpoint_every_steps=min(config.checkpoint_every_steps, steps // 2 + 1),
    keep_every_steps=None,
    eval_every_steps=steps,
  )
  return shortened


class Recorder(gaps_lib.Timeline):
  """Records when steps start and end, and what the host does between them.

  A thread waits for the totals of each step and notes its end. The end is late
  by as long as that thread waits for Python's lock.
  """

  def __init__(self):
    super().__init__(switches=[(time.perf_counter(), gaps_lib.ELSE)])
    self._running: queue.SimpleQueue[jax.Array | None] = queue.SimpleQueue()

  @contextlib.contextmanager
  def recording(self) -> Iterator[None]:
    """Records the ends of steps that are started within."""
    thread = threading.Thread(target=self._note_ends)
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    thread.start()
    try:
      yield
    finally:
      self._running.put(None)
      thread.join()
      sys.setswitchinterval(before)

  def _note_ends(self) -> None:
    while (totals := self._running.get()) is not None:
      jax.block_until_ready(totals)
      self.ended.append(time.perf_counter())

  def switch(self, activity: str) -> None:
    """Notes that the host does this from now on."""
    self.switches.append((time.perf_counter(), activity))

  @contextlib.contextmanager
  def doing(self, activity: str) -> Iterator[None]:
    """Notes that the host does this within, and then what it did before."""
    _, before = self.switches[-1]
    self.switch(activity)
    yield
    self.switch(before)

  def start_step(self, step: Callable[..., tuple], *arguments) -> tuple:
    """Starts a step, which ends when its totals are ready."""
    self.started.append(time.perf_counter())
    state, totals = step(*arguments)
    self._running.put(totals)
    return state, totals


class RecordedLoop(loop_lib.Loop):
  """The loop of a run, with a recorder.

  Before it starts, it saves a checkpoint elsewhere, since the first one
  compiles.
  """

  def __init__(
    self,
    recorder: Recorder,
    run: run_lib.Run,
    *,
    train_step: jax.stages.Compiled,
    **options,
  ):
    super().__init__(
      run,
      train_step=functools.partial(recorder.start_step, train_step),
      **options,
    )
    self._recorder = recorder
    with tempfile.TemporaryDirectory() as folder:
      first = run.open_checkpoints(folder)
      first.save(1, self.state)
      first.close()

  def run_steps(self, console: rich.console.Console) -> None:
    self._recorder.switch(gaps_lib.INPUT)
    super().run_steps(console)

  def _take_step(self, number: int, batch: pipeline.Batch) -> None:
    self._recorder.switch(gaps_lib.ELSE)
    super()._take_step(number, batch)

  def _follow_up(self, number: int) -> None:
    if number < self._run.num_steps:
      if self._is_due(number, self._run.config.checkpoint_every_steps):
        self._recorder.checkpoints.append(number)
        with self._recorder.doing(gaps_lib.CHECKPOINT):
          super()._follow_up(number)
      else:
        super()._follow_up(number)
    self._recorder.switch(gaps_lib.INPUT)

  def _report(self, number: int) -> None:
    self._recorder.reports.append(number)
    with self._recorder.doing(gaps_lib.REPORT):
      super()._report(number)
