"""Checks a config; makes its network and layout, without devices or data."""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections
from flax import traverse_util

from alexnet_jax.network import catalog as network_catalog
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog
from alexnet_jax.partition import check as check_lib
from alexnet_jax.partition import ensemble as ensemble_lib
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.settings import build, fields


def make_layout(config: ml_collections.ConfigDict) -> layout_lib.Layout:
  """Returns the named layout with the sizes and placements of a config.

  A config that sets every placement defines a layout of its own, whose name is
  not in the catalog.

  Raises:
    ValueError: there is no such layout, or the config defines a layout under a
      name of the catalog.
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
      f"the config defines a layout of its own under the name {name!r}, which "
      "is in the catalog. Set config.layout.name to another name, or start "
      "from a config that sets the name only."
    )
  return layout_lib.override(
    layout_lib.Layout(name=name, mesh={}) if is_own else catalog.find(name),
    axes=values["axes"],
    mesh=values["mesh"],
    placements=placements,
  )


def choose_layouts(
  config_layout: layout_lib.Layout, names: Sequence[str]
) -> list[layout_lib.Layout]:
  """Selects from the catalog and the layout of a config.

  Args:
    config_layout: from `make_layout`; replaces the catalog's of the same name.
    names: the value of --layouts; empty: all.
  """
  layouts = [
    config_layout if layout.name == config_layout.name else layout
    for layout in catalog.LAYOUTS
  ]
  if config_layout not in layouts:
    layouts.insert(0, config_layout)
  if not names:
    return layouts
  return [catalog.find(name, layouts, field="--layouts") for name in names]


def make_network(config: ml_collections.ConfigDict) -> wiring.Network:
  """Returns the named wiring in the size that a config sets."""
  sizes = config.network.to_dict()
  return wiring.make_network(network_catalog.find(sizes.pop("wiring")), **sizes)


def check(
  config: ml_collections.ConfigDict,
) -> tuple[wiring.Network, layout_lib.Layout]:
  """Checks everything that needs neither devices nor data.

  Returns:
    The network, and a layout that fits it.

  Raises:
    ValueError, TypeError: one line on what to change.
  """
  # If the file could not be read, any access to the config raises that error.
  if not callable(getattr(config, "to_dict", None)):
    raise TypeError(
      f"the config is {config!r}, expected an ml_collections.ConfigDict. "
      "Return one from get_config in the file of --config."
    )
  fields.check(traverse_util.flatten_dict(config.to_dict(), sep="."))
  _check_relations(config)
  build.check(config)
  layout = make_layout(config)
  if ensemble_lib.AXIS in layout.mesh:
    raise ValueError(
      f"layout {layout.name!r} has an axis {ensemble_lib.AXIS!r}, a name that "
      "is reserved for the members of an ensemble, expected another name. Set "
      "config.layout.mesh, and config.ensemble for the members."
    )
  _check_axes(layout)
  network = make_network(config)
  check_lib.check(layout, network, batch_size=config.batch_size)
  plan_lib.choose_routes(
    network,
    layout,
    batch_size=config.batch_size,
    exchange_dtype=config.exchange_dtype,
  )
  build.make_augmentation(config, network, None, config.batch_size)
  return network, layout


def check_single(config: ml_collections.ConfigDict, *, command: str) -> None:
  """Refuses an ensemble for a command that handles one network.

  Raises:
    ValueError: the config has several members.
  """
  if config.ensemble != 1:
    raise ValueError(
      f"ensemble is {config.ensemble}, expected 1: {command} handles single "
      "runs, and each member of an ensemble equals one. Set config.ensemble."
    )


def find_shared_fields(config: ml_collections.ConfigDict) -> dict[str, str]:
  """Returns the fields that must be equal in all processes of a run."""
  values = traverse_util.flatten_dict(config.to_dict(), sep=".")
  return {
    f"config.{name}": str(value)
    for name, value in values.items()
    if not fields.find_field(name).per_process
  }


def _check_axes(layout: layout_lib.Layout) -> None:
  """Refuses axes that a layout of the catalog lacks and no layer uses."""
  meshes = {named.name: named.mesh for named in catalog.LAYOUTS}
  mesh = meshes.get(layout.name, layout.mesh)
  for axis, size in layout.mesh.items():
    if size > 1 and axis not in mesh and not layout.uses(axis):
      raise ValueError(
        f"layout.mesh.{axis} is {size}, but no layer of layout {layout.name!r} "
        f"uses axis {axis!r}, so that its devices would all compute the same, "
        f"expected one of {', '.join(mesh)}. Set config.layout.mesh.{axis}=1, "
        "or the batch or features of a layer."
      )


def _check_relations(config: ml_collections.ConfigDict) -> None:
  if (config.keep_every_steps or 0) % config.checkpoint_every_steps:
    raise ValueError(
      f"keep_every_steps is {config.keep_every_steps}, expected None or a "
      f"multiple of checkpoint_every_steps, {config.checkpoint_every_steps}. "
      "Set config.keep_every_steps."
    )
  last = config.seed + config.ensemble - 1
  if last >= 2**32:
    raise ValueError(
      f"the last of {config.ensemble} members has seed {last}, expected "
      "2^32 - 1 or less. Set config.seed or config.ensemble."
    )
  if config.ensemble > 1 and config.optimizer.schedule == "plateau":
    raise ValueError(
      f"ensemble is {config.ensemble} with optimizer.schedule=plateau, which "
      "follows the validations of one network, expected another schedule. Set "
      "config.ensemble=1 or config.optimizer.schedule."
    )
