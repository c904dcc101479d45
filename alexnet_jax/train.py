"""The loop: steps, reports, validations, checkpoints; no arithmetic."""

from __future__ import annotations

import contextlib
from typing import NoReturn

import jax
import rich.console

from alexnet_jax import (
  compiled_step,
  member_runs,
  metrics,
  plateau,
  recipe,
  report,
  step,
  tables,
  validation,
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
  """A signal has ended the run early; it can go on."""


def train(
  run: run_lib.Run,
  console: rich.console.Console,
  *,
  stuck_seconds: float = 0.0,
) -> step.TrainState:
  """Trains to the end of the run, from its newest checkpoint if it has one.

  Args:
    run: from `run.prepare`.
    console: for what is said meanwhile.
    stuck_seconds: see `group.Group.begin_steps`.

  Returns:
    The final state.

  Raises:
    audit.PlanMismatch: the step does not communicate as planned.
    CheckpointError: no checkpoint is sound, or one cannot be written.
    FloatingPointError: a loss or the state is not finite.
    source.RecordError: a record cannot be read.
    Stopped: a signal has come, and a checkpoint is saved.
  """
  config, group = run.config, run.group
  _introduce(run, console)
  init_key, step_key = run.program.make_keys(config.seed)

  train_step = _compile(run, console)
  checkpoints = member_runs.open_checkpoints(
    run.workdir,
    run.program,
    keep=config.keep_checkpoints,
    best=config.keep_best,
    every=config.keep_every_steps,
    group=group,
  )
  _check_first_step(group, checkpoints.latest_step() or 0)
  found = checkpoints.resume(
    run.program.abstract_state,
    lambda line: console.print(line, soft_wrap=True, highlight=False),
  )
  first_step, state = found or (0, None)
  if first_step:
    console.print(
      f"goes on after step {first_step} of {run.num_steps}"
      if first_step < run.num_steps
      else f"finished already, at step {first_step}; set --workdir to start "
      "another run, or config.num_epochs higher where the rate allows it",
      soft_wrap=True,
    )
  if state is None:
    state = run.program.init(init_key)
  reporter = report.Reporter(
    run.workdir if group.is_first else None,
    console,
    first_step=first_step,
    num_steps=run.num_steps,
  )

  totals, replaced = [], 0
  rate_scale = plateau.find_scale(state.optimizer)
  validated = False

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

  def validate(number: int) -> dict:
    nonlocal state, rate_scale, validated
    batches = pipeline.validation_batches(
      run.validation_records, **_batch_options(run)
    )
    found = validation.validate(run, state, batches, compiles=not validated)
    if found is None:
      stop(number, owes_validation=True)
    validated = True
    totals_of_all, lost = found
    lost = group.total(f"validation_replaced/{number}", lost)
    reporter.validation(number, totals_of_all, lost)
    # Not of the one at the end, which a longer run would not have.
    if run.plateau and number % config.validate_every_steps == 0:
      state = validation.heed(run, state, totals_of_all)
      rate_scale = plateau.find_scale(state.optimizer)
    return {"validation_error": metrics.to_errors(totals_of_all)}

  def stop(number: int, *, owes_validation: bool = False) -> NoReturn:
    if totals:
      report_training(number)
    reporter.flush()
    if number > first_step:
      checkpoints.save(number, state, {"owes_validation": owes_validation})
    where = "in the validation " if owes_validation else ""
    saved = "which is saved" if number else "where nothing is lost"
    raise Stopped(
      f"stopped by {group.signal_name} {where}after step {number} of "
      f"{run.num_steps}, {saved}; the same command goes on from there."
    )

  group.begin_steps(stuck_seconds=stuck_seconds, folder=run.workdir)
  try:
    if first_step and checkpoints.facts(first_step).get("owes_validation"):
      console.print(f"first the validation that step {first_step} owes")
      validate(first_step)
      reporter.resume_clock()
    batches = pipeline.train_batches(
      run.train_records,
      seed=recipe.find_order_seed(config),
      first_step=first_step,
      num_steps=run.num_steps,
      **_batch_options(run),
    )
    with contextlib.closing(batches):
      for number, batch in enumerate(batches, start=first_step + 1):
        if group.is_stopping(number):
          stop(number - 1)
        state, total = train_step(state, step_key, batch.images, batch.labels)
        totals.append(total)
        replaced += batch.replaced
        # The host stays this close ahead of the devices, which never wait.
        jax.block_until_ready(totals[-STEPS_AHEAD - 1 : -STEPS_AHEAD])
        reporter.advance(number)
        reporter.saved(checkpoints.check())
        if is_due(number, config.report_every_steps):
          report_training(number)
        validates = is_due(number, config.validate_every_steps)
        saves = is_due(number, config.checkpoint_every_steps)
        if validates or saves:
          reporter.flush()
          facts = {}
          if validates:
            facts = validate(number)
          if saves:
            checkpoints.save(number, state, facts)
          reporter.resume_clock()
  except source.RecordError:
    reporter.flush()  # what the devices have done by now is not lost
    raise
  finally:
    try:
      reporter.saved(checkpoints.close())
    finally:
      reporter.close()
      group.end_steps()
  console.print(f"the run is in {run.workdir}/metrics.jsonl", highlight=False)
  return state


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
