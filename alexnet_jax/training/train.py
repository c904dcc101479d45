"""A start of a run: compiled, audited, taken up where it stopped, trained."""

from __future__ import annotations

from collections.abc import Callable

import jax
import ml_collections
import rich.console

from alexnet_jax.checkpoints import members
from alexnet_jax.data import source
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.partition import audit
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.program import compiled_step, step, summary
from alexnet_jax.settings import build
from alexnet_jax.training import loop as loop_lib
from alexnet_jax.training import loss_monitor, nonfinite, report
from alexnet_jax.training import run as run_lib


def train(
  run: run_lib.Run,
  console: rich.console.Console,
  *,
  hang_timeout_seconds: float = 0.0,
  make_loop: Callable[..., loop_lib.Loop] = loop_lib.Loop,
) -> step.TrainState:
  """Trains to the end of the run, from its newest checkpoint if it has one.

  Its directories are then free for another run.

  Args:
    run: from `run.prepare`.
    console: for what is said meanwhile.
    hang_timeout_seconds: see `group.Group.start_clock`.
    make_loop: of the arguments of `loop.Loop`; another than that to measure it.

  Returns:
    The final state.

  Raises:
    audit.PlanMismatch: the step does not communicate as planned.
    CheckpointError: no checkpoint is sound, or one cannot be written.
    FloatingPointError: a loss or the state is not finite.
    source.RecordError: a record cannot be read.
    loop.Stopped: a signal has come, and a checkpoint is saved.
  """
  config, group = run.config, run.group
  _introduce(run, console)
  init_key, step_key = run.program.make_keys(config.seed)

  train_step = _compile(run, console)
  # From here on; to read what is there may already wait for ever.
  group.start_clock(
    hang_timeout_seconds=hang_timeout_seconds, folder=run.workdir
  )
  checkpoints = members.open_checkpoints(
    run.workdir,
    run.program,
    keep=config.max_to_keep,
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
    group.pause_watchdog()  # it compiles
    state = run.program.init(init_key)
  reporter = report.Reporter(
    run.workdir if group.is_first else None,
    console,
    first_step=first_step,
    num_steps=run.num_steps,
    watch=make_loss_monitor(config, len(run.train_records), first_step),
  )

  loop = make_loop(
    run,
    train_step=train_step,
    key=step_key,
    first_step=first_step,
    state=state,
    checkpoints=checkpoints,
    reporter=reporter,
  )
  group.begin_steps()
  try:
    loop.take_steps(console)
  except report.LossNotFinite as error:
    checkpoints.close()  # the one that is under way is the last
    saved = checkpoints.latest_step()
    raise nonfinite.explain(run, loop.state, error, saved=saved) from error
  except source.RecordError:
    reporter.flush()  # what the devices have done by now is not lost
    raise
  finally:
    try:
      reporter.saved(checkpoints.close())
    finally:
      reporter.close()
      group.end_steps()
      for lock in run.locks:
        lock.release()
  console.print(f"the run is in {run.workdir}/metrics.jsonl", highlight=False)
  return loop.state


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
  console.print(summary.devices(program.mesh))
  console.print(summary.layout(program))
  console.print(summary.plan(program.plan, batch_size=program.batch_size))
  for line in (
    *(summary.axes(program, run.group.hosts) if several else []),
    *summary.repeated(program.network, program.layout),
    *summary.members(program, run.config.seed),
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
    *summary.verdict(found),
  ):
    console.print(line, soft_wrap=True, highlight=False)
  if not run.config.layout.allow_unplanned:
    audit.check(found)
  return train_step


def make_loss_monitor(
  config: ml_collections.ConfigDict, num_images: int, first_step: int
) -> loss_monitor.LossMonitor:
  """Watches the loss from the end of the warm-up on, for an epoch or more.

  Args:
    config: the config.
    num_images: in the training split.
    first_step: where this start of the run begins.
  """
  epoch, warmup = (
    build.to_steps(config, epochs, num_images)
    for epochs in (1.0, config.optimizer.warmup_epochs)
  )
  return loss_monitor.LossMonitor(
    num_classes=config.network.num_classes,
    until_step=max(first_step, warmup) + max(epoch, loss_monitor.MIN_STEPS),
  )
