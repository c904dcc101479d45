"""The training loop: steps, and the reports, validations, checkpoints due."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
import rich.console

from alexnet_jax.checkpoints import checkpoint, metadata
from alexnet_jax.data import host_batches, pipeline, source
from alexnet_jax.figures import confusion, kernels
from alexnet_jax.optim import schedules
from alexnet_jax.program import eval_step, metrics
from alexnet_jax.program import step as step_lib
from alexnet_jax.settings import build
from alexnet_jax.training import report
from alexnet_jax.training import run as run_lib

# For the others to come where this process has failed; they may hang instead.
_AGREE_SECONDS = 30.0
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
    self._first_step = self._saved_step = self._step = first_step
    self._checkpoints, self._reporter = checkpoints, reporter
    self._totals: list[jax.Array] = []  # of each step since the last report
    self._replaced = 0  # since the last report
    self._rate_scale = schedules.find_plateau_scale(state.optimizer)
    self._has_validated = False
    self._said_no_kernels = False
    self._facts: dict[str, Any] = {}  # on the state, for its checkpoint
    # Whether all processes raise an error of one of them at the same place.
    self._raises_together = run.group.count == 1

  def run_steps(self, console: rich.console.Console) -> None:
    """Runs all steps to the end of the run.

    An error after a step, as in a validation or a report, ends the run with the
    state saved, unless a loss or the state is not finite or the error is that
    of a save. Of several processes, all take part in a save: they do so if all
    come to the error, as in a validation, but not if one cannot read its
    training records.

    Raises:
      CheckpointError: a checkpoint cannot be written.
      FloatingPointError: a loss or the state is not finite.
      OSError: the reports cannot be written.
      source.RecordError: a record cannot be read.
      Stopped: a signal has come, and a checkpoint is saved.
    """
    try:
      self._run_steps(console)
    except (FloatingPointError, metadata.CheckpointError, Stopped):
      raise
    except Exception as error:
      if self._raises_together:
        self._rescue(console)
      elif isinstance(error, source.RecordError):
        self._reporter.flush()  # the steps taken so far are not lost
      raise

  def _rescue(self, console: rich.console.Console) -> None:
    """Saves the newest state before an error ends the run.

    Raises:
      LossNotFinite: of a step before the error, which may be its cause.
    """
    number, checkpoints = self._step, self._checkpoints
    if number == self._saved_step:
      return
    try:
      self._check_losses(number)
    except jax.errors.JaxRuntimeError:
      return  # the step itself failed: there is no state after it
    try:
      if self._run.group.count == 1 and not self._reporter.is_in_place:
        with contextlib.suppress(metadata.CheckpointError):
          checkpoints.wait()  # it may have been under way to the old place
        folder = self._reporter.find_workdir()
        if folder is None:
          return
        checkpoints = self._run.open_checkpoints(folder)
      checkpoints.save(number, self.state, self._facts)
      checkpoints.wait()
      line = "is saved; the same command resumes from there"
    except Exception as error:  # the first error is the one to raise
      line = f"cannot be saved: {' '.join(str(error).split())[:500]}"
    report.print_lines(console, f"the state after step {number} {line}")
    if checkpoints is not self._checkpoints:
      with contextlib.suppress(metadata.CheckpointError):
        checkpoints.close()
    if self._totals:
      self._report(number)
    self._reporter.flush()
    # The first process to end ends the others, which may still save.
    self._run.group.gather("rescued", number)

  def _run_steps(self, console: rich.console.Console) -> None:
    """As `run_steps`; does not save after an error."""
    run, first_step = self._run, self._first_step
    facts = self._checkpoints.facts(first_step) if first_step else {}
    if facts.get("owes_validation"):
      report.print_lines(
        console, f"runs the interrupted validation of step {first_step} first"
      )
      self._facts = facts
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
    self._step = number
    validates = self._is_due(number, self._run.config.eval_every_steps)
    self._facts = {"owes_validation": True} if validates else {}
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
      self._check_reports()
      return
    self._check_losses(number)  # a state after a failed step is not saved
    self._reporter.flush()
    self._check_reports()
    if validates:
      self._validate(number)
    if saves:
      self._save(number)
    self._reporter.resume_clock()

  def _save(self, number: int) -> None:
    self._reporter.check_workdir()  # a save would make it again
    self._check_reports()
    self._checkpoints.save(number, self.state, self._facts)
    self._saved_step = number

  def _check_reports(self) -> None:
    """Ends the run if a report could not be written.

    Only process 0 of several knows: it asks all to stop and to save.
    """
    error = self._reporter.error
    if error is None:
      return
    if self._raises_together or isinstance(error, report.WorkdirGone):
      raise error
    self._run.group.request_stop(f"an error of {self._run.group.label()}")

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
    errors: list[Exception] = []
    batches = pipeline.validation_batches(
      run.validation_records,
      **self._batch_options(),
      # A process that came without its batches would leave the others waiting.
      on_error=None if self._raises_together else errors.append,
    )
    try:
      result = validate(
        run, self.state, batches, compiles=not self._has_validated
      )
    except Exception as error:
      errors.append(error)
    else:
      if result is None:  # in all processes
        self._stop(number)
    self._raise_together(f"validation_error/{number}", errors)
    self._has_validated = True
    totals, replaced, outcomes = result
    replaced = run.group.start_sum(f"validation_replaced/{number}", replaced)
    self._reporter.validation(number, totals, replaced)
    self._show_confusion(number, outcomes)
    self._show_kernels(number)
    self._check_reports()
    error = metrics.to_errors(totals)
    # Not after the validation at the end, which a longer run would not have.
    if run.plateau and number % run.config.eval_every_steps == 0:
      optimizer = run.plateau.advance(self.state.optimizer, error)
      self.state = self.state._replace(optimizer=optimizer)
      self._rate_scale = schedules.find_plateau_scale(self.state.optimizer)
    self._facts = {"validation_error": error}

  def _show_confusion(
    self, number: int, outcomes: Sequence[tuple[jax.Array, jax.Array]]
  ) -> None:
    """Adds the confusion matrix of a validation to TensorBoard.

    Not of several processes, which would have to send their parts, nor of
    several runs, nor of more classes than a picture shows.
    """
    classes = self._run.program.network.layers[-1].features
    if not (
      outcomes
      and self._reporter.has_events
      and self._run.group.count == 1
      and outcomes[0][0].ndim == 2  # of one run: [copies, N]
      and classes <= confusion.MOST_CELLS
    ):
      return
    # The first of the equal copies.
    predicted = [np.asarray(one)[0] for one, _ in outcomes]
    matrix = confusion.count(
      np.concatenate([np.asarray(labels) for _, labels in outcomes]),
      np.concatenate(predicted),
      num_classes=classes,
    )
    self._reporter.images(number, {"confusion": confusion.to_pixels(matrix)})

  def _show_kernels(self, number: int) -> None:
    """Adds the kernels of the first layer to TensorBoard.

    A weight is a pixel; TensorBoard enlarges them. The devices have nothing to
    do right after a validation, and this process reads what its own ones have:
    no process waits for another.
    """
    program = self._run.program
    layer = program.network.layers[0]
    if not self._reporter.has_events or layer.kind != "conv":
      return
    variables = eval_step.find_variables(self.state)
    stacked = read_whole(variables[layer.name]["kernel"])
    if stacked is None:
      if not self._said_no_kernels:
        self._reporter.say(
          number,
          f"TensorBoard gets no pictures of {layer.name}'s kernels: this "
          "process has a part of them only",
        )
      self._said_no_kernels = True
      return
    # f32[window, window, channels, maps], or those of several runs.
    images = {}
    for index in np.ndindex(stacked.shape[:-4]):
      kernel = kernels.find_seen(
        stacked[index],
        color_order=program.augmentation.color_order,
        color_stds=program.augmentation.statistics.stds,
      )
      name = "/".join(["kernels", layer.name, *map(str, index)])
      images[name] = kernels.tile_columns(kernel, program.network.columns)
    self._reporter.images(number, images)

  def _raise_together(self, name: str, errors: list[Exception]) -> None:
    """Raises in all processes the error of one; each name only once in a run.

    Args:
      errors: of this process; the first counts.
    """
    own = errors[0] if errors else None
    if self._run.group.count > 1:
      options = {"timeout_seconds": _AGREE_SECONDS} if own else {}
      found: list[str | None] = []
      with contextlib.suppress(*((TimeoutError,) if own else ())):
        said = own and (str(own) or type(own).__name__)
        found = self._run.group.gather(name, said, **options)
      self._raises_together = any(text is not None for text in found)
      for index, text in enumerate(found):
        if own is None and text is not None:
          own = OSError(f"{self._run.group.label(index)}: {text}")
    if own is not None:
      raise own

  def _stop(self, number: int) -> NoReturn:
    """Saves the state after a step, and raises Stopped."""
    self._check_losses(number)
    if number > self._first_step:
      self._save(number)
    # Saved first: a report that cannot be written must not cost the state.
    if self._totals:
      self._report(number)
    self._reporter.flush()
    if self._reporter.error is not None:
      raise self._reporter.error
    during = "in the validation " if "owes_validation" in self._facts else ""
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
) -> tuple[np.ndarray, int, list[tuple[jax.Array, jax.Array]]] | None:
  """Evaluates a split, with averaged parameters if the optimizer has them.

  Args:
    batches: of the split; closed at the end.
    compiles: whether the first batch takes the time of a compilation.

  Returns:
    `metrics.NAMES` summed over the split, f32[4] or f32[runs, 4]; how many
    images of this process were replaced because their own record could not be
    read; and of each batch the predicted classes and the labels, on the
    devices. None if a signal has ended the validation early.

  Raises:
    source.RecordError: a record cannot be read.
  """
  totals, replaced, outcomes = [], 0, []
  variables = eval_step.find_variables(state)
  with contextlib.closing(batches):
    for images, labels, lost in batches:
      if run.group.should_stop():
        return None
      if compiles and not totals:
        run.group.pause_watchdog()
      evaluated = run.program.evaluate(variables, images, labels)
      totals.append(evaluated.totals)
      outcomes.append((evaluated.predicted, labels))
      _wait_for_old(totals)
      replaced += lost
  return np.sum(jax.device_get(totals), axis=0), replaced, outcomes


def read_whole(array: jax.Array) -> np.ndarray | None:
  """Reads an array from the devices of this process.

  Returns:
    None: these do not have all of it.
  """
  shards = {
    tuple((place.start, place.stop) for place in shard.index): shard
    for shard in array.addressable_shards
  }
  if sum(shard.data.size for shard in shards.values()) < array.size:
    return None
  whole = np.empty(array.shape, array.dtype)
  for shard in shards.values():
    whole[shard.index] = shard.data
  return whole


def _wait_for_old(totals: list[jax.Array]) -> None:
  """Waits so that the host is at most `STEPS_AHEAD` steps ahead."""
  jax.block_until_ready(totals[-STEPS_AHEAD - 1 : -STEPS_AHEAD])
