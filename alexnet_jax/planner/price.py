"""Predicts the time of a training step and the memory that it takes.

The collectives are those of `partition/plan.py`, and what one device computes
is that of `partition/per_device.py`; this module only gives them seconds. A
step takes

    augmentation + layers + exchanges + gradients + update

if nothing overlaps. The sums of gradients, the gathers of stored shards and
`overlap_gather` may run beside computation; the shortest possible step hides
as much of them as there is computation.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.partition import per_device, resharding
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.planner import machine as machine_lib

FORWARD, BACKWARD = machine_lib.FORWARD, machine_lib.BACKWARD
FLOAT32 = per_device.FLOAT32
# Accesses to memory for each value of a layer's output, forward and backward,
# where no measurement says how long it takes: activation (one read, one write),
# and as much again for each of a normalization and a pooling; dropout's mask.
_ACCESSES = 2
# For each parameter: the update reads it, its gradient and its momentum, and
# writes it and its momentum.
_UPDATE_ACCESSES = 5
# For each value of a picture: read as a byte, cropped, shifted, written.
_AUGMENTATION_ACCESSES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
  """What a step computes, whatever the layout.

  Attributes:
    batch_size: images in a step, over all devices.
    norms: whether the optimizer reads norms; see `plan.make_plan`.
    optimizer_slots: values that the optimizer keeps for each parameter.
    stored_size: side of the images before augmentation, in pixels.
  """

  network: wiring.Network
  batch_size: int
  compute_dtype: str = "float32"
  exchange_dtype: str = "float32"
  norms: bool = False
  optimizer_slots: int = 1
  stored_size: int = 256

  def make_plan(
    self, layout: layout_lib.Layout
  ) -> tuple[plan_lib.Collective, ...]:
    return plan_lib.make_plan(
      self.network,
      layout,
      batch_size=self.batch_size,
      exchange_dtype=self.exchange_dtype,
      norms=self.norms,
    )

  def find_loads(
    self, layout: layout_lib.Layout
  ) -> dict[str, per_device.DeviceLoad]:
    return per_device.find_loads(
      self.network,
      layout,
      batch_size=self.batch_size,
      compute_dtype=self.compute_dtype,
      exchange_dtype=self.exchange_dtype,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sent:
  """The price of a collective.

  Attributes:
    seconds: that it takes alone.
    level: name of the level of links that takes longest.
    bytes_by_level: {level: bytes that a device sends over its links, on average
      over the devices}.
  """

  seconds: float
  level: str
  bytes_by_level: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerTime:
  """Seconds of one layer in a step.

  Attributes:
    forward, backward: of its computation, on one device.
    update: of its parameters.
    exchange: of activations, statistics and edges, in both directions.
    overlapped: the part of `exchange` that may run beside its computation.
    gradients: of sums of gradients, and of gathers of stored shards.
  """

  forward: float = 0.0
  backward: float = 0.0
  update: float = 0.0
  exchange: float = 0.0
  overlapped: float = 0.0
  gradients: float = 0.0

  @property
  def compute(self) -> float:
    return self.forward + self.backward + self.update

  @property
  def seconds(self) -> float:
    """If nothing overlaps."""
    return self.compute + self.exchange + self.gradients


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
  """What a step takes.

  Attributes:
    layers: {layer: seconds}; `loss` and `update` have exchanges only.
    augmentation: seconds, with all random numbers.
    bytes_by_level: {level of links: bytes that one device sends over them}.
    seconds_by_level: {level of links: seconds of collectives that wait for
      it}.
    memory_bytes: that one device needs; an estimate.
  """

  workload: Workload
  layout: layout_lib.Layout
  layers: Mapping[str, LayerTime]
  augmentation: float
  bytes_by_level: Mapping[str, float]
  seconds_by_level: Mapping[str, float]
  memory_bytes: float

  def _sum(self, part: str) -> float:
    return sum(getattr(layer, part) for layer in self.layers.values())

  @property
  def compute(self) -> float:
    """Layers, augmentation and update."""
    return self.augmentation + self._sum("compute")

  @property
  def exchange(self) -> float:
    return self._sum("exchange")

  @property
  def gradients(self) -> float:
    return self._sum("gradients")

  @property
  def seconds(self) -> float:
    """Of a step in which nothing overlaps."""
    return self.compute + self.exchange + self.gradients

  @property
  def overlapped_seconds(self) -> float:
    """Of a step in which all that may overlap does."""
    hidden = self.gradients + self._sum("overlapped")
    waits = self.exchange - self._sum("overlapped")
    return waits + max(self.compute, hidden)

  @property
  def images_per_second(self) -> float:
    return self.workload.batch_size / self.seconds

  def device_hours(self, images: int) -> float:
    """Hours of devices for so many images; all devices count."""
    return images / self.images_per_second * self.layout.devices / 3600

  def to_json(self) -> dict[str, float | dict[str, float]]:
    """Returns all but the layers, for the output of a command."""
    return {
      "seconds": self.seconds,
      "overlapped_seconds": self.overlapped_seconds,
      "compute_seconds": self.compute,
      "exchange_seconds": self.exchange,
      "gradient_seconds": self.gradients,
      "augmentation_seconds": self.augmentation,
      "images_per_second": self.images_per_second,
      "memory_bytes": self.memory_bytes,
      "bytes_by_level": dict(self.bytes_by_level),
      "seconds_by_level": dict(self.seconds_by_level),
    }


class Pricer:
  """Prices the parts of a step on one machine.

  Raises:
    ValueError: the machine has no peak for the type of the computation.
  """

  def __init__(self, machine: machine_lib.Machine, workload: Workload):
    self.machine, self.workload = machine, workload
    dtype = workload.compute_dtype
    if dtype not in machine.peak_flops_per_second:
      known = ", ".join(machine.peak_flops_per_second)
      raise ValueError(
        f"machine {machine.name} has no compute.peak_flops_per_second for "
        f"{dtype}, expected one of {known}. Set config.compute_dtype or "
        "--machine."
      )
    self._network = workload.network
    self._sizes = workload.network.sizes()
    self._seconds = functools.cache(self._find_seconds)
    self._fit = functools.cache(self._make_fit)

  def scale_link(self, name: str, factor: float) -> Pricer:
    """Makes a pricer for links of one level that are faster by a factor.

    The prices of computation are shared with this one.
    """
    scaled = copy.copy(self)
    scaled.machine = self.machine.scale_link(name, factor)
    return scaled

  # Computation.

  def price_layer(
    self, layer: wiring.Layer, load: per_device.DeviceLoad
  ) -> LayerTime:
    """Prices the computation of a layer on one device, without exchanges."""
    size = self._sizes[layer.name]
    forward, backward = self.price_product(
      layer,
      images=load.images,
      inputs=load.inputs,
      outputs=load.outputs,
      multiplications=load.multiplications,
    )
    values = (load.kept_images * load.values,)
    rest = functools.partial(
      self._seconds, "rest", rest_geometry(layer), values
    )
    forward += rest(FORWARD)
    if self._network.needs_backward(layer.name):
      backward += rest(BACKWARD)
    update = 0.0
    if layer.name in self._network.trained:
      update = self._seconds("update", "update", (load.parameters,), FORWARD)
    pooled = layer.pool and layer.pool.kind == "stochastic"
    if layer.dropout or pooled:
      drawn = load.kept_images * math.prod(size.out_shape)
      drawn = drawn * load.values // size.outputs  # of this device
      forward += self._seconds("random", "random", (drawn,), FORWARD)
    return LayerTime(
      forward=forward,
      backward=backward,
      update=update,
    )

  def price_product(
    self,
    layer: wiring.Layer,
    *,
    images: int,
    inputs: int,
    outputs: int,
    multiplications: int,
  ) -> tuple[float, float]:
    """Prices a convolution or product alone: forward, backward.

    Args:
      images, inputs, outputs, multiplications: as in `DeviceLoad`.
    """
    size = self._sizes[layer.name]
    area = size.map_side**2
    work = (
      images * multiplications,
      multiplications // area,
      images * size.positions * inputs,
      images * area * outputs,
    )
    find = functools.partial(
      self._seconds, "product", product_geometry(layer, size), work
    )
    backward = 0.0
    if layer.name in self._network.trained:
      backward += find(machine_lib.BY_KERNEL)
    if self._network.needs_input_gradient(layer.name):
      backward += find(machine_lib.BY_INPUT)
    return find(FORWARD), backward

  def price_augmentation(self, images: int) -> float:
    """Prices the augmentation of so many images on one device."""
    pixels = images * self.workload.stored_size**2
    return self._seconds("augmentation", "augmentation", (pixels,), FORWARD)

  def _find_seconds(
    self, what: str, geometry: str, work: tuple[float, ...], which: str
  ) -> float:
    """Seconds of one pass of a part: from measurements, or from the peak."""
    fit = self._fit(what, geometry, which)
    if fit is not None:
      return fit(work)
    machine = self.machine
    itemsize = plan_lib.DTYPE_BYTES[self.workload.compute_dtype]
    flops = 0.0
    match what:
      case "product":
        multiplications, kernel, inputs, outputs = work
        kind = "fc" if geometry == "fc" else "conv"
        rate = machine.peak_flops_per_second[self.workload.compute_dtype]
        flops = 2 * multiplications / (rate * machine.utilization[kind])
        values = itemsize * (inputs + outputs) + FLOAT32 * kernel
      case "rest":
        accesses = _ACCESSES * len(geometry.split(", "))
        values = itemsize * accesses * work[0]
      case "update":
        values = FLOAT32 * _UPDATE_ACCESSES * work[0]
      case "augmentation":
        values = itemsize * _AUGMENTATION_ACCESSES * 3 * work[0]
      case "random" | "transpose":
        values = FLOAT32 * 2 * work[0]
    moved = values / machine.memory_bytes_per_second
    return max(flops, moved) + machine.launch_seconds

  def _make_fit(self, what: str, geometry: str, which: str):
    """Fits measured seconds; None if there are none of this part.

    Time grows with each number of the work, at a rate >= 0. The nearest
    measurements then correct the fit: at a measured size it is what was
    measured.
    """
    # It takes half a second, and only machines that were measured need it.
    from scipy import optimize

    found = [
      one
      for one in self.machine.measured
      if one.what == what
      and one.dtype == self.workload.compute_dtype
      and which in one.seconds
    ]
    kind = geometry.partition(" ")[0]
    same = [one for one in found if one.geometry == geometry] or [
      one for one in found if one.geometry.partition(" ")[0] == kind
    ]
    if what == "rest":
      same = same or found
    if not same:
      return None
    names = machine_lib.PARTS[what].work
    work = np.array([[*(one.work[n] for n in names), 1.0] for one in same])
    seconds = np.array([one.seconds[which] for one in same])
    scale = np.maximum(work.max(axis=0), 1.0)
    rates, _ = optimize.nnls(
      work / scale / seconds[:, None], np.ones(len(seconds))
    )
    rates = rates / scale
    ratios = seconds / (work @ rates)
    logs = np.log(work[:, :-1] + 1.0)

    def predict(wanted: Sequence[float]) -> float:
      distances = ((np.log(np.array(wanted) + 1.0) - logs) ** 2).sum(axis=1)
      weights = 1.0 / (distances + 1e-9) ** 2
      ratio = (weights * ratios).sum() / weights.sum()
      return float(ratio * (np.array([*wanted, 1.0]) @ rates))

    return predict

  # Communication.

  def price_collective(
    self, collective: plan_lib.Collective, nested: Nested
  ) -> Sent:
    """Prices a collective that runs alone, in all its groups at once.

    All-gathers, reduce-scatters and sums go around a ring. A ring enters and
    leaves each unit once, so the devices of a unit that are in one group share
    what crosses to the next unit. In an all-to-all each device sends to every
    other one by itself. The slowest level sets the pace.
    """
    devices, sent = collective.devices, collective.sent_bytes
    total = collective.elements * collective.bytes_per_element
    levels = nested.group(collective.axes)
    outermost = max(
      index for index, (inner, joined) in enumerate(levels) if joined > inner
    )
    waits: dict[str, float] = {}
    crossing: dict[str, float] = {}
    latency = 0.0
    for index, (link, (inner, joined)) in enumerate(
      zip(self.machine.links, levels, strict=True)
    ):
      if joined == inner:
        continue
      if collective.kind == "all_to_all":
        crossing[link.name] = total / devices**2 * (joined - inner)
        leaving = total / devices**2 * (devices - inner)
      else:
        hops = devices / inner - (index < outermost) * devices / joined
        crossing[link.name] = sent * hops / devices
        leaving = sent / inner
      waits[link.name] = leaving * link.shared_by / link.bytes_per_second
      latency += link.latency_seconds * _count_steps(
        collective.kind, devices // inner, devices // joined
      )
    level = max(waits, key=waits.__getitem__)
    software = self.machine.links[outermost].software.get(collective.kind)
    if software is None:
      seconds = latency + waits[level] + self.machine.launch_seconds
    else:
      seconds = (
        (devices - 1) * software.seconds
        + sent * software.seconds_per_byte
        + max(
          sent * software.overlapped_seconds_per_byte,
          software.link_times * waits[level],
        )
      )
    if collective.strided:
      seconds += self._price_copies(collective)
    return Sent(seconds=seconds, level=level, bytes_by_level=crossing)

  def _price_copies(self, collective: plan_lib.Collective) -> float:
    """Prices what is copied for a collective that is strided.

    On CPUs XLA transposes what a device has before it and what it has after it.
    Dense kernels are sent in rows there (`partition/exchange.py`), and only the
    complete one is copied, as it lies in memory. Elsewhere XLA may choose the
    order of dimensions: one copy.
    """
    shard = whole = collective.elements // collective.devices
    if collective.kind != "all_to_all":
      whole = collective.elements
    copied = [whole]
    if self.machine.platform == "cpu":
      if _is_dense_kernel(collective, self._network):
        moved = 2 * FLOAT32 * whole / self.machine.memory_bytes_per_second
        return moved + self.machine.launch_seconds
      copied.append(shard)
    return sum(
      self._seconds("transpose", "transpose", (values,), FORWARD)
      for values in copied
    )


def _count_steps(kind: str, units: int, blocks: int) -> int:
  """Counts the steps of a collective that wait for a level of links.

  A ring has a step less than devices; of small sums, which are sent up and down
  a tree instead, the tree's are fewer. An all-to-all sends all at once.

  Args:
    units: of this level, in a group.
    blocks: that they are joined into.
  """
  if kind == "all_to_all":
    return 1
  steps = units - blocks
  if kind == "sum":
    return 2 * min(steps, math.ceil(math.log2(units / blocks)))
  return steps


def _is_dense_kernel(
  collective: plan_lib.Collective, network: wiring.Network
) -> bool:
  is_kernel = collective.tensor == plan_lib.KERNEL
  return is_kernel and network.layer(collective.layer).kind == "fc"


class Nested:
  """How the axes of a mesh lie over the levels of a machine's links.

  The axes are nested, slowest first; the devices of a unit are neighbors.

  Attributes:
    levels: {axis: how many of it a unit has}, of the innermost units and of the
      blocks that each level joins.
  """

  def __init__(self, layout: layout_lib.Layout, order: Sequence[str], links):
    bounds = [link.joins_devices or layout.devices for link in links]
    self.levels = [
      dict.fromkeys(layout.mesh, 1),
      *(_find_inside(layout, order, bound) for bound in bounds),
    ]

  def group(self, axes: Iterable[str]) -> list[tuple[int, int]]:
    """Returns by level how many devices of a group a unit and a block have."""
    axes = list(axes)
    counts = [math.prod(inside[a] for a in axes) for inside in self.levels]
    return list(zip(counts[:-1], counts[1:], strict=True))


def _find_inside(
  layout: layout_lib.Layout, order: Sequence[str], block: int
) -> dict[str, int]:
  """Returns the devices of each axis in a block of so many neighbors."""
  sizes = [layout.mesh[axis] for axis in order]
  between = mesh_lib.split_sizes(sizes, max(1, layout.devices // block))
  return {
    axis: size // factor
    for axis, size, factor in zip(order, sizes, between, strict=True)
  }


def product_geometry(layer: wiring.Layer, size: wiring.Sizes) -> str:
  """Names the convolution or product of a layer, for `Measured.geometry`."""
  if layer.kind == "fc":
    return "fc"
  side = math.isqrt(size.positions)
  return (
    f"conv {layer.window}x{layer.window} stride {layer.stride} on {side}x{side}"
  )


def rest_geometry(layer: wiring.Layer) -> str:
  """Names what follows the product of a layer, for `Measured.geometry`."""
  parts = [f"{layer.kind} {layer.activation}"]
  if layer.normalize != "none":
    parts.append(f"{layer.normalize} normalization")
  if layer.map_lrn:
    parts.append("map normalization")
  if layer.pool:
    pool = layer.pool
    parts.append(f"{pool.kind} {pool.window}x{pool.window} / {pool.stride}")
  if layer.dropout:
    parts.append("dropout")
  return ", ".join(parts)


def predict(
  pricer: Pricer,
  layout: layout_lib.Layout,
  *,
  order: Sequence[str] | None = None,
) -> Prediction:
  """Predicts a step of a layout.

  Args:
    layout: a layout that `check.check` has accepted.
    order: of the axes over the devices, slowest first; None: as `main` nests
      them, by what is sent along them.

  Raises:
    ValueError: the machine's links do not join so many devices.
  """
  workload, machine = pricer.workload, pricer.machine
  machine.check_devices(layout.devices)
  loads, plan = workload.find_loads(layout), workload.make_plan(layout)
  if order is None:
    order = mesh_lib.nest_axes(layout, plan_lib.sent_along(plan))
  nested = Nested(layout, order, machine.links)
  network = workload.network
  layers = {
    layer.name: pricer.price_layer(layer, loads[layer.name])
    for layer in network.layers
  }
  sent: dict[str, dict[str, float]] = collections.defaultdict(
    lambda: collections.defaultdict(float)
  )
  bytes_by_level = dict.fromkeys((link.name for link in machine.links), 0.0)
  seconds_by_level = dict(bytes_by_level)
  routes = plan_lib.choose_routes(
    network,
    layout,
    batch_size=workload.batch_size,
    exchange_dtype=workload.exchange_dtype,
  )
  for collective in plan:
    price = pricer.price_collective(collective, nested)
    sent[collective.layer][exchange_part(collective)] += price.seconds
    route = routes.get(collective.layer)
    if route and may_overlap(collective, route, layout):
      sent[collective.layer]["overlapped"] += price.seconds
    seconds_by_level[price.level] += price.seconds
    for level, count in price.bytes_by_level.items():
      bytes_by_level[level] += count
  for name, parts in sent.items():
    layers[name] = dataclasses.replace(layers.get(name, LayerTime()), **parts)
  first = network.layers[0]
  return Prediction(
    workload=workload,
    layout=layout,
    layers=layers,
    augmentation=pricer.price_augmentation(loads[first.name].images),
    bytes_by_level=bytes_by_level,
    seconds_by_level=seconds_by_level,
    memory_bytes=sum(
      layer_memory(workload, layer, loads[layer.name])
      for layer in network.layers
    )
    + image_memory(workload, loads[first.name].images),
  )


def exchange_part(collective: plan_lib.Collective) -> str:
  """Returns the field of `LayerTime` that a collective belongs to."""
  is_parameter = collective.tensor in plan_lib.PARAMETERS
  return "gradients" if is_parameter else "exchange"


def may_overlap(
  collective: plan_lib.Collective,
  route: resharding.LayerRoute,
  layout: layout_lib.Layout,
) -> bool:
  """Whether this is the gather that `overlap_gather` computes beside."""
  return (
    route.overlap_gather
    and (collective.direction, collective.tensor, collective.kind)
    == (plan_lib.FORWARD, plan_lib.ACTIVATION, "all_gather")
    and collective.axes
    == plan_lib.crossed_axes(route.reshards[-1].axes, layout.mesh)
  )


def layer_memory(
  workload: Workload, layer: wiring.Layer, load: per_device.DeviceLoad
) -> float:
  """Estimates the bytes of one device for a layer in a step.

  Parameters, gradients and the optimizer's state; kernels that are gathered;
  the input; and arrays of the size of the product: the product and its
  gradient, three more for a normalization, one more for pooling. That is what
  XLA's CPU compiler needs, within 20 % for the layouts of the catalog. Of a
  frozen layer below all that are trained, only the product.
  """
  network = workload.network
  size = network.sizes()[layer.name]
  itemsize = plan_lib.DTYPE_BYTES[workload.compute_dtype]
  # The parameters themselves, and their gradients.
  values = 1 + (layer.name in network.trained) + workload.optimizer_slots
  stored = FLOAT32 * load.parameters * values
  kernel = load.multiplications // size.map_side**2
  gathered = kernel - math.prod(load.kernel)
  if workload.compute_dtype != "float32":
    gathered += kernel  # a copy in the type of the computation
  inputs = load.images * size.positions * load.inputs
  copies = 1
  if network.needs_backward(layer.name):
    copies += 1 + 3 * (layer.normalize != "none") + bool(layer.pool)
  kept = copies * load.kept_images * load.values
  return stored + itemsize * (inputs + kept) + FLOAT32 * gathered


def image_memory(workload: Workload, images: int) -> float:
  """Returns the bytes of so many images as they were read."""
  return 3.0 * images * workload.stored_size**2
