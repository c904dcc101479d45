"""A run: everything about it that is known before anything compiles.

From a config to the objects of a run, and the edge at which bad input is
refused. `check` needs neither devices nor data, `make_program` devices only,
`prepare` everything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from alexnet_jax import compilation_cache, compiler_options, optimizer
from alexnet_jax import program as program_lib
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.data import augment, records, sets
from alexnet_jax.data import statistics as statistics_lib
from alexnet_jax.network import catalog as network_catalog
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog, fit, plan, route
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.processes import group as group_lib

# Where the augmentation's numbers come from.
STATISTICS = ("dataset", "published")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """Everything about a run that is known before anything compiles."""

  config: ml_collections.ConfigDict
  group: group_lib.Group
  workdir: str
  program: program_lib.Program
  train_records: records.Records
  validation_records: records.Records
  num_steps: int
  schedule: optax.Schedule
  xla_options: compiler_options.Options
  cache: compilation_cache.Cache


def make_layout(config: ml_collections.ConfigDict) -> layout_lib.Layout:
  """The named layout, with the sizes and placements that a config sets.

  A config that sets every placement has a layout of its own; its name is not
  in the catalogue.

  Raises:
    ValueError: there is no such layout, or a layout of a config's own has the
      name of another.
  """
  fields = config.layout.to_dict()
  name = fields["name"]
  placements = {layer: fields[layer] for layer in layout_lib.LAYERS}
  is_own = all(
    value is not None
    for placement in placements.values()
    for value in placement.values()
  )
  if is_own and name in [named.name for named in catalog.LAYOUTS]:
    raise ValueError(
      f"the config has a layout of its own under the name {name!r}, which the "
      "catalogue has too. Set config.layout.name to another name, or start "
      "from a config that sets the name only."
    )
  if is_own:
    start = layout_lib.Layout(name=name, mesh={})
  else:
    start = catalog.find(name)
  return layout_lib.override(
    start,
    axes=fields["axes"],
    mesh=fields["mesh"],
    placements=placements,
  )


def choose_layouts(
  own: layout_lib.Layout, names: Sequence[str]
) -> list[layout_lib.Layout]:
  """The catalogue with the layout of a config, and of these the named ones.

  Args:
    own: from `make_layout`; takes the place of its namesake.
    names: of --layouts; empty: all.

  Raises:
    ValueError: there is no layout of a name.
  """
  layouts = [
    own if layout.name == own.name else layout for layout in catalog.LAYOUTS
  ]
  if own not in layouts:
    layouts.insert(0, own)
  if not names:
    return layouts
  return [catalog.find(name, layouts, field="--layouts") for name in names]


def make_network(config: ml_collections.ConfigDict) -> wiring.Network:
  """The named wiring, in the size that a config sets."""
  fields = config.network.to_dict()
  return wiring.make_network(
    network_catalog.find(fields.pop("wiring")), **fields
  )


def check(
  config: ml_collections.ConfigDict,
) -> tuple[wiring.Network, layout_lib.Layout]:
  """Checks all that needs neither devices nor data.

  Returns:
    The network, and a layout that fits it.

  Raises:
    ValueError, TypeError: with one line on what to change.
  """
  _check_numbers(config)
  optimizer.check(**config.optimizer)
  layout = make_layout(config)
  network = make_network(config)
  fit.check(layout, network, batch_size=config.batch_size)
  route.find_routes(network, layout, batch_size=config.batch_size)
  _make_augmentation(config, network, None)
  return network, layout


def make_program(
  config: ml_collections.ConfigDict,
  network: wiring.Network,
  layout: layout_lib.Layout,
  *,
  devices: Sequence[jax.Device] | None = None,
  num_images: int | None = None,
  statistics: statistics_lib.Statistics | None = None,
) -> program_lib.Program:
  """The program of a config.

  Args:
    config: the config.
    network: from `check`.
    layout: from `check`, or another that fits the network.
    devices: to compute on; None: those that JAX has.
    num_images: in the training split, for the drops of the learning rate;
      None where nothing is trained: they change neither what a step holds nor
      what it computes or sends.
    statistics: of the training split; None where nothing is trained. Those of
      2012 then stand in, and zeros for a mean image, of the same sizes: these
      change neither what a step holds nor what it sends.

  Raises:
    ValueError: the layout does not fit the devices.
  """
  rule = config.optimizer
  return program_lib.make_program(
    network,
    layout,
    batch_size=config.batch_size,
    augmentation=_make_augmentation(config, network, statistics),
    optimizer=optimizer.make_optimizer(
      *_make_schedules(config, num_images or config.batch_size),
      momentum=rule.momentum,
      weight_decay=rule.weight_decay,
    ),
    precision=config.exchange_precision,
    views=config.validation_views,
    devices=devices,
    # The config orders the axes of its own layout only.
    keep_order=(
      config.layout.axes is not None and config.layout.name == layout.name
    ),
  )


def prepare(
  config: ml_collections.ConfigDict,
  *,
  group: group_lib.Group,
  workdir: str,
  data_dir: str | None,
  simulate_devices: int | None,
  xla_options: str = "auto",
  cache_dir: str | None = compilation_cache.OFF,
) -> Run:
  """Checks everything that can be checked before compiling, in that order.

  Nothing is written before the last check has passed.

  Args:
    config: the config.
    group: the processes of the run.
    workdir: of the run, in a file system that all processes see.
    data_dir: where TFDS keeps its sets; each host may have its own.
    simulate_devices: in each process; None: its share of what the layout needs.
    xla_options: of `compiler_options.MODES`.
    cache_dir: see `compilation_cache.open_cache`.

  Raises:
    ValueError, TypeError, OSError: with one line on what to change.
  """
  network, layout = check(config)
  settle_devices(layout, group, simulate_devices)
  mesh_lib.make_mesh(layout)
  builder, statistics = open_data(config, network, data_dir=data_dir)
  workdir_lib.check(workdir)
  # `digits` is made by now, if it was not there.
  train_records, validation_records = open_splits(config, builder)
  found = describe_data(builder, statistics, train_records, validation_records)
  for difference in find_differences(group, group.gather("data", found)):
    raise ValueError(difference)
  group.first(
    "workdir", lambda: workdir_lib.claim(workdir, config.to_dict(), found)
  )
  workdir_lib.check_claimed(workdir)
  cache = compilation_cache.open_cache(cache_dir)
  num_images = len(train_records)
  schedule, _ = _make_schedules(config, num_images)
  return Run(
    config=config,
    group=group,
    workdir=workdir,
    program=make_program(
      config, network, layout, num_images=num_images, statistics=statistics
    ),
    train_records=train_records,
    validation_records=validation_records,
    num_steps=_to_steps(config, config.num_epochs, num_images),
    schedule=schedule,
    xla_options=compiler_options.choose(jax.devices(), mode=xla_options),
    cache=cache,
  )


def settle_devices(
  layout: layout_lib.Layout,
  group: group_lib.Group,
  simulate_devices: int | None,
) -> None:
  """Settles what devices this process has; before JAX is first used.

  Args:
    layout: of the run.
    group: the processes of the run.
    simulate_devices: in each process; None: its share of what the layout needs.
  """
  mesh_lib.simulate_devices(
    simulate_devices or -(-layout.devices // group.count),
    only_cpu=simulate_devices is not None,
  )


def find_same(config: ml_collections.ConfigDict) -> dict[str, str]:
  """The fields that all processes of a run must have alike."""
  return {
    f"config.{name}": str(value)
    for name, value in workdir_lib.flatten(config.to_dict()).items()
    if name != "data.threads"
  }


def open_data(
  config: ml_collections.ConfigDict,
  network: wiring.Network,
  *,
  data_dir: str | None,
) -> tuple[Any, statistics_lib.Statistics]:
  """The set of a config, that fits its network; writes nothing.

  Returns:
    The builder of the set, and the statistics of its training split.

  Raises:
    ValueError, FileNotFoundError: it is not there, or does not fit.
  """
  builder = sets.open_builder(config.data.name, data_dir=data_dir)
  sets.check_classes(builder, config.network.num_classes)
  statistics = _find_statistics(config, builder)
  _make_augmentation(config, network, statistics)
  return builder, statistics


def describe_data(
  builder,
  statistics: statistics_lib.Statistics,
  train_records: records.Records,
  validation_records: records.Records,
) -> dict[str, str | int]:
  """What all processes of a run must have alike, and a workdir keeps."""
  return {
    "dataset": builder.info.full_name,
    "training_images": len(train_records),
    "validation_images": len(validation_records),
    "statistics": statistics.fingerprint(),
  }


def find_differences(
  group: group_lib.Group, found: Sequence[Mapping[str, object] | None]
) -> list[str]:
  """A line for each difference in the data of processes.

  Args:
    group: the processes.
    found: by each of them, from `describe_data`; None: nothing, and then it is
      not compared.
  """
  there = [index for index, data in enumerate(found) if data is not None]
  return [
    f"{what.replace('_', ' ')}: {value} in {group.label(index)}, but "
    f"{found[there[0]][what]} in {group.label(there[0])}. Prepare the same set "
    "for every process, or set --data_dir."
    for index in there
    for what, value in found[index].items()
    if value != found[there[0]][what]
  ]


def open_splits(
  config: ml_collections.ConfigDict, builder
) -> tuple[records.Records, records.Records]:
  """The training and the validation split of a set.

  Args:
    config: the config.
    builder: from `sets.open_builder`, and accepted by `sets.check_classes`.

  Raises:
    ValueError, OSError: a split cannot be opened.
  """
  return sets.open_splits(
    builder,
    (config.data.train_split, config.data.validation_split),
    stored_size=config.data.stored_size,
    unreadable=config.data.unreadable,
  )


def _to_steps(
  config: ml_collections.ConfigDict, epochs: float, num_images: int
) -> int:
  return math.ceil(epochs * num_images / config.batch_size)


def _make_schedules(
  config: ml_collections.ConfigDict, num_images: int
) -> tuple[optax.Schedule, optax.Schedule]:
  """Learning rates of the kernels and of the biases."""
  rule = config.optimizer
  kernels, biases = (
    optimizer.make_schedule(
      rate,
      drop_steps=[_to_steps(config, epoch, num_images) for epoch in drops],
      drop_factor=rule.drop_factor,
    )
    for rate, drops in (
      (rule.learning_rate, rule.drop_epochs),
      (rule.learning_rate * rule.bias_rate, rule.bias_drop_epochs),
    )
  )
  return kernels, biases


def _find_statistics(
  config: ml_collections.ConfigDict, builder
) -> statistics_lib.Statistics:
  """Of the training split, or those of 2012, as a config has it."""
  if config.augment.statistics == "published":
    return statistics_lib.PUBLISHED
  found = sets.find_statistics(builder)
  if found is None:
    raise ValueError(
      f"dataset {builder.name!r} keeps no statistics of its pixels; set "
      "config.augment.statistics=published and config.augment.mean=(R, G, B) "
      "to those of its training split."
    )
  return found


def _make_augmentation(
  config: ml_collections.ConfigDict,
  network: wiring.Network,
  statistics: statistics_lib.Statistics | None,
) -> augment.Augment:
  """The augmentation; without statistics, with some of the same sizes."""
  fields = config.augment.to_dict()
  source, mean = fields.pop("statistics"), fields.pop("mean")
  side = config.data.stored_size
  if source not in STATISTICS:
    raise ValueError(
      f"augment.statistics is {source!r}, expected one of "
      f"{', '.join(STATISTICS)}. Set config.augment.statistics."
    )
  if statistics is None:
    statistics = dataclasses.replace(
      statistics_lib.PUBLISHED,
      mean_image=np.zeros((side, side, 3), np.float32),
    )
  if mean is not None:
    if fields["mean_from"] != "channel":
      raise ValueError(
        f"augment.mean is {mean}, but augment.mean_from is "
        f"{fields['mean_from']!r}, which does not read it, expected None. Set "
        "config.augment.mean_from=channel, or leave config.augment.mean unset."
      )
    statistics = dataclasses.replace(statistics, mean=mean)
  return augment.Augment(
    stored_size=side,
    image_size=network.image_size,
    statistics=statistics,
    **fields,
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
    "data.batches_ahead": config.data.batches_ahead,
  }
  if config.data.threads is not None:
    positive["data.threads"] = config.data.threads
  for name, value in positive.items():
    if not value > 0:
      raise ValueError(
        f"{name} is {value}, expected a number above 0. Set config.{name}."
      )
  if config.data.unreadable not in records.UNREADABLE:
    raise ValueError(
      f"data.unreadable is {config.data.unreadable!r}, expected one of "
      f"{', '.join(records.UNREADABLE)}. Set config.data.unreadable."
    )
  if config.validation_views not in (1, augment.VIEWS):
    raise ValueError(
      f"validation_views is {config.validation_views}, expected 1 or "
      f"{augment.VIEWS}. Set config.validation_views."
    )
  if config.exchange_precision not in plan.PRECISIONS:
    raise ValueError(
      f"exchange_precision is {config.exchange_precision!r}, expected one of "
      f"{', '.join(plan.PRECISIONS)}. Set config.exchange_precision."
    )
