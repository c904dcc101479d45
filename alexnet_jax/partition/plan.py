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

import jax

from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import resharding
from alexnet_jax.partition import specs as specs_lib

FORWARD, BACKWARD = "forward", "backward"
ACTIVATION, EDGES, STATISTICS = "activation", "edges", "statistics"
KERNEL, BIAS, SCALE = "kernel", "bias", "scale"
PARAMETERS = (KERNEL, BIAS, SCALE)
# The norms that the optimizer needs of sharded kernels: "layer" and tensor.
UPDATE, NORM = "update", "norm"
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
  return _list_collectives(
    network, layout, routes, exchange_dtype=exchange_dtype, norms=norms
  )


@functools.lru_cache(maxsize=1024)
def choose_routes(
  network: wiring.Network,
  layout: layout_lib.Layout,
  *,
  batch_size: int,
  exchange_dtype: str = "float32",
) -> Mapping[str, resharding.LayerRoute]:
  """Finds the routes of a step; once for each input.

  Where the layout says `fewest`, inputs arrive so that the plan of the whole
  step has the fewest bytes. How one layer's input arrives changes what other
  layers send, so all ways of all layers are compared. Of equal ones it takes
  the one in which the earliest layer gathers.

  Args: those of `make_plan`.

  Returns:
    {layer: route}, in order; the last is `loss`, which reads complete logits.

  Raises:
    ValueError: two layers name their axes in orders that do not fit together.
  """
  ways = resharding.find_arrivals(network, layout)
  found, errors = [], []
  for chosen in itertools.product(*ways.values()):
    arrivals = dict(zip(ways, chosen, strict=True))
    try:
      routes = resharding.find_routes(
        network, layout, arrivals=arrivals, batch_size=batch_size
      )
    except ValueError as error:
      errors.append(error)
    else:
      found.append(types.MappingProxyType(routes))  # shared by all who ask
  if not found:
    raise errors[0]
  if len(found) == 1:
    return found[0]

  def sent_bytes(routes: Mapping[str, resharding.LayerRoute]) -> int:
    # The norms of the kernels are the same for all.
    plan = _list_collectives(
      network, layout, routes, exchange_dtype=exchange_dtype, norms=False
    )
    return sum(collective.sent_bytes for collective in plan)

  return min(found, key=sent_bytes)


def _list_collectives(
  network: wiring.Network,
  layout: layout_lib.Layout,
  routes: Mapping[str, resharding.LayerRoute],
  *,
  exchange_dtype: str,
  norms: bool,
) -> tuple[Collective, ...]:
  """Lists the collectives of a step on given routes; see `make_plan`."""
  specs = specs_lib.make_specs(network, layout, routes)
  itemsize = DTYPE_BYTES[exchange_dtype]
  wide = max(itemsize, DTYPE_BYTES["float32"])
  plan = []

  def add(
    layer, direction, tensor, kind, axes, elements, images=0, itemsize=wide
  ) -> None:
    devices = layout.size(axes)
    if devices > 1:  # else nothing is sent
      plan.append(
        Collective(
          layer=layer,
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

  sizes = network.sizes()
  for name, route in routes.items():
    _add_activations(add, name, route, layout, itemsize=itemsize)
    axes = route.output_sharding.features
    if name in sizes and (halo := network.layer(name).halo):
      images = route.sum_images
      edges = 2 * halo * layout.size(axes) * sizes[name].map_side ** 2
      what = (axes, images * edges, images, itemsize)
      add(name, FORWARD, EDGES, "all_gather", *what)
      add(name, BACKWARD, EDGES, "reduce_scatter", *what)
    if name in specs.statistics:
      features = network.layer(name).features // layout.size(axes)
      sum_axes = specs.gradient_sums[name][STATISTICS]
      # The mean, then the variance around it; both gradients together.
      for direction, numbers in ((FORWARD, 1), (FORWARD, 1), (BACKWARD, 2)):
        what = (STATISTICS, "sum", sum_axes, numbers * features)
        add(name, direction, *what)
  loss_axes = routes[resharding.LOSS].output_sharding.varying
  add(resharding.LOSS, FORWARD, ACTIVATION, "sum", loss_axes, LOSS_VALUES)
  for name, size in sizes.items():
    for tensor, shape in size.shapes.items():
      spec = specs.parameters[name][tensor]
      elements = math.prod(shard_shape(shape, spec, layout))
      axes, _ = specs.gathers.get((name, tensor), ((), 0))
      gathered = elements * layout.size(axes)
      add(name, FORWARD, tensor, "all_gather", axes, gathered)
      add(name, BACKWARD, tensor, "reduce_scatter", axes, gathered)
      sum_axes = specs.gradient_sums[name][tensor]
      add(name, BACKWARD, tensor, "sum", sum_axes, elements)
  if norms:
    kernels = len(specs.parameters)
    add(UPDATE, FORWARD, NORM, "sum", specs.kernel_axes, 2 * kernels)
  return tuple(plan)


def _add_activations(
  add: Callable[..., None],
  name: str,
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
      add(name, FORWARD, ACTIVATION, kind, *what)
      add(name, BACKWARD, ACTIVATION, TRANSPOSES[kind], *what)
    elif not reshard.copied and not route.reads_images:
      add(name, BACKWARD, ACTIVATION, "sum", axes, elements, images)
  if route.sum_axes:
    kind = "reduce_scatter" if route.scatters_sum else "sum"
    what = (route.sum_axes, route.sum_elements, route.sum_images, itemsize)
    add(name, FORWARD, ACTIVATION, kind, *what)
    if route.scatters_sum:
      add(name, BACKWARD, ACTIVATION, TRANSPOSES[kind], *what)


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
