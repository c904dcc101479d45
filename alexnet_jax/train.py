"""The training loop: steps, reports, validations, checkpoints; no arithmetic.

The only place that enters the mesh.
"""

from __future__ import annotations

import jax
import numpy as np
import rich.console

from alexnet_jax import checkpoint, report, step, tables
from alexnet_jax import run as run_lib
from alexnet_jax.data import pipeline
from alexnet_jax.partition import audit, specs
from alexnet_jax.partition import mesh as mesh_lib

# How far the host runs ahead of the devices: enough that they never wait for
# it, and little enough that reports and batches keep their pace.
STEPS_AHEAD = 2


def train(run: run_lib.Run, console: rich.console.Console) -> step.TrainState:
  """Trains to the end of the run, from its newest checkpoint if it has one.

  Returns:
    The final state.

  Raises:
    audit.PlanMismatch: the step does not communicate as planned.
    FloatingPointError: a loss is not finite.
  """
  config = run.config
  _introduce(run, console)
  init_key, step_key = jax.random.split(jax.random.key(config.seed))

  def init(key: jax.Array) -> step.TrainState:
    return step.init_state(run.network, run.specs, run.optimizer, key)

  with jax.set_mesh(run.mesh):
    like = specs.with_shardings(run.mesh, jax.eval_shape(init, init_key))
    train_step = _compile(run, like, step_key, console)
    eval_step = step.make_eval_step(
      run.network, run.specs, run.exchange, run.augmentation
    )
  checkpoints = checkpoint.Checkpoints(
    run.workdir, keep=config.keep_checkpoints
  )
  first_step = checkpoints.latest_step() or 0
  if first_step:
    state = checkpoints.restore(like)
    console.print(
      f"goes on after step {first_step} of {run.num_steps}"
      if first_step < run.num_steps
      else f"finished already, at step {first_step}; set config.num_epochs to "
      "go on, or --workdir to start another run",
      soft_wrap=True,
    )
  else:
    with jax.set_mesh(run.mesh):
      state = jax.jit(init)(init_key)
  reporter = report.Reporter(
    run.workdir, console, first_step=first_step, num_steps=run.num_steps
  )

  def is_due(number: int, every: int) -> bool:
    return number % every == 0 or number == run.num_steps

  try:
    totals = []
    batches = pipeline.train_batches(
      run.train_records,
      seed=config.seed,
      first_step=first_step,
      num_steps=run.num_steps,
      **_batch_options(run),
    )
    for number, batch in enumerate(batches, start=first_step + 1):
      state, total = train_step(state, step_key, *batch)
      totals.append(total)
      # The host stays this close ahead of the devices, which never wait.
      jax.block_until_ready(totals[-STEPS_AHEAD - 1 : -STEPS_AHEAD])
      reporter.advance(number)
      if is_due(number, config.report_every_steps):
        rate = run.schedule(number - 1)
        reporter.training(number, totals, learning_rate=float(f"{rate:.6g}"))
        totals = []
      validates = is_due(number, config.validate_every_steps)
      saves = is_due(number, config.checkpoint_every_steps)
      if validates or saves:
        reporter.flush()
        if validates:
          reporter.validation(number, evaluate(run, eval_step, state))
        if saves:
          checkpoints.save(number, state)
        reporter.resume_clock()
  finally:
    reporter.close()
    checkpoints.close()
  console.print(f"the run is in {run.workdir}/metrics.jsonl", highlight=False)
  return state


def evaluate(
  run: run_lib.Run, eval_step: step.EvalStep, state: step.TrainState
) -> np.ndarray:
  """Sums `metrics.NAMES` over the whole validation split: f32[4]."""
  batches = pipeline.validation_batches(
    run.validation_records, **_batch_options(run)
  )
  with jax.set_mesh(run.mesh):
    totals = [eval_step(state.parameters, *batch) for batch in batches]
  return np.sum(jax.device_get(totals), axis=0)


def _introduce(run: run_lib.Run, console: rich.console.Console) -> None:
  """Shows what is about to run."""
  if mesh_lib.is_simulated(run.mesh):
    console.print(
      f"no accelerator is used: the {run.mesh.size} devices are simulated on "
      "this machine's CPU",
      highlight=False,
    )
  console.print(tables.devices(run.mesh))
  console.print(tables.layout(run.network, run.layout, run.specs))
  console.print(tables.plan(run.plan, batch_size=run.config.batch_size))
  for line in tables.repeated(run.network, run.layout):
    console.print(line, soft_wrap=True, highlight=False)


def _compile(
  run: run_lib.Run,
  state: step.TrainState,
  key: jax.Array,
  console: rich.console.Console,
) -> step.TrainStep:
  """Compiles the training step once, and audits what came of it."""
  side = run.config.data.stored_size
  shapes = ((side, side, 3), np.uint8), ((), np.int32)
  batch = [
    jax.ShapeDtypeStruct((run.config.batch_size, *shape), dtype, sharding=split)
    for (shape, dtype), split in zip(shapes, _shardings(run), strict=True)
  ]
  traced = step.make_train_step(
    run.network, run.specs, run.exchange, run.augmentation, run.optimizer
  ).trace(state, key, *batch)
  compiled = traced.lower().compile()
  found = audit.audit_step(
    run.plan,
    jaxpr=traced.jaxpr,
    hlo=compiled.as_text(),
    mesh=dict(run.mesh.shape),
  )
  console.print()
  for line in tables.verdict(found):
    console.print(line, soft_wrap=True, highlight=False)
  if not run.config.layout.allow_unplanned:
    audit.check(found)
  return compiled


def _shardings(run: run_lib.Run):
  return specs.to_shardings(run.mesh, (run.specs.images, run.specs.labels))


def _batch_options(run: run_lib.Run) -> dict:
  return {
    "batch_size": run.config.batch_size,
    "shardings": _shardings(run),
    "threads": run.config.data.threads,
    "batches_ahead": run.config.data.batches_ahead,
  }
