"""Finds how each activation is resharded on its way from layer to layer.

This is the one place where a layout becomes communication: `exchange.py`
performs the routes. `plan.py` counts their bytes, and by these chooses how the
input of a layer arrives where the layout leaves it open (`fewest`).

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
from collections.abc import Mapping, Sequence

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRoute:
  """The communication around one layer.

  Attributes:
    reshards: of the input, in order.
    input_sharding: of the input where the layer is computed.
    output_sharding: of the output.
    arrive: `gather` or `sum`.
    overlap_gather: whether the layer computes with the local features while
      the last reshard gathers all of them.
    sum_axes: axes over which partial results are summed.
    scatters_sum: whether the sum stays sharded by features, for the next layer.
    sum_elements: of one partial result on one device.
    sum_images: whose partial results these are.
    reads_images: whether the layer reads the image, which needs no gradient.
  """

  reshards: tuple[Reshard, ...]
  input_sharding: ActivationSharding
  output_sharding: ActivationSharding
  arrive: str = "gather"
  overlap_gather: bool = False
  sum_axes: tuple[str, ...] = ()
  scatters_sum: bool = False
  sum_elements: int = 0
  sum_images: int = 0
  reads_images: bool = False


def find_routes(
  network: wiring.Network,
  layout: layout_lib.Layout,
  *,
  arrivals: Mapping[str, str],
  batch_size: int,
) -> dict[str, LayerRoute]:
  """Finds the route into every layer, and into the loss.

  Args:
    layout: a layout that `check.check` has accepted for it.
    arrivals: layer -> `gather` or `sum`, one of `find_arrivals`.
    batch_size: images in a step, over all devices.

  Returns:
    {layer: route}, in order; the last is `loss`, which reads complete logits.

  Raises:
    ValueError: two layers name their axes in orders that do not fit together.
  """
  routes = {}
  sharding = ActivationSharding(
    batch=layout.placement(network.layers[0].name).batch
  )
  sizes = network.sizes()
  for layer, following in itertools.pairwise((*network.layers, None)):
    route = _find_route(
      layer,
      following,
      sizes[layer.name],
      sharding,
      layout,
      arrive=arrivals[layer.name],
      batch_size=batch_size,
    )
    routes[layer.name] = route
    sharding = route.output_sharding
  reshards, sharding = _find_reshards(
    LOSS,
    sharding,
    ActivationSharding(batch=sharding.batch),
    layout,
    elements=batch_size * network.layers[-1].features,
    images=batch_size,
  )
  routes[LOSS] = LayerRoute(
    reshards=reshards, input_sharding=sharding, output_sharding=sharding
  )
  return routes


def _find_route(
  layer: wiring.Layer,
  following: wiring.Layer | None,
  size: wiring.Sizes,
  sharding: ActivationSharding,
  layout: layout_lib.Layout,
  *,
  arrive: str,
  batch_size: int,
) -> LayerRoute:
  """Finds the route into a layer whose input has the given sharding."""
  placement = layout.placement(layer.name)
  images = batch_size // layout.size(placement.batch)
  reads_shard = layer.reads == "own" or arrive == "sum"
  reshards, input_sharding = _find_reshards(
    layer.name,
    sharding,
    ActivationSharding(
      batch=placement.batch,
      features=placement.features if reads_shard else (),
    ),
    layout,
    elements=batch_size * size.positions * size.channels,
    images=batch_size,
    pvary_axes=() if reads_shard else placement.features,
  )
  sum_axes = placement.features if arrive == "sum" else ()
  # A sum leaves each device its shard of the outputs if the next layer splits
  # its features over the same axes. If that layer reads only its shard, nothing
  # more is sent; if it gathers, the two send as much as an all-reduce, and what
  # follows the sum is computed only once.
  scatters_sum = (
    bool(sum_axes)
    and following is not None
    and layout.placement(following.name).features == sum_axes
    and layer.features % layout.size(sum_axes) == 0
  )
  return LayerRoute(
    reshards=reshards,
    input_sharding=input_sharding,
    output_sharding=ActivationSharding(
      batch=placement.batch,
      features=placement.features if scatters_sum or not sum_axes else (),
      copies=tuple(
        axis for axis in input_sharding.copies if axis not in placement.features
      ),
    ),
    arrive=arrive,
    overlap_gather=(
      placement.overlap_gather
      and layer.reads == "all"
      and bool(reshards)
      and (reshards[-1].kind, reshards[-1].source) == ("all_gather", CHANNELS)
      and layout.size(reshards[-1].axes) > 1
    ),
    sum_axes=sum_axes,
    scatters_sum=scatters_sum,
    sum_elements=images * size.outputs,
    sum_images=images,
    reads_images=layer.reads == "image",
  )


def find_arrivals(
  network: wiring.Network, layout: layout_lib.Layout
) -> dict[str, tuple[str, ...]]:
  """Finds which of `gather` and `sum` a layout allows, for every layer.

  Both only where its placement says `fewest`.
  """
  sizes = network.sizes()
  return {
    layer.name: _allowed_arrivals(layer, sizes[layer.name], layout)
    for layer in network.layers
  }


def _allowed_arrivals(
  layer: wiring.Layer, size: wiring.Sizes, layout: layout_lib.Layout
) -> tuple[str, ...]:
  placement = layout.placement(layer.name)
  if placement.arrive != "fewest":
    return (placement.arrive,)
  devices = layout.size(placement.features)
  # Axes of one device count, too: a sum over them sends nothing, and can avoid
  # a gather elsewhere.
  if not placement.features or layer.reads != "all" or size.channels % devices:
    return ("gather",)
  if layer.features % devices:
    return ("sum",)
  return ("gather", "sum")


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
  fix = f"Set config.layout.{layer}.batch or config.layout.{layer}.features."

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
  for axis in pvary_axes:
    if axis not in copies:
      add("pvary", [axis], None, None)
      copies.append(axis)
  return tuple(reshards), dataclasses.replace(wanted, copies=tuple(copies))


def _with_sizes(axes: Sequence[str], layout: layout_lib.Layout) -> str:
  """Formats axes with their sizes, in their order: `(a=2, b=4)`."""
  sizes = {axis: layout.mesh[axis] for axis in axes}
  return f"({layout_lib.format_mesh(sizes)})"
