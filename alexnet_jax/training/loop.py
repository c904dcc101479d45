"""The loop: steps, reports, validations, checkpoints; no arithmetic."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np
import rich.console

from alexnet_jax.checkpoints import checkpoint, members
from alexnet_jax.data import host_batches, pipeline
from alexnet_jax.optim import schedules
from alexnet_jax.program import eval_step, metrics
from alexnet_jax.program import step as step_lib
from alexnet_jax.settings import build
from alexnet_jax.training import report
from alexnet_jax.training import run as run_lib

# How far the host runs ahead of the devices: enough that they never wait for
# it, and little enough that reports and batches keep their pace.
STEPS_AHEAD = 2


class Stopped(Exception):
  """A signal has ended the run early; it can go on."""


class Loop:
  """The steps of a run from where it goes on, and what is told of them.

  Args:
    run: the run.
    train_step: of its program, compiled.
    key: of all steps.
    first_step: after which it goes on; 0: from the start.
    state: after that step.
    checkpoints: of the run.
    reporter: of the run.

  Attributes:
    state: after the newest step.
  """

  def __init__(
    self,
    run: run_lib.Run,
    *,
    train_step: jax.stages.Compiled,
    key: jax.Array,
    first_step: int,
    state: step_lib.TrainState,
    checkpoints: checkpoint.Checkpoints | members.MemberCheckpoints,
    reporter: report.Reporter,
  ):
    self.state = state
    self._run, self._train_step, self._key = run, train_step, key
    self._first_step = first_step
    self._checkpoints, self._reporter = checkpoints, reporter
    # Since the last report: of each step, and of all of them.
    self._totals: list[jax.Array] = []
    self._replaced = 0
    self._rate_scale = schedules.find_scale(state.optimizer)
    self._has_validated = False
    self._facts: dict[str, Any] = {}  # of the state, for its checkpoint

  def take_steps(self, console: rich.console.Console) -> None:
    """Takes all steps to the end of the run.

    Raises:
      CheckpointError: a checkpoint cannot be written.
      FloatingPointError: a loss or the state is not finite.
      source.RecordError: a record cannot be read.
      Stopped: a signal has come, and a checkpoint is saved.
    """
    run, first_step = self._run, self._first_step
    if first_step and self._checkpoints.facts(first_step).get(
      "owes_validation"
    ):
      console.print(f"first the validation that step {first_step} owes")
      self._validate(first_step)
      self._reporter.resume_clock()
    batches = pipeline.train_batches(
      run.train_records,
      seed=build.find_order_seed(run.config),
      first_step=first_step,
      num_steps=run.num_steps,
      **self._batch_options(),
    )
    with contextlib.closing(batches):
      for number, batch in enumerate(batches, start=first_step + 1):
        if run.group.is_stopping(number):
          self._stop(number - 1)
        self._take_step(number, batch)
        self._follow_up(number)

  def _take_step(self, number: int, batch: pipeline.Batch) -> None:
    self.state, total = self._train_step(
      self.state, self._key, batch.images, batch.labels
    )
    self._facts = {}
    self._totals.append(total)
    self._replaced += batch.replaced
    # The host stays this close ahead of the devices, which never wait.
    jax.block_until_ready(self._totals[-STEPS_AHEAD - 1 : -STEPS_AHEAD])
    self._reporter.advance(number)

  def _follow_up(self, number: int) -> None:
    """What is due after a step."""
    config = self._run.config
    self._reporter.saved(self._checkpoints.check())
    if self._is_due(number, config.log_every_steps):
      self._report(number)
    validates = self._is_due(number, config.eval_every_steps)
    saves = self._is_due(number, config.checkpoint_every_steps)
    if not (validates or saves):
      return
    self._check_losses(number)
    self._reporter.flush()
    if validates:
      self._validate(number)
    if saves:
      self._checkpoints.save(number, self.state, self._facts)
    self._reporter.resume_clock()

  def _check_losses(self, number: int) -> None:
    """After a step that went wrong, nothing is saved."""
    self._reporter.check()
    if self._totals:
      report.check_losses(number, self._totals)

  def _is_due(self, number: int, every: int) -> bool:
    return number % every == 0 or number == self._run.num_steps

  def _report(self, number: int) -> None:
    rate = self._rate_scale * self._run.schedule(number - 1)
    self._reporter.training(
      number,
      self._totals,
      learning_rate=float(f"{rate:.6g}"),
      replaced=self._run.group.total(f"replaced/{number}", self._replaced),
    )
    self._totals, self._replaced = [], 0

  def _validate(self, number: int) -> None:
    """Validates the state after a step."""
    run = self._run
    batches = pipeline.validation_batches(
      run.validation_records, **self._batch_options()
    )
    found = validate(run, self.state, batches, compiles=not self._has_validated)
    if found is None:
      self._stop(number, owes_validation=True)
    self._has_validated = True
    totals, replaced = found
    replaced = run.group.total(f"validation_replaced/{number}", replaced)
    self._reporter.validation(number, totals, replaced)
    # Not of the one at the end, which a longer run would not have.
    if run.plateau and number % run.config.eval_every_steps == 0:
      self.state = heed(run, self.state, totals)
      self._rate_scale = schedules.find_scale(self.state.optimizer)
    self._facts = {"validation_error": metrics.to_errors(totals)}

  def _stop(self, number: int, *, owes_validation: bool = False) -> NoReturn:
    """Saves the state after a step, and leaves the loop."""
    self._check_losses(number)
    if number > self._first_step:
      facts = {**self._facts, "owes_validation": owes_validation}
      self._checkpoints.save(number, self.state, facts)
    # What cannot be reported is not worth a state that could be saved.
    if self._totals:
      self._report(number)
    self._reporter.flush()
    where = "in the validation " if owes_validation else ""
    saved = "which is saved" if number else "where nothing is lost"
    raise Stopped(
      f"stopped by {self._run.group.signal_name} {where}after step {number} of "
      f"{self._run.num_steps}, {saved}; the same command goes on from there."
    )

  def _batch_options(self) -> dict[str, Any]:
    run = self._run
    return {
      "batch_size": run.config.batch_size,
      "shardings": run.program.batch_shardings,
      "threads": run.config.data.threads
      or host_batches.find_threads(sharing=run.group.num_on_host),
      "batches_ahead": run.config.data.batches_ahead,
    }


# As the steps in `loop.py`.
_BATCHES_AHEAD = 2


def validate(
  run: run_lib.Run,
  state: step_lib.TrainState,
  batches: Iterator[pipeline.Batch],
  *,
  compiles: bool,
) -> tuple[np.ndarray, int] | None:
  """Goes through the whole split, with averaged parameters if there are any.

  Args:
    run: from `run.prepare`.
    state: after some step.
    batches: of the split; closed at the end.
    compiles: whether the first batch takes the time of a compilation.

  Returns:
    `metrics.NAMES` summed over it, f32[4], or f32[members, 4] of several
    members of an ensemble, and the images of this process whose own record
    could not be read. None where a signal has ended it before its end.

  Raises:
    source.RecordError: a record cannot be read.
  """
  totals, replaced = [], 0
  variables = eval_step.find_variables(state)
  with contextlib.closing(batches):
    for images, labels, lost in batches:
      if run.group.is_stopping():
        return None
      if compiles and not totals:
        run.group.pause_watchdog()
      totals.append(run.program.evaluate(variables, images, labels))
      jax.block_until_ready(totals[-_BATCHES_AHEAD - 1 : -_BATCHES_AHEAD])
      replaced += lost
  return np.sum(jax.device_get(totals), axis=0), replaced


def heed(
  run: run_lib.Run, state: step_lib.TrainState, totals: np.ndarray
) -> step_lib.TrainState:
  """Tells the plateau rule the error of a validation."""
  error = metrics.to_means(totals)["top1_error"]
  return state._replace(optimizer=run.plateau.advance(state.optimizer, error))
