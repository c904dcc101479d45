"""Reads a trained run from its workdir, to use it on any layout.

The `config.json` of a workdir describes the network, the images and their
preparation. The layout is free, because a checkpoint is restored onto any
layout. Nothing is written.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
from flax import traverse_util

from alexnet_jax.checkpoints import reader
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.settings import settings

# Fields of `TrainedRun.found` that commands read.
_FOUND = {"found.dataset", "found.statistics", "found.training_images"}
# Runs in a folder that a message names.
_SHOWN = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedRun:
  """A run that has a checkpoint.

  Attributes:
    workdir: of the run.
    config: of the run, with the layout, batch size and split to evaluate with.
    stored: its config, as it was trained.
    found: facts about the data of the run; see `run.fingerprint_data`.
    step: of the checkpoint.
    network: of the config.
    layout: of the config; it fits the network.
  """

  workdir: str
  config: ml_collections.ConfigDict
  stored: ml_collections.ConfigDict
  found: Mapping[str, Any]
  step: int
  network: wiring.Network
  layout: layout_lib.Layout


def read(
  path: str,
  *,
  fields: ml_collections.ConfigDict,
  layout: str | ml_collections.ConfigDict | layout_lib.Layout | None = None,
  mesh: Mapping[str, int] | None = None,
  batch_size: int | None = None,
  rounds_batch: bool = False,
  split: str | None = None,
  step: int | None = None,
) -> TrainedRun:
  """Reads the config of a run, and finds its checkpoint.

  Args:
    fields: a config with all fields, as configs/default.py has them.
    layout: a name of the catalog, `config.layout` of another config, or a
      layout; None: that of the run.
    mesh: {axis of the layout: devices}; other axes as the layout has them.
    batch_size, split: None: that of the run, its validation split.
    rounds_batch: whether the batch size is rounded up to a multiple of the
      devices, which any layout can split.
    step: of the checkpoint; None: the newest.

  Raises:
    ValueError, TypeError, OSError: there is no run or no such checkpoint, or
      the config has other fields or does not fit; says what to change.
  """
  stored, found = read_config(path, fields)
  config = copy.deepcopy(stored)
  steps = reader.find_steps(path)
  if not steps:
    # A folder of several runs has no checkpoint of its own.
    advice = _advise_inner(path) or (
      "Set --workdir to a run that has one, or resume it until "
      "config.checkpoint_every_steps."
    )
    raise ValueError(f"the run in {path!r} has no checkpoint. {advice}")
  if step is not None and step not in steps:
    raise ValueError(
      f"the run in {path!r} has no checkpoint of step {step}, but of "
      f"{', '.join(map(str, steps))}. Set --checkpoint_step."
    )
  if isinstance(layout, str):
    catalog.find(layout, field="--layout")
    _name_layout(config, layout)
  elif isinstance(layout, layout_lib.Layout):
    config.layout = _to_group(layout)
  elif layout is not None:
    config.layout = copy.deepcopy(layout)
  for axis, size in (mesh or {}).items():
    try:
      network = settings.make_network(config)
      axes = settings.make_layout(config, network).mesh
    except (ValueError, TypeError):
      break  # `settings.check` raises it again below
    if axis not in axes:
      raise ValueError(
        f"layout {config.layout.name!r} has no axis {axis!r}, but "
        f"{', '.join(axes)}. Set --mesh."
      )
    with config.layout.mesh.unlocked():  # configs/default.py lacks some axes
      config.layout.mesh[axis] = size
  if batch_size is not None:
    config.batch_size = batch_size
  if rounds_batch:
    # `settings.check` below raises what is wrong here.
    with contextlib.suppress(ValueError, TypeError):
      placed = settings.make_layout(config, settings.make_network(config))
      config.batch_size += -config.batch_size % placed.devices
  if split is not None:
    config.data.validation_split = split
  try:
    network, placed = settings.check(config)
  except (ValueError, TypeError) as error:
    # Without its advice, which is for a config that can be changed.
    reason = str(error).partition(" Set config.")[0]
    raise type(error)(
      f"the run in {path!r}: {reason} {_advise(config)}"
    ) from error
  return TrainedRun(
    workdir=path,
    config=config,
    stored=stored,
    found=found,
    step=max(steps) if step is None else step,
    network=network,
    layout=placed,
  )


def _advise(config: ml_collections.ConfigDict) -> str:
  """Says how a run whose config is refused can be evaluated."""
  config = copy.deepcopy(config)
  _name_layout(config, catalog.ONE_DEVICE.name)
  config.batch_size = 1
  try:
    settings.check(config)
  except (ValueError, TypeError):
    return "Evaluate it with the version of alexnet_jax that trained it."
  return "To evaluate it, set --layout, --mesh or --batch_size."


def _advise_inner(path: str) -> str | None:
  """Says which runs are in a folder; None: there are none."""
  found = pathlib.Path(path).glob(f"*/{workdir_lib.CONFIG_FILE}")
  inner = sorted(str(file.parent) for file in found)
  if not inner:
    return None
  more = f" and {len(inner) - _SHOWN} more" if inner[_SHOWN:] else ""
  shown = ", ".join(inner[:_SHOWN])
  return f"Set --workdir to one of the runs in it: {shown}{more}."


def _to_group(layout: layout_lib.Layout) -> ml_collections.ConfigDict:
  """Returns `config.layout` for a layout, as one of the config's own."""
  fields = layout_lib.to_fields(layout)
  if layout.name in [one.name for one in catalog.LAYOUTS]:
    fields["name"] = f"own {layout.name}"  # it may differ from the catalog's
  return ml_collections.ConfigDict({**fields, "allow_unplanned": False})


def _name_layout(config: ml_collections.ConfigDict, name: str) -> None:
  """Sets a layout of the catalog, as it is there."""
  layout = config.layout
  with layout.unlocked():
    layout.name, layout.axes = name, None
    for axis in layout.mesh:
      layout.mesh[axis] = None
    for group in list(layout):
      if group in layout_lib.KINDS:
        layout[group].update(dict.fromkeys(layout[group]))
      elif group not in layout_lib.FIELDS:
        del layout[group]


def read_config(
  path: str, fields: ml_collections.ConfigDict
) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
  """Returns the config in a workdir, and the `found` facts of its run.

  Args:
    path: the workdir.
    fields: a config with all fields, as configs/default.py has them.

  Raises:
    ValueError, OSError: there is no run, or it has other fields.
  """
  kept = workdir_lib.read_config(path)
  if kept is None:
    raise ValueError(
      f"there is no run in the workdir {path!r}: it has no config.json. "
      f"{_advise_inner(path) or 'Set --workdir.'}"
    )
  config = copy.deepcopy(fields)
  _name_layout(config, config.layout.name)
  for group in (config.network, config.optimizer):
    group.layers = ml_collections.ConfigDict()
  known = traverse_util.flatten_dict(config.to_dict(), sep=".")
  workdir_lib.check_version(path, kept, known)
  found = {name for name in kept if name.startswith("found.")}
  if missing := sorted(_FOUND - found):
    raise ValueError(
      f"the run in {path!r} does not say what data it was trained on: its "
      f"config.json lacks {', '.join(missing)}. Use the version of alexnet_jax "
      "that trained it."
    )
  missing = {
    name: value
    for name, value in known.items()
    if name not in kept and not name.startswith("layout.")
  }
  if missing:
    raise ValueError(
      f"the run in {path!r} is of an earlier version: its config.json lacks "
      f"{', '.join(missing)}. Add the values the run was trained with to that "
      f"file; now the defaults are {json.dumps(missing)[1:-1]}."
    )
  try:
    nested = traverse_util.unflatten_dict(
      {name: _to_tuple(value) for name, value in kept.items()}, sep="."
    )
    data_facts = nested.pop("found")
    # Wrong types are refused later, as those of other configs.
    with config.unlocked(), config.ignore_type():
      for axis in list(config.layout.mesh):
        if f"layout.mesh.{axis}" not in kept:
          del config.layout.mesh[axis]
      config.update(nested)
  except (AttributeError, LookupError, TypeError, ValueError) as error:
    reason = str(error).strip().partition("\n")[0]
    raise ValueError(
      f"the config.json of the run in {path!r} is damaged: it has names that "
      f"no config has ({reason}). Restore it, or set --workdir."
    ) from error
  return config, data_facts


def _to_tuple(value: Any) -> Any:
  """Turns the lists of JSON into the tuples of configs."""
  if isinstance(value, list):
    return tuple(_to_tuple(one) for one in value)
  return value


def check_alike(first: TrainedRun, other: TrainedRun) -> None:
  """Refuses two runs whose predictions cannot be averaged.

  Raises:
    ValueError: says what differs.
  """
  for what, field in (
    ("classes", "network.num_classes"),
    ("dataset", "data.name"),
    ("split", "data.validation_split"),
  ):
    one, two = (
      traverse_util.flatten_dict(run.config.to_dict(), sep=".")[field]
      for run in (first, other)
    )
    if one != two:
      raise ValueError(
        f"the {what} of the run in {first.workdir!r} is {one}, but {two} in "
        f"{other.workdir!r}, expected the same for all. Set --workdir to runs "
        f"on one set{', or --split' if what == 'split' else ''}."
      )


def check_data(run: TrainedRun, now: Mapping[str, Any]) -> None:
  """Refuses other images, or other preparation, than a run was trained on.

  What is not known of the run, as of imported weights, is not compared.

  Args:
    now: of the data on this machine: `dataset`, its full name with version,
      and `statistics`, the fingerprint of the training split's statistics.

  Raises:
    ValueError: says what differs.
  """
  for what, value in now.items():
    if run.found[what] not in (None, value):
      raise ValueError(
        f"the {what} of the run in {run.workdir!r} was {run.found[what]}, but "
        f"is {value} here. Set --data_dir to where the set it was trained on "
        "is prepared."
      )
