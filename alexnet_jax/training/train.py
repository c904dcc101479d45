"""Trains a run: compiles and audits its step, resumes it, runs the loop."""

from __future__ import annotations

from collections.abc import Callable

import jax
import rich.console

from alexnet_jax.checkpoints import reports
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.partition import audit as audit_lib
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.program import compiled_step, metrics, profiler, step, summary
from alexnet_jax.program import timeline as timeline_lib
from alexnet_jax.settings import build
from alexnet_jax.training import loop as loop_lib
from alexnet_jax.training import loss_monitor, nonfinite, report
from alexnet_jax.training import run as run_lib
from alexnet_jax.training import tracker as tracker_lib


def train(
  run: run_lib.Run,
  console: rich.console.Console,
  *,
  hang_timeout_seconds: float = 0.0,
  make_tracker: tracker_lib.MakeTracker | None = None,
  make_loop: Callable[..., loop_lib.Loop] = loop_lib.Loop,
) -> step.TrainState:
  """Trains to the end of the run, from its newest checkpoint if it has one.

  The locks of its workdirs are released at the end.

  Args:
    hang_timeout_seconds: see `group.Group.start_watchdog`.
    make_tracker: a tracker's function, see `tracker`; called in the first
      process, and closed at the end. A run that has no step to take does not
      start its tracker.
    make_loop: takes the arguments of `loop.Loop`; a subclass can measure it.

  Raises:
    audit.PlanMismatch: the step does not communicate as planned.
    CheckpointError: no checkpoint is intact, or one cannot be written.
    FloatingPointError: a loss or the state is not finite.
    OSError: the reports cannot be written.
    source.RecordError: a record cannot be read.
    TrackerError: the tracker cannot start.
    loop.Stopped: a signal has come, and a checkpoint is saved.
  """
  group = run.group
  _introduce(run, console)
  init_key, step_key = run.program.make_keys(run.config.seed)
  checkpoints = run.open_checkpoints()
  latest = checkpoints.latest_step() or 0
  if group.is_first and not latest:
    _check_not_emptied(run.workdir)
  # A finished run has nothing to compile, unless that checkpoint is damaged.
  is_finished = latest >= run.num_steps
  fields = workdir_lib.flatten_config(run.config.to_dict(), {})

  def start_tracker() -> tracker_lib.Tracking | None:
    if make_tracker is None or not group.is_first:
      return None
    return tracker_lib.Tracking(make_tracker, fields, run.workdir)

  tracker = None if is_finished else start_tracker()
  try:
    train_step = None if is_finished else _compile(run, console)
    # Before a checkpoint is read, which may hang; listing them above is not
    # watched.
    group.start_watchdog(
      hang_timeout_seconds=hang_timeout_seconds, folder=run.workdir
    )
    _check_first_step(group, latest)
    resumed = checkpoints.resume(
      run.program.abstract_state,
      lambda line: report.print_lines(console, line),
    )
    first_step, state = resumed or (0, None)
    if first_step:
      report.print_lines(
        console,
        f"resumes after step {first_step} of {run.num_steps}"
        if first_step < run.num_steps
        else f"finished already, at step {first_step}; set --workdir to start "
        "another run, or a higher config.num_epochs if the schedule allows it",
      )
    if train_step is None and first_step < run.num_steps:
      group.pause_watchdog()
      tracker = start_tracker()
      train_step = _compile(run, console)
    if state is None:
      group.pause_watchdog()  # it compiles
      state = run.program.init(init_key)
      if run.start is not None:
        state = run.start.apply(state)
        _show_start(run, console)
    reporter = report.Reporter(
      run.workdir if group.is_first else None,
      console,
      first_step=first_step,
      num_steps=run.num_steps,
      batch_size=run.config.batch_size,
      num_images=len(run.train_records),
      fields=fields,
      tracker=tracker,
      monitor=_make_loss_monitor(run, first_step),
      run_name=run.program.run_name,
      top_k=metrics.choose_top_k(run.config.network.num_classes),
    )
    recorder = None
    if run.trace is not None and train_step is not None:
      recorder = _make_recorder(run, console, first_step)
      train_step = recorder.wrap(train_step)
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
      try:
        loop.run_steps(console)
      finally:
        if recorder is not None and not recorder.close():
          report.print_lines(
            console,
            f"the run ends before step {run.trace.steps[-1]}, without a trace",
          )
    except report.LossNotFinite as error:
      checkpoints.close()  # waits for the save that is under way
      saved = checkpoints.latest_step()
      raise nonfinite.explain(run, loop.state, error, saved=saved) from error
    finally:
      try:
        reporter.saved(checkpoints.close())
      finally:
        reporter.close()
        group.end_steps()
        for lock in run.locks:
          lock.release()
    if reporter.error is not None:
      raise reporter.error
    report.print_lines(console, f"the run is in {run.workdir}/{reports.FILE}")
    return loop.state
  finally:
    if tracker is not None:
      report.print_lines(console, *tracker.close())


def _check_not_emptied(workdir: str) -> None:
  """Refuses to start a run over whose checkpoints are gone.

  Args:
    workdir: has no checkpoints.

  Raises:
    OSError: the reports know of a checkpoint, and there is none.
  """
  saved = reports.find_saved_step(workdir)
  if saved is not None:
    raise OSError(
      f"there is no checkpoint in the workdir {workdir!r}, but its "
      f"{reports.FILE} says that step {saved} was saved. Restore the folder "
      f"checkpoints to resume; set --workdir, or remove {reports.FILE}, to "
      "start over."
    )


def _check_first_step(group: group_lib.Group, first_step: int) -> None:
  """Refuses processes that would resume from different steps.

  Raises:
    OSError: the checkpoints of two processes differ.
  """
  for index, other in enumerate(group.gather("first_step", first_step)):
    if other != first_step:
      raise OSError(
        f"the newest checkpoint is that of step {other} in "
        f"{group.label(index)}, but of step {first_step} here. Set --workdir "
        "to a directory that all hosts share."
      )


def _introduce(run: run_lib.Run, console: rich.console.Console) -> None:
  """Prints devices, layout, plan, and what else is known before compiling."""
  program, several = run.program, run.group.count > 1
  if mesh_lib.is_simulated(program.mesh):
    simulated = "on this machine's CPU"
    if several:
      simulated = f"by {run.group.count} processes on CPUs"
    report.print_lines(
      console,
      f"no accelerator is used: the {program.mesh.size} devices are simulated "
      f"{simulated}",
    )
  console.print(summary.make_device_table(program.mesh))
  console.print(summary.make_layout_table(program), highlight=False)
  console.print(summary.make_plan_table(program), highlight=False)
  report.print_lines(
    console,
    *(summary.describe_axes(program, run.group.hosts) if several else []),
    *summary.describe_repeated(program),
    *summary.describe_idle_overlaps(program),
    *program.describe_runs(run.config.seed),
    *run.changes,
  )


def _show_start(run: run_lib.Run, console: rich.console.Console) -> None:
  """Prints layer by layer what is taken from another run."""
  report.print_lines(console, "", run.start.describe())
  console.print(run.start.make_table(), highlight=False)
  report.print_lines(console, *run.start.describe_differences(run.config))


def _compile(
  run: run_lib.Run, console: rich.console.Console
) -> jax.stages.Compiled:
  """Compiles and audits the training step."""
  with run.cache.watch("the training step") as compilation:
    train_step, audit = compiled_step.compile_step(
      run.program, options=run.xla_options.used
    )
  report.print_lines(
    console,
    "",
    *run.xla_options.lines(),
    *compilation.lines(),
    *summary.describe_audit(audit),
  )
  if not run.config.layout.allow_unplanned:
    audit_lib.check(audit)
  return train_step


def _make_recorder(
  run: run_lib.Run, console: rich.console.Console, first_step: int
) -> profiler.Recorder:
  """Makes what traces steps; process 0 prints its own part."""

  def show(timeline: timeline_lib.Timeline) -> None:
    for table in timeline.tables:
      console.print(table, highlight=False)
    report.print_lines(
      console,
      "",
      *timeline.lines(),
      profiler.describe_files(run.trace.folder, process=run.group.index),
    )

  return profiler.Recorder(
    run.trace.folder,
    steps=run.trace.steps,
    program=run.program,
    first_step=first_step,
    process=run.group.index,
    show=show,
  )


def _make_loss_monitor(
  run: run_lib.Run, first_step: int
) -> loss_monitor.LossMonitor:
  """Makes the monitor, which waits for the warm-up and an epoch or more."""
  epoch, warmup = (
    build.to_steps(run.config, epochs, len(run.train_records))
    for epochs in (1.0, run.config.optimizer.warmup_epochs)
  )
  return loss_monitor.LossMonitor(
    num_classes=run.config.network.num_classes,
    until_step=max(first_step, warmup) + max(epoch, loss_monitor.MIN_STEPS),
  )
