"""What a config says, checked: all that needs neither devices nor data."""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections
from flax import traverse_util

from alexnet_jax.network import catalog as network_catalog
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog, resharding
from alexnet_jax.partition import check as check_lib
from alexnet_jax.partition import ensemble as ensemble_lib
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.settings import build, fields


def make_layout(config: ml_collections.ConfigDict) -> layout_lib.Layout:
  """The named layout, with the sizes and placements that a config sets.

  A config that sets every placement has a layout of its own; its name is not
  in the catalog.

  Raises:
    ValueError: there is no such layout, or a layout of a config's own has the
      name of another.
  """
  values = config.layout.to_dict()
  name = values["name"]
  placements = {layer: values[layer] for layer in layout_lib.LAYERS}
  is_own = all(
    value is not None
    for placement in placements.values()
    for value in placement.values()
  )
  if is_own and name in [named.name for named in catalog.LAYOUTS]:
    raise ValueError(
      f"the config has a layout of its own under the name {name!r}, which the "
      "catalog has too. Set config.layout.name to another name, or start "
      "from a config that sets the name only."
    )
  if is_own:
    start = layout_lib.Layout(name=name, mesh={})
  else:
    start = catalog.find(name)
  return layout_lib.override(
    start,
    axes=values["axes"],
    mesh=values["mesh"],
    placements=placements,
  )


def choose_layouts(
  own: layout_lib.Layout, names: Sequence[str]
) -> list[layout_lib.Layout]:
  """The catalog with the layout of a config, and of these the named ones.

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
  sizes = config.network.to_dict()
  return wiring.make_network(network_catalog.find(sizes.pop("wiring")), **sizes)


def check(
  config: ml_collections.ConfigDict,
) -> tuple[wiring.Network, layout_lib.Layout]:
  """Checks all that needs neither devices nor data.

  Returns:
    The network, and a layout that fits it.

  Raises:
    ValueError, TypeError: with one line on what to change.
  """
  # Where its file could not be read, any use of it says so.
  if not callable(getattr(config, "to_dict", None)):
    raise TypeError(
      f"the config is {config!r}, expected an ml_collections.ConfigDict. "
      "Return one from get_config in the file of --config."
    )
  fields.check(traverse_util.flatten_dict(config.to_dict(), sep="."))
  _check_kept(config)
  _check_ensemble(config)
  build.check(config)
  layout = make_layout(config)
  if ensemble_lib.AXIS in layout.mesh:
    raise ValueError(
      f"layout {layout.name!r} has an axis {ensemble_lib.AXIS!r}, which is "
      "that of the members of an ensemble, expected another name. Set "
      "config.layout.mesh, and config.ensemble for the members."
    )
  network = make_network(config)
  check_lib.check(layout, network, batch_size=config.batch_size)
  resharding.find_routes(network, layout, batch_size=config.batch_size)
  build.make_augmentation(config, network, None, config.batch_size)
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
    for name, value in traverse_util.flatten_dict(
      config.to_dict(), sep="."
    ).items()
    if name != "data.threads"
  }


def _check_kept(config: ml_collections.ConfigDict) -> None:
  if (config.keep_every_steps or 0) % config.checkpoint_every_steps:
    raise ValueError(
      f"keep_every_steps is {config.keep_every_steps}, expected None or a "
      f"multiple of checkpoint_every_steps, {config.checkpoint_every_steps}. "
      "Set config.keep_every_steps."
    )


def _check_ensemble(config: ml_collections.ConfigDict) -> None:
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
