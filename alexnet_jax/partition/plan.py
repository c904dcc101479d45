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
from collections.abc import Callable, Iterable, Mapping

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
Routes = Mapping[str, resharding.LayerRoute]
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
      gradient; `norm` for the norms of all kernels that are trained.
    kind: `all_gather`, `reduce_scatter`, `all_to_all` or `sum`.
    axes: the mesh axes along which it happens, in the order of the mesh;
      without axes of one device.
    devices: along those axes.
    elements: of the complete array that one group of devices gathers, scatters,
      exchanges or sums.
    images: whose activations these are; 0 for gradients and the loss.
    bytes_per_element: as in `DTYPE_BYTES`.
    strided: whether it gathers, scatters or exchanges along a dimension that is
      not the first of its array. Then a device also copies the array, since
      what is sent is contiguous.
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
  strided: bool = dataclasses.field(default=False, compare=False)

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

  Frozen layers of the network send no gradients, and nothing of the backward
  pass is sent below the lowest layer that is trained.

  Args:
    layout: a layout that `check.check` has accepted for it.
    exchange_dtype: of activations and their gradients while they are sent, a
      key of `DTYPE_BYTES`. Weights, their gradients and the loss are float32,
      or float64 as the activations.
    norms: whether the optimizer reads the norms of the trained kernels and of
      their updates, see `MeshExchange.squared_norms`.
  """
  routes = choose_routes(
    network, layout, batch_size=batch_size, exchange_dtype=exchange_dtype
  )
  sizes = network.sizes()
  listed = [
    collective
    for name, route in routes.items()
    for collective in list_layer(
      network,
      layout,
      name,
      route,
      size=sizes.get(name),
      itemsize=DTYPE_BYTES[exchange_dtype],
    )
  ]
  # Parameters and norms last: those of activations in forward order.
  plan = sorted(listed, key=lambda one: one.tensor in PARAMETERS)
  if norms:
    axes = specs_lib.make_specs(network, routes).kernel_axes
    itemsize = DTYPE_BYTES[exchange_dtype]
    plan += list_norms(network, layout, axes, itemsize=itemsize)
  return tuple(plan)


@functools.lru_cache(maxsize=1024)
def choose_routes(
  network: wiring.Network,
  layout: layout_lib.Layout,
  *,
  batch_size: int,
  exchange_dtype: str = "float32",
) -> Routes:
  """Finds the routes of a step; once for each input.

  Where the layout says `features`, these become outputs or inputs so that the
  plan of the whole step has the fewest bytes. What one layer splits changes
  what other layers send, so the alternatives of all layers are compared, by
  dynamic programming over the layers and the loss: what remains to be sent
  depends only on how the last output is sharded, and on what the next layer
  splits. Of equal ones it takes that in which the earliest layer splits its
  outputs.

  Args: those of `make_plan`.

  Returns:
    {layer: route}, in order; the last is `loss`, which reads complete logits.

  Raises:
    ValueError: two layers name their axes in orders that do not fit together.
  """
  sizes = network.sizes()
  alternatives = check.find_alternatives(layout, network)
  first = network.layers[0].name
  # (sharding of the input, placement of the layer) -> the best until there:
  # bytes, which of the alternatives were taken, the routes.
  best = {
    (resharding.ActivationSharding(batch=one.batch), one): (0, (taken,), ())
    for taken, one in enumerate(alternatives[first])
  }
  # None: the loss, and nothing after it.
  for layer, following in itertools.pairwise((*network.layers, None, None)):
    reached: dict = {}
    errors = []
    name = layer.name if layer else LOSS
    for (sharding, placement), (sent, taken, routes) in best.items():
      for index, next_placement in enumerate(
        alternatives[following.name] if following else (None,)
      ):
        try:
          if layer is None:
            route = resharding.find_loss_route(
              network, layout, sharding, batch_size=batch_size
            )
          else:
            route = resharding.find_route(
              network,
              layout,
              layer,
              following,
              sharding,
              size=sizes[name],
              placement=placement,
              next_placement=next_placement,
              batch_size=batch_size,
            )
        except ValueError as error:
          errors.append(error)
          continue
        collectives = list_layer(
          network,
          layout,
          name,
          route,
          size=sizes.get(name),
          itemsize=DTYPE_BYTES[exchange_dtype],
        )
        candidate = (
          sent + sum(collective.sent_bytes for collective in collectives),
          (*taken, index),
          (*routes, route),
        )
        state = route.output_sharding, next_placement
        if state not in reached or candidate[:2] < reached[state][:2]:
          reached[state] = candidate
    if not reached:
      raise errors[0]
    best = reached
  *_, routes = min(best.values(), key=lambda found: found[:2])
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


def list_layer(
  network: wiring.Network,
  layout: layout_lib.Layout,
  name: str,
  route: resharding.LayerRoute,
  *,
  size: wiring.Sizes | None,
  itemsize: int,
) -> list[Collective]:
  """Lists the collectives of one layer, or of the loss.

  Those of activations come first, those of parameters last.

  Args:
    size: of the layer; None for the loss.
    itemsize: bytes of an activation while it is sent.
  """
  plan, add, add_both = _start(name, layout, itemsize=itemsize)
  _add_activations(add, add_both, route, layout, itemsize=itemsize)
  if size is None:
    axes = route.output_sharding.varying
    add(FORWARD, ACTIVATION, "sum", axes, LOSS_VALUES)
    return plan
  layer = network.layer(name)
  specs = specs_lib.make_layer_specs(network, layer, size, route)
  if halo := layer.halo:
    axes = route.halo_axes
    images = route.kept_images
    edges = 2 * halo * layout.size(axes) * size.norm_side**2
    what = (axes, images * edges, images, itemsize)
    backward = route.has_backward
    add_both(EDGES, "all_gather", *what, strided=True, backward=backward)
  if specs.statistics:
    features = layer.features // layout.size(route.output_sharding.features)
    sum_axes = specs.gradient_sums[STATISTICS]
    # The mean, then the variance around it; both gradients together, on which
    # that of the input depends, too.
    sums = [(FORWARD, 1), (FORWARD, 1), *[(BACKWARD, 2)] * route.has_backward]
    for direction, numbers in sums:
      add(direction, STATISTICS, "sum", sum_axes, numbers * features)
  for tensor, shape in size.shapes.items():
    elements = math.prod(
      specs_lib.shard_shape(shape, specs.parameters[tensor], layout)
    )
    axes, dimension = specs.gathers.get(tensor, ((), 0))
    gathered = elements * layout.size(axes)
    # The inputs of a dense kernel are its first dimension.
    strided = (dimension, layer.window) != (layout_lib.INPUTS, 0)
    what, trained = (axes, gathered), route.trained
    add_both(tensor, "all_gather", *what, strided=strided, backward=trained)
    if trained:
      add(BACKWARD, tensor, "sum", specs.gradient_sums[tensor], elements)
  return plan


def list_activations(
  name: str,
  route: resharding.LayerRoute,
  layout: layout_lib.Layout,
  *,
  itemsize: int,
) -> list[Collective]:
  """Lists those of `list_layer` that belong to its input and partial sums."""
  plan, add, add_both = _start(name, layout, itemsize=itemsize)
  _add_activations(add, add_both, route, layout, itemsize=itemsize)
  return plan


def list_norms(
  network: wiring.Network,
  layout: layout_lib.Layout,
  axes: Iterable[str],
  *,
  itemsize: int,
) -> list[Collective]:
  """Lists the sum of the norms of all kernels, if any is split.

  Args:
    axes: that split any stored kernel that is trained.
    itemsize: bytes of an activation while it is sent.
  """
  plan, add, _ = _start(UPDATE, layout, itemsize=itemsize)
  add(FORWARD, NORM, "sum", tuple(axes), 2 * len(network.trained))
  return plan


def _start(
  name: str, layout: layout_lib.Layout, *, itemsize: int
) -> tuple[list[Collective], Callable[..., None], Callable[..., None]]:
  """Starts a list of a layer's collectives.

  Returns:
    The list, a function that adds a collective to it, and one that adds a
    collective and, if there is one, its transpose in the backward pass.
  """
  wide = max(itemsize, DTYPE_BYTES["float32"])
  plan: list[Collective] = []

  def add(
    direction,
    tensor,
    kind,
    axes,
    elements,
    images=0,
    itemsize=wide,
    strided=False,
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
          strided=strided,
        )
      )

  def add_both(tensor, kind, *what, strided, backward) -> None:
    add(FORWARD, tensor, kind, *what, strided=strided)
    if backward:
      add(BACKWARD, tensor, TRANSPOSES[kind], *what, strided=strided)

  return plan, add, add_both


def _add_activations(
  add: Callable[..., None],
  add_both: Callable[..., None],
  route: resharding.LayerRoute,
  layout: layout_lib.Layout,
  *,
  itemsize: int,
) -> None:
  """Adds the collectives of the activations around one layer."""
  backward = route.input_gradient
  for reshard in route.reshards:
    axes, elements, images = reshard.axes, reshard.elements, reshard.images
    if reshard.sends:
      what = (axes, elements * layout.size(axes), images, itemsize)
      dimensions = {reshard.source, reshard.target}
      strided = resharding.CHANNELS in dimensions
      kind = reshard.kind
      add_both(ACTIVATION, kind, *what, strided=strided, backward=backward)
    elif not reshard.copied and backward:
      add(BACKWARD, ACTIVATION, "sum", axes, elements, images)
  elements, images = route.partial_elements, route.images
  backward = route.has_backward
  for kind, axes, dimension in route.additions:
    what = (axes, elements, images, itemsize)
    if kind == "sum":  # its transpose sends nothing
      add(FORWARD, ACTIVATION, kind, *what)
      continue
    strided = dimension == resharding.CHANNELS
    add_both(ACTIVATION, kind, *what, strided=strided, backward=backward)
    elements //= layout.size(axes)
    if dimension == resharding.BATCH:
      images //= layout.size(axes)


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
