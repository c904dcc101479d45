"""Plans the collectives of a training step, with their bytes.

Computed from network, layout and batch alone, before anything compiles. The
audit compares the plan with the program that JAX traced and with the one that
the compiler made.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax

from alexnet_jax.network import wiring
from alexnet_jax.partition import check, resharding
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import specs as specs_lib

FORWARD, BACKWARD = "forward", "backward"
ACTIVATION, EDGES, STATISTICS = "activation", "edges", "statistics"
KERNEL, BIAS, SCALE = "kernel", "bias", "scale"
PARAMETERS = (KERNEL, BIAS, SCALE)
# The norms that the optimizer needs of sharded kernels: "layer" and tensor.
UPDATE, NORM = "update", "norm"
LOSS = resharding.LOSS
# In a program, these tensors have a scope of their own inside their layer's.
NAMED_SCOPES = (*PARAMETERS, EDGES, STATISTICS, NORM)

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float64": 8}
# Numbers that a step sums over the images: those of `program/metrics.py`.
LOSS_VALUES = 4
TRANSPOSES = {
  "all_gather": "reduce_scatter",
  "all_to_all": "all_to_all",
  "reduce_scatter": "all_gather",
}


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class Collective:
  """One collective of a step.

  Attributes:
    layer: the layer that reads the activation, or owns the parameter; `loss`
      for the reductions of the loss, `update` for those of the optimizer.
    direction: `forward` or `backward`.
    tensor: `activation`; `edges`, the maps that the neighboring devices
      normalize with; `statistics`, mean and variance of each map or unit for a
      batch normalization, backward the gradients of its scale and bias;
      `kernel`, `bias` or `scale` for a parameter that is gathered, and for its
      gradient; `norm` for the norms of all kernels.
    kind: `all_gather`, `reduce_scatter`, `all_to_all` or `sum`.
    axes: the mesh axes along which it happens, in the order of the mesh;
      without axes of one device.
    devices: along those axes.
    elements: of the complete array that one group of devices gathers, scatters,
      exchanges or sums.
    images: whose activations these are; 0 for gradients and the loss.
    bytes_per_element: as in `DTYPE_BYTES`.
  """

  layer: str
  direction: str
  tensor: str
  kind: str
  axes: tuple[str, ...]
  devices: int
  elements: int
  images: int = dataclasses.field(default=0, compare=False)
  bytes_per_element: int = 4

  @property
  def elements_per_image(self) -> int:
    """Of the complete activation; 0 if it does not belong to images."""
    return self.elements // self.images if self.images else 0

  @property
  def sent_elements(self) -> int:
    """Elements that one device sends in a step; see `ring_elements`."""
    return ring_elements(self.kind, self.devices, self.elements)

  @property
  def sent_bytes(self) -> int:
    """Bytes that one device sends in a step."""
    return self.sent_elements * self.bytes_per_element


def ring_elements(kind: str, devices: int, elements: int) -> int:
  """Returns the elements that each device of a ring sends for one collective.

  Args:
    kind: as in `Collective`.
    devices: in the ring, P.
    elements: of the complete array, S: the result of an all-gather, the input
      of a reduce-scatter or a sum, and all that the group holds of an
      all-to-all.

  Returns:
    all-gather, reduce-scatter: S (P-1)/P. Sum: both in turn, 2 S (P-1)/P.
    All-to-all: S (P-1)/P^2, as each device keeps its own part. Any other kind,
    which no plan has but a compiler may choose: S.

  Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for
  clusters of workstations"; the bounds hold for any topology.
  """
  if kind in ("all_gather", "reduce_scatter"):
    return elements * (devices - 1) // devices
  if kind == "sum":
    return 2 * elements * (devices - 1) // devices
  if kind == "all_to_all":
    return elements * (devices - 1) // devices**2
  return elements


def make_plan(
  network: wiring.Network,
  layout: layout_lib.Layout,
  *,
  batch_size: int,
  exchange_dtype: str = "float32",
  norms: bool = False,
) -> tuple[Collective, ...]:
  """Lists the collectives of a training step, in forward order.

  Args:
    layout: a layout that `check.check` has accepted for it.
    exchange_dtype: of activations and their gradients while they are sent, a
      key of `DTYPE_BYTES`. Weights, their gradients and the loss are float32,
      or float64 as the activations.
    norms: whether the optimizer reads the norms of the kernels and of their
      updates, see `MeshExchange.squared_norms`.
  """
  routes = choose_routes(
    network, layout, batch_size=batch_size, exchange_dtype=exchange_dtype
  )
  listed = [
    collective
    for name, route in routes.items()
    for collective in _list_layer(
      network, layout, name, route, itemsize=DTYPE_BYTES[exchange_dtype]
    )
  ]
  # Parameters and norms last: those of activations in forward order.
  plan = sorted(listed, key=lambda one: one.tensor in PARAMETERS)
  axes = specs_lib.make_specs(network, routes).kernel_axes
  if norms and layout.size(axes) > 1:
    plan.append(
      Collective(
        layer=UPDATE,
        direction=FORWARD,
        tensor=NORM,
        kind="sum",
        axes=crossed_axes(axes, layout.mesh),
        devices=layout.size(axes),
        elements=2 * len(network.layers),
        bytes_per_element=max(
          DTYPE_BYTES[exchange_dtype], DTYPE_BYTES["float32"]
        ),
      )
    )
  return tuple(plan)


@functools.lru_cache(maxsize=1024)
def choose_routes(
  network: wiring.Network,
  layout: layout_lib.Layout,
  *,
  batch_size: int,
  exchange_dtype: str = "float32",
) -> Mapping[str, resharding.LayerRoute]:
  """Finds the routes of a step; once for each input.

  Where the layout says `features`, these become outputs or inputs so that the
  plan of the whole step has the fewest bytes. What one layer splits changes
  what other layers send, so the ways of all layers are compared, by dynamic
  programming over the layers: what remains to be sent depends only on how the
  last output is sharded, and on what the next layer splits. Of equal ways it
  takes the one in which the earliest layer splits its outputs.

  Args: those of `make_plan`.

  Returns:
    {layer: route}, in order; the last is `loss`, which reads complete logits.

  Raises:
    ValueError: two layers name their axes in orders that do not fit together.
  """
  sizes = network.sizes()
  ways = check.find_ways(layout, network)
  list_layer = functools.partial(
    _list_layer, network, layout, itemsize=DTYPE_BYTES[exchange_dtype]
  )
  first = network.layers[0].name
  # (sharding of the input, way of the layer) -> the best until there: bytes,
  # which of the ways were taken, the routes.
  best = {
    (resharding.ActivationSharding(batch=way.batch), way): (0, (taken,), ())
    for taken, way in enumerate(ways[first])
  }
  for layer, following in itertools.pairwise((*network.layers, None)):
    reached: dict = {}
    errors = []
    for (sharding, way), (sent, taken, routes) in best.items():
      for index, next_way in enumerate(
        ways[following.name] if following else (None,)
      ):
        try:
          route = resharding.find_route(
            network,
            layout,
            layer,
            following,
            sharding,
            size=sizes[layer.name],
            placement=way,
            next_placement=next_way,
            batch_size=batch_size,
          )
        except ValueError as error:
          errors.append(error)
          continue
        collectives = list_layer(layer.name, route)
        candidate = (
          sent + sum(collective.sent_bytes for collective in collectives),
          (*taken, index),
          (*routes, route),
        )
        state = route.output_sharding, next_way
        if state not in reached or candidate[:2] < reached[state][:2]:
          reached[state] = candidate
    if not reached:
      raise errors[0]
    best = reached
  finished, errors = [], []
  for (sharding, _), (sent, taken, routes) in best.items():
    try:
      loss = resharding.find_loss_route(
        network, layout, sharding, batch_size=batch_size
      )
    except ValueError as error:
      errors.append(error)
      continue
    collectives = list_layer(LOSS, loss)
    sent += sum(collective.sent_bytes for collective in collectives)
    finished.append((sent, taken, (*routes, loss)))
  if not finished:
    raise errors[0]
  *_, routes = min(finished, key=lambda found: found[:2])
  names = [*sizes, LOSS]
  # Shared by all who ask.
  return types.MappingProxyType(dict(zip(names, routes, strict=True)))


def choose_placements(
  network: wiring.Network,
  layout: layout_lib.Layout,
  *,
  batch_size: int,
  exchange_dtype: str = "float32",
) -> layout_lib.Layout:
  """Replaces each `features` of a layout by the outputs or inputs it becomes.

  Args: those of `make_plan`.
  """
  routes = choose_routes(
    network, layout, batch_size=batch_size, exchange_dtype=exchange_dtype
  )
  placements = {
    layer.name: routes[layer.name].placement for layer in network.layers
  }
  return dataclasses.replace(layout, layers=placements)


def _list_layer(
  network: wiring.Network,
  layout: layout_lib.Layout,
  name: str,
  route: resharding.LayerRoute,
  *,
  itemsize: int,
) -> list[Collective]:
  """Lists the collectives of one layer, or of the loss.

  Those of activations come first, those of parameters last.

  Args:
    itemsize: bytes of an activation while it is sent.
  """
  wide = max(itemsize, DTYPE_BYTES["float32"])
  plan: list[Collective] = []

  def add(
    direction, tensor, kind, axes, elements, images=0, itemsize=wide
  ) -> None:
    devices = layout.size(axes)
    if devices > 1:  # else nothing is sent
      plan.append(
        Collective(
          layer=name,
          direction=direction,
          tensor=tensor,
          kind=kind,
          axes=crossed_axes(axes, layout.mesh),
          devices=devices,
          elements=elements,
          images=images,
          bytes_per_element=itemsize,
        )
      )

  _add_activations(add, route, layout, itemsize=itemsize)
  if name == LOSS:
    axes = route.output_sharding.varying
    add(FORWARD, ACTIVATION, "sum", axes, LOSS_VALUES)
    return plan
  layer, size = network.layer(name), network.sizes()[name]
  specs = specs_lib.make_layer_specs(network, layer, size, route)
  if halo := layer.halo:
    axes = route.halo_axes
    images = route.images // layout.size(route.scatter_images)
    edges = 2 * halo * layout.size(axes) * size.norm_side**2
    what = (axes, images * edges, images, itemsize)
    add(FORWARD, EDGES, "all_gather", *what)
    add(BACKWARD, EDGES, "reduce_scatter", *what)
  if specs.statistics:
    features = layer.features // layout.size(route.output_sharding.features)
    sum_axes = specs.gradient_sums[STATISTICS]
    # The mean, then the variance around it; both gradients together.
    for direction, numbers in ((FORWARD, 1), (FORWARD, 1), (BACKWARD, 2)):
      add(direction, STATISTICS, "sum", sum_axes, numbers * features)
  for tensor, shape in size.shapes.items():
    elements = math.prod(shard_shape(shape, specs.parameters[tensor], layout))
    axes, _ = specs.gathers.get(tensor, ((), 0))
    gathered = elements * layout.size(axes)
    add(FORWARD, tensor, "all_gather", axes, gathered)
    add(BACKWARD, tensor, "reduce_scatter", axes, gathered)
    add(BACKWARD, tensor, "sum", specs.gradient_sums[tensor], elements)
  return plan


def _add_activations(
  add: Callable[..., None],
  route: resharding.LayerRoute,
  layout: layout_lib.Layout,
  *,
  itemsize: int,
) -> None:
  """Adds the collectives of the activations around one layer."""
  for reshard in route.reshards:
    axes, elements, images = reshard.axes, reshard.elements, reshard.images
    if reshard.sends:
      what = (axes, elements * layout.size(axes), images, itemsize)
      kind = reshard.kind
      add(FORWARD, ACTIVATION, kind, *what)
      add(BACKWARD, ACTIVATION, TRANSPOSES[kind], *what)
    elif not reshard.copied and not route.reads_images:
      add(BACKWARD, ACTIVATION, "sum", axes, elements, images)
  elements, images = route.partial_elements, route.images
  for kind, axes, dimension in route.additions:
    what = (axes, elements, images, itemsize)
    add(FORWARD, ACTIVATION, kind, *what)
    if kind in TRANSPOSES:
      add(BACKWARD, ACTIVATION, TRANSPOSES[kind], *what)
      elements //= layout.size(axes)
      if dimension == resharding.BATCH:
        images //= layout.size(axes)


def describe_arrival(
  layout: layout_lib.Layout,
  layer: wiring.Layer,
  route: resharding.LayerRoute,
  following: wiring.Layer | None,
  routes: Mapping[str, resharding.LayerRoute],
) -> tuple[str, ...]:
  """Says what a layer receives from other devices, in order.

  Args:
    layout: of the routes.
    route: of the layer.
    following: the next layer; None: the loss follows.
    routes: of all layers, from `plan.choose_routes`.

  Returns:
    What is gathered or exchanged before the layer, what becomes of its partial
    sums after it, and the maps that it normalizes with; for example `inputs:
    partial sums scattered to fc7's inputs over model`. Empty: nothing arrives.
  """
  return (
    *_describe_reshards(layout, route),
    *_describe_sums(layout, route, following, routes),
    *_describe_halo(layout, layer, route),
  )


def describe_loss_arrival(
  network: wiring.Network,
  layout: layout_lib.Layout,
  *,
  batch_size: int,
  exchange_dtype: str = "float32",
) -> tuple[str, ...]:
  """Says how the loss receives complete logits; arguments of `make_plan`."""
  routes = choose_routes(
    network, layout, batch_size=batch_size, exchange_dtype=exchange_dtype
  )
  return tuple(_describe_reshards(layout, routes[LOSS]))


def _describe_reshards(
  layout: layout_lib.Layout, route: resharding.LayerRoute
) -> Iterator[str]:
  """Yields what arrives for the input of a layer, or of the loss, in order."""
  words = {resharding.BATCH: "images", resharding.CHANNELS: "features"}
  for reshard in route.reshards:
    if reshard.sends and layout.size(reshard.axes) > 1:
      what = words[reshard.source]
      how = "gathered"
      if reshard.kind == "all_to_all":
        how = f"exchanged for {words[reshard.target]}"
      yield f"{what} {how} {_over(layout, reshard.axes)}"


def _describe_sums(
  layout: layout_lib.Layout,
  route: resharding.LayerRoute,
  following: wiring.Layer | None,
  routes: Mapping[str, resharding.LayerRoute],
) -> Iterator[str]:
  sums = []
  for kind, axes, dimension in route.additions:
    if layout.size(axes) == 1:
      continue
    over = _over(layout, axes)
    if kind == "sum":
      sums.append(f"summed {over}")
      continue
    name, after = following.name, routes[following.name].input_sharding
    if dimension == resharding.BATCH:
      sums.append(f"scattered to {name}'s images {over}")
    elif set(axes) <= set(after.features):
      sums.append(f"scattered to {name}'s inputs {over}")
    else:
      sums.append(f"scattered {over}, for {name} to gather")
  if sums:
    yield f"inputs: partial sums {', then '.join(sums)}"


def _describe_halo(
  layout: layout_lib.Layout, layer: wiring.Layer, route: resharding.LayerRoute
) -> Iterator[str]:
  if layer.halo and layout.size(route.halo_axes) > 1:
    maps = f"{layer.halo} map{'s' if layer.halo > 1 else ''}"
    over = _over(layout, route.halo_axes)
    yield f"to normalize: {maps} of each neighbor {over}"


def _over(layout: layout_lib.Layout, axes: Iterable[str]) -> str:
  return f"over {' x '.join(crossed_axes(axes, layout.mesh))}"


def sent_along(plan: Iterable[Collective]) -> dict[str, int]:
  """Returns the bytes that one device sends in a step along each mesh axis.

  A collective over several axes counts for each of them, so their sum may
  exceed what is sent. Axes along which nothing is sent are left out.
  """
  sent = collections.Counter()
  for collective in plan:
    for axis in collective.axes:
      sent[axis] += collective.sent_bytes
  return dict(sent)


def crossed_axes(
  axes: Iterable[str], mesh: Mapping[str, int]
) -> tuple[str, ...]:
  """Returns the axes that have several devices, in the order of the mesh."""
  wanted = set(axes)
  return tuple(axis for axis in mesh if axis in wanted and mesh[axis] > 1)


def shard_shape(
  shape: tuple[int, ...],
  spec: jax.sharding.PartitionSpec,
  layout: layout_lib.Layout,
) -> tuple[int, ...]:
  """Returns the shape of one device's shard of an array of a global shape."""
  axes = [*spec, *[None] * (len(shape) - len(spec))]
  return tuple(
    size // layout.size((names,) if isinstance(names, str) else names or ())
    for size, names in zip(shape, axes, strict=True)
  )
