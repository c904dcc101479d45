"""Evaluates trained runs, each by itself and together as an ensemble.

    python -m alexnet_jax.evaluate --workdir=runs/two_device

Shows top-1 and top-5 errors with confidence intervals, for the center crop and
for the ten views of the paper; for several runs also those of their averaged
probabilities. A split without labels has predictions only. The layout need not
be the one that trained a run. Writes nothing but the files of --predictions and
--json.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import Any

import rich.console
from absl import app, flags
from ml_collections import config_flags

from alexnet_jax.checkpoints import members
from alexnet_jax.cli import command
from alexnet_jax.data import augment, host_batches, records
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.evaluate import tables
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.program import compilation_cache
from alexnet_jax.training import evaluation, loaded_run, trained_run
from alexnet_jax.training import predictions as predictions_lib
from alexnet_jax.training import run as run_lib

# Only for the fields that a run must have; their values are in its workdir.
_FIELDS = command.define_config("configs/default.py", settable=False)
_WORKDIR = command.define_path(
  "workdir",
  "Directory of a trained run. Several (--workdir=A --workdir=B) are also "
  "evaluated as an ensemble. A directory with member_0, member_1 and so on "
  "stands for all of these.",
  remedy=command.READ_HERE,
  repeatable=True,
)
_VIEWS = command.define_list(
  "views",
  ["1", str(augment.VIEWS)],
  "Views of each image: 1, the center crop, or 10, whose softmax outputs are "
  "averaged; 5 of these for a run that mirrored no images.",
)
_LAYOUT = command.define_layout(default="that of each run")
_MESH = command.define_list(
  "mesh", [], "Devices along axes of the layout, such as data=4,column=2."
)
_SPLIT = flags.DEFINE_string(
  "split",
  None,
  "Split, in TFDS's notation; one without labels needs --predictions. Default: "
  "the validation split of the runs.",
)
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size",
  None,
  "Images in a batch, over all devices; does not change results. Default: that "
  "of each run.",
  lower_bound=1,
)
_CHECKPOINT_STEP = flags.DEFINE_integer(
  "checkpoint_step",
  None,
  "Step of the checkpoint. Default: the newest of each run; for a directory "
  "with member_0 and so on, the newest that all of them have.",
)
_PER_CLASS = flags.DEFINE_bool(
  "per_class", False, "Show all classes. Default: the ten worst."
)
_PREDICTIONS = command.define_path(
  "predictions",
  "Write the predictions for every image to this file, .csv or .npz.",
)
_JSON = command.define_path(
  "json",
  "Write the tables to this file; of a split without labels, predictions.",
)
_DATA_DIR = command.define_data_dir()
_SIMULATE_DEVICES = command.define_simulate_devices()
_DISTRIBUTED = command.define_distributed()
_START_TIMEOUT = command.define_start_timeout()
_COMPILATION_CACHE = command.define_compilation_cache()

# Classes shown without --per_class.
_WORST = 10


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  with command.exit_on_error(ValueError, TypeError, OSError):
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
        f"{layout_lib.format_mesh(run.layout.mesh)}, "
        f"{run.config.batch_size} images"
      )
      # A layout of a file, which may differ between hosts.
      same[f"the layout for {run.workdir}"] = str(run.layout)
  with command.start_group(_DISTRIBUTED, _START_TIMEOUT, same=same) as group:
    with command.exit_on_error(
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
  """Parses --views; ascending."""
  given = _VIEWS.value
  known = {str(count): count for count in (1, augment.VIEWS)}
  if not given or not {*given} <= {*known} or len({*given}) < len(given):
    raise ValueError(
      f"--views is {','.join(given)!r}, expected 1, {augment.VIEWS} or "
      f"1,{augment.VIEWS}. Set --views."
    )
  return sorted(known[count] for count in given)


def _find_mesh() -> dict[str, int]:
  """Parses --mesh to {axis: devices}."""
  mesh = {}
  for item in _MESH.value:
    axis, _, size = item.partition("=")
    # Python converts no string of more than about 4,000 digits.
    if not size.isdecimal() or len(size) > 20 or int(size) < 1:
      raise ValueError(
        f"--mesh has {item!r}, expected AXIS=DEVICES, such as --mesh=data=4."
      )
    if axis in mesh:
      raise ValueError(
        f"--mesh names axis {axis!r} twice, expected each axis once. Set "
        f"--mesh={axis}={mesh[axis]} or --mesh={item}."
      )
    mesh[axis] = int(size)
  return mesh


def _find_runs() -> list[trained_run.TrainedRun]:
  """Reads the runs of --workdir, with the layouts to evaluate them with."""
  paths = _WORKDIR.value
  if not all(paths) or not paths:
    raise ValueError(
      "--workdir names no run, expected one or more. Set "
      "--workdir=runs/two_device."
    )
  for path in paths:
    if "," in path and not os.path.exists(path):
      several = shlex.join(f"--workdir={one}" for one in path.split(","))
      raise ValueError(
        f"there is no workdir {path!r}, in which a comma is part of the name. "
        f"For several runs, repeat the flag: {several}."
      )
  steps = {}
  if _CHECKPOINT_STEP.value is None:
    steps = members.find_common_steps(paths)
  layout = command.find_layout(_LAYOUT.value, flag="layout")
  runs = [
    trained_run.read(
      path,
      fields=_FIELDS.value,
      layout=layout,
      mesh=_find_mesh(),
      batch_size=_BATCH_SIZE.value,
      split=_SPLIT.value,
      step=steps.get(path, _CHECKPOINT_STEP.value),
    )
    for path in members.find_workdirs(paths)
  ]
  for run in runs[1:]:
    trained_run.check_alike(runs[0], run)
  return runs


def _evaluate(
  runs: Sequence[trained_run.TrainedRun],
  views: Sequence[int],
  group: group_lib.Group,
) -> None:
  """Evaluates every run, and prints the tables."""
  largest = max(runs, key=lambda run: run.layout.devices)
  run_lib.start_devices(
    largest.config, largest.layout, group, _SIMULATE_DEVICES.value
  )
  compilation_cache.open_cache(_COMPILATION_CACHE.value)
  opened = [evaluation.open_run(run, data_dir=_DATA_DIR.value) for run in runs]
  for index, one in enumerate(opened):
    of_processes = group.gather(f"data/{index}", one.data)
    for difference in run_lib.compare_data(group, of_processes):
      raise ValueError(difference)
  _, label = opened[0].validation_records[0]
  if label == records.NO_LABEL and not (_PREDICTIONS.value or _JSON.value):
    raise ValueError(
      f"the images of {opened[0].validation_records.source.name} have no "
      "labels, so there are no errors to show. Set --predictions=FILE.csv to "
      "write the predictions, or --split."
    )
  console = command.make_console(group)
  predictions = []
  for index, (run, one) in enumerate(zip(runs, opened, strict=True)):
    command.print_line(
      console,
      f"{run.workdir}: step {run.step}, layout {run.layout.name} "
      f"({layout_lib.format_mesh(run.layout.mesh)}), "
      f"{len(one.validation_records):,} images of "
      f"{one.validation_records.source.name}",
    )
    most = one.program.augmentation.num_views
    if max(views) > most:
      command.print_line(
        console,
        f"{run.workdir}: {most} of the {max(views)} views, since this run "
        "mirrored no images (config.augment.flip)",
      )
    with command.mute_gloo(group, one.program.mesh):
      data = run.config.data
      of_run, replaced_here = evaluation.predict_split(
        one.program,
        loaded_run.load_variables(run, one.program),
        one.validation_records,
        name=run.workdir,
        views=[min(count, most) for count in views],
        threads=data.threads or host_batches.default_threads(group.num_on_host),
        batches_ahead=data.batches_ahead,
      )
    predictions.append(of_run)
    if replaced := sum(group.gather(f"replaced/{index}", replaced_here)):
      command.print_line(console, f"{replaced:,} replaced")
  rows = tables.make_rows(predictions)
  if group.is_first:
    class_names = opened[0].class_names
    if tables.find_lead(rows).has_labels:
      content = _print_tables(console, rows, class_names)
    else:
      name = opened[0].validation_records.source.name
      command.print_line(
        console, f"the images of {name} have no labels: no errors are shown"
      )
      content = tables.predictions_to_json(rows, class_names)
    _write_files(console, rows, class_names, content)


def _print_tables(
  console: rich.console.Console,
  rows: Sequence[tables.Row],
  class_names: Sequence[str],
) -> dict[str, Any]:
  """Prints the tables, and returns their content for JSON."""
  lead = tables.find_lead(rows)
  classes = predictions_lib.count_class_errors(lead)
  shown = classes
  if not _PER_CLASS.value:
    shown = predictions_lib.find_worst(classes, _WORST)
  command.print_table(console, tables.make_table(rows, len(class_names)))
  command.print_table(
    console, tables.make_class_table(lead, shown, class_names)
  )
  console.print()
  return tables.to_json(rows, classes, class_names)


def _write_files(
  console: rich.console.Console,
  rows: Sequence[tables.Row],
  class_names: Sequence[str],
  content: dict[str, Any],
) -> None:
  """Writes the files of --predictions and --json."""
  if _PREDICTIONS.value is not None:
    predictions_lib.write(
      _PREDICTIONS.value,
      [row.predictions for row in rows if row.predictions is not None],
      class_names,
    )
    command.print_line(console, f"the predictions are in {_PREDICTIONS.value}")
  if _JSON.value is not None:
    with open(_JSON.value, "w") as file:
      file.write(command.to_json(content))
    command.print_line(console, f"the tables are in {_JSON.value}")


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)
