"""A run: everything about it that is known before anything compiles.

`prepare` goes from a config to the objects of a run, and is the edge at which
bad input is refused.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import ml_collections
import optax

from alexnet_jax import metrics, optimizer
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.data import augment, records, sets
from alexnet_jax.network import catalog as network_catalog
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog, exchange, plan, route, specs
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import mesh as mesh_lib


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


def make_network(config: ml_collections.ConfigDict) -> wiring.Network:
  """The named wiring, in the size that a config sets."""
  fields = config.network.to_dict()
  return wiring.make_network(
    network_catalog.find(fields.pop("wiring")), **fields
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
  _check_numbers(config)
  rule = config.optimizer
  optimizer.check(**rule)
  layout = make_layout(config)
  network = make_network(config)
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
  builder = sets.open_builder(config.data.name, data_dir=data_dir)
  sets.check_classes(builder, config.network.num_classes)
  workdir_lib.claim(workdir, config.to_dict())
  train_records, validation_records = sets.open_splits(
    builder,
    (config.data.train_split, config.data.validation_split),
    stored_size=config.data.stored_size,
  )

  def to_steps(epochs: float) -> int:
    return math.ceil(epochs * len(train_records) / batch_size)

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
      loss_values=len(metrics.NAMES),
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


def _check_numbers(config: ml_collections.ConfigDict) -> None:
  if not 0 <= config.seed < 2**32:
    raise ValueError(
      f"seed is {config.seed}, expected 0 to 2^32 - 1. Set config.seed."
    )
  positive = {
    "num_epochs": config.num_epochs,
    "report_every_steps": config.report_every_steps,
    "validate_every_steps": config.validate_every_steps,
    "checkpoint_every_steps": config.checkpoint_every_steps,
    "keep_checkpoints": config.keep_checkpoints,
    "data.stored_size": config.data.stored_size,
    "data.threads": config.data.threads,
    "data.batches_ahead": config.data.batches_ahead,
  }
  for name, value in positive.items():
    if not value > 0:
      raise ValueError(
        f"{name} is {value}, expected a number above 0. Set config.{name}."
      )
