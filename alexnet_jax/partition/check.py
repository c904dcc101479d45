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
  for name, sizes in network.sizes().items():
    _check_axes(layout, name)
    _check_batch(layout, name, batch_size)
    _check_features(layout, network, network.layer(name), sizes)
    _check_fsdp(layout, network.layer(name), sizes)


def fits(
  layout: layout_lib.Layout, network: wiring.Network, *, batch_size: int
) -> bool:
  """Whether `check` accepts this layout."""
  try:
    check(layout, network, batch_size=batch_size)
  except ValueError:
    return False
  return True


def _check_axes(layout: layout_lib.Layout, name: str) -> None:
  placement = layout.placement(name)
  field = f"config.layout.{name}"
  if placement.arrive not in layout_lib.ARRIVALS:
    raise ValueError(
      f"{name} arrives by {placement.arrive!r}, expected "
      f"{' or '.join(map(repr, layout_lib.ARRIVALS))}. Set {field}.arrive."
    )
  for kind in ("batch", "features", "fsdp"):
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
  for axis in placement.batch:
    if axis in placement.features:
      raise ValueError(
        f"{name} splits both its batch and its features over axis {axis!r}, "
        f"expected one of the two. Set {field}.batch or {field}.features."
      )
  for axis in placement.fsdp:
    if axis not in placement.batch:
      raise ValueError(
        f"{name} shards its stored weights over axis {axis!r}, which does not "
        f"split its batch; that is split by {_format_axes(placement.batch)}. "
        f"Set {field}.fsdp or {field}.batch."
      )


def _check_batch(layout: layout_lib.Layout, name: str, batch_size: int) -> None:
  axes = layout.placement(name).batch
  if batch_size < 1 or batch_size % layout.size(axes):
    raise ValueError(
      f"a batch of {batch_size} images does not divide evenly over the "
      f"{layout.size(axes)} devices of {_format_axes(axes)} that split the "
      f"batch of {name} in layout '{layout.name}'. "
      "Set config.batch_size or config.layout.mesh."
    )


def _check_features(
  layout: layout_lib.Layout,
  network: wiring.Network,
  layer: wiring.Layer,
  sizes: wiring.Sizes,
) -> None:
  placement = layout.placement(layer.name)
  devices = layout.size(placement.features)
  if devices == 1:
    return
  over = f"the {devices} devices of {_format_axes(placement.features)}"
  in_layout = f"{over} in layout '{layout.name}'"
  fix = f"Set config.layout.{layer.name}.features or config.layout.mesh"
  if placement.arrive == "sum" and layer.reads != "all":
    reads = "the image" if layer.reads == "image" else "its own column"
    raise ValueError(
      f"{layer.name} reads {reads}, so there is nothing to sum over {over}. "
      f"Set config.layout.{layer.name}.arrive to 'gather'."
    )
  keeps_columns = layer.reads == "own" or layer.normalize == "column"
  if keeps_columns and network.columns % devices:
    raise ValueError(
      f"{layer.name} does not split its columns, and {in_layout} do not divide "
      f"the network's {network.columns} columns. {fix}, or "
      "config.network.columns."
    )
  can_sum = layer.reads == "all" and not sizes.channels % devices
  gathers = placement.arrive == "gather" or (
    placement.arrive == "fewest" and not can_sum
  )
  if gathers and layer.features % devices:
    raise ValueError(
      f"{layer.name} has {layer.features} features, which {in_layout} do not "
      f"divide. {fix}."
    )
  if layer.features // devices < layer.halo:
    raise ValueError(
      f"{layer.name} normalizes with {layer.halo} maps of each neighboring "
      f"device, but {in_layout} have only {layer.features // devices} of its "
      f"{layer.features} each. {fix}."
    )
  if placement.arrive == "sum" and sizes.channels % devices:
    raise ValueError(
      f"{layer.name} sums over {in_layout}, which do not divide the "
      f"{sizes.channels} channels that it reads. {fix}."
    )


def _check_fsdp(
  layout: layout_lib.Layout, layer: wiring.Layer, sizes: wiring.Sizes
) -> None:
  placement = layout.placement(layer.name)
  dimension = layout_lib.fsdp_dimension(layer.name)
  axes = placement.fsdp
  # Both may split one dimension: first the layer's own axes, then these.
  splits_outputs = dimension == layout_lib.OUTPUTS
  if placement.arrive == "fewest" or (
    splits_outputs == (placement.arrive == "gather")
  ):
    axes = placement.features + axes
  size = sizes.kernel[dimension]
  if placement.fsdp and size % layout.size(axes):
    raise ValueError(
      f"{layer.name} has {size} {'outputs' if splits_outputs else 'inputs'}, "
      f"which the {layout.size(axes)} devices of {_format_axes(axes)} that "
      f"shard its stored kernel in layout '{layout.name}' do not divide. "
      f"Set config.layout.{layer.name}.fsdp or config.layout.mesh."
    )


def _format_axes(axes: tuple[str, ...]) -> str:
  return f"axis {' x '.join(map(repr, axes))}" if axes else "no axis"
