"""Starts a run with the parameters of another one.

Each layer of the new network takes the arrays of the layer of its name, or is
drawn anew. The other run may be of any layout and, where a layer reads its own
column in only one of the two networks, of other columns: see
`network/block_diagonal.py`. Its averaged parameters are taken where it has
some, as it is evaluated with these.

Everything is read and checked before anything compiles or is written. A run
that has a checkpoint of its own does not read the other one again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
import rich.table

from alexnet_jax.checkpoints import metadata, reader
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.network import block_diagonal, wiring
from alexnet_jax.partition import catalog
from alexnet_jax.program import eval_step, summary
from alexnet_jax.program import step as step_lib
from alexnet_jax.settings import build
from alexnet_jax.training import trained_run

_VARIABLES, _MOMENTUM = "variables", "momentum"
# Names in a state, above {layer: {name: array}} -> what takes their place.
# Averages begin with the parameters, as in a run that is drawn; sums of
# gradients of an unfinished update begin at 0.
_TAKEN = {
  "parameters": _VARIABLES,
  "statistics": _VARIABLES,
  "average": _VARIABLES,
  "trace": _MOMENTUM,
}
# Facts in `config.json`, under `found.`, on the other run's checkpoint.
_STEP, _CHECKSUM = "init_from_step", "init_from_checksum"
# Fields of a row that change what the same arrays compute.
_COMPARED = (
  *("stride", "padding", "activation", "normalize", "lrn", "map_lrn", "pool"),
  *("order",),
)
# Fields of `config.augment` that change no evaluation images.
_ONLY_TRAINING = (
  *("flip", "color_noise", "color_noise_until_epoch", "color_divisor"),
)

_Arrays = Mapping[str, Mapping[str, np.ndarray]]  # {layer: {name: array}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmStart:
  """What a run takes from another one.

  Attributes:
    source: the other run.
    network: of the run that starts.
    leave_out: layers that are drawn anew.
    arrays: {"variables", "momentum": {layer: {name: array}}} of the other
      layers: NumPy, global shapes, as this network has them.
    keeps_momentum: whether the momentum is taken too.
    origin: facts on the other run's checkpoint; a workdir keeps them.
  """

  source: trained_run.TrainedRun
  network: wiring.Network
  leave_out: tuple[str, ...]
  arrays: dict[str, _Arrays]
  keeps_momentum: bool
  origin: Mapping[str, Any]

  def apply(self, state: step_lib.TrainState) -> step_lib.TrainState:
    """Replaces the arrays of the layers that are taken.

    To be called once: then this lets go of its arrays, which take as much of
    the host's memory as the parameters.

    Args:
      state: before the first step, of global arrays. If these are stacked for
        several runs at once, all of the runs take the same.
    """

    def choose(path, drawn: jax.Array) -> jax.Array:
      field, layer, name = _find_place(path)
      of_layers = self.arrays.get(_TAKEN.get(field), {})
      value = of_layers.get(layer, {}).get(name)
      return drawn if value is None else _put_as(value, drawn)

    state = jax.tree.map_with_path(choose, state)
    self.arrays.clear()
    return state

  def describe(self) -> str:
    """Says in a line where the arrays come from."""
    averaged = self.source.config.optimizer.ema_decay is not None
    return (
      f"starts with the {'averaged ' if averaged else ''}parameters of step "
      f"{self.source.step} of the run in {self.source.workdir!r}, and "
      f"{'its' if self.keeps_momentum else 'a new'} momentum"
    )

  def make_table(self) -> rich.table.Table:
    """Makes a row per layer: what is taken, and what is drawn anew."""
    table = summary.make_table(
      None, *("layer", "start", "> kernel there", "> kernel here")
    )
    sizes = self.source.network.sizes()
    for name, size in self.network.sizes().items():
      start = "taken"
      if name in self.leave_out:
        start = "drawn anew"
      elif sizes[name].kernel != size.kernel:
        is_wider = math.prod(size.kernel) > math.prod(sizes[name].kernel)
        change = "added" if is_wider else "removed"
        start = f"taken, zeros between columns {change}"
      table.add_row(
        *(name, start),
        _format(sizes[name].kernel) if name in sizes else "-",
        _format(size.kernel),
      )
    return table

  def describe_differences(
    self, config: ml_collections.ConfigDict
  ) -> list[str]:
    """Returns a line for each field that changes what the arrays compute.

    Args:
      config: of the run that starts.
    """
    there = self.source.config
    pairs = [
      (f"augment.{name}", value, there.augment[name])
      for name, value in config.augment.items()
      if name not in _ONLY_TRAINING
    ]
    name = "dropout_scaling"
    pairs.append((f"network.{name}", config.network[name], there.network[name]))
    for layer in self.network.layers:
      if layer.name not in self.leave_out:
        other = self.source.network.layer(layer.name)
        pairs += [
          (f"{layer.name}: {name}", getattr(layer, name), getattr(other, name))
          for name in _COMPARED
        ]
    return [
      f"{name} is {value} here, but {other} in that run"
      for name, value, other in pairs
      if value != other
    ]


def find_origin(
  config: ml_collections.ConfigDict, workdir: str
) -> dict[str, Any]:
  """Returns the facts that a workdir has of a start with the same source."""
  kept = None
  with contextlib.suppress(ValueError):  # refused where the workdir is locked
    kept = workdir_lib.read_config(workdir)
  if kept is None or kept.get("init_from.workdir") != config.init_from.workdir:
    return {}
  return {
    name: kept[f"found.{name}"]
    for name in (_STEP, _CHECKSUM)
    if kept.get(f"found.{name}") is not None
  }


def read(
  config: ml_collections.ConfigDict,
  network: wiring.Network,
  *,
  group: group_lib.Group,
  workdir: str,
  origin: Mapping[str, Any],
) -> WarmStart:
  """Reads what a run takes from `config.init_from`, in each process.

  Args:
    config, network: of the run that starts, from `settings.check`.
    workdir: of that run; it has no checkpoint.
    origin: from `find_origin`; a run that starts once more, before its first
      checkpoint, takes the same step again.

  Raises:
    ValueError, TypeError, OSError: there is no such run or step, it is damaged,
      or layers do not fit; says what to change.
  """
  source_dir = config.init_from.workdir
  real, own = map(os.path.realpath, (source_dir, workdir))
  if os.path.commonpath([real, own]) == own:
    raise ValueError(
      f"init_from.workdir is {source_dir!r}, which is the run's own workdir or "
      "in it, expected that of another run. Set config.init_from.workdir, or "
      "--workdir."
    )
  # All processes take the newest that the first one sees.
  step = group.run_in_first(
    "init_from/step",
    lambda: _find_step(source_dir, config.init_from.step, origin),
  )
  source = _read_run(source_dir, config, step)
  leave_out = tuple(config.init_from.leave_out)
  _check_shapes(source, network, leave_out)
  keeps_momentum = config.init_from.optimizer == "keep"
  if keeps_momentum:
    _check_momentum(source, config)
  state = _load(source)
  checksum = metadata.read(reader.find_folder(source_dir, source.step))["sum"]
  for index, other in enumerate(group.gather("init_from", checksum)):
    if other != checksum:
      raise OSError(
        f"the checkpoint of step {source.step} in {source_dir!r} is another "
        f"one in {group.label(index)} than here: their checksums are {other} "
        f"and {checksum}. Set config.init_from.workdir to a folder that all "
        "hosts share, or copy the same run to each."
      )
  arrays = {_VARIABLES: eval_step.find_variables(state)}
  if keeps_momentum:
    arrays[_MOMENTUM] = _find_momentum(state)
  names = [one.name for one in network.layers if one.name not in leave_out]
  taken = {
    what: {name: of_layers[name] for name in names if name in of_layers}
    for what, of_layers in arrays.items()
  }
  try:
    converted = block_diagonal.convert(taken, source.network, network)
  except ValueError as error:
    raise ValueError(
      f"the run in {source_dir!r}: {error} Or draw the layer anew: set "
      "config.init_from.leave_out."
    ) from error
  return WarmStart(
    source=source,
    network=network,
    leave_out=leave_out,
    arrays=converted,
    keeps_momentum=keeps_momentum,
    origin={_STEP: source.step, _CHECKSUM: checksum},
  )


def _find_step(
  workdir: str, step: int | None, origin: Mapping[str, Any]
) -> int | None:
  """Returns the step to take; None: there is no checkpoint."""
  if step is not None:
    return step
  return origin.get(_STEP, reader.find_latest_step(workdir))


def _read_run(
  workdir: str, config: ml_collections.ConfigDict, step: int | None
) -> trained_run.TrainedRun:
  """As `trained_run.read`, whose advice is for the flags of a command."""
  try:
    return trained_run.read(
      workdir, fields=config, layout=catalog.ONE_DEVICE.name, step=step
    )
  except (ValueError, TypeError, OSError) as error:
    said = str(error)
    for flag, field in (("workdir", "workdir"), ("checkpoint_step", "step")):
      said = said.replace(f"--{flag}", f"config.init_from.{field}")
    raise type(error)(said) from error


def _check_shapes(
  source: trained_run.TrainedRun,
  network: wiring.Network,
  leave_out: tuple[str, ...],
) -> None:
  """Refuses layers that are to be taken and do not fit.

  Raises:
    ValueError: names all of them, with both shapes.
  """
  there = source.network.sizes()
  misfits = {}
  for name in network.sizes():
    if name in leave_out:
      continue
    if name not in there:
      misfits[name] = "missing there"
      continue
    dense, dense_here = (
      block_diagonal.find_dense_shapes(one, name)
      for one in (source.network, network)
    )
    differing = [
      array
      for array in dense | dense_here
      if dense.get(array) != dense_here.get(array)
    ]
    if differing:
      misfits[name] = ", ".join(
        f"{_describe(one, name, differing)} {place}"
        for one, place in ((source.network, "there"), (network, "here"))
      )
  if not misfits:
    return
  listed = ", ".join(f"{name} ({what})" for name, what in misfits.items())
  names = tuple(
    layer.name
    for layer in network.layers
    if layer.name in misfits or layer.name in leave_out
  )
  raise ValueError(
    f"the run in {source.workdir!r} does not fit this network: {listed}, "
    f"expected the same shapes. Set config.init_from.leave_out={names!r} to "
    "draw these layers anew, or config.network as in that run."
  )


def _describe(network: wiring.Network, name: str, arrays: list[str]) -> str:
  """Returns the shapes of some arrays of a layer: `kernel 512x10, bias 10`."""
  shapes = network.sizes()[name].shapes
  texts = []
  for array in arrays:
    text = f"no {array}"
    if array in shapes:
      text = f"{array} {_format(shapes[array])}"
    blocks = block_diagonal.count_blocks(network, name)
    if array == block_diagonal.KERNEL and blocks > 1:
      text += f" in {blocks} columns"
    texts.append(text)
  return " and ".join(texts)


def _format(shape: tuple[int, ...]) -> str:
  return "x".join(map(str, shape))


def _check_momentum(
  source: trained_run.TrainedRun, config: ml_collections.ConfigDict
) -> None:
  """Refuses momentum of another scale."""
  here, there = (
    one.optimizer.trust_coefficient for one in (config, source.config)
  )
  if (here is None) != (there is None):
    raise ValueError(
      "init_from.optimizer is 'keep', but optimizer.trust_coefficient is "
      f"{here} here and {there} in the run in {source.workdir!r}, expected "
      "both or neither of them None: the momentum has another scale. Set "
      "config.init_from.optimizer=new, or config.optimizer.trust_coefficient."
    )


def _load(source: trained_run.TrainedRun) -> step_lib.TrainState:
  """Reads the checkpoint: NumPy arrays.

  Raises:
    CheckpointError: it is damaged; names an earlier intact one.
  """
  # Of the same shapes whatever the number of images.
  optimizer = build.make_optimizer(source.config, source.config.batch_size)
  like = step_lib.make_abstract_state(source.network, optimizer)
  try:
    return reader.load_alone(source.workdir, source.step, like)
  except metadata.DamagedError as error:
    hint = reader.advise_intact(
      *(source.workdir, source.step, like),
      step_name="config.init_from.step",
      workdir_name="config.init_from.workdir",
    )
    raise metadata.CheckpointError(f"{error} {hint}") from error
  except metadata.CheckpointError as error:
    said = str(error).replace("--workdir", "config.init_from.workdir")
    raise metadata.CheckpointError(said) from error


def _find_momentum(state: step_lib.TrainState) -> _Arrays:
  """Returns the momentum in the state of an optimizer."""
  momentum: dict[str, dict[str, np.ndarray]] = {}
  for path, leaf in jax.tree.leaves_with_path(state.optimizer):
    field, layer, name = _find_place(path)
    if _TAKEN.get(field) == _MOMENTUM:
      momentum.setdefault(layer, {})[name] = leaf
  return momentum


def _find_place(path) -> tuple[str | None, str | None, str | None]:
  """Returns (field, layer, name) of an array below {layer: {name: array}}."""
  names = [
    getattr(part, "name", getattr(part, "key", None)) for part in path[-3:]
  ]
  return tuple(names) if len(names) == 3 else (None, None, None)


def _put_as(value: np.ndarray, like: jax.Array) -> jax.Array:
  """Puts an array where another is, repeated over dimensions in front."""
  value = np.broadcast_to(value, like.shape)
  return jax.make_array_from_callback(
    like.shape, like.sharding, lambda index: value[index]
  )
