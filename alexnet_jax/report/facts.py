"""What ran: how to repeat it, its config, its data, its time and its result."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

import alexnet_jax
from alexnet_jax.checkpoints import metadata, reader, reports
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.cli import flag_parsing
from alexnet_jax.figures import curves as curves_lib
from alexnet_jax.figures import runs as runs_lib
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.report import section as section_lib
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from alexnet_jax.training import trained_run

_UNKNOWN = "not known"
# Changes of a config that are shown without being asked for: a network of rows
# of its own has many.
_MOST_SHOWN = 40
# Digits of a commit.
_SHORT = 12
# Of a validation, in metrics.jsonl.
_ERRORS = ("validation_loss", "validation_top1_error", "validation_top5_error")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Start:
  """A config file that a run may have been started with."""

  path: str
  fields: Mapping[str, Any]


def make_section(
  runs: Sequence[runs_lib.Run],
  legend: runs_lib.Legend,
  *,
  shown: runs_lib.Run,
  folder: str,
  notes: Sequence[str] = (),
) -> section_lib.Section:
  """Makes the section.

  Args:
    runs: in the order of the legend.
    shown: the one of them whose config is shown, and commands to repeat it.
    folder: the workdir that has its checkpoints.
    notes: on the runs, a paragraph each.
  """
  facts = [
    _find_facts(run)
    | _describe_versions(folder if run is shown else run.workdir)
    for run in runs
  ]
  names = dict.fromkeys(name for one in facts for name in one)
  of_all = {name: [one.get(name, _UNKNOWN) for one in facts] for name in names}
  same = {k: v[0] for k, v in of_all.items() if len({*v}) == 1}
  several = len(runs) > 1
  parts: list[section_lib.Part] = [
    section_lib.Table(
      header=["", "value"],
      rows=[*map(list, same.items())],
      caption="Facts of the run."
      if not several
      else f"Facts that all {len(runs)} runs have in common.",
    )
  ]
  if several:
    fields = {
      name: [*map(_to_text, values)]
      for name, values in legend.differing.items()
      if name != legend.title  # is the header of each run
    }
    differing = {k: v for k, v in of_all.items() if k not in same}
    for values, caption in (
      (differing, "Facts in which the runs differ."),
      (fields, "Fields of the config in which the runs differ."),
    ):
      if values:
        parts.append(_make_comparison(values, legend, caption))
  start = min(_find_starts(), key=lambda one: len(_find_changes(one, shown)))
  parts += _make_commands(shown, start, several=several)
  return section_lib.Section(
    name="what-ran",
    title="What ran",
    text=notes,
    parts=[*parts, *_make_config_tables(shown, start, several=several)],
  )


def _make_comparison(
  values: Mapping[str, Sequence[str]], legend: runs_lib.Legend, caption: str
) -> section_lib.Table:
  """Makes a table of runs; whatever there are more of is below each other.

  Args:
    values: {name: of each run}.
  """
  labels = list(legend.labels)
  if len(labels) > len(values):
    return section_lib.Table(
      header=[legend.title or "run", *values],
      rows=[
        [label, *row]
        for label, *row in zip(labels, *values.values(), strict=True)
      ],
      caption=caption,
    )
  return section_lib.Table(
    header=[legend.title, *labels],
    rows=[[name, *row] for name, row in values.items()],
    caption=caption,
  )


def _make_config_tables(
  run: runs_lib.Run, start: _Start, *, several: bool
) -> list[section_lib.Table]:
  """Makes tables of the config: where it differs from a file, and all of it."""
  whose = f"the run in {run.workdir}" if several else "the run"
  tables = []
  if changes := _find_changes(start, run):
    tables.append(
      section_lib.Table(
        header=["field", start.path, "the run"],
        rows=[
          [name, _to_text(start.fields.get(name)), _to_text(value)]
          for name, value in sorted(changes.items())
        ],
        caption=f"Fields of the config of {whose} that differ from those of "
        f"{start.path}.",
        is_folded=len(changes) > _MOST_SHOWN,
      )
    )
  tables.append(
    section_lib.Table(
      header=["field", "value"],
      rows=[[name, _to_text(one)] for name, one in sorted(run.fields.items())],
      caption=f"All fields of the config of {whose}",
      is_folded=True,
    )
  )
  return tables


def _find_package() -> pathlib.Path:
  """Returns the folder of configs/; another one may be in this folder."""
  return pathlib.Path(alexnet_jax.__file__).parents[1]


def _find_starts() -> list[_Start]:
  """Loads the config files of the package, in all of their usual variants."""
  package = _find_package()
  starts = []
  for file in sorted(package.glob("configs/**/*.py")):
    path = file.relative_to(package).as_posix()
    for variant in ("", ":digits", ":imagenet"):
      try:
        config = flag_parsing.load_config(f"{file}{variant}", flag="config")
        fields = workdir_lib.flatten_config(config.to_dict(), {})
      except (ValueError, TypeError, OSError):
        continue  # has no such variant, or is no config by itself
      starts.append(_Start(path=f"{path}{variant}", fields=fields))
  return starts


def read_config(
  workdir: str,
) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
  """Reads the config of a run, which may have no checkpoint.

  Returns, Raises:
    See `trained_run.read_config`.
  """
  default = _find_package() / "configs" / "default.py"
  fields = flag_parsing.load_config(str(default), flag="config")
  return trained_run.read_config(workdir, fields)


def _find_changes(start: _Start, run: runs_lib.Run) -> dict[str, Any]:
  """Returns {field: value in the run} where it differs from a config file."""
  of_file = runs_lib.Run(workdir=start.path, fields=start.fields, curves={})
  differing = runs_lib.find_differences([of_file, run])
  return {name: values[1] for name, values in differing.items()}


def _make_commands(
  run: runs_lib.Run, start: _Start, *, several: bool
) -> list[section_lib.Command]:
  """Makes the commands that train a run once more."""
  which = f"the run in {run.workdir}" if several else "the run"
  main = ["python", "-m", "alexnet_jax.main"]
  new = "--workdir=runs/again"
  commands = [
    section_lib.Command(
      line=shlex.join([*main, f"--config={run.workdir}", new]),
      caption=f"Trains {which} once more, from the config in its workdir.",
    )
  ]
  changes = _find_changes(start, run)
  # Rows of a wiring of one's own are set by a file alone.
  if run.fields.get("network.order") == start.fields.get("network.order"):
    flags = [
      f"--config.{name}={_to_text(value)}" for name, value in changes.items()
    ]
    commands.append(
      section_lib.Command(
        line=shlex.join([*main, f"--config={start.path}", *flags, new]),
        caption="The same without the workdir.",
      )
    )
  return commands


def _find_facts(run: runs_lib.Run) -> dict[str, str]:
  """Returns {name: value} for the table; what is not known is left out."""
  facts = {"workdir": run.workdir}
  facts |= _describe_config(run)
  found = {
    name.removeprefix("found."): value
    for name, value in run.fields.items()
    if name.startswith("found.")
  }
  if dataset := found.get("dataset"):
    facts["data set"] = f"{dataset}"
  for kind in ("training", "validation"):
    if (count := found.get(f"{kind}_images")) is not None:
      facts[f"{kind} images"] = _format_count(count)
  facts |= _describe_training(run)
  return facts


def _describe_config(run: runs_lib.Run) -> dict[str, str]:
  """Describes network and layout; of another version, by their names."""
  fields = run.fields
  facts = {
    "network": f"{fields.get('network.wiring', _UNKNOWN)}",
    "layout": f"{fields.get('layout.name', _UNKNOWN)}",
  }
  try:
    config, found = read_config(run.workdir)
    network, layout = settings.check(config)
    sizes = network.sizes()
    facts = {
      "network": network.name,
      "layers": f"{len(network.layers)}",
      "columns": f"{network.columns}",
      "image": f"{network.image_size} x {network.image_size} pixels",
      "classes": f"{config.network.num_classes:,}",
      "parameters": f"{sum(size.parameters for size in sizes.values()):,}",
      "layout": f"{layout.name} ({layout_lib.format_mesh(layout.mesh)})",
      "devices of a run": f"{layout.devices:,}",
    }
    facts["images in a step"] = f"{config.batch_size:,}"
    if images := found["training_images"]:
      total = run_lib.find_num_steps(config, images)
      facts["planned steps"] = f"{total:,} ({config.num_epochs:g} epochs)"
  except (ValueError, TypeError, OSError) as error:
    facts["problem"] = f"{error}"
  return facts


def _describe_training(run: runs_lib.Run) -> dict[str, str]:
  """Describes how far a run got, how long it took, and its errors."""
  curves, facts = run.curves, {}
  steps = curves.get("training_step", np.array([]))
  if len(steps):
    facts["steps"] = f"{steps[-1]:,}"
    if (epochs := curves.get("training_epoch")) is not None:
      facts["steps"] += f" ({epochs[-1]:.4g} epochs)"
    seconds = curves.get("training_elapsed_seconds", np.array([np.nan]))
    if np.isfinite(seconds[-1]):
      facts["time in training"] = _to_duration(seconds[-1])
    rates = curves.get("images_per_second", np.array([]))
    if np.isfinite(rates).any():
      facts["median images per second"] = f"{np.nanmedian(rates):,.4g}"
  starts = [
    values["step"]
    for values in reports.read_valid_lines(
      os.path.join(run.workdir, reports.FILE)
    )
    if "session" in values
  ]
  if starts:
    after = ", ".join(f"{step:,}" for step in starts)
    facts["starts"] = f"{1 + len(starts)}; resumed after step {after}"
  for curve in _ERRORS:
    name = curves_lib.to_words(curve)
    values = curves.get(curve)
    # Only of a damaged file there are several in a line.
    if values is None or values.ndim > 1 or not np.isfinite(values).any():
      continue
    facts[name] = curves_lib.format_value(curve, values[-1])
    best = int(np.nanargmin(values))
    if values[best] < values[-1]:
      lowest = curves_lib.format_value(curve, values[best])
      step = curves["validation_step"][best]
      facts[name] += f" (lowest: {lowest}, step {step:,})"
  return facts


def _describe_versions(workdir: str) -> dict[str, str]:
  """Describes what the newest checkpoint and the lock say of versions."""
  facts = {}
  if start := workdir_lib.read_start(workdir):
    facts["last start"] = start
  step = reader.find_latest_step(workdir)
  if step is None:
    return facts
  facts["newest checkpoint"] = f"step {step:,}"
  try:
    code = metadata.read(reader.find_folder(workdir, step))["code"]
    facts["trained with"] = ", ".join(
      f"{name} {value[:_SHORT] if name == 'revision' else value}"
      for name, value in code.items()
      if value
    )
  except (ValueError, OSError, LookupError, TypeError) as error:
    facts["newest checkpoint"] += f"; {error}"
  return facts


def _format_count(count: Any) -> str:
  """Writes a number of config.json, which may be damaged."""
  return f"{count:,}" if isinstance(count, int) else f"{count}"


def _to_duration(seconds: float) -> str:
  hours, rest = divmod(round(seconds), 3600)
  minutes, seconds = divmod(rest, 60)
  if hours:
    return f"{hours:,} h {minutes} min"
  return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _to_text(value: Any) -> str:
  """Writes a value as on the command line: lists as tuples."""
  if isinstance(value, list):
    items = ", ".join(map(_quote, value))
    return f"({items}{',' if len(value) == 1 else ''})"
  return f"{value}"


def _quote(value: Any) -> str:
  return json.dumps(value) if isinstance(value, str) else _to_text(value)
