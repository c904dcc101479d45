"""Every exchange of a training step, with its bytes, before anything compiles.

Computed from network, layout and batch alone. The audit holds it against the
program that JAX traced and the one that the compiler made.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

import jax

from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import resharding
from alexnet_jax.partition import specs as specs_lib

FORWARD, BACKWARD = "forward", "backward"
ACTIVATION, EDGES, STATISTICS = "activation", "edges", "statistics"
KERNEL, BIAS, SCALE = "kernel", "bias", "scale"
# What the optimizer needs of kernels that are split: its "layer", its tensor.
UPDATE, NORM = "update", "norm"
# In a program, what is no activation stands in a scope of its own name.
PARAMETERS = (KERNEL, BIAS, SCALE)
NAMED = (*PARAMETERS, EDGES, STATISTICS, NORM)

# Bytes of an element, by the precision in which activations cross devices.
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
TRANSPOSES = {
  "all_gather": "reduce_scatter",
  "all_to_all": "all_to_all",
  "reduce_scatter": "all_gather",
}


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class Collective:
  """One thing that crosses devices in a step.

  Attributes:
    layer: the layer that reads what is moved, or owns the parameter; `loss`
      for the reductions of the loss, `update` for those of the optimizer.
    direction: `forward` or `backward`.
    tensor: `activation`; `edges`, the maps of a device that those beside it
      normalize with; `statistics`, two moments of each map or unit for a batch
      normalization; `kernel`, `bias` or `scale` for a parameter that is
      gathered, and for its gradient; `norm` for those of all kernels.
    kind: `all_gather`, `reduce_scatter`, `all_to_all` or `sum`.
    axes: the mesh axes along which it happens, in the order of the mesh; an
      axis of one device is none.
    devices: along those axes.
    elements: of the whole array that one group of devices gathers, scatters,
      exchanges or sums.
    images: whose activations these are; 0 for gradients and the loss.
    bytes_per_element: 4 for float32, 2 for bfloat16.
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
    """Of the whole activation; 0 for what does not belong to images."""
    return self.elements // self.images if self.images else 0

  @property
  def sent_bytes(self) -> int:
    """Bytes that one device sends in a step; see `ring_elements`."""
    elements = ring_elements(self.kind, self.devices, self.elements)
    return elements * self.bytes_per_element


def ring_elements(kind: str, devices: int, elements: int) -> int:
  """Elements that each device of a ring sends for one collective.

  Args:
    kind: as in `Collective`.
    devices: in the ring, P.
    elements: of the whole array, S: the result of an all-gather, the input of
      a reduce-scatter or a sum, and all that the group holds of an all-to-all.

  Returns:
    all-gather, reduce-scatter: S (P-1)/P. Sum: both of these in turn,
    2 S (P-1)/P. All-to-all: S (P-1)/P^2, each device keeps its own part. Any
    other kind, which no plan has but a compiler may choose: S, all it holds.

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
  loss_values: int,
  precision: str = "float32",
  norms: bool = False,
) -> tuple[Collective, ...]:
  """Lists what a training step sends, in the order of the forward pass.

  Args:
    network: the network.
    layout: a layout that `check.check` has accepted for it.
    batch_size: images in a step, over all devices.
    loss_values: numbers that are summed over the images: the loss, the errors.
    precision: of activations and their gradients while they cross devices, a
      key of `DTYPE_BYTES`. Weights, their gradients and the loss stay float32.
    norms: whether the optimizer reads the norms of the kernels and of their
      updates, see `MeshExchange.squared_norms`.

  Returns:
    The exchanges. Axes of one device send nothing and are left out.
  """
  routes = resharding.find_routes(network, layout, batch_size=batch_size)
  specs = specs_lib.make_specs(network, layout, routes)
  sizes = network.sizes()
  exchanges = []

  def add(layer, direction, tensor, kind, axes, elements, images=0, size=4):
    devices = layout.size(axes)
    if devices > 1:
      exchanges.append(
        Collective(
          layer=layer,
          direction=direction,
          tensor=tensor,
          kind=kind,
          axes=crossed(axes, layout.mesh),
          devices=devices,
          elements=elements,
          images=images,
          bytes_per_element=size,
        )
      )

  for name, route in routes.items():
    _add_activations(add, name, route, layout, size=DTYPE_BYTES[precision])
    if name in sizes and (reach := network.layer(name).reach):
      axes, images = route.leaves.features, route.sum_images
      edges = 2 * reach * layout.size(axes) * sizes[name].map_side ** 2
      what = (axes, images * edges, images, DTYPE_BYTES[precision])
      add(name, FORWARD, EDGES, "all_gather", *what)
      add(name, BACKWARD, EDGES, "reduce_scatter", *what)
    if name in specs.statistics:
      outputs = network.layer(name).features
      moments = 2 * outputs // layout.size(route.leaves.features)
      for direction in (FORWARD, BACKWARD):
        axes = specs.shared[name][BIAS]
        add(name, direction, STATISTICS, "sum", axes, moments)
  loss_axes = routes["loss"].leaves.varying
  add("loss", FORWARD, ACTIVATION, "sum", loss_axes, loss_values)
  for name, of_layer in sizes.items():
    for tensor, shape in of_layer.shapes.items():
      spec = specs.parameters[name][tensor]
      elements = math.prod(block_shape(shape, spec, layout))
      gathered, _ = specs.gathers.get((name, tensor), ((), 0))
      whole = elements * layout.size(gathered)
      add(name, FORWARD, tensor, "all_gather", gathered, whole)
      add(name, BACKWARD, tensor, "reduce_scatter", gathered, whole)
      add(name, BACKWARD, tensor, "sum", specs.shared[name][tensor], elements)
  if norms:
    kernels = len(specs.parameters)
    add(UPDATE, FORWARD, NORM, "sum", specs.kernel_axes, 2 * kernels)
  return tuple(exchanges)


def _add_activations(
  add: Callable[..., None],
  name: str,
  route: resharding.LayerRoute,
  layout: layout_lib.Layout,
  *,
  size: int,
) -> None:
  """Adds what the activations around one layer send."""
  for move in route.moves:
    axes, elements, images = move.axes, move.elements, move.images
    if move.sends:
      elements *= layout.size(axes)
      add(name, FORWARD, ACTIVATION, move.kind, axes, elements, images, size)
      kind = TRANSPOSES[move.kind]
      add(name, BACKWARD, ACTIVATION, kind, axes, elements, images, size)
    elif not move.copied and not route.reads_images:
      add(name, BACKWARD, ACTIVATION, "sum", axes, elements, images)
  if route.sums:
    kind = "reduce_scatter" if route.scatters else "sum"
    what = (route.sums, route.sum_elements, route.sum_images, size)
    add(name, FORWARD, ACTIVATION, kind, *what)
    if route.scatters:
      add(name, BACKWARD, ACTIVATION, TRANSPOSES[kind], *what)


def sent_along(exchanges: Iterable[Collective]) -> dict[str, int]:
  """Bytes that one device sends in a step along each axis of the mesh.

  An exchange over several axes counts for each of them, so that the sum may
  exceed what is sent. Axes along which nothing is sent are left out.
  """
  sent = collections.Counter()
  for exchange in exchanges:
    for axis in exchange.axes:
      sent[axis] += exchange.sent_bytes
  return dict(sent)


def crossed(axes: Iterable[str], mesh: Mapping[str, int]) -> tuple[str, ...]:
  """Those of the axes that have several devices, in the order of the mesh."""
  wanted = set(axes)
  return tuple(axis for axis in mesh if axis in wanted and mesh[axis] > 1)


def block_shape(
  shape: tuple[int, ...],
  spec: jax.sharding.PartitionSpec,
  layout: layout_lib.Layout,
) -> tuple[int, ...]:
  """What one device holds of an array: its global shape, divided."""
  axes = [*spec, *[None] * (len(shape) - len(spec))]
  return tuple(
    size // layout.size((names,) if isinstance(names, str) else names or ())
    for size, names in zip(shape, axes, strict=True)
  )
