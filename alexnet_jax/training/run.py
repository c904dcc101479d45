"""A run: everything about it that is known before anything compiles.

From a config to the objects of a run, and the edge at which bad input is
refused. `settings.check` needs neither devices nor data, `make_program` here
devices only, `prepare` everything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import optax

from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.data import records, sets
from alexnet_jax.data import statistics as statistics_lib
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.distributed import shared_filesystem
from alexnet_jax.network import implementations as implementations_lib
from alexnet_jax.network import wiring
from alexnet_jax.optim import schedules
from alexnet_jax.partition import ensemble as ensemble_lib
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.program import compilation_cache, compiler_options
from alexnet_jax.program import devices as devices_lib
from alexnet_jax.program import program as program_lib
from alexnet_jax.settings import build, settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """Everything about a run that is known before anything compiles.

  Attributes:
    schedule: steps before this one -> learning rate of the kernels, but for
      what the plateau rule makes of it.
    plateau: the rule that validations drive; None: there is none.
    locks: of the directories, in the process that writes them.
    changes: of the config since its last start, a line for each.
  """

  config: ml_collections.ConfigDict
  group: group_lib.Group
  workdir: str
  program: program_lib.Program
  train_records: records.Records
  validation_records: records.Records
  num_steps: int
  schedule: optax.Schedule
  plateau: schedules.Plateau | None
  xla_options: compiler_options.Options
  cache: compilation_cache.Cache
  locks: tuple[workdir_lib.Lock, ...]
  changes: tuple[str, ...]


def make_program(
  config: ml_collections.ConfigDict,
  network: wiring.Network,
  layout: layout_lib.Layout,
  *,
  devices: Sequence[jax.Device] | None = None,
  num_images: int | None = None,
  statistics: statistics_lib.Statistics | None = None,
  implementations: str = implementations_lib.AUTO,
) -> program_lib.Program:
  """The program of a config.

  Args:
    config: the config.
    network: from `settings.check`.
    layout: from `settings.check`, or another that fits the network.
    devices: to compute on; None: those that JAX has.
    num_images: in the training split, for what happens at some epoch; None
      where nothing is trained: they change neither what a step holds nor
      what it computes or sends.
    statistics: of the training split; None where nothing is trained. Those of
      2012 then stand in, and zeros for a mean image, of the same sizes: these
      change neither what a step holds nor what it sends.
    implementations: see `implementations.choose`.

  Raises:
    ValueError: the layout does not fit the devices.
  """
  return program_lib.make_program(
    network,
    layout,
    batch_size=config.batch_size,
    augmentation=build.make_augmentation(
      config, network, statistics, num_images or config.batch_size
    ),
    optimizer=build.make_optimizer(config, num_images or config.batch_size),
    norms=config.optimizer.trust_coefficient is not None,
    label_smoothing=config.label_smoothing,
    precision=config.exchange_dtype,
    compute_dtype=config.compute_dtype,
    implementations=implementations,
    views=config.validation_views,
    devices=devices,
    members=config.ensemble,
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
  implementations: str = implementations_lib.AUTO,
  cache_dir: str | None = compilation_cache.OFF,
  allow_config_changes: bool = False,
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
    implementations: see `implementations.choose`.
    cache_dir: see `compilation_cache.open_cache`.
    allow_config_changes: whether a run may go on with another config.

  Raises:
    ValueError, TypeError, OSError: with one line on what to change.
  """
  network, layout = settings.check(config)
  check_processes(config, group)
  ensemble = ensemble_lib.Ensemble(config.ensemble)
  settle_devices(ensemble.widen(layout), group, simulate_devices)
  devices_lib.check_start()
  ensemble_lib.make_mesh(layout, ensemble)
  builder, statistics = open_data(config, network, data_dir=data_dir)
  workdir_lib.check(workdir)
  # `digits` is made by now, if it was not there.
  train_records, validation_records = open_splits(config, builder)
  found = describe_data(builder, statistics, train_records, validation_records)
  num_images = len(train_records)
  num_steps = find_num_steps(config, num_images)
  program = make_program(
    config,
    network,
    layout,
    num_images=num_images,
    statistics=statistics,
    implementations=implementations,
  )
  devices_lib.check_memory(program, batches_ahead=config.data.batches_ahead)
  cache = compilation_cache.open_cache(cache_dir)
  for difference in find_differences(group, group.gather("data", found)):
    raise ValueError(difference)
  fields = config.to_dict()
  accept_for = program if allow_config_changes else None
  claim = (
    workdir_lib.acquire(workdir, fields, found, accept_for=accept_for)
    if group.is_first
    else None
  )
  changes = group.first("workdir", lambda: claim.changes)
  for index, problem in enumerate(
    shared_filesystem.find_problems(group, workdir)
  ):
    if problem is not None:
      raise OSError(f"{group.label(index)}: {problem}")
  return Run(
    config=config,
    group=group,
    workdir=workdir,
    program=program,
    train_records=train_records,
    validation_records=validation_records,
    num_steps=num_steps,
    schedule=build.make_reported_schedule(config, num_images),
    plateau=build.make_plateau(config),
    xla_options=compiler_options.choose(jax.devices(), mode=xla_options),
    cache=cache,
    locks=claim.locks if claim else (),
    changes=tuple(changes),
  )


def find_num_steps(config: ml_collections.ConfigDict, num_images: int) -> int:
  """Steps of the whole run.

  Raises:
    ValueError: more than devices can count, in int32.
  """
  num_steps = build.to_steps(config, config.num_epochs, num_images)
  if num_steps > build.LAST_STEP:
    raise ValueError(
      f"num_epochs is {config.num_epochs:g}, which are {num_steps:,} steps, "
      f"expected at most {build.LAST_STEP:,}. Set config.num_epochs."
    )
  return num_steps


def check_processes(
  config: ml_collections.ConfigDict, group: group_lib.Group
) -> None:
  """Refuses an ensemble in several processes.

  Raises:
    ValueError: names the field.
  """
  if config.ensemble > 1 and group.count > 1:
    raise ValueError(
      f"ensemble is {config.ensemble}, and there are {group.count} processes, "
      "expected one for all members. Set config.ensemble=1, or start one "
      "process."
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
  statistics = build.find_statistics(config, builder)
  build.make_augmentation(config, network, statistics, config.batch_size)
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
