"""What a config says, checked: all that needs neither devices nor data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import ml_collections

from alexnet_jax import recipe, update_rule
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.data import augment, records
from alexnet_jax.network import catalog as network_catalog
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog, fit, plan, route
from alexnet_jax.partition import ensemble as ensemble_lib
from alexnet_jax.partition import layout as layout_lib


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
  update_rule.check(config)
  layout = make_layout(config)
  if ensemble_lib.AXIS in layout.mesh:
    raise ValueError(
      f"layout {layout.name!r} has an axis {ensemble_lib.AXIS!r}, which is "
      "that of the members of an ensemble, expected another name. Set "
      "config.layout.mesh, and config.ensemble for the members."
    )
  network = make_network(config)
  fit.check(layout, network, batch_size=config.batch_size)
  route.find_routes(network, layout, batch_size=config.batch_size)
  recipe.make_augmentation(config, network, None, config.batch_size)
  return network, layout


def check_single(config: ml_collections.ConfigDict, *, command: str) -> None:
  """Refuses an ensemble where a command is about one network at a time.

  Raises:
    ValueError: the config has several members.
  """
  if config.ensemble != 1:
    raise ValueError(
      f"ensemble is {config.ensemble}, expected 1: {command} is about single "
      "runs, and every member of an ensemble is as one. Set config.ensemble."
    )


def find_same(config: ml_collections.ConfigDict) -> dict[str, str]:
  """The fields that all processes of a run must have alike."""
  return {
    f"config.{name}": str(value)
    for name, value in workdir_lib.flatten(config.to_dict()).items()
    if name != "data.threads"
  }


def _check_numbers(config: ml_collections.ConfigDict) -> None:
  seeds = {"seed": config.seed, "data.seed": recipe.find_order_seed(config)}
  for name, seed in seeds.items():
    if not 0 <= seed < 2**32:
      raise ValueError(
        f"{name} is {seed}, expected 0 to 2^32 - 1. Set config.{name}."
      )
  positive = {
    "ensemble": config.ensemble,
    "num_epochs": config.num_epochs,
    "accumulate_batches": config.accumulate_batches,
    "report_every_steps": config.report_every_steps,
    "validate_every_steps": config.validate_every_steps,
    "checkpoint_every_steps": config.checkpoint_every_steps,
    "keep_checkpoints": config.keep_checkpoints,
    "data.stored_size": config.data.stored_size,
    "data.batches_ahead": config.data.batches_ahead,
  }
  if config.data.threads is not None:
    positive["data.threads"] = config.data.threads
  if config.keep_every_steps is not None:
    positive["keep_every_steps"] = config.keep_every_steps
  for name, value in positive.items():
    if not 0 < value < math.inf:
      raise ValueError(
        f"{name} is {value}, expected a finite number above 0. "
        f"Set config.{name}."
      )
  if config.keep_best < 0:
    raise ValueError(
      f"keep_best is {config.keep_best}, expected 0 or more. Set "
      "config.keep_best."
    )
  if (config.keep_every_steps or 0) % config.checkpoint_every_steps:
    raise ValueError(
      f"keep_every_steps is {config.keep_every_steps}, expected None or a "
      f"multiple of checkpoint_every_steps, {config.checkpoint_every_steps}. "
      "Set config.keep_every_steps."
    )
  until = config.augment.colour_noise_until_epoch
  if until is not None and not 0 <= until < math.inf:
    raise ValueError(
      f"augment.colour_noise_until_epoch is {until}, expected None or a finite "
      "number of 0 or more. Set config.augment.colour_noise_until_epoch."
    )
  last = config.seed + config.ensemble - 1
  if last >= 2**32:
    raise ValueError(
      f"the last of {config.ensemble} members has seed {last}, expected at "
      "most 2^32 - 1. Set config.seed or config.ensemble."
    )
  if config.ensemble > 1 and config.optimizer.schedule == "plateau":
    raise ValueError(
      f"ensemble is {config.ensemble} with optimizer.schedule=plateau, which "
      "follows the validation of one network, expected another schedule. Set "
      "config.ensemble=1 or config.optimizer.schedule."
    )
  if config.data.unreadable not in records.UNREADABLE:
    raise ValueError(
      f"data.unreadable is {config.data.unreadable!r}, expected one of "
      f"{', '.join(records.UNREADABLE)}. Set config.data.unreadable."
    )
  if not 0 <= config.label_smoothing < 1:
    raise ValueError(
      f"label_smoothing is {config.label_smoothing}, expected "
      "0 <= label_smoothing < 1. Set config.label_smoothing."
    )
  until = config.augment.colour_noise_until_epoch
  if until is not None and until < 0:
    raise ValueError(
      f"augment.colour_noise_until_epoch is {until}, expected None or 0 or "
      "more. Set config.augment.colour_noise_until_epoch."
    )
  if config.validation_views not in (1, augment.VIEWS):
    raise ValueError(
      f"validation_views is {config.validation_views}, expected 1 or "
      f"{augment.VIEWS}. Set config.validation_views."
    )
  for name in ("exchange_precision", "compute_precision"):
    if config[name] not in plan.PRECISIONS:
      raise ValueError(
        f"{name} is {config[name]!r}, expected one of "
        f"{', '.join(plan.PRECISIONS)}. Set config.{name}."
      )
