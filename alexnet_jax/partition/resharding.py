"""Finds how each activation is resharded on its way from layer to layer.

This is the one place where a layout becomes communication: `exchange.py`
performs the routes. `plan.py` counts their bytes, and by these chooses between
outputs and inputs where the layout leaves it open (`features`).

The output of a layer is sharded over mesh axes, and the next layer may need it
sharded over others. Each axis on which the two differ is one `Reshard`:

    is sharded by  needed by batch     needed by features  needed replicated
    batch          -                   all-to-all          all-gather
    features       all-to-all          -                   all-gather
    replicated     local slice         local slice         - (or `pvary`)

There are two kinds of replicated activations, which differ in the gradient
only. After an all-gather the devices of an axis hold equal `copies`, and the
transpose of the gather sums their gradients. An activation that was replicated
from the start, or is the result of a sum, is one array; where each device then
computes something different from it, its gradients are summed there (`pvary`,
and every slice).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib

# Dimensions of an activation: f32[n, ..., channels].
BATCH, CHANNELS = 0, -1
LOSS = "loss"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationSharding:
  """How an activation is sharded over the mesh.

  Along an axis in none of these it is replicated, as one array.

  Attributes:
    batch: axes that split the images, slowest first.
    features: axes that split the channels or units, slowest first.
    copies: axes along which the devices hold equal copies after a gather.
  """

  batch: tuple[str, ...] = ()
  features: tuple[str, ...] = ()
  copies: tuple[str, ...] = ()

  @property
  def varying(self) -> tuple[str, ...]:
    return self.batch + self.features + self.copies


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reshard:
  """One step of an activation on its way into a layer.

  Attributes:
    kind: `all_gather`, `all_to_all`, `slice` or `pvary`.
    axes: the mesh axes along which it happens.
    source: the dimension that was split before; None if none was.
    target: the dimension that is split after; None if none is.
    elements: of the array that one device holds before it.
    images: whose activations the devices along the axes hold together.
    copied: whether the devices held copies before it, after a gather.
  """

  kind: str
  axes: tuple[str, ...]
  source: int | None
  target: int | None
  elements: int
  images: int
  copied: bool

  @property
  def sends(self) -> bool:
    """Whether the forward pass sends anything."""
    return self.kind in ("all_gather", "all_to_all")

  @property
  def gathers_features(self) -> bool:
    """Whether it gathers features along its axes, and no images."""
    return (self.kind, self.source) == ("all_gather", CHANNELS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRoute:
  """The communication around one layer.

  Attributes:
    placement: the layer's, without `features`: these are outputs or inputs.
    reshards: of the input, in order.
    input_sharding: of the input where the layer is computed.
    output_sharding: of the output.
    overlap_gather: whether the layer computes with the local features while
      the last reshard gathers all of them.
    scatter_outputs: axes along which partial sums are added and scattered over
      the output features; like the next two, of the placement's `inputs`.
    scatter_images: axes along which they are added and scattered over images.
    sum_axes: axes along which they are added, and replicated.
    partial_elements: of the partial sums on one device.
    images: whose partial sums, or outputs, one device computes.
    kept_images: whose outputs it keeps: fewer, if partial sums are scattered
      over images.
    halo_axes: axes along which neighboring maps are on other devices, for a
      local response normalization.
    trained: whether the parameters have gradients: not those of a frozen layer.
    input_gradient: whether the input has a gradient: not the image, nor what
      frozen layers alone make of it.
  """

  placement: layout_lib.Placement = layout_lib.Placement()
  reshards: tuple[Reshard, ...]
  input_sharding: ActivationSharding
  output_sharding: ActivationSharding
  overlap_gather: bool = False
  scatter_outputs: tuple[str, ...] = ()
  scatter_images: tuple[str, ...] = ()
  sum_axes: tuple[str, ...] = ()
  partial_elements: int = 0
  images: int = 0
  kept_images: int = 0
  halo_axes: tuple[str, ...] = ()
  trained: bool = True
  input_gradient: bool = True

  @property
  def has_backward(self) -> bool:
    """Whether the backward pass reaches the layer."""
    return self.trained or self.input_gradient

  @property
  def additions(self) -> tuple[tuple[str, tuple[str, ...], int | None], ...]:
    """How partial sums are added, in order: (kind, axes, dimension).

    The kinds are `reduce_scatter`, over a dimension, and `sum`. What scatters
    comes first, so that the next one handles less.
    """
    additions = (
      ("reduce_scatter", self.scatter_outputs, CHANNELS),
      ("reduce_scatter", self.scatter_images, BATCH),
      ("sum", self.sum_axes, None),
    )
    return tuple(addition for addition in additions if addition[1])


def find_route(
  network: wiring.Network,
  layout: layout_lib.Layout,
  layer: wiring.Layer,
  following: wiring.Layer | None,
  sharding: ActivationSharding,
  *,
  size: wiring.Sizes,
  placement: layout_lib.Placement,
  next_placement: layout_lib.Placement | None,
  batch_size: int,
) -> LayerRoute:
  """Finds the route into a layer whose input has the given sharding.

  Args:
    layout: a layout that `check.check` has accepted for it.
    size: of the layer.
    following: the next layer; None: the loss follows.
    placement, next_placement: of these two, from `check.find_alternatives`.
    batch_size: images in a step, over all devices.

  Raises:
    ValueError: two layers name their axes in orders that do not fit together.
  """
  reshards, input_sharding = find_entry(
    network,
    layout,
    layer,
    sharding,
    size=size,
    placement=placement,
    batch_size=batch_size,
  )
  to_outputs, to_images = find_scatters(
    network,
    layout,
    layer,
    following,
    placement=placement,
    next_placement=next_placement,
  )
  return make_route(
    network,
    layout,
    layer,
    reshards,
    input_sharding,
    to_outputs,
    to_images,
    size=size,
    placement=placement,
    batch_size=batch_size,
  )


def find_entry(
  network: wiring.Network,
  layout: layout_lib.Layout,
  layer: wiring.Layer,
  sharding: ActivationSharding,
  *,
  size: wiring.Sizes,
  placement: layout_lib.Placement,
  batch_size: int,
) -> tuple[tuple[Reshard, ...], ActivationSharding]:
  """Finds the reshards into a layer, and the sharding of its input after them.

  The first part of `find_route`; see there.
  """
  wanted = _find_wanted(network, layout, layer, placement)
  return _find_reshards(
    layer.name,
    sharding,
    wanted,
    layout,
    elements=batch_size * size.positions * size.channels,
    images=batch_size,
    pvary_axes=tuple(
      axis for axis in placement.outputs if axis not in wanted.features
    ),
  )


def make_route(
  network: wiring.Network,
  layout: layout_lib.Layout,
  layer: wiring.Layer,
  reshards: tuple[Reshard, ...],
  input_sharding: ActivationSharding,
  to_outputs: tuple[str, ...],
  to_images: tuple[str, ...],
  *,
  size: wiring.Sizes,
  placement: layout_lib.Placement,
  batch_size: int,
) -> LayerRoute:
  """Makes the route of a layer from what precedes and follows its product.

  Args:
    reshards, input_sharding: from `find_entry`.
    to_outputs, to_images: from `find_scatters`.
    size, placement, batch_size: as in `find_route`.
  """
  features = placement.outputs + to_outputs
  images = batch_size // layout.size(placement.batch)
  return LayerRoute(
    placement=placement,
    reshards=reshards,
    input_sharding=input_sharding,
    output_sharding=ActivationSharding(
      batch=placement.batch + to_images,
      features=features,
      copies=tuple(
        axis
        for axis in input_sharding.copies
        if axis not in placement.outputs + placement.inputs
      ),
    ),
    overlap_gather=(
      placement.overlap_gather
      and layer.reads == "all"
      and bool(reshards)
      and reshards[-1].gathers_features
      and layout.size(reshards[-1].axes) > 1
    ),
    scatter_outputs=to_outputs,
    scatter_images=to_images,
    sum_axes=tuple(
      axis for axis in placement.inputs if axis not in to_outputs + to_images
    ),
    partial_elements=images * size.outputs // layout.size(placement.outputs),
    images=images,
    kept_images=images // layout.size(to_images),
    halo_axes=layout.halo_axes(layer, features, network.columns),
    trained=layer.name in network.trained,
    input_gradient=network.needs_input_gradient(layer.name),
  )


def find_loss_route(
  network: wiring.Network,
  layout: layout_lib.Layout,
  sharding: ActivationSharding,
  *,
  batch_size: int,
) -> LayerRoute:
  """Finds the route into the loss, which reads complete logits."""
  reshards, sharding = _find_reshards(
    LOSS,
    sharding,
    ActivationSharding(batch=sharding.batch),
    layout,
    elements=batch_size * network.layers[-1].features,
    images=batch_size,
  )
  return LayerRoute(
    reshards=reshards, input_sharding=sharding, output_sharding=sharding
  )


def _find_wanted(
  network: wiring.Network,
  layout: layout_lib.Layout,
  layer: wiring.Layer,
  placement: layout_lib.Placement,
) -> ActivationSharding:
  """Returns the sharding of its input with which a layer is computed.

  A layer that reads its own column needs the channels split as its columns.
  """
  columns = ()
  if layer.reads == "own":
    columns, _ = layout.split_columns(placement.outputs, network.columns)
  return ActivationSharding(
    batch=placement.batch, features=columns + placement.inputs
  )


def find_scatters(
  network: wiring.Network,
  layout: layout_lib.Layout,
  layer: wiring.Layer,
  following: wiring.Layer | None,
  *,
  placement: layout_lib.Placement,
  next_placement: layout_lib.Placement | None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Finds the axes along which partial sums are scattered, as the next needs.

  Returns:
    The axes along which they are scattered over the outputs, and over images.
  """
  inputs, outputs = placement.inputs, placement.outputs
  if following is None or not inputs:
    return (), ()
  wanted = _find_wanted(network, layout, following, next_placement)
  to_outputs = _continue(outputs, wanted.features, inputs)
  if not to_outputs and layout.size(outputs + wanted.features) == 1:
    # If the next layer gathers what these axes split, the two send as much as
    # an all-reduce, and what follows the sum is computed only once.
    one, other = (
      [axis for axis in axes if layout.mesh[axis] > 1]
      for axes in (inputs, next_placement.outputs)
    )
    if one and one == other:
      to_outputs = inputs
  while to_outputs and not _may_split(
    network, layout, layer, outputs + to_outputs
  ):
    to_outputs = to_outputs[:-1]
  others = tuple(axis for axis in inputs if axis not in to_outputs)
  return to_outputs, _continue(placement.batch, wanted.batch, others)


def _continue(
  split: tuple[str, ...], wanted: tuple[str, ...], allowed: tuple[str, ...]
) -> tuple[str, ...]:
  """Returns the allowed axes that come next where `split` becomes `wanted`."""
  if wanted[: len(split)] != split:
    return ()
  return tuple(itertools.takewhile(allowed.__contains__, wanted[len(split) :]))


def _may_split(
  network: wiring.Network,
  layout: layout_lib.Layout,
  layer: wiring.Layer,
  features: tuple[str, ...],
) -> bool:
  """Whether the outputs of a layer can be normalized if they are split so."""
  devices = layout.size(features)
  if layer.features % devices:
    return False
  if layer.normalize == "column":
    if layout.split_columns(features, network.columns) is None:
      return False
  crosses = layout.size(layout.halo_axes(layer, features, network.columns)) > 1
  return not crosses or layer.features // devices >= layer.halo


def _find_reshards(
  layer: str,
  source: ActivationSharding,
  wanted: ActivationSharding,
  layout: layout_lib.Layout,
  *,
  elements: int,
  images: int,
  pvary_axes: tuple[str, ...] = (),
) -> tuple[tuple[Reshard, ...], ActivationSharding]:
  """Finds the reshards into a layer, in order, and the sharding after them.

  Args:
    wanted: its batch and features axes where the layer is computed.
    elements: of the complete activation.
    images: in the complete batch.
    pvary_axes: axes along which the layer computes different outputs.

  Raises:
    ValueError: the orders of the axes of the two do not fit together.
  """
  batch, features = list(source.batch), list(source.features)
  copies = list(source.copies)
  reshards = []
  fix = f"Set the batch, outputs or inputs of config.layout.{layer}."

  def add(kind: str, axes: Sequence[str], before, after, copied=False) -> None:
    reshards.append(
      Reshard(
        kind=kind,
        axes=tuple(axes),
        source=before,
        target=after,
        elements=elements // layout.size((*batch, *features)),
        images=images // layout.size([a for a in batch if a not in axes]),
        copied=copied,
      )
    )

  def remove_axes(split, wanted_split, other, wanted_other, dimensions) -> None:
    """Removes the axes that are not wanted on a dimension, fastest first."""
    before, after = dimensions
    leaving = [axis for axis in split if axis not in wanted_split]
    if len(leaving) > 1 and split[-len(leaving) :] == leaving:
      if [axis for axis in wanted_other if axis in leaving] == leaving:
        add("all_to_all", leaving, before, after)  # in their order
        other.extend(leaving)
        del split[-len(leaving) :]
        return
    for axis in reversed(leaving):
      if split[-1] != axis:
        raise ValueError(
          f"{layer} needs axis {axis!r} gathered, but the layer before is "
          f"split over {_with_sizes(split, layout)}, and only the last axis "
          f"can be gathered. {fix}"
        )
      if axis in wanted_other:
        add("all_to_all", [axis], before, after)
        other.append(axis)
      else:
        add("all_gather", [axis], before, None)
        copies.append(axis)
      split.remove(axis)

  remove_axes(features, wanted.features, batch, wanted.batch, (CHANNELS, BATCH))
  remove_axes(batch, wanted.batch, features, wanted.features, (BATCH, CHANNELS))
  for split, axes, dimension in (
    (batch, wanted.batch, BATCH),
    (features, wanted.features, CHANNELS),
  ):
    for axis in axes:
      if axis not in split:
        add("slice", [axis], None, dimension, copied=axis in copies)
        split.append(axis)
        if axis in copies:
          copies.remove(axis)
    if tuple(split) != axes:
      raise ValueError(
        f"{layer} needs its input split over {_with_sizes(axes, layout)}, but "
        f"it arrives split over {_with_sizes(split, layout)}; the axes that "
        f"both have must come first, in the same order. {fix}"
      )
  # One sum of gradients for all of them.
  if varied := [axis for axis in pvary_axes if axis not in copies]:
    add("pvary", varied, None, None)
    copies.extend(varied)
  return tuple(reshards), dataclasses.replace(wanted, copies=tuple(copies))


def _with_sizes(axes: Sequence[str], layout: layout_lib.Layout) -> str:
  """Formats axes with their sizes, in their order: `(a=2, b=4)`."""
  sizes = {axis: layout.mesh[axis] for axis in axes}
  return f"({layout_lib.format_mesh(sizes)})"
