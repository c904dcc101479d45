"""Trained runs, found in their workdirs.

What a directory keeps says what its run is: the config of the network, of the
images and of their preparation. Where it is computed is free: a checkpoint is
read onto any layout. Nothing is written.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from flax import traverse_util

from alexnet_jax.checkpoints import members as members_lib
from alexnet_jax.checkpoints import reader
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.settings import settings

# Of an ensemble's directory: a run of each of its members.
_MEMBER = re.compile(r"member_(\d+)")
# What is read of `Trained.found`.
_FOUND = {"found.dataset", "found.statistics", "found.training_images"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedRun:
  """A run that has a checkpoint.

  Attributes:
    workdir: of the run.
    config: of the run, with the layout, batch and split to evaluate under.
    found: what the run had found of its data; see `run.describe_data`.
    step: of the checkpoint.
    network: of the config.
    layout: of the config; it fits the network.
  """

  workdir: str
  config: ml_collections.ConfigDict
  found: Mapping[str, Any]
  step: int
  network: wiring.Network
  layout: layout_lib.Layout


def find_workdirs(paths: Sequence[str]) -> list[str]:
  """Directories of single runs.

  Args:
    paths: of runs; one that has no checkpoints itself, but those of the members
      of an ensemble, stands for all of these.

  Raises:
    ValueError: a directory is there twice, or a member is missing.
  """
  found = []
  for path in paths:
    members = _find_members(path)
    own = not members or reader.find_steps(path)
    found += [path] if own else members
  for path in found:
    if [os.path.realpath(other) for other in found].count(
      os.path.realpath(path)
    ) > 1:
      raise ValueError(
        f"the workdir {path!r} is there twice, expected different runs. Set "
        "--workdir."
      )
  return found


def find_common_steps(paths: Sequence[str]) -> dict[str, int]:
  """The newest step that all members of an ensemble have.

  A run that is killed while it saves leaves some members with a newer one.

  Args:
    paths: as for `find_workdirs`.

  Returns:
    {directory: step} of the members of the paths that stand for several.

  Raises:
    ValueError: there is no such step.
  """
  found = {}
  for path in paths:
    members = find_workdirs([path])
    if members in ([], [path]):
      continue
    steps = members_lib.find_common_steps(members)
    if not steps and any(map(reader.find_steps, members)):
      raise ValueError(
        f"the members in {path!r} have no checkpoint of one step. Set "
        "--workdir to one of them."
      )
    found |= dict.fromkeys(members, max(steps)) if steps else {}
  return found


def _find_members(path: str) -> list[str]:
  names = os.listdir(path) if os.path.isdir(path) else []
  numbers = sorted(
    int(match[1]) for name in names if (match := _MEMBER.fullmatch(name))
  )
  if numbers != list(range(len(numbers))):
    missing = min({*range(len(numbers))} - {*numbers})
    raise ValueError(
      f"the workdir {path!r} has {len(numbers)} members of an ensemble, but "
      f"not member_{missing}. Set --workdir to the members that are there."
    )
  return [os.path.join(path, f"member_{number}") for number in numbers]


def read(
  path: str,
  *,
  fields: ml_collections.ConfigDict,
  layout: str | None = None,
  mesh: Mapping[str, int] | None = None,
  batch_size: int | None = None,
  split: str | None = None,
  step: int | None = None,
) -> TrainedRun:
  """Reads what a directory says of its run.

  Args:
    path: of the directory.
    fields: a config with all fields that there are.
    layout: of the catalog; None: that of the run.
    mesh: axis of the layout -> devices; the others as the layout has them.
    batch_size: None: that of the run.
    split: None: the validation split of the run.
    step: of the checkpoint; None: the newest.

  Raises:
    ValueError, TypeError, OSError: there is no run, no such checkpoint, or its
      config has other fields or does not fit; says what to change.
  """
  config, found = _read_config(path, fields)
  steps = reader.find_steps(path)
  if not steps:
    raise ValueError(
      f"the run in {path!r} has no checkpoint. Set --workdir to a run that has "
      "one, or go on with it until config.checkpoint_every_steps."
    )
  if step is not None and step not in steps:
    raise ValueError(
      f"the run in {path!r} has no checkpoint of step {step}, but of "
      f"{', '.join(map(str, steps))}. Set --checkpoint_step."
    )
  if layout is not None:
    catalog.find(layout, field="--layout")
    config.layout = copy.deepcopy(fields.layout)
    config.layout.name = layout
  for axis, size in (mesh or {}).items():
    axes = settings.make_layout(config).mesh
    if axis not in axes:
      raise ValueError(
        f"layout {config.layout.name!r} has no axis {axis!r}, but "
        f"{', '.join(axes)}. Set --mesh."
      )
    config.layout.mesh[axis] = size
  if batch_size is not None:
    config.batch_size = batch_size
  if split is not None:
    config.data.validation_split = split
  try:
    network, placed = settings.check(config)
  except (ValueError, TypeError) as error:
    raise type(error)(
      f"the run in {path!r}: {error} To evaluate it, set --layout, --mesh or "
      "--batch_size."
    ) from error
  return TrainedRun(
    workdir=path,
    config=config,
    found=found,
    step=max(steps) if step is None else step,
    network=network,
    layout=placed,
  )


def _read_config(
  path: str, fields: ml_collections.ConfigDict
) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
  """The config that a directory keeps, and what its run had found."""
  kept = workdir_lib.read(path)
  if kept is None:
    raise ValueError(
      f"there is no run in the workdir {path!r}: it has no config.json. Set "
      "--workdir."
    )
  known = traverse_util.flatten_dict(fields.to_dict(), sep=".")
  # A layout of a run's own has axes of its own.
  axes = {name for name in kept if name.startswith("layout.mesh.")}
  found = {name for name in kept if name.startswith("found.")}
  if unknown := sorted(kept.keys() - known.keys() - axes - found):
    raise ValueError(
      f"the run in {path!r} has fields that configs/default.py does not have: "
      f"{', '.join(unknown)}. Use the version of alexnet_jax that trained it."
    )
  if absent := sorted(_FOUND - found):
    raise ValueError(
      f"the run in {path!r} does not say what data it was trained on: its "
      f"config.json lacks {', '.join(absent)}. Use the version of alexnet_jax "
      "that trained it."
    )
  lacks = {
    name: value
    for name, value in known.items()
    if name not in kept and not name.startswith("layout.")
  }
  if lacks:
    raise ValueError(
      f"the run in {path!r} is of an earlier version: its config.json lacks "
      f"{', '.join(lacks)}. Add what the run was trained with to that file; "
      f"now the defaults are {json.dumps(lacks)[1:-1]}."
    )
  nested: dict[str, Any] = fields.to_dict()
  nested["layout"]["mesh"] = {}
  for name, value in kept.items():
    *groups, last = name.split(".")
    group = nested
    for part in groups:
      group = group.setdefault(part, {})
    group[last] = _to_tuple(value)
  of_data = nested.pop("found", {})
  return ml_collections.ConfigDict(nested), of_data


def _to_tuple(value: Any) -> Any:
  """JSON has lists where configs have tuples."""
  if isinstance(value, list):
    return tuple(_to_tuple(one) for one in value)
  return value


def check_alike(first: TrainedRun, other: TrainedRun) -> None:
  """Refuses two members of an ensemble that answer different questions.

  Raises:
    ValueError: says what differs.
  """
  for what, field in (
    ("classes", "network.num_classes"),
    ("dataset", "data.name"),
    ("split", "data.validation_split"),
  ):
    here, there = (
      traverse_util.flatten_dict(run.config.to_dict(), sep=".")[field]
      for run in (first, other)
    )
    if here != there:
      raise ValueError(
        f"the {what} of the run in {first.workdir!r} is {here}, but {there} in "
        f"{other.workdir!r}, expected the same for all. Set --workdir to runs "
        f"on one set{', or --split' if what == 'split' else ''}."
      )


def check_data(run: TrainedRun, now: Mapping[str, Any]) -> None:
  """Refuses images, or a preparation of them, that a run was not trained on.

  Args:
    run: the run.
    now: what is here: `dataset`, its full name with its version, and
      `statistics`, the fingerprint of those of its training split.

  Raises:
    ValueError: says what differs.
  """
  for what, value in now.items():
    if run.found[what] != value:
      raise ValueError(
        f"the {what} of the run in {run.workdir!r} was {run.found[what]}, but "
        f"is {value} here. Set --data_dir to where the set it was trained on "
        "is prepared."
      )
