"""The training loop: steps, and the reports, validations, checkpoints due."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np
import rich.console

from alexnet_jax.checkpoints import checkpoint
from alexnet_jax.data import host_batches, pipeline
from alexnet_jax.optim import schedules
from alexnet_jax.program import eval_step, metrics
from alexnet_jax.program import step as step_lib
from alexnet_jax.settings import build
from alexnet_jax.training import report
from alexnet_jax.training import run as run_lib

# Steps that the host runs ahead of the devices: enough that they never wait for
# it, and few enough that reports and batches are on time.
STEPS_AHEAD = 2


class Stopped(Exception):
  """A signal has ended the run early; it can be resumed."""


class Loop:
  """Takes the remaining steps of a run, with all that is due between them.

  Args:
    train_step: of the program of the run, compiled.
    key: of all steps, from `Program.make_keys`.
    first_step: the step to resume after; 0: from the start.
    state: after that step; the attribute is the state after the newest one.
  """

  def __init__(
    self,
    run: run_lib.Run,
    *,
    train_step: jax.stages.Compiled,
    key: jax.Array,
    first_step: int,
    state: step_lib.TrainState,
    checkpoints: checkpoint.Checkpoints,
    reporter: report.Reporter,
  ):
    self.state = state
    self._run, self._train_step, self._key = run, train_step, key
    self._first_step = first_step
    self._checkpoints, self._reporter = checkpoints, reporter
    self._totals: list[jax.Array] = []  # of each step since the last report
    self._replaced = 0  # since the last report
    self._rate_scale = schedules.find_plateau_scale(state.optimizer)
    self._has_validated = False
    self._facts: dict[str, Any] = {}  # on the state, for its checkpoint

  def run_steps(self, console: rich.console.Console) -> None:
    """Runs all steps to the end of the run.

    Raises:
      CheckpointError: a checkpoint cannot be written.
      FloatingPointError: a loss or the state is not finite.
      source.RecordError: a record cannot be read.
      Stopped: a signal has come, and a checkpoint is saved.
    """
    run, first_step = self._run, self._first_step
    facts = self._checkpoints.facts(first_step) if first_step else {}
    if facts.get("owes_validation"):
      report.print_lines(
        console, f"runs the interrupted validation of step {first_step} first"
      )
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
        if run.group.should_stop(number):
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
    _wait_for_old(self._totals)
    self._reporter.advance(number)

  def _follow_up(self, number: int) -> None:
    """Reports, validates and saves after a step, where this is due."""
    config = self._run.config
    self._reporter.saved(self._checkpoints.collect_saved())
    if self._is_due(number, config.log_every_steps):
      self._report(number)
    validates = self._is_due(number, config.eval_every_steps)
    saves = self._is_due(number, config.checkpoint_every_steps)
    if not validates and not saves:
      return
    self._check_losses(number)  # a state after a failed step is not saved
    self._reporter.flush()
    if validates:
      self._validate(number)
    if saves:
      self._checkpoints.save(number, self.state, self._facts)
    self._reporter.resume_clock()

  def _check_losses(self, number: int) -> None:
    """Raises LossNotFinite for a step whose report is not written yet."""
    self._reporter.check()
    if self._totals:
      self._reporter.read_totals(number, self._totals)

  def _is_due(self, number: int, every: int) -> bool:
    return number % every == 0 or number == self._run.num_steps

  def _report(self, number: int) -> None:
    rate = self._rate_scale * self._run.schedule(number - 1)
    self._reporter.training(
      number,
      self._totals,
      learning_rate=float(f"{rate:.6g}"),
      replaced=self._run.group.start_sum(f"replaced/{number}", self._replaced),
    )
    self._totals, self._replaced = [], 0

  def _validate(self, number: int) -> None:
    run = self._run
    batches = pipeline.validation_batches(
      run.validation_records, **self._batch_options()
    )
    result = validate(
      run, self.state, batches, compiles=not self._has_validated
    )
    if result is None:
      self._stop(number, owes_validation=True)
    self._has_validated = True
    totals, replaced = result
    replaced = run.group.start_sum(f"validation_replaced/{number}", replaced)
    self._reporter.validation(number, totals, replaced)
    error = metrics.to_errors(totals)
    # Not after the validation at the end, which a longer run would not have.
    if run.plateau and number % run.config.eval_every_steps == 0:
      optimizer = run.plateau.advance(self.state.optimizer, error)
      self.state = self.state._replace(optimizer=optimizer)
      self._rate_scale = schedules.find_plateau_scale(self.state.optimizer)
    self._facts = {"validation_error": error}

  def _stop(self, number: int, *, owes_validation: bool = False) -> NoReturn:
    """Saves the state after a step, and raises Stopped."""
    self._check_losses(number)
    if number > self._first_step:
      facts = {**self._facts, "owes_validation": owes_validation}
      self._checkpoints.save(number, self.state, facts)
    # Saved first: a report that cannot be written must not cost the state.
    if self._totals:
      self._report(number)
    self._reporter.flush()
    during = "in the validation " if owes_validation else ""
    saved = "which is saved" if number else "nothing is lost"
    raise Stopped(
      f"stopped by {self._run.group.signal_name} {during}after step {number} "
      f"of {self._run.num_steps}, {saved}; the same command resumes from there."
    )

  def _batch_options(self) -> dict[str, Any]:
    run = self._run
    return {
      "batch_size": run.config.batch_size,
      "shardings": run.program.batch_shardings,
      "threads": run.config.data.threads
      or host_batches.default_threads(run.group.num_on_host),
      "batches_ahead": run.config.data.batches_ahead,
    }


def validate(
  run: run_lib.Run,
  state: step_lib.TrainState,
  batches: Iterator[pipeline.Batch],
  *,
  compiles: bool,
) -> tuple[np.ndarray, int] | None:
  """Evaluates a split, with averaged parameters if the optimizer has them.

  Args:
    batches: of the split; closed at the end.
    compiles: whether the first batch takes the time of a compilation.

  Returns:
    `metrics.NAMES` summed over the split, f32[4] or f32[runs, 4], and how many
    images of this process were replaced because their own record could not be
    read. None if a signal has ended the validation early.

  Raises:
    source.RecordError: a record cannot be read.
  """
  totals, replaced = [], 0
  variables = eval_step.find_variables(state)
  with contextlib.closing(batches):
    for images, labels, lost in batches:
      if run.group.should_stop():
        return None
      if compiles and not totals:
        run.group.pause_watchdog()
      totals.append(run.program.evaluate(variables, images, labels))
      _wait_for_old(totals)
      replaced += lost
  return np.sum(jax.device_get(totals), axis=0), replaced


def _wait_for_old(totals: list[jax.Array]) -> None:
  """Waits so that the host is at most `STEPS_AHEAD` steps ahead."""
  jax.block_until_ready(totals[-STEPS_AHEAD - 1 : -STEPS_AHEAD])
