"""The loop: steps, reports, validations, checkpoints; no arithmetic."""

from __future__ import annotations

import contextlib

import jax
import numpy as np
import rich.console

from alexnet_jax import (
  averages,
  compiled_step,
  member_runs,
  metrics,
  plateau,
  recipe,
  report,
  sick,
  step,
  tables,
)
from alexnet_jax import run as run_lib
from alexnet_jax.data import blocks, pipeline, source
from alexnet_jax.partition import audit
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.processes import group as group_lib

# How far the host runs ahead of the devices: enough that they never wait for
# it, and little enough that reports and batches keep their pace.
STEPS_AHEAD = 2


class Stopped(Exception):
  """A SIGTERM has ended the run early; it can go on."""


def train(run: run_lib.Run, console: rich.console.Console) -> step.TrainState:
  """Trains to the end of the run, from its newest checkpoint if it has one.

  Its directories are then free for another run.

  Returns:
    The final state.

  Raises:
    audit.PlanMismatch: the step does not communicate as planned.
    FloatingPointError: a loss is not finite.
    source.RecordError: a record cannot be read.
    Stopped: a SIGTERM has come, and a checkpoint is saved.
  """
  config, group = run.config, run.group
  group.heed_sigterm()
  _introduce(run, console)
  init_key, step_key = run.program.make_keys(config.seed)

  train_step = _compile(run, console)
  checkpoints = member_runs.open_checkpoints(
    run.workdir, run.program, keep=config.keep_checkpoints
  )
  first_step = checkpoints.latest_step() or 0
  _check_first_step(group, first_step)
  if first_step:
    state = checkpoints.restore(run.program.abstract_state)
    console.print(
      f"goes on after step {first_step} of {run.num_steps}"
      if first_step < run.num_steps
      else f"finished already, at step {first_step}; set --workdir to start "
      "another run, or config.num_epochs higher where the rate allows it",
      soft_wrap=True,
    )
  else:
    state = run.program.init(init_key)
  reporter = report.Reporter(
    run.workdir if group.is_first else None,
    console,
    first_step=first_step,
    num_steps=run.num_steps,
    watch=recipe.make_loss_watch(config, len(run.train_records), first_step),
  )

  totals, replaced = [], 0
  rate_scale = plateau.find_scale(state.optimizer)

  def is_due(number: int, every: int) -> bool:
    return number % every == 0 or number == run.num_steps

  def report_training(number: int) -> None:
    nonlocal totals, replaced
    reporter.training(
      number,
      totals,
      learning_rate=float(f"{rate_scale * run.schedule(number - 1):.6g}"),
      replaced=group.total(f"replaced/{number}", replaced),
    )
    totals, replaced = [], 0

  try:
    batches = pipeline.train_batches(
      run.train_records,
      seed=recipe.find_order_seed(config),
      first_step=first_step,
      num_steps=run.num_steps,
      **_batch_options(run),
    )
    with contextlib.closing(batches):
      for number, batch in enumerate(batches, start=first_step + 1):
        if group.stops_at(number):
          if totals:
            report_training(number - 1)
          reporter.flush()
          checkpoints.save(number - 1, state)
          raise Stopped(
            f"stopped by SIGTERM after step {number - 1} of {run.num_steps}, "
            "which is saved; the same command goes on from there."
          )
        state, total = train_step(state, step_key, batch.images, batch.labels)
        totals.append(total)
        replaced += batch.replaced
        # The host stays this close ahead of the devices, which never wait.
        jax.block_until_ready(totals[-STEPS_AHEAD - 1 : -STEPS_AHEAD])
        reporter.advance(number)
        if is_due(number, config.report_every_steps):
          report_training(number)
        validates = is_due(number, config.validate_every_steps)
        saves = is_due(number, config.checkpoint_every_steps)
        if validates or saves:
          reporter.flush()
          if totals:  # of a step that is wrong, nothing is saved
            report.check_losses(number, totals)
          if validates:
            totals_of_all, lost = evaluate(run, state)
            lost = group.total(f"validation_replaced/{number}", lost)
            reporter.validation(number, totals_of_all, lost)
            # Not of the one at the end, which a longer run would not have.
            if run.plateau and number % config.validate_every_steps == 0:
              state = _heed_validation(run, state, totals_of_all)
              rate_scale = plateau.find_scale(state.optimizer)
          if saves:
            checkpoints.save(number, state)
          reporter.resume_clock()
  except report.LossNotFinite as error:
    checkpoints.close()  # the one that is under way is the last
    saved = checkpoints.latest_step()
    raise sick.explain(run, state, error, saved=saved) from error
  except source.RecordError:
    reporter.flush()  # what the devices have done by now is not lost
    raise
  finally:
    reporter.close()
    checkpoints.close()
    for lock in run.locks:
      lock.release()
  console.print(f"the run is in {run.workdir}/metrics.jsonl", highlight=False)
  return state


def evaluate(
  run: run_lib.Run, state: step.TrainState
) -> tuple[np.ndarray, int]:
  """Goes through the whole validation split, with averaged parameters if any.

  Returns:
    `metrics.NAMES` summed over it, f32[4], or f32[members, 4] of several
    members of an ensemble, and the images of this process
    whose own record could not be read.

  Raises:
    source.RecordError: a record cannot be read.
  """
  totals, replaced = [], 0
  variables = averages.find_variables(state)
  batches = pipeline.validation_batches(
    run.validation_records, **_batch_options(run)
  )
  with contextlib.closing(batches):
    for images, labels, lost in batches:
      totals.append(run.program.evaluate(variables, images, labels))
      jax.block_until_ready(totals[-STEPS_AHEAD - 1 : -STEPS_AHEAD])
      replaced += lost
  return np.sum(jax.device_get(totals), axis=0), replaced


def _heed_validation(
  run: run_lib.Run, state: step.TrainState, totals: np.ndarray
) -> step.TrainState:
  """Tells the plateau rule the error of a validation."""
  error = metrics.to_means(totals)["top1_error"]
  return state._replace(optimizer=run.plateau.advance(state.optimizer, error))


def _check_first_step(group: group_lib.Group, first_step: int) -> None:
  """Refuses processes that would go on from different steps.

  Raises:
    OSError: the checkpoints of two processes differ.
  """
  for index, found in enumerate(group.gather("first_step", first_step)):
    if found != first_step:
      raise OSError(
        f"the newest checkpoint is that of step {found} in "
        f"{group.label(index)}, and of step {first_step} here. Set --workdir "
        "to a directory that all hosts share."
      )


def _introduce(run: run_lib.Run, console: rich.console.Console) -> None:
  """Shows what is about to run."""
  program, several = run.program, run.group.count > 1
  if mesh_lib.is_simulated(program.mesh):
    where = "on this machine's CPU"
    if several:
      where = f"by {run.group.count} processes on CPUs"
    console.print(
      f"no accelerator is used: the {program.mesh.size} devices are simulated "
      f"{where}",
      highlight=False,
    )
  console.print(tables.devices(program.mesh))
  console.print(tables.layout(program))
  console.print(tables.plan(program.plan, batch_size=program.batch_size))
  for line in (
    *(tables.axes(program, run.group.hosts) if several else []),
    *tables.repeated(program.network, program.layout),
    *tables.members(program, run.config.seed),
    *run.changes,
  ):
    console.print(line, soft_wrap=True, highlight=False)


def _compile(
  run: run_lib.Run, console: rich.console.Console
) -> jax.stages.Compiled:
  """Compiles the training step once, and audits what came of it."""
  with run.cache.watch("the training step") as compilation:
    train_step, found = compiled_step.compile_step(
      run.program, options=run.xla_options.used
    )
  console.print()
  for line in (
    *run.xla_options.lines(),
    *compilation.lines(),
    *tables.verdict(found),
  ):
    console.print(line, soft_wrap=True, highlight=False)
  if not run.config.layout.allow_unplanned:
    audit.check(found)
  return train_step


def _batch_options(run: run_lib.Run) -> dict:
  return {
    "batch_size": run.config.batch_size,
    "shardings": run.program.batch_shardings,
    "threads": run.config.data.threads
    or blocks.find_threads(sharing=run.group.num_on_host),
    "batches_ahead": run.config.data.batches_ahead,
  }
