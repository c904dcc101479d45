"""From a config to a trained network: checks, then objects, then the loop."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile

import jax
import ml_collections
import numpy as np
import optax
import rich.console

from alexnet_jax import checkpoint, optimizer, report, step, tables
from alexnet_jax import metrics as metrics_lib
from alexnet_jax.data import augment, pipeline, records
from alexnet_jax.network import wiring
from alexnet_jax.partition import audit, catalog, exchange, plan, route, specs
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import mesh as mesh_lib


STEPS_AHEAD = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """Everything about a run that is known before anything compiles."""

  config: ml_collections.ConfigDict
  workdir: str
  network: wiring.Network
  layout: layout_lib.Layout
  mesh: jax.sharding.Mesh
  specs: specs.Specs
  exchange: exchange.MeshExchange
  plan: tuple[plan.Exchange, ...]
  augmentation: augment.Augment
  train_records: records.Records
  validation_records: records.Records
  num_steps: int
  schedule: optax.Schedule
  optimizer: optax.GradientTransformation


def make_layout(config: ml_collections.ConfigDict) -> layout_lib.Layout:
  """The named layout, with the sizes and placements that a config sets."""
  fields = config.layout.to_dict()
  return layout_lib.override(
    catalog.find(fields["name"]),
    mesh=fields["mesh"],
    placements={name: fields[name] for name in layout_lib.LAYERS},
  )


def prepare(
  config: ml_collections.ConfigDict,
  *,
  workdir: str,
  data_dir: str | None,
  simulate_devices: int | None,
) -> Run:
  """Checks everything that can be checked before compiling, in that order.

  Nothing is written before the last check has passed.

  Raises:
    ValueError, TypeError, OSError: with one line on what to change.
  """
  _check_counts(config)
  layout = make_layout(config)
  network = wiring.make_network(**config.network)
  batch_size = config.batch_size
  layout.check(network, batch_size=batch_size)
  routes = route.find_routes(network, layout, batch_size=batch_size)
  array_specs = specs.make_specs(network, routes)
  augmentation = augment.Augment(
    stored_size=config.data.stored_size,
    image_size=network.image_size,
    **config.augment,
  )
  mesh_lib.simulate_devices(
    simulate_devices or layout.devices, only_cpu=simulate_devices is not None
  )
  mesh = mesh_lib.make_mesh(layout)
  builder = records.open_builder(config.data.name, data_dir=data_dir)
  records.check_classes(builder, config.network.num_classes)
  _make_workdir(workdir)
  train_records, validation_records = records.open_splits(
    builder,
    (config.data.train_split, config.data.validation_split),
    stored_size=config.data.stored_size,
  )

  def to_steps(epochs: float) -> int:
    return math.ceil(epochs * len(train_records) / batch_size)

  rule = config.optimizer
  schedule, bias_schedule = (
    optimizer.make_schedule(
      rate, drop_steps=[*map(to_steps, drops)], drop_factor=rule.drop_factor
    )
    for rate, drops in (
      (rule.learning_rate, rule.drop_epochs),
      (rule.learning_rate * rule.bias_rate, rule.bias_drop_epochs),
    )
  )
  return Run(
    config=config,
    workdir=workdir,
    network=network,
    layout=layout,
    mesh=mesh,
    specs=array_specs,
    exchange=exchange.MeshExchange(routes, array_specs),
    plan=plan.make_plan(
      network,
      layout,
      batch_size=batch_size,
      loss_values=len(metrics_lib.NAMES),
    ),
    augmentation=augmentation,
    train_records=train_records,
    validation_records=validation_records,
    num_steps=to_steps(config.num_epochs),
    schedule=schedule,
    optimizer=optimizer.make_optimizer(
      schedule,
      bias_schedule,
      momentum=rule.momentum,
      weight_decay=rule.weight_decay,
    ),
  )


def train(run: Run, console: rich.console.Console) -> step.TrainState:
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
  checkpoints = checkpoint.Checkpoints(run.workdir, keep=config.keep_checkpoints)
  first_step = checkpoints.latest_step() or 0
  if first_step:
    state = checkpoints.restore(like)
    console.print(f"goes on after step {first_step} of {run.num_steps}")
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
      if is_due(number, config.report_every_steps):
        rate = float(run.schedule(number - 1))
        reporter.training(number, totals, learning_rate=rate)
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
  console.print(
    f"finished after step {run.num_steps}: {run.workdir}/metrics.jsonl"
  )
  return state


def evaluate(
  run: Run, eval_step: step.EvalStep, state: step.TrainState
) -> np.ndarray:
  """Sums `metrics.NAMES` over the whole validation split: f32[4]."""
  batches = pipeline.validation_batches(
    run.validation_records, **_batch_options(run)
  )
  with jax.set_mesh(run.mesh):
    totals = [eval_step(state.parameters, *batch) for batch in batches]
  return np.sum(jax.device_get(totals), axis=0)


def _check_counts(config: ml_collections.ConfigDict) -> None:
  fields = {
    "num_epochs": config.num_epochs,
    "report_every_steps": config.report_every_steps,
    "validate_every_steps": config.validate_every_steps,
    "checkpoint_every_steps": config.checkpoint_every_steps,
    "keep_checkpoints": config.keep_checkpoints,
    "data.stored_size": config.data.stored_size,
    "data.threads": config.data.threads,
    "data.batches_ahead": config.data.batches_ahead,
  }
  for name, value in fields.items():
    if not value > 0:
      raise ValueError(
        f"{name} is {value}, expected a number above 0. Set config.{name}."
      )


def _make_workdir(workdir: str) -> None:
  try:
    os.makedirs(workdir, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):
      pass
  except OSError as error:
    raise OSError(
      f"the workdir {workdir!r} cannot be written: {error.strerror}. "
      "Set --workdir."
    ) from error


def _introduce(run: Run, console: rich.console.Console) -> None:
  """Shows what is about to run."""
  if mesh_lib.is_simulated(run.mesh):
    console.print(
      f"no accelerator is used: the {run.mesh.size} devices are simulated on "
      "this machine's CPU"
    )
  console.print(tables.devices(run.mesh))
  console.print(tables.layout(run.network, run.layout, run.specs))
  console.print(tables.plan(run.plan, batch_size=run.config.batch_size))
  for line in tables.repeated(run.network, run.layout):
    console.print(line)


def _compile(
  run: Run,
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
  for line in tables.verdict(found):
    console.print(line)
  if not run.config.layout.allow_unplanned:
    audit.check(found)
  return compiled


def _shardings(run: Run):
  return specs.to_shardings(run.mesh, (run.specs.images, run.specs.labels))


def _batch_options(run: Run) -> dict:
  return {
    "batch_size": run.config.batch_size,
    "shardings": _shardings(run),
    "threads": run.config.data.threads,
    "batches_ahead": run.config.data.batches_ahead,
  }
