"""Every exchange of a training step, with its bytes, before anything compiles.

Computed from network, layout and batch alone. The audit holds it against the
program that JAX traced and the one that the compiler made.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import route as route_lib
from alexnet_jax.partition import specs as specs_lib

FORWARD, BACKWARD = "forward", "backward"
ACTIVATION, KERNEL, BIAS = "activation", "kernel", "bias"

TRANSPOSES = {
  "all_gather": "reduce_scatter",
  "all_to_all": "all_to_all",
  "reduce_scatter": "all_gather",
}


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class Exchange:
  """One thing that crosses devices in a step.

  Attributes:
    layer: the layer that reads what is moved, or owns the parameter; `loss`
      for the reductions of the loss.
    direction: `forward` or `backward`.
    tensor: `activation`, or the parameter whose gradient is summed, `kernel`
      or `bias`.
    kind: `all_gather`, `reduce_scatter`, `all_to_all` or `sum`.
    axes: the mesh axes along which it happens, in the order of the mesh.
    devices: along those axes.
    elements: of the whole array that one group of devices gathers, scatters,
      exchanges or sums.
    images: whose activations these are; 0 for gradients and the loss.
    bytes_per_element: 4 for float32.
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
    kind: as in `Exchange`.
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
) -> tuple[Exchange, ...]:
  """Lists what a training step sends, in the order of the forward pass.

  Args:
    network: the network.
    layout: a layout that `Layout.check` has accepted for it.
    batch_size: images in a step, over all devices.
    loss_values: numbers that are summed over the images: the loss, the errors.

  Returns:
    The exchanges. Axes of one device send nothing and are left out.
  """
  routes = route_lib.find_routes(network, layout, batch_size=batch_size)
  specs = specs_lib.make_specs(network, routes)
  exchanges = []

  def plan(layer, direction, tensor, kind, axes, elements, images=0) -> None:
    devices = layout.size(axes)
    if devices > 1:
      exchanges.append(
        Exchange(
          layer=layer,
          direction=direction,
          tensor=tensor,
          kind=kind,
          axes=tuple(axis for axis in layout.mesh if axis in axes),
          devices=devices,
          elements=elements,
          images=images,
        )
      )

  first = network.layers[0].name
  for name, route in routes.items():
    for move in route.moves:
      axes, elements, images = move.axes, move.elements, move.images
      if move.kind in TRANSPOSES:
        elements *= layout.size(axes)
        plan(name, FORWARD, ACTIVATION, move.kind, axes, elements, images)
      if name == first:  # the image needs no gradient
        continue
      if move.kind in TRANSPOSES:
        kind = TRANSPOSES[move.kind]
        plan(name, BACKWARD, ACTIVATION, kind, axes, elements, images)
      elif not move.copied:
        plan(name, BACKWARD, ACTIVATION, "sum", axes, elements, images)
    if route.sums:
      kind = "reduce_scatter" if route.scatters else "sum"
      axes, elements = route.sums, route.sum_elements
      images = batch_size // layout.size(route.arrived.batch)
      plan(name, FORWARD, ACTIVATION, kind, axes, elements, images)
      if route.scatters:
        kind = TRANSPOSES[kind]
        plan(name, BACKWARD, ACTIVATION, kind, axes, elements, images)
  loss_axes = routes["loss"].leaves.varying
  plan("loss", FORWARD, ACTIVATION, "sum", loss_axes, loss_values)
  for name, sizes in network.sizes().items():
    for tensor, shape in (
      (KERNEL, sizes.kernel),
      (BIAS, sizes.kernel[-1:]),
    ):
      axes = specs.shared[name][tensor]
      spec = specs.parameters[name][tensor]
      elements = math.prod(block_shape(shape, spec, layout))
      plan(name, BACKWARD, tensor, "sum", axes, elements)
  return tuple(exchanges)


def block_shape(
  shape: tuple[int, ...], spec, layout: layout_lib.Layout
) -> tuple[int, ...]:
  """What one device holds of an array: its global shape, divided."""
  axes = [*spec, *[None] * (len(shape) - len(spec))]
  return tuple(
    size // layout.size((names,) if isinstance(names, str) else names or ())
    for size, names in zip(shape, axes, strict=True)
  )


def block_shapes(
  network: wiring.Network,
  layout: layout_lib.Layout,
  parameters: specs_lib.ParameterSpecs,
) -> Mapping[str, tuple[int, ...]]:
  """What one device holds of every kernel: {layer: shape}."""
  return {
    name: block_shape(sizes.kernel, parameters[name]["kernel"], layout)
    for name, sizes in network.sizes().items()
  }
