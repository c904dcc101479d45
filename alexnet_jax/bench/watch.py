"""A loop that is watched: when its steps start and end, what the host does."""

from __future__ import annotations

import contextlib
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import jax
import rich.console

from alexnet_jax.bench import gaps as gaps_lib
from alexnet_jax.checkpoints import members
from alexnet_jax.data import pipeline
from alexnet_jax.training import loop as loop_lib
from alexnet_jax.training import run as run_lib

# A thread that notes an end need not wait longer for Python's lock.
_SWITCH_SECONDS = 2e-4


class Watch:
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
    watch: Watch,
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
