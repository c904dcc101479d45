"""Checks a config; makes its network and layout, without devices or data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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


def make_layout(
  config: ml_collections.ConfigDict, network: wiring.Network
) -> layout_lib.Layout:
  """Returns the named layout with the sizes and placements of a config.

  A config that sets every placement defines a layout of its own, whose name is
  not in the catalog.

  Args:
    network: from `make_network`; its layers are those that may be placed.

  Raises:
    ValueError: there is no such layout or no such layer in the network, or the
      config defines a layout under a name of the catalog or not all of it.
  """
  values = config.layout.to_dict()
  name, axes = values.pop("name"), values.pop("axes")
  mesh = values.pop("mesh", {})
  del values["allow_unplanned"]
  placements = dataclasses.fields(layout_lib.Placement)
  unset = [
    f"layout.{kind}.{field.name}"
    for kind in layout_lib.KINDS
    for field in placements
    if values.get(kind, {}).get(field.name) is None
  ]
  is_own, is_named = not unset, name in [one.name for one in catalog.LAYOUTS]
  # With most of its placements set it is no preset whose name is misspelled.
  if not is_named and 0 < len(unset) < len(placements):
    raise ValueError(
      f"{unset[0]} is None, expected a value: layout {name!r} is the config's "
      f"own. Set config.{unset[0]}, or the whole layout with use_layout of "
      "configs/default.py."
    )
  if is_own and is_named:
    raise ValueError(
      f"the config defines a layout of its own under the name {name!r}, which "
      "is in the catalog. Set config.layout.name to another name, or start "
      "from a config that sets the name only."
    )
  return layout_lib.override(
    layout_lib.Layout(name=name, mesh={}) if is_own else catalog.find(name),
    axes=axes,
    mesh=mesh,
    placements=values,
    rows=network.layers,
  )


def keeps_order(
  config: ml_collections.ConfigDict, layout: layout_lib.Layout
) -> bool:
  """Whether a config orders the axes of a layout; else their bytes do.

  It orders those of its own layout, not of another one.
  """
  return config.layout.axes is not None and config.layout.name == layout.name


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
  """Returns the named wiring in the size that a config sets.

  A config with `network.order` defines a wiring of its own, whose name is not
  in the catalog; else its rows change single fields of the named one. Layers
  that `config.optimizer` freezes are frozen.

  Raises:
    ValueError: there is no such wiring or no such layer in it, or the config
      defines a wiring under a name of the catalog or not all of its rows, or
      does not say how many classes there are.
  """
  sizes = config.network.to_dict()
  if sizes["num_classes"] is None:
    raise ValueError(
      "network.num_classes is None, which takes the number of the data set, "
      "but no set is opened here, expected a number. Set "
      "config.network.num_classes."
    )
  name, order = sizes.pop("wiring"), sizes.pop("order")
  rows, channels = sizes.pop("layers", {}), sizes.pop("image_channels")
  if order is None:
    table = network_catalog.find(name)
  else:
    table = _start_wiring(config.network, rows)
  names = [layer.name for layer in table.layers]
  for one in rows:
    if one not in names:
      raise ValueError(
        f"network.layers has a row {one!r}, but wiring {name!r} has the layers "
        f"{', '.join(names)}. Remove config.network.layers.{one}."
      )
  if order is None:
    _check_initial_values(rows, sizes["init"])
  table = dataclasses.replace(
    table,
    layers=tuple(
      _change_row(layer, rows.get(layer.name, {})) for layer in table.layers
    ),
    image_channels=table.image_channels if channels is None else channels,
  )
  return dataclasses.replace(
    wiring.make_network(table, **sizes),
    frozen=build.find_frozen(config, names),
  )


def _check_initial_values(
  rows: Mapping[str, Mapping[str, Any]], init: str
) -> None:
  """Refuses initial values of single rows that `network.init` replaces."""
  for layer, row in rows.items():
    for field in wiring.INIT_CHANGES[init]:
      if row.get(field) is not None:
        raise ValueError(
          f"network.layers.{layer}.{field} is {row[field]}, but network.init "
          f"is {init!r}, which sets {field} of every row, expected None. Set "
          "config.network.init=source, or remove "
          f"config.network.layers.{layer}.{field}."
        )


def describe_published(network: wiring.Network) -> list[str]:
  """Says where an image of another size made another network of a wiring.

  Returns:
    A line if the network has the kernels of a wiring of the catalog as it was
    published, but for those that follow from the side of the image; else none.
  """
  for table in network_catalog.WIRINGS:
    if table.name != network.name:
      continue
    size = table.published_size
    published = wiring.make_network(
      table, image_size=size, num_classes=table.published_classes
    ).sizes()
    try:
      resized = dataclasses.replace(network, image_size=size).sizes()
    except ValueError:  # the windows of changed rows are too wide for it
      return []
    shapes, there, now = (
      {name: one.shapes for name, one in sizes.items()}
      for sizes in (published, resized, network.sizes())
    )
    if shapes == there != now:
      counts = [
        f"{sum(one.parameters for one in sizes.values()):,}"
        for sizes in (published, network.sizes())
      ]
      return [
        f"network {table.name} was published for {size} pixels ({counts[0]} "
        f"parameters); image_size is {network.image_size} ({counts[1]})"
      ]
  return []


def to_fields(table: wiring.Wiring) -> dict[str, Any]:
  """Converts a wiring to nested dicts, for `config.network`.

  Returns:
    The fields that define it, and a width of 1. The order of the layers has a
    field, as the dicts of a config do not keep it.
  """
  layers = {}
  for row in table.layers:
    values = dataclasses.asdict(row)
    del values["name"]
    layers[row.name] = {
      name: wiring.NO_PART.get(name) if value is None else value
      for name, value in values.items()
    }
  return {
    "wiring": table.name,
    "order": tuple(layers),
    "layers": layers,
    "columns": table.columns,
    "image_channels": table.image_channels,
    "width": 1.0,
  }


def check_names(what: str, names: Iterable[str]) -> None:
  """Refuses names that no group of fields of a config can have.

  Args:
    what: has these names, such as "a layer".

  Raises:
    ValueError: names the first of them.
  """
  for name in names:
    if not name.isidentifier() or hasattr(ml_collections.ConfigDict, name):
      raise ValueError(
        f"{what} is called {name!r}, expected a name of letters, digits and _ "
        "that is none of a config's own, such as keys or update. Rename it."
      )


def _start_wiring(
  network: ml_collections.ConfigDict, rows: Mapping[str, Mapping[str, Any]]
) -> wiring.Wiring:
  """Returns the wiring that a config defines, with rows to be changed."""
  if network.wiring in [table.name for table in network_catalog.WIRINGS]:
    raise ValueError(
      "the config defines a wiring of its own under the name "
      f"{network.wiring!r}, which is in the catalog. Set config.network.wiring "
      "to another name, or config.network.order=None to change only single "
      "fields of that one."
    )
  for field in ("order", "columns"):
    if not network[field]:
      raise ValueError(
        f"network.{field} is {network[field]}, expected a value for "
        f"{network.wiring!r}, a wiring of the config's own. Set "
        f"config.network.{field}."
      )
  for name in network.order:
    for field in ("reads", "features"):
      if rows.get(name, {}).get(field) is None:
        raise ValueError(
          f"network.layers.{name}.{field} is None, expected a value: wiring "
          f"{network.wiring!r} is the config's own, and network.order has a "
          f"layer {name!r}. Set config.network.layers.{name}.{field}, or all "
          "rows with use_wiring of configs/default.py."
        )
  return wiring.Wiring(
    name=network.wiring,
    columns=network.columns,
    layers=tuple(
      # None elsewhere means unset, the default of a row. Here a field that is
      # there and None is He scaling, as in a row in Python, from which
      # `use_wiring` writes it; one that is left out is unset.
      wiring.Layer(name=name, reads="", features=0, kernel_std=None)
      if "kernel_std" in rows[name]
      else wiring.Layer(name=name, reads="", features=0)
      for name in network.order
    ),
    published_size=network.image_size,
    published_classes=network.num_classes,
  )


def _change_row(layer: wiring.Layer, row: Mapping[str, Any]) -> wiring.Layer:
  """Sets the fields of a row that are not None; some of them are groups.

  Raises:
    ValueError: a group says that the row has no such part, and has its fields.
  """
  values = _drop_unset(row)
  for name, none in wiring.NO_PART.items():
    if part := _drop_unset(values.pop(name, {})):
      start = getattr(layer, name) or wiring.PARTS[name]
      is_none = none is not None and none.items() <= part.items()
      if is_none and (others := part.keys() - none):
        ((kind, value),) = none.items()
        field = f"network.layers.{layer.name}.{name}"
        raise ValueError(
          f"{field}.{kind} is {value!r}, so that there is none, but its "
          f"{', '.join(sorted(others))} is set, expected another {kind}. Set "
          f"config.{field}.{kind}."
        )
      values[name] = None if is_none else dataclasses.replace(start, **part)
  return dataclasses.replace(layer, **values)


def _drop_unset(values: Mapping[str, Any]) -> dict[str, Any]:
  return {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in values.items()
    if value is not None
  }


def check_fields(config: ml_collections.ConfigDict) -> None:
  """Checks each field by itself.

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


def check(
  config: ml_collections.ConfigDict,
) -> tuple[wiring.Network, layout_lib.Layout]:
  """Checks everything that needs neither devices nor data.

  Returns:
    The network, and a layout that fits it.

  Raises:
    ValueError, TypeError: one line on what to change.
  """
  check_fields(config)
  _check_relations(config)
  network = make_network(config)
  build.check(config, [layer.name for layer in network.layers])
  _check_init_from(config.init_from, [layer.name for layer in network.layers])
  layout = make_layout(config, network)
  if ensemble_lib.AXIS in layout.mesh:
    raise ValueError(
      f"layout {layout.name!r} has an axis {ensemble_lib.AXIS!r}, a name that "
      "is reserved for the members of an ensemble, expected another name. Set "
      "config.layout.mesh, and config.ensemble for the members."
    )
  _check_axes(layout, network)
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


def _check_axes(layout: layout_lib.Layout, network: wiring.Network) -> None:
  """Refuses axes that a layout of the catalog lacks and no layer uses."""
  meshes = {named.name: named.mesh for named in catalog.LAYOUTS}
  mesh = meshes.get(layout.name, layout.mesh)
  placements = [layout.placement(layer) for layer in network.layers]
  used = {
    axis
    for placement in placements
    for name in layout_lib.DIMENSIONS
    for axis in getattr(placement, name)
  }
  for axis, size in layout.mesh.items():
    if size > 1 and axis not in mesh and axis not in used:
      raise ValueError(
        f"layout.mesh.{axis} is {size}, but no layer of layout {layout.name!r} "
        f"uses axis {axis!r}, so that its devices would all compute the same, "
        f"expected one of {', '.join(mesh)}. Set config.layout.mesh.{axis}=1, "
        f"or {', '.join(layout_lib.DIMENSIONS)} of a layer."
      )


def _check_init_from(
  start: ml_collections.ConfigDict, layers: Sequence[str]
) -> None:
  """Refuses fields of `config.init_from` that would have no effect.

  Args:
    layers: names of the network's layers.
  """
  if start.workdir is None:
    for field, unset in (
      ("step", None),
      ("leave_out", ()),
      ("optimizer", "new"),
    ):
      value = start[field]
      if value not in (unset, []):
        raise ValueError(
          f"init_from.{field} is {value!r}, but init_from.workdir is None, so "
          f"that no run is read, expected {unset!r}. Set "
          f"config.init_from.workdir, or config.init_from.{field}={unset}."
        )
  for name in start.leave_out:
    if name not in layers:
      raise ValueError(
        f"init_from.leave_out has {name!r}, but the network has the layers "
        f"{', '.join(layers)}, expected some of these. Set "
        "config.init_from.leave_out."
      )
  if {*start.leave_out} == {*layers}:
    raise ValueError(
      f"init_from.leave_out has all layers, {', '.join(layers)}, so that "
      "nothing is taken, expected fewer. Set config.init_from.leave_out, or "
      "config.init_from.workdir=None."
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
