"""Checks that a network fits a layout, before anything is compiled.

Every reason why it does not is an error of one line. Needs no JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alexnet_jax.partition import layout as layout_lib

if TYPE_CHECKING:
  from alexnet_jax.network import wiring


def check(
  layout: layout_lib.Layout, network: wiring.Network, *, batch_size: int
) -> None:
  """Refuses a layout that cannot run this network.

  Args:
    batch_size: images in a step, over all devices.

  Raises:
    ValueError: names the layer, the axis, the sizes and the field to change.
  """
  if not layout.mesh:
    raise ValueError(
      f"the mesh of layout '{layout.name}' has no axis, expected one or more. "
      "Set config.layout.mesh."
    )
  for axis, size in layout.mesh.items():
    if size < 1:
      raise ValueError(
        f"mesh axis {axis!r} has {size} devices, expected 1 or more. "
        f"Set config.layout.mesh.{axis}."
      )
  for layer in network.layers:
    _check_axes(layout, layer)
    _check_batch(layout, layer, batch_size)
  find_alternatives(layout, network)


def find_alternatives(
  layout: layout_lib.Layout, network: wiring.Network
) -> dict[str, tuple[layout_lib.Placement, ...]]:
  """Finds the placements of every layer: two where `features` may be either.

  Returns:
    {layer: placements without `features`}.

  Raises:
    ValueError: a layer has none that fits.
  """
  sizes = network.sizes()
  found = {}
  for layer in network.layers:
    fitting, errors = [], []
    for placement in layout.placement(layer).alternatives:
      try:
        check_placement(layout, network, layer, sizes[layer.name], placement)
        fitting.append(placement)
      except ValueError as error:
        errors.append(error)
    if not fitting:
      raise errors[0]
    found[layer.name] = tuple(fitting)
  return found


def _check_axes(layout: layout_lib.Layout, layer: wiring.Layer) -> None:
  placement, name = layout.placement(layer), layer.name
  field = f"config.layout.{name}"
  for kind in (*layout_lib.DIMENSIONS, "fsdp"):
    axes = getattr(placement, kind)
    for axis in axes:
      if axis not in layout.mesh:
        raise ValueError(
          f"{name} splits its {'weights' if kind == 'fsdp' else kind} over "
          f"axis {axis!r}, but the mesh of "
          f"layout '{layout.name}' has {layout_lib.format_mesh(layout.mesh)}. "
          f"Set {field}.{kind} or config.layout.mesh."
        )
    if len(set(axes)) < len(axes):
      raise ValueError(
        f"{name} names an axis twice in its {kind} axes {axes}. "
        f"Set {field}.{kind}."
      )
  split: dict[str, str] = {}
  for kind in layout_lib.DIMENSIONS:
    for axis in getattr(placement, kind):
      if axis in split:
        raise ValueError(
          f"{name} splits both its {split[axis]} and its {kind} over axis "
          f"{axis!r}, expected one of the two. Set {field}.{split[axis]} or "
          f"{field}.{kind}."
        )
      split[axis] = kind
  for axis in placement.fsdp:
    if axis not in placement.batch:
      raise ValueError(
        f"{name} shards its stored weights over axis {axis!r}, which does not "
        f"split its batch; that is split by {_format_axes(placement.batch)}. "
        f"Set {field}.fsdp or {field}.batch."
      )


def _check_batch(
  layout: layout_lib.Layout, layer: wiring.Layer, batch_size: int
) -> None:
  axes = layout.placement(layer).batch
  if batch_size < 1 or batch_size % layout.size(axes):
    raise ValueError(
      f"a batch of {batch_size} images does not divide evenly over the "
      f"{layout.size(axes)} devices of {_format_axes(axes)} that split the "
      f"batch of {layer.name} in layout '{layout.name}'. "
      "Set config.batch_size or config.layout.mesh."
    )


def check_placement(
  layout: layout_lib.Layout,
  network: wiring.Network,
  layer: wiring.Layer,
  sizes: wiring.Sizes,
  placement: layout_lib.Placement,
) -> None:
  """Refuses a placement without `features` that the layer cannot have."""
  _check_outputs(layout, network, layer, placement)
  _check_inputs(layout, network, layer, sizes, placement)
  _check_fsdp(layout, network, layer, sizes, placement)


def _check_outputs(
  layout: layout_lib.Layout,
  network: wiring.Network,
  layer: wiring.Layer,
  placement: layout_lib.Placement,
) -> None:
  axes, devices = placement.outputs, layout.size(placement.outputs)
  if devices == 1:
    return
  in_layout = _describe_devices(layout, axes)
  fix = f"Set {_field(layout, layer, 'outputs')} or config.layout.mesh"
  parts = layout.split_columns(axes, network.columns)
  keeps_columns = layer.reads == "own" or layer.normalize == "column"
  if keeps_columns and parts is None:
    raise ValueError(
      f"{layer.name} does not split its columns, and {in_layout} do not divide "
      f"the network's {network.columns} columns. {fix}, or "
      "config.network.columns."
    )
  if layer.features % devices:
    raise ValueError(
      f"{layer.name} has {layer.features} features, which {in_layout} do not "
      f"divide. {fix}."
    )
  crosses = layout.size(layout.halo_axes(layer, axes, network.columns)) > 1
  if crosses and layer.features // devices < layer.halo:
    raise ValueError(
      f"{layer.name} normalizes with {layer.halo} maps of each neighboring "
      f"device, but {in_layout} have only {layer.features // devices} of its "
      f"{layer.features} each. {fix}."
    )


def _check_inputs(
  layout: layout_lib.Layout,
  network: wiring.Network,
  layer: wiring.Layer,
  sizes: wiring.Sizes,
  placement: layout_lib.Placement,
) -> None:
  axes, devices = placement.inputs, layout.size(placement.inputs)
  if devices == 1:
    return
  over = f"the {devices} devices of {_format_axes(axes)}"
  in_layout = _describe_devices(layout, axes)
  field = _field(layout, layer, "inputs")
  if layer.reads == "image":
    raise ValueError(
      f"{layer.name} reads the image, so there is nothing to sum over {over}: "
      f"its {sizes.channels} channels are not split. Remove {field}, or set "
      f"config.layout.{layer.name}.outputs."
    )
  channels, what = sizes.channels, "channels that it reads"
  if layer.reads == "own" and network.columns > 1:
    channels //= network.columns
    what = "channels of a column"
    held = network.columns / layout.size(placement.outputs)
    if held > 1:
      raise ValueError(
        f"{layer.name} reads its own column, whose channels {in_layout} can "
        "split only where each device has one column, but its outputs are "
        f"split over {layout.size(placement.outputs)} devices and the network "
        f"has {network.columns} columns. Set "
        f"config.layout.{layer.name}.outputs or {field}."
      )
  if channels % devices:
    raise ValueError(
      f"{layer.name} sums over {in_layout}, which do not divide the "
      f"{channels} {what}. Set {field} or config.layout.mesh."
    )


def _check_fsdp(
  layout: layout_lib.Layout,
  network: wiring.Network,
  layer: wiring.Layer,
  sizes: wiring.Sizes,
  placement: layout_lib.Placement,
) -> None:
  dimension = layout_lib.fsdp_dimension(layer, network)
  # Both may split one dimension: first the layer's own axes, then these.
  splits_outputs = dimension == layout_lib.OUTPUTS
  axes = placement.outputs if splits_outputs else placement.inputs
  axes += placement.fsdp
  size = sizes.kernel[dimension]
  if placement.fsdp and size % layout.size(axes):
    raise ValueError(
      f"{layer.name} has {size} {'outputs' if splits_outputs else 'inputs'}, "
      f"which the {layout.size(axes)} devices of {_format_axes(axes)} that "
      f"shard its stored kernel in layout '{layout.name}' do not divide. "
      f"Set config.layout.{layer.name}.fsdp or config.layout.mesh."
    )


def _field(layout: layout_lib.Layout, layer: wiring.Layer, field: str) -> str:
  """Names the field that has the axes, which may be `features`."""
  if layout.placement(layer).features:
    field = "features"
  return f"config.layout.{layer.name}.{field}"


def _describe_devices(layout: layout_lib.Layout, axes: tuple[str, ...]) -> str:
  return (
    f"the {layout.size(axes)} devices of {_format_axes(axes)} in layout "
    f"'{layout.name}'"
  )


def _format_axes(axes: tuple[str, ...]) -> str:
  return f"axis {' x '.join(map(repr, axes))}" if axes else "no axis"
