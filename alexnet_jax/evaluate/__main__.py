"""Evaluates trained runs, each by itself and together as an ensemble.

    python -m alexnet_jax.evaluate --workdir=runs/two_device

Top-1 and top-5 error with their confidence intervals, of the center view and of
the ten views of 2012; of several runs also those of their averaged
probabilities. Any layout will do, whichever layout trained them. Nothing is
written but the files asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import rich.console
from absl import app, flags
from ml_collections import config_flags

from alexnet_jax.cli import command
from alexnet_jax.data import augment, host_batches, records, sets
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.evaluate import predict, tables
from alexnet_jax.evaluate import predictions as predictions_lib
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.program import compilation_cache
from alexnet_jax.program import program as program_lib
from alexnet_jax.training import run as run_lib
from alexnet_jax.training import trained_run

# Only for the fields that a run must have; their values are in its workdir.
_FIELDS = command.define_config("configs/default.py")
_WORKDIR = flags.DEFINE_multi_string(
  "workdir",
  [],
  "Of a trained run; several, A,B or --workdir=A --workdir=B, are an ensemble. "
  "A directory of member_0, member_1 and so on stands for all of these.",
)
_VIEWS = flags.DEFINE_list(
  "views",
  ["1", str(augment.VIEWS)],
  "Of each image: 1, the center crop, or 10, whose softmax outputs are "
  "averaged.",
)
_LAYOUT = flags.DEFINE_string(
  "layout", None, "A layout of the catalog. Default: that of each run."
)
_MESH = flags.DEFINE_list(
  "mesh", [], "Devices along axes of the layout, as data=4,column=2."
)
_SPLIT = flags.DEFINE_string(
  "split",
  None,
  "In TFDS's notation. Default: the validation split of the runs.",
)
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size",
  None,
  "Images at once, over all devices; changes no number. Default: that of each "
  "run.",
  lower_bound=1,
)
_CHECKPOINT_STEP = flags.DEFINE_integer(
  "checkpoint_step",
  None,
  "Default: the newest of each run; of a directory of members, the newest that "
  "all of them have.",
)
_PER_CLASS = flags.DEFINE_bool(
  "per_class", False, "Show all classes. Default: the ten worst."
)
_PREDICTIONS = flags.DEFINE_string(
  "predictions",
  None,
  "Write the predictions for every image to this file, .csv or .npz.",
)
_JSON = flags.DEFINE_string("json", None, "Write the tables to this file.")
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Where TFDS keeps its sets. Default: TFDS's own."
)
_SIMULATE_DEVICES = command.define_simulate_devices()
_DISTRIBUTED = command.define_distributed()
_START_TIMEOUT = command.define_start_timeout()
_COMPILATION_CACHE = command.define_compilation_cache()

# Classes shown without --per_class.
_WORST = 10


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  with command.in_one_line(ValueError, TypeError, OSError):
    _check_no_config()
    views = _find_views()
    for flag, endings in (
      (_PREDICTIONS, predictions_lib.ENDINGS),
      (_JSON, (".json",)),
    ):
      if flag.value is not None:
        command.check_path(flag.value, flag=flag.name, endings=endings)
    runs = _find_runs()
    same = {f"--{flag.name}": str(flag.value) for flag in (_VIEWS, _SPLIT)}
    for run in runs:
      same[f"the run in {run.workdir}"] = (
        f"step {run.step}, {run.layout.name}, "
        f"{layout_lib.listed(run.layout.mesh)}, {run.config.batch_size} images"
      )
  with command.start(_DISTRIBUTED, _START_TIMEOUT, same=same) as group:
    with command.in_one_line(
      ValueError, TypeError, OSError, FloatingPointError, group=group
    ):
      _evaluate(runs, views, group)


def _check_no_config() -> None:
  holder = flags.FLAGS["config"]
  if holder.present or config_flags.get_override_values(holder):
    raise ValueError(
      "--config is given, but the config of a run is the one in its workdir. "
      "Set --layout, --mesh, --batch_size or --split for what may differ."
    )


def _find_views() -> list[int]:
  """The values of --views, rising."""
  given = _VIEWS.value
  known = {str(count): count for count in (1, augment.VIEWS)}
  if not given or not {*given} <= {*known} or len({*given}) < len(given):
    raise ValueError(
      f"--views is {','.join(given)!r}, expected 1, {augment.VIEWS} or "
      f"1,{augment.VIEWS}. Set --views."
    )
  return sorted(known[count] for count in given)


def _find_mesh() -> dict[str, int]:
  """The values of --mesh: axis -> devices."""
  mesh = {}
  for item in _MESH.value:
    axis, _, size = item.partition("=")
    if not size.isdecimal() or int(size) < 1:
      raise ValueError(
        f"--mesh has {item!r}, expected an axis and its devices. Set "
        "--mesh=data=4."
      )
    mesh[axis] = int(size)
  return mesh


def _find_runs() -> list[trained_run.TrainedRun]:
  """The runs of --workdir, under the layouts to evaluate them under."""
  paths = [path for value in _WORKDIR.value for path in value.split(",")]
  if not all(paths) or not paths:
    raise ValueError(
      "--workdir names no run, expected one or more. Set "
      "--workdir=runs/two_device."
    )
  common = (
    {}
    if _CHECKPOINT_STEP.value is not None
    else (trained_run.find_common_steps(paths))
  )
  runs = [
    trained_run.read(
      path,
      fields=_FIELDS.value,
      layout=_LAYOUT.value,
      mesh=_find_mesh(),
      batch_size=_BATCH_SIZE.value,
      split=_SPLIT.value,
      step=common.get(path, _CHECKPOINT_STEP.value),
    )
    for path in trained_run.find_workdirs(paths)
  ]
  for run in runs[1:]:
    trained_run.check_alike(runs[0], run)
  return runs


class Opened(NamedTuple):
  """What it takes to ask a run, and what several processes must have alike."""

  program: program_lib.Program
  validation_records: records.Records
  class_names: tuple[str, ...]
  data: dict[str, str | int]


def _open(run: trained_run.TrainedRun) -> Opened:
  """Opens the data of a run, and makes its program for it."""
  builder, statistics = run_lib.open_data(
    run.config, run.network, data_dir=_DATA_DIR.value
  )
  data = {
    "dataset": builder.info.full_name,
    "statistics": statistics.fingerprint(),
  }
  trained_run.check_data(run, data)
  (validation_records,) = sets.open_splits(
    builder,
    (run.config.data.validation_split,),
    stored_size=run.config.data.stored_size,
    unreadable=run.config.data.unreadable,
  )
  try:
    program = run_lib.make_program(
      run.config,
      run.network,
      run.layout,
      num_images=run.found["training_images"],
      statistics=statistics,
    )
  except ValueError as error:
    raise ValueError(
      f"the run in {run.workdir!r}: {error} To evaluate it, set --layout or "
      "--mesh."
    ) from error
  return Opened(
    program,
    validation_records,
    sets.find_class_names(builder),
    data | {"images": len(validation_records)},
  )


def _evaluate(
  runs: Sequence[trained_run.TrainedRun],
  views: Sequence[int],
  group: group_lib.Group,
) -> None:
  """Asks every run, and says what came of it."""
  largest = max((run.layout for run in runs), key=lambda one: one.devices)
  run_lib.settle_devices(largest, group, _SIMULATE_DEVICES.value)
  compilation_cache.open_cache(_COMPILATION_CACHE.value)
  opened = [_open(run) for run in runs]
  for index, one in enumerate(opened):
    found = group.gather(f"data/{index}", one.data)
    for difference in run_lib.find_differences(group, found):
      raise ValueError(difference)
  console = command.make_console(group)
  found = []
  for index, (run, one) in enumerate(zip(runs, opened, strict=True)):
    console.print(
      f"{run.workdir}: step {run.step}, layout {run.layout.name} "
      f"({layout_lib.listed(run.layout.mesh)}), "
      f"{len(one.validation_records):,} images of "
      f"{one.validation_records.source.name}",
      highlight=False,
      soft_wrap=True,
    )
    with command.mute_gloo(group, one.program.mesh):
      data = run.config.data
      predictions, lost = predict.predict_split(
        one.program,
        predict.load_variables(run, one.program),
        one.validation_records,
        name=run.workdir,
        views=views,
        threads=data.threads
        or host_batches.find_threads(sharing=group.num_on_host),
        batches_ahead=data.batches_ahead,
      )
    found.append(predictions)
    if replaced := sum(group.gather(f"replaced/{index}", lost)):
      console.print(f"{replaced:,} replaced", highlight=False)
  lines = tables.make_lines(found)
  if group.is_first:
    _say(console, lines, opened[0].class_names)


def _say(
  console: rich.console.Console,
  lines: Sequence[tables.Line],
  class_names: Sequence[str],
) -> None:
  """Prints the tables, and writes the files."""
  chosen = lines[-1].predictions
  classes = predictions_lib.find_classes(chosen)
  shown = classes
  if not _PER_CLASS.value:
    shown = predictions_lib.find_worst(classes, _WORST)
  command.print_whole(console, tables.table(lines))
  command.print_whole(console, tables.class_table(chosen, shown, class_names))
  console.print()
  if _PREDICTIONS.value is not None:
    predictions_lib.write(
      _PREDICTIONS.value,
      [line.predictions for line in lines if line.predictions is not None],
      class_names,
    )
    console.print(
      f"the predictions are in {_PREDICTIONS.value}", soft_wrap=True
    )
  if _JSON.value is not None:
    with open(_JSON.value, "w") as file:
      json.dump(tables.to_json(lines, classes, class_names), file, indent=2)
    console.print(f"the tables are in {_JSON.value}", soft_wrap=True)


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)
