"""Makes the objects of a run from its config, and refuses bad input.

All of this happens before anything compiles. `settings.check` needs neither
devices nor data, `check` needs the data set if the config leaves the number of
classes to it, `make_program` needs devices only, `prepare` needs everything.

`sets` is imported where a set is opened: it imports TFDS, which takes a third
of a second, and predictions need no set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import ml_collections
import optax

from alexnet_jax.checkpoints import checkpoint, members
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.data import statistics as statistics_lib
from alexnet_jax.distributed import environment, shared_filesystem
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.network import implementations as implementations_lib
from alexnet_jax.network import wiring
from alexnet_jax.optim import schedules
from alexnet_jax.partition import ensemble as ensemble_lib
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.program import compilation_cache, compiler_options, profiler
from alexnet_jax.program import devices as devices_lib
from alexnet_jax.program import program as program_lib
from alexnet_jax.settings import build, settings
from alexnet_jax.settings import fields as fields_lib
from alexnet_jax.training import run_data, warm_start

if TYPE_CHECKING:
  from alexnet_jax.data import records


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """Everything about a run that is known before anything compiles.

  Attributes:
    schedule: steps before this one -> learning rate of the kernels, before the
      plateau rule scales it.
    plateau: the rule that the validation errors drive; None: there is none.
    start: what the run starts with from another one; None: nothing.
    trace: of some of its steps; None: there is none.
    locks: of the workdirs, in the process that writes them.
    changes: lines on a network that is another than the published one, on
      variables without effect, and on fields that have changed since the last
      start.
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
  start: warm_start.WarmStart | None
  trace: profiler.Request | None
  locks: tuple[workdir_lib.Lock, ...]
  changes: tuple[str, ...]

  def open_checkpoints(
    self, workdir: str | None = None
  ) -> checkpoint.Checkpoints:
    """Opens the checkpoints of the run, or equal ones in another workdir."""
    return members.open_checkpoints(
      workdir or self.workdir,
      self.program,
      keep=self.config.max_to_keep,
      best=self.config.keep_best,
      every=self.config.keep_every_steps,
      group=self.group,
    )


def check(
  config: ml_collections.ConfigDict, *, data_dir: str | None
) -> tuple[wiring.Network, layout_lib.Layout]:
  """Checks a config as `settings.check` does, once it has a number of classes.

  Args:
    config: if its `network.num_classes` is None, this sets it to that of the
      data set, so that everything after it sees a number.
    data_dir: where TFDS keeps its sets.

  Raises:
    ValueError, TypeError, OSError: with one line on what to change.
  """
  settings.check_fields(config)
  if config.network.num_classes is None:
    from alexnet_jax.data import sets

    builder = sets.open_builder(config.data.name, data_dir=data_dir)
    config.network.num_classes = sets.count_classes(builder)
  return settings.check(config)


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
  """Makes the program of a config.

  Args:
    config, network, layout: from `settings.check`; also another layout that
      fits the network.
    num_images: in the training split, to convert epochs to steps; None if
      nothing is trained: memory, operations and bytes of a step do not depend
      on it.
    statistics: of the training split; None if nothing is trained. Those of
      2012, and zeros for a mean image, then take their place: memory and bytes
      of a step depend only on their sizes, which are the same.

  Raises:
    ValueError: the layout does not fit the devices.
  """
  augmentation = build.make_augmentation(
    config, network, statistics, num_images or config.batch_size
  )
  return program_lib.make_program(
    network,
    layout,
    batch_size=config.batch_size,
    augmentation=augmentation,
    optimizer=build.make_optimizer(config, num_images or config.batch_size),
    norms=config.optimizer.trust_coefficient is not None,
    label_smoothing=config.label_smoothing,
    exchange_dtype=config.exchange_dtype,
    compute_dtype=config.compute_dtype,
    implementations=implementations,
    views=1 if config.validation_views == 1 else augmentation.num_views,
    devices=devices,
    members=config.ensemble,
    keep_order=settings.keeps_order(config, layout),
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
  trace: profiler.Request | None = None,
) -> Run:
  """Checks everything that can be checked before compiling.

  Nothing is written before the last check has passed.

  Args:
    workdir: in a file system that all processes see.
    data_dir: where TFDS keeps its sets; each host may have its own.
    simulate_devices: see `start_devices`.
    xla_options: of `compiler_options.MODES`.
    cache_dir: see `compilation_cache.open_cache`.
    trace: of steps that the run must take, from its newest checkpoint on.

  Raises:
    ValueError, TypeError, OSError: with one line on what to change.
  """
  from alexnet_jax.data import sets

  # Before the user is sent to prepare a data set.
  workdir_lib.check_not_imported(workdir)
  network, layout = check(config, data_dir=data_dir)
  start_devices(config, layout, group, simulate_devices)
  # Refuses a layout that needs more devices than there are.
  ensemble_lib.make_mesh(layout, ensemble_lib.Ensemble(config.ensemble))
  builder, statistics = open_data(config, network, data_dir=data_dir)
  workdir_lib.check_writable(workdir)
  # `digits` is made by now, if it was not there.
  train_records, validation_records = open_splits(config, builder)
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
  own_step = group.run_in_first(
    "own_step", lambda: members.find_latest_step(workdir, config.ensemble)
  )
  if trace is not None:
    steps = trace.choose_steps(own_step or 0, num_steps)
    trace = dataclasses.replace(trace, steps=steps)
  origin = warm_start.find_origin(config, workdir)
  start = None
  if own_step is None and config.init_from.workdir is not None:
    start = warm_start.read(
      config, network, group=group, workdir=workdir, origin=origin
    )
  cache = compilation_cache.open_cache(cache_dir)
  # Last: it reads records, which takes seconds.
  found = fingerprint_data(
    builder, statistics, train_records, validation_records
  )
  for difference in compare_data(group, group.gather("data", found)):
    raise ValueError(difference)
  found |= origin if start is None else start.origin
  data = run_data.RunData(
    class_names=sets.find_class_names(builder), statistics=statistics
  )
  acquired = None
  if group.is_first:
    acquired = members.acquire(
      workdir,
      config.to_dict(),
      found,
      may_change=fields_lib.find_changeable(config.optimizer.schedule),
      accept_for=program if allow_config_changes else None,
    )
    for folder in acquired.folders:
      run_data.write(folder, data)
  changes = group.run_in_first("workdir", lambda: acquired.changes)
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
    start=start,
    trace=trace,
    locks=acquired.locks if acquired else (),
    changes=(
      *settings.describe_published(network),
      *environment.describe_unused(),
      *changes,
    ),
  )


def find_num_steps(config: ml_collections.ConfigDict, num_images: int) -> int:
  """Returns the number of steps of a run.

  Raises:
    ValueError: more than an int32 on the devices can count.
  """
  num_steps = build.to_steps(config, config.num_epochs, num_images)
  if num_steps > build.LAST_STEP:
    raise ValueError(
      f"num_epochs is {config.num_epochs:g}, which are {num_steps:,} steps, "
      f"expected at most {build.LAST_STEP:,}. Set config.num_epochs."
    )
  return num_steps


def start_devices(
  config: ml_collections.ConfigDict,
  layout: layout_lib.Layout,
  group: group_lib.Group,
  simulate_devices: int | None,
) -> None:
  """Starts JAX's devices, which are simulated on the CPU where there are none.

  Call it before JAX is first used.

  Args:
    simulate_devices: per process, even if there is an accelerator; None: as
      many as the layout needs, if there is none.

  Raises:
    ValueError: an ensemble is to run in several processes.
    OSError: JAX cannot use the devices.
  """
  if config.ensemble > 1 and group.count > 1:
    raise ValueError(
      f"ensemble={config.ensemble} runs in a single process, but there are "
      f"{group.count} processes. Set config.ensemble=1, or start one process."
    )
  mesh_lib.simulate_devices(
    simulate_devices or -(-config.ensemble * layout.devices // group.count),
    only_cpu=simulate_devices is not None,
  )
  devices_lib.check_start()


def open_data(
  config: ml_collections.ConfigDict,
  network: wiring.Network,
  *,
  data_dir: str | None,
) -> tuple[Any, statistics_lib.Statistics]:
  """Opens the data set of a config, and its statistics; writes nothing.

  Raises:
    ValueError, FileNotFoundError: it does not exist, or does not fit the
      network.
  """
  from alexnet_jax.data import sets

  builder = sets.open_builder(config.data.name, data_dir=data_dir)
  sets.check_classes(builder, config.network.num_classes)
  statistics = statistics_lib.PUBLISHED
  if config.augment.statistics != "published":
    statistics = sets.find_statistics(builder)
    if statistics is None:
      raise ValueError(
        f"dataset {builder.name!r} has no statistics of its pixels; set "
        "config.augment.statistics=published and config.augment.mean=(R, G, B) "
        "to the mean of its training split."
      )
  build.make_augmentation(config, network, statistics, config.batch_size)
  return builder, statistics


def fingerprint_data(
  builder,
  statistics: statistics_lib.Statistics,
  train_records: records.Records,
  validation_records: records.Records,
) -> dict[str, str | int | None]:
  """Returns facts that all processes must agree on; a workdir keeps them.

  None for what is not known.
  """
  return {
    "dataset": builder.info.full_name,
    "training_images": len(train_records),
    "validation_images": len(validation_records),
    "statistics": statistics.fingerprint(),
    "training_records": train_records.fingerprint(),
    "validation_records": validation_records.fingerprint(),
    "environment": environment.describe_recorded(),
  }


def compare_data(
  group: group_lib.Group, found: Sequence[Mapping[str, object] | None]
) -> list[str]:
  """Returns a line for each difference between the data of processes.

  Args:
    found: by each of them, from `fingerprint_data`; None: not compared. Nor is
      a fact of None.
  """
  differences = []
  first: dict[str, int] = {}  # fact -> the first process that knows it
  for index, data in enumerate(found):
    for what, value in (data or {}).items():
      if value is None:
        continue
      other = first.setdefault(what, index)
      if value != found[other][what]:
        differences.append(
          f"{what.replace('_', ' ')}: {value} in {group.label(index)}, but "
          f"{found[other][what]} in {group.label(other)}. Prepare the same set "
          "for every process, or set --data_dir."
        )
  return differences


def open_splits(
  config: ml_collections.ConfigDict, builder
) -> tuple[records.Records, records.Records]:
  """Opens the training and the validation split; see `sets.open_splits`."""
  from alexnet_jax.data import sets

  return sets.open_splits(
    builder,
    (config.data.train_split, config.data.validation_split),
    stored_size=config.data.stored_size,
    unreadable=config.data.unreadable,
  )
