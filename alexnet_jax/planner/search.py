"""Finds the fastest layout of a workload on a machine, exactly.

Looks at every mesh of the devices with up to three axes, every way to nest its
axes over the links, and every placement of every layer: each axis splits the
images, the outputs or the inputs of a layer, in any order, or nothing; and any
of the axes that split the images may shard the stored weights (`fsdp`).

For one mesh this is dynamic programming over the layers. What remains to be
paid depends on how the last output is sharded and on the placement of the next
layer; for each such state the fastest way to it is kept, or, where memory is
limited or overlap is assumed, all that no other one beats in every respect.
What an upper bound rules out is dropped.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog, check, per_device, resharding
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.planner import price

MOST_AXES = 3
AXES = ("x", "y", "z")
NAME = "searched"
DIMENSIONS = ("batch", "outputs", "inputs")
# Sums of the same prices in another order differ by less.
_ROUNDING = 1e-9
# What is faster by less is no faster.
_TIE = 1e-7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
  """What the layers of a kind of layouts may split.

  Attributes:
    name: in words.
    conv, fc: dimensions of a placement, of `DIMENSIONS`.
  """

  name: str
  conv: tuple[str, ...]
  fc: tuple[str, ...]

  def admits(
    self, layer: wiring.Layer, placement: layout_lib.Placement
  ) -> bool:
    allowed = getattr(self, layer.kind)
    return not any(
      getattr(placement, one) for one in DIMENSIONS if one not in allowed
    )


ANY = Kind(name="any", conv=DIMENSIONS, fc=DIMENSIONS)
_SPLITS = {
  "images": ("batch",),
  "features": ("outputs", "inputs"),
  "both": DIMENSIONS,
}
# Those with `both` twice are any.
KINDS = tuple(
  Kind(
    name=f"convolutions split by {conv}, dense layers by {fc}",
    conv=_SPLITS[conv],
    fc=_SPLITS[fc],
  )
  for conv, fc in itertools.product(_SPLITS, _SPLITS)
)[:-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """A layout that a search has found.

  Attributes:
    layout: its axes are nested in their order, slowest first.
    kind: whose fastest layout it is, in words.
    prediction: of its step.
  """

  layout: layout_lib.Layout
  kind: str
  prediction: price.Prediction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
  """What is sought.

  Attributes:
    least: `time`, of a step in which nothing overlaps; `overlapped`, of one in
      which all that may overlap does; or `memory`.
    memory_bytes: that one device may need at most; None: any.
  """

  least: str = "time"
  memory_bytes: float | None = None

  def measure(self, prediction: price.Prediction) -> float:
    """Returns what should be least: seconds, or bytes."""
    return {
      "time": prediction.seconds,
      "overlapped": prediction.overlapped_seconds,
      "memory": prediction.memory_bytes,
    }[self.least]

  def admits(self, prediction: price.Prediction) -> bool:
    limit = self.memory_bytes
    return limit is None or prediction.memory_bytes <= limit * (1 + _ROUNDING)


# Of one device until here: what should be least; or, where overlap is assumed,
# seconds that it waits or computes, and those that it waits or communicates
# beside computation. Then bytes, and what led here.
_Label = tuple[float, float, float, tuple]


class Space:
  """All layouts of a workload on so many devices.

  What they send and compute is found once, whatever the machines they are
  priced on, the goals, and the kinds of layouts.
  """

  def __init__(self, workload: price.Workload, devices: int):
    self.workload, self.devices = workload, devices
    self._meshes: dict[tuple, _Mesh] = {}

  def find_fastest(
    self,
    pricer: price.Pricer,
    *,
    goal: Goal = Goal(),
    kind: Kind = ANY,
    bound: float = math.inf,
  ) -> Found | None:
    """Finds the fastest layout on a machine; None if there is none.

    Args:
      pricer: of this workload, on the machine.
      kind: what the layers may split.
      bound: only a better layout, or one as good, is wanted; seconds, or bytes
        if the goal is memory.

    Raises:
      ValueError: the machine's links do not join so many devices.
    """
    pricer.machine.check_devices(self.devices)
    if goal.memory_bytes is not None:
      # Without a limit it is quicker, and often enough.
      found = self.find_fastest(
        pricer,
        goal=dataclasses.replace(goal, memory_bytes=None),
        kind=kind,
        bound=bound,
      )
      if found is None or goal.admits(found.prediction):
        return found
    if kind == ANY:
      bound = min(bound, self._find_bound(pricer, goal))
    best = None
    for sizes in find_meshes(pricer.machine.links, self.devices):
      if sizes not in self._meshes:
        self._meshes[sizes] = _Mesh(self.workload, sizes)
      search = _Search(pricer, self._meshes[sizes], goal, kind)
      found = search.find_fastest(bound)
      if found is not None:
        best, bound = found, goal.measure(found.prediction)
    return best

  def _find_bound(self, pricer: price.Pricer, goal: Goal) -> float:
    """Finds what the best layout of the catalog takes."""
    predictions = [
      price.predict(pricer, layout)
      for layout in find_catalog(self.workload, self.devices)
    ]
    admitted = filter(goal.admits, predictions)
    return min(map(goal.measure, admitted), default=math.inf)

  def find_kinds(
    self,
    pricer: price.Pricer,
    *,
    goal: Goal = Goal(),
    best: Found | None = None,
  ) -> list[Found]:
    """Finds the fastest layout of each kind, fastest first, each once.

    Args:
      best: of any kind, if it is known.
    """
    found = [best or self.find_fastest(pricer, goal=goal)] + [
      self.find_fastest(pricer, goal=goal, kind=kind) for kind in KINDS
    ]
    distinct: dict[tuple, Found] = {}
    for one in sorted(
      filter(None, found), key=lambda one: goal.measure(one.prediction)
    ):
      splits = find_splits(one.layout, self.workload.network)
      distinct.setdefault(splits, one)
    return list(distinct.values())

  def find_change(
    self,
    pricer: price.Pricer,
    found: Found,
    link: str,
    most: float,
    *,
    goal: Goal = Goal(),
    gain: float = 0.01,
    rivals: Iterable[Found] = (),
  ) -> tuple[float, Found] | None:
    """Finds how much faster a link must be until another layout is better.

    The time of a layout is a straight line over the time that a byte takes, and
    the least time of all layouts is the lowest of these lines. So a layout that
    no other one beats at two speeds is not beaten between them either. (Where a
    collective crosses two levels, and for overlapped steps, the lines have
    bends, and there may be a change before the one that is found.)

    Args:
      found: the best layout at the machine's own speed.
      link: name of the level.
      most: the largest factor to try; below 1, the smallest.
      gain: the part of the time that the other layout must save.
      rivals: layouts to try first, which saves searches.

    Returns:
      The factor, and the layout that is better beyond it; None: none is, up to
      `most`.
    """

    def price_at(layout: layout_lib.Layout, factor: float) -> float:
      scaled, order = pricer.scale_link(link, factor), tuple(layout.mesh)
      return goal.measure(price.predict(scaled, layout, order=order))

    factor, rival = most, None
    known = list(rivals)
    while True:
      limit = (1 - gain) * price_at(found.layout, factor)
      times = [price_at(one.layout, factor) for one in known]
      if times and min(times) < limit * (1 - _TIE):
        rival = known[times.index(min(times))]
      else:
        # None that is known; so perhaps any other one.
        better = self.find_fastest(
          pricer.scale_link(link, factor),
          goal=goal,
          bound=limit * (1 - _TIE),
        )
        if better is None:
          return rival and (factor, rival)
        known.append(better)
        rival = better
      near, far = 0.0, math.log(factor)
      for _ in range(40):
        middle = (near + far) / 2
        faster = price_at(rival.layout, math.exp(middle))
        if faster < (1 - gain) * price_at(found.layout, math.exp(middle)):
          far = middle
        else:
          near = middle
      factor = math.exp(near)


@functools.lru_cache(maxsize=64)
def find_catalog(
  workload: price.Workload, devices: int
) -> tuple[layout_lib.Layout, ...]:
  """Finds the layouts of the catalog on each mesh of so many devices."""
  return tuple(
    fitting
    for layout in catalog.LAYOUTS
    for fitting in per_device.find_fitting(
      workload.network,
      layout,
      devices,
      batch_size=workload.batch_size,
      exchange_dtype=workload.exchange_dtype,
    )
  )


def find_meshes(
  links: Sequence[machine_lib.Link], devices: int
) -> Iterator[tuple[int, ...]]:
  """Yields sizes of axes, slowest first; one of those that price alike."""
  seen = set()
  for count in range(1, MOST_AXES + 1):
    for sizes in itertools.product(_divisors(devices), repeat=count):
      if math.prod(sizes) != devices or (1 in sizes and sizes != (1,)):
        continue
      layout = _make_layout(sizes)
      nested = price.Nested(layout, tuple(layout.mesh), links)
      # By axis: how many of it a block of each level has, whatever its name.
      key = tuple(sorted(zip(*map(dict.values, nested.levels), strict=True)))
      if key not in seen:
        seen.add(key)
        yield sizes


def _make_layout(sizes: Sequence[int]) -> layout_lib.Layout:
  mesh = dict(zip(AXES, sizes, strict=False))
  return layout_lib.Layout(name=NAME, mesh=mesh)


def find_splits(
  layout: layout_lib.Layout, network: wiring.Network
) -> tuple[tuple[int, ...], ...]:
  """Returns by layer in how many parts images, outputs and inputs are split.

  And in how many its weights are stored, beside those of outputs and inputs.
  """
  placements = [layout.placement(layer) for layer in network.layers]
  return tuple(
    tuple(
      layout.size(axes)
      for axes in (one.batch, one.outputs, one.inputs, one.fsdp)
    )
    for one in placements
  )


def _divisors(number: int) -> list[int]:
  return [size for size in range(1, number + 1) if number % size == 0]


def _find_placements(layout: layout_lib.Layout) -> list[layout_lib.Placement]:
  """Finds every placement of a layer without `fsdp`, if it fits or not."""
  axes = [axis for axis in layout.mesh if layout.mesh[axis] > 1]
  found = []
  for taken in itertools.product(("", *DIMENSIONS), repeat=len(axes)):
    split = [
      [
        axis
        for axis, taken_by in zip(axes, taken, strict=True)
        if taken_by == one
      ]
      for one in DIMENSIONS
    ]
    for orders in itertools.product(*map(itertools.permutations, split)):
      fields = dict(zip(DIMENSIONS, orders, strict=True))
      found.append(layout_lib.Placement(**fields))
  return found


@dataclasses.dataclass(frozen=True)
class _Work:
  """What a layer sends and computes from where its input is as it needs it.

  Attributes:
    waits, hides: collectives, of which the latter may run beside computation.
    memory: bytes of one device.
    outputs: number of the sharding of its output.
    kernel_axes: axes that split its stored kernel.
  """

  load: per_device.DeviceLoad
  waits: tuple[plan_lib.Collective, ...]
  hides: tuple[plan_lib.Collective, ...]
  memory: float
  outputs: int
  kernel_axes: tuple[str, ...]


class _Mesh:
  """What the layers of a workload send and compute on one mesh."""

  def __init__(self, workload: price.Workload, sizes: Sequence[int]):
    self.workload, self.network = workload, workload.network
    self.layout = _make_layout(sizes)
    self.sizes = self.network.sizes()
    self._itemsize = plan_lib.DTYPE_BYTES[workload.exchange_dtype]
    self.alternatives = [
      [
        placement
        for placement in _find_placements(self.layout)
        if self._fits(layer, placement)
      ]
      for layer in self.network.layers
    ]
    # Shardings by number, so that tables of them are quick.
    self._shardings: list[resharding.ActivationSharding] = []
    self._numbers: dict[resharding.ActivationSharding, int] = {}
    self.find_entry = functools.cache(self._find_entry)
    self.find_works = functools.cache(self._find_works)
    self.find_scatter = functools.cache(self._find_scatter)
    self.list_end = functools.cache(self._list_end)

  def to_number(self, sharding: resharding.ActivationSharding) -> int:
    """Returns the number of a sharding, always the same."""
    number = self._numbers.setdefault(sharding, len(self._shardings))
    if number == len(self._shardings):
      self._shardings.append(sharding)
    return number

  def _fits(self, layer: wiring.Layer, placement: layout_lib.Placement) -> bool:
    if self.workload.batch_size % self.layout.size(placement.batch):
      return False
    try:
      check.check_placement(
        self.layout, self.network, layer, self.sizes[layer.name], placement
      )
    except ValueError:
      return False
    return True

  def _find_entry(
    self,
    index: int,
    sharding: int,
    alternative: int,
  ) -> tuple | None:
    """Finds what is sent before a layer; None: it is impossible.

    Args:
      index: of the layer.
      sharding: number of that of its input.
      alternative: index of the layer's placement.

    Returns:
      Collectives that it waits for, those that `overlap_gather` may hide, and
      the number of the sharding after them.
    """
    layer = self.network.layers[index]
    placement = self.alternatives[index][alternative]
    size, batch_size = self.sizes[layer.name], self.workload.batch_size
    try:
      reshards, inputs = resharding.find_entry(
        self.network,
        self.layout,
        layer,
        self._shardings[sharding],
        size=size,
        placement=placement,
        batch_size=batch_size,
      )
    except ValueError:
      return None
    # The order of copies is of no consequence.
    inputs = dataclasses.replace(inputs, copies=tuple(sorted(inputs.copies)))
    if not reshards:
      return (), (), self.to_number(inputs)
    route = resharding.make_route(
      self.network,
      self.layout,
      layer,
      reshards,
      inputs,
      (),
      (),
      size=size,
      placement=layout_lib.Placement(
        batch=placement.batch, outputs=placement.outputs, overlap_gather=True
      ),
      batch_size=batch_size,
    )
    waits, hides = [], []
    for collective in plan_lib.list_activations(
      layer.name, route, self.layout, itemsize=self._itemsize
    ):
      hidden = price.may_overlap(collective, route, self.layout)
      (hides if hidden else waits).append(collective)
    return tuple(waits), tuple(hides), self.to_number(inputs)

  def _find_scatter(
    self, index: int, alternative: int, next_alternative: int | None
  ) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Finds how partial sums are scattered; arguments as for `find_entry`."""
    layers, following, placement = self.network.layers, None, None
    if next_alternative is not None:
      following = layers[index + 1]
      placement = self.alternatives[index + 1][next_alternative]
    return resharding.find_scatters(
      self.network,
      self.layout,
      layers[index],
      following,
      placement=self.alternatives[index][alternative],
      next_placement=placement,
    )

  def _find_works(
    self,
    index: int,
    alternative: int,
    inputs: int,
    scatter: tuple[tuple[str, ...], tuple[str, ...]],
  ) -> list[_Work]:
    """Finds what a layer sends and computes, with each `fsdp` that fits.

    Args:
      inputs: number of the sharding of its input.
      scatter: from `find_scatter`.
    """
    layer = self.network.layers[index]
    placement = self.alternatives[index][alternative]
    axes = [axis for axis in placement.batch if self.layout.mesh[axis] > 1]
    works = []
    for count in range(len(axes) + 1):
      for fsdp in itertools.combinations(axes, count):
        stored = dataclasses.replace(placement, fsdp=fsdp)
        if not fsdp or self._fits(layer, stored):
          sharding = self._shardings[inputs]
          works.append(self._find_work(layer, stored, sharding, scatter))
    return works

  def _find_work(self, layer, placement, inputs, scatter) -> _Work:
    size = self.sizes[layer.name]
    route = resharding.make_route(
      self.network,
      self.layout,
      layer,
      (),
      inputs,
      *scatter,
      size=size,
      placement=placement,
      batch_size=self.workload.batch_size,
    )
    load = per_device.find_load(
      self.network,
      self.layout,
      layer,
      route,
      size=size,
      compute_dtype=self.workload.compute_dtype,
    )
    waits, hides = [], []
    for collective in plan_lib.list_layer(
      self.network,
      self.layout,
      layer.name,
      route,
      size=size,
      itemsize=self._itemsize,
    ):
      is_gradient = price.exchange_part(collective) == "gradients"
      (hides if is_gradient else waits).append(collective)
    kernel_axes = placement.inputs + placement.outputs + placement.fsdp
    if not route.trained:  # whose norm is not needed
      kernel_axes = ()
    return _Work(
      load=load,
      waits=tuple(waits),
      hides=tuple(hides),
      memory=price.layer_memory(self.workload, layer, load),
      outputs=self.to_number(route.output_sharding),
      kernel_axes=kernel_axes,
    )

  def _list_end(
    self, sharding: int, kernel_axes: tuple[str, ...]
  ) -> list[plan_lib.Collective] | None:
    """Lists those of the loss and the norms; None: it cannot be reached."""
    try:
      route = resharding.find_loss_route(
        self.network,
        self.layout,
        self._shardings[sharding],
        batch_size=self.workload.batch_size,
      )
    except ValueError:
      return None
    listed = plan_lib.list_layer(
      self.network,
      self.layout,
      plan_lib.LOSS,
      route,
      size=None,
      itemsize=self._itemsize,
    )
    if self.workload.norms:
      listed += plan_lib.list_norms(
        self.network, self.layout, kernel_axes, itemsize=self._itemsize
      )
    return listed


class _Search:
  """The search for the fastest layout on one mesh."""

  def __init__(self, pricer: price.Pricer, mesh: _Mesh, goal: Goal, kind: Kind):
    self._pricer, self._mesh, self._goal = pricer, mesh, goal
    self._kind = kind
    self._rows = mesh.network.layers
    self._nested = price.Nested(
      mesh.layout, tuple(mesh.layout.mesh), pricer.machine.links
    )
    # Indices of the placements that the kind admits, by layer.
    self._alternatives = [
      [
        index
        for index, placement in enumerate(placements)
        if kind.admits(layer, placement)
      ]
      for layer, placements in zip(self._rows, mesh.alternatives, strict=True)
    ]
    self._prices: dict[tuple, float] = {}
    # One label for each state is enough unless time is not all that counts.
    self._overlaps = goal.least == "overlapped"
    self._is_plain = goal.memory_bytes is None and not self._overlaps

  def find_fastest(self, bound: float) -> Found | None:
    """Finds the fastest layout that is no slower than the bound, or None."""
    if not all(self._alternatives):
      return None
    mesh, workload = self._mesh, self._mesh.workload
    least = [0.0] * (len(self._rows) + 1)
    if self._goal.least != "memory":
      least = self._find_least()
    states: dict = {}
    for index in self._alternatives[0]:
      placement = mesh.alternatives[0][index]
      images = workload.batch_size // mesh.layout.size(placement.batch)
      sharding = resharding.ActivationSharding(batch=placement.batch)
      seconds = self._pricer.price_augmentation(images)
      memory = price.image_memory(workload, images)
      first = self._to_label(computes=seconds, memory=memory)
      state = mesh.to_number(sharding), index, ()
      states[state] = [_plus((0.0, 0.0, 0.0, ()), first)]
    for index in range(len(self._rows)):
      states = self._add_layer(states, index)
      self._drop(states, bound, least[index + 1])
    best = None
    for (sharding, _, kernel_axes), labels in states.items():
      end = mesh.list_end(sharding, kernel_axes)
      if end is None:
        continue
      last = self._to_label(waits=self._price(end))
      for label in labels:
        label = _plus(label, last)
        total = max(label[:2])
        if self._is_within(label, bound) and (best is None or total < best[0]):
          best = total, label
    return best and self._to_found(*best)

  def _find_least(self) -> list[float]:
    """Finds seconds that the layers from each one on take at least."""
    layout, least = self._mesh.layout, [0.0]
    for index, layer in reversed(list(enumerate(self._rows))):
      size, seconds = self._mesh.sizes[layer.name], []
      for alternative in self._alternatives[index]:
        placement = self._mesh.alternatives[index][alternative]
        outputs = layout.size(placement.outputs)
        inputs = layout.size(placement.inputs)
        # Of a layer that reads its own column, columns split the inputs too.
        columns = ()
        if layer.reads == "own":
          columns, _ = layout.split_columns(
            placement.outputs, self._mesh.network.columns
          )
        product = self._pricer.price_product(
          layer,
          images=self._mesh.workload.batch_size // layout.size(placement.batch),
          inputs=size.channels // (inputs * layout.size(columns)),
          outputs=size.kernel[-1] // outputs,
          multiplications=size.multiplications // (outputs * inputs),
        )
        seconds.append(sum(product))
      least.append(least[-1] + min(seconds))
    return least[::-1]

  def _is_within(self, label: _Label, bound: float, least: float = 0.0) -> bool:
    limit = self._goal.memory_bytes
    bound *= 1 + _ROUNDING
    return (
      label[0] + least <= bound
      and label[1] <= bound
      and (limit is None or label[2] <= limit * (1 + _ROUNDING))
    )

  def _drop(self, states: dict, bound: float, least: float) -> None:
    """Drops what cannot become a layout within the bound."""
    for state, labels in list(states.items()):
      kept = [one for one in labels if self._is_within(one, bound, least)]
      if kept:
        states[state] = kept
      else:
        del states[state]

  def _add_layer(self, states: dict, index: int) -> dict:
    """Adds a layer to all ways to it.

    Args:
      states: (number of the sharding of its input, index of its placement, axes
        that split a kernel until here) -> labels.
    """
    mesh, layer = self._mesh, self._rows[index]
    entered: dict = {}
    for (sharding, alternative, kernel_axes), labels in states.items():
      entry = mesh.find_entry(index, sharding, alternative)
      if entry is not None:
        waits, hides, inputs = entry
        more = self._to_label(
          waits=self._price(waits), hides=self._price(hides)
        )
        state = alternative, inputs, bool(hides), kernel_axes
        self._merge(entered, state, [_plus(label, more) for label in labels])
    following = [None]
    if index + 1 < len(self._rows):
      following = self._alternatives[index + 1]
    reached: dict = {}
    for (alternative, inputs, gathers, kernel_axes), labels in entered.items():
      computed: dict = {}
      for other in following:
        scatter = mesh.find_scatter(index, alternative, other)
        if scatter not in computed:
          found = computed[scatter] = {}
          for work in mesh.find_works(index, alternative, inputs, scatter):
            more = self._price_work(layer, work, gathers)
            axes = kernel_axes
            if mesh.workload.norms:
              axes = tuple(sorted({*axes, *work.kernel_axes}))
            self._merge(
              found,
              (work.outputs, axes),
              [_plus(label, more) for label in labels],
            )
        for (outputs, axes), found in computed[scatter].items():
          self._merge(reached, (outputs, other, axes), found)
    return reached

  def _merge(self, table: dict, state: tuple, labels: list[_Label]) -> None:
    """Adds ways to a state, and leaves out those that others beat."""
    known = table.get(state)
    if known is None:
      table[state] = labels
    elif self._is_plain:
      if labels[0][0] < known[0][0]:
        table[state] = labels
    else:
      table[state] = _find_undominated([*known, *labels])

  def _price_work(
    self, layer: wiring.Layer, work: _Work, gathers: bool
  ) -> _Label:
    placement = work.load.placement
    if gathers and self._overlaps:
      placement = dataclasses.replace(placement, overlap_gather=True)
    return self._to_label(
      waits=self._price(work.waits),
      hides=self._price(work.hides),
      computes=self._pricer.price_layer(layer, work.load).compute,
      memory=work.memory,
      choice=placement,
    )

  def _to_label(
    self,
    *,
    waits: float = 0.0,
    hides: float = 0.0,
    computes: float = 0.0,
    memory: float = 0.0,
    choice: layout_lib.Placement | None = None,
  ) -> _Label:
    if self._overlaps:
      return waits + computes, waits + hides, memory, choice
    if self._goal.least == "memory":
      return memory, 0.0, memory, choice
    return waits + computes + hides, 0.0, memory, choice

  def _price(self, collectives: Iterable[plan_lib.Collective]) -> float:
    seconds = 0.0
    for one in collectives:
      key = (
        *(one.kind, one.axes, one.elements, one.bytes_per_element),
        *(one.strided, one.tensor == plan_lib.KERNEL and one.layer),
      )
      if key not in self._prices:
        sent = self._pricer.price_collective(one, self._nested)
        self._prices[key] = sent.seconds
      seconds += self._prices[key]
    return seconds

  def _to_found(self, total: float, label: _Label) -> Found:
    placements, rest = [], label[3]
    while rest:
      rest, placement = rest
      placements.append(placement)
    names = [layer.name for layer in self._rows]
    layout = dataclasses.replace(
      self._mesh.layout,
      layers=dict(zip(names, reversed(placements), strict=True)),
    )
    prediction = price.predict(self._pricer, layout, order=tuple(layout.mesh))
    # Added up by layer, and priced as a whole: the same, or this is wrong.
    priced = self._goal.measure(prediction)
    if not math.isclose(total, priced, rel_tol=_ROUNDING):
      raise RuntimeError(
        f"the search adds up {total} for {layout}, which is priced {priced}"
      )
    return Found(layout=layout, kind=self._kind.name, prediction=prediction)


def _plus(label: _Label, more: _Label) -> _Label:
  trace = label[3] if more[3] is None else (label[3], more[3])
  return label[0] + more[0], label[1] + more[1], label[2] + more[2], trace


def _find_undominated(labels: list[_Label]) -> list[_Label]:
  """Leaves out labels that another one equals or beats in every respect."""
  kept: list[_Label] = []
  for label in sorted(labels, key=lambda one: one[:3]):
    if not any(one[1] <= label[1] and one[2] <= label[2] for one in kept):
      kept.append(label)
  return kept
