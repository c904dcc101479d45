"""Whether a network fits a layout: every reason why it may not, in one line.

Before anything is compiled, and without JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alexnet_jax.partition import layout as layout_lib

if TYPE_CHECKING:
  from alexnet_jax.network import wiring

_WORDS = {"batch": "batch", "features": "features", "fsdp": "weights"}


def check(
  layout: layout_lib.Layout, network: wiring.Network, *, batch_size: int
) -> None:
  """Refuses a layout that cannot run this network.

  Args:
    layout: the layout.
    network: the network.
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
    _check_stored(layout, network.layer(name), sizes)


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
      f"{_any_of(layout_lib.ARRIVALS)}. "
      f"Set {field}.arrive."
    )
  for kind in ("batch", "features", "fsdp"):
    axes = getattr(placement, kind)
    for axis in axes:
      if axis not in layout.mesh:
        raise ValueError(
          f"{name} splits its {_WORDS[kind]} over axis {axis!r}, but the "
          f"mesh of layout '{layout.name}' has "
          f"{layout_lib.listed(layout.mesh)}. "
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
        f"{name} stores its weights in shares over axis {axis!r}, which does "
        f"not split its batch; it is split by {_axes(placement.batch)}. "
        f"Set {field}.fsdp or {field}.batch."
      )


def _check_batch(layout: layout_lib.Layout, name: str, batch_size: int) -> None:
  axes = layout.placement(name).batch
  if batch_size < 1 or batch_size % layout.size(axes):
    raise ValueError(
      f"a batch of {batch_size} images does not divide evenly over the "
      f"{layout.size(axes)} devices of {_axes(axes)} that split the batch of "
      f"{name} in layout '{layout.name}'. "
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
  over = f"the {devices} devices of {_axes(placement.features)}"
  fix = f"Set config.layout.{layer.name}.features or config.layout.mesh"
  if devices == 1:
    return
  whole_columns = layer.reads == "own" or layer.normalize == "column"
  if placement.arrive == "sum" and layer.reads != "all":
    raise ValueError(
      f"{layer.name} reads {_what(layer)}, so there is nothing to sum over "
      f"{over}. Set config.layout.{layer.name}.arrive to 'gather'."
    )
  if whole_columns and network.columns % devices:
    raise ValueError(
      f"{layer.name} keeps its columns whole, and {over} in layout "
      f"'{layout.name}' do not divide the network's {network.columns} "
      f"columns. {fix}, or config.network.columns."
    )
  can_sum = layer.reads == "all" and not sizes.channels % devices
  gathers = placement.arrive == "gather" or (
    placement.arrive == "fewest" and not can_sum
  )
  if gathers and layer.features % devices:
    raise ValueError(
      f"{layer.name} has {layer.features} features, which {over} in layout "
      f"'{layout.name}' do not divide. {fix}."
    )
  if layer.features // devices < layer.reach:
    raise ValueError(
      f"{layer.name} normalizes with {layer.reach} maps of each device beside "
      f"one, and {over} in layout '{layout.name}' have "
      f"{layer.features // devices} of its {layer.features}. {fix}."
    )
  if placement.arrive == "sum":
    if sizes.channels % devices:
      raise ValueError(
        f"{layer.name} sums over {over} in layout '{layout.name}', which do "
        f"not divide the {sizes.channels} channels that it reads. {fix}."
      )


def _check_stored(
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
    what = "outputs" if dimension == layout_lib.OUTPUTS else "inputs"
    raise ValueError(
      f"{layer.name} has {size} {what}, which the "
      f"{layout.size(axes)} devices of {_axes(axes)} that keep shares of its "
      f"kernel in layout '{layout.name}' do not divide. "
      f"Set config.layout.{layer.name}.fsdp or config.layout.mesh."
    )


def _any_of(words: tuple[str, ...]) -> str:
  return " or ".join(map(repr, words))


def _axes(axes: tuple[str, ...]) -> str:
  return (
    "no axis" if not axes else "axis " + " x ".join(repr(axis) for axis in axes)
  )


def _what(layer: wiring.Layer) -> str:
  return "the image" if layer.reads == "image" else "its own column"
