"""Compares what one device sends, computes and holds under several layouts.

What a layout sends is a straight line over the batch: gradients and weights
cost the same for any batch, activations a fixed amount for each image. Where
two lines cross, one layout overtakes the other.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import per_device
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.planner import price


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
  """The bytes that one device sends in a step, as a line over the batch.

  Attributes:
    layouts: that send the same, each on its mesh.
    fixed: for gradients, weights, norms, statistics and the loss.
    per_image: for activations and their edges, for each image of the batch.
  """

  layouts: tuple[layout_lib.Layout, ...]
  fixed: float
  per_image: float

  def at(self, batch_size: int) -> float:
    return self.fixed + self.per_image * batch_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overtaking:
  """Two lines, and the batch, rarely an integer, at which they are equal.

  `below` sends less for smaller batches, `above` for larger ones. `least`:
  whether no other line is lower at this batch.
  """

  below: Traffic
  above: Traffic
  batch_size: float
  least: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One layout on one mesh at one batch; bytes of one device in one step.

  Attributes:
    batch_size: images in a step, over all devices.
    activation_bytes: sent for everything except gradients and weights.
    parameter_bytes: sent for gradients and weights.
    flops: computed, forward and backward.
    repeated: part of the work that repeats other devices' work, 0 to 1.
    compiled_bytes: sent by the compiled step; None: not compiled.
    memory_bytes: at the peak of the compiled step; None: not known.
    agrees: whether the audit agrees; None: not compiled.
    prediction: of the step's time, and of its memory; None: without a machine.
  """

  layout: layout_lib.Layout
  batch_size: int
  activation_bytes: int
  parameter_bytes: int
  flops: int
  repeated: float
  compiled_bytes: int | None = None
  memory_bytes: int | None = None
  agrees: bool | None = None
  prediction: price.Prediction | None = None

  @property
  def planned_bytes(self) -> int:
    return self.activation_bytes + self.parameter_bytes


def find_layouts(
  workload: price.Workload,
  layouts: Iterable[layout_lib.Layout],
  devices: int,
) -> Iterator[layout_lib.Layout]:
  """Yields each layout on each mesh of that many devices that it allows.

  Of equivalent ones, only one; see `per_device.find_distinct`. None that
  splits nothing.
  """
  candidates = [
    candidate
    for layout in layouts
    for candidate in per_device.find_fitting(
      workload.network,
      layout,
      devices,
      batch_size=workload.batch_size,
      exchange_dtype=workload.exchange_dtype,
    )
  ]
  for candidate in per_device.find_distinct(
    workload.network,
    candidates,
    batch_size=workload.batch_size,
    exchange_dtype=workload.exchange_dtype,
    norms=workload.norms,
  ):
    splits = (
      candidate.size(candidate.placement(layer).axes)
      for layer in workload.network.layers
    )
    if devices == 1 or max(splits) > 1:
      yield candidate


def make_row(
  workload: price.Workload,
  layout: layout_lib.Layout,
  *,
  pricer: price.Pricer | None = None,
  order: Sequence[str] | None = None,
) -> Row:
  """Makes a row from the plan, before anything compiles.

  Args:
    pricer: of the workload on a machine; None: no time is predicted.
    order: see `price.predict`.
  """
  loads = workload.find_loads(layout)
  sent = {True: 0, False: 0}
  for exchange in workload.make_plan(layout):
    is_parameter = exchange.tensor in plan_lib.PARAMETERS
    sent[is_parameter] += exchange.sent_bytes
  return Row(
    layout=layout,
    batch_size=workload.batch_size,
    activation_bytes=sent[False],
    parameter_bytes=sent[True],
    flops=sum(load.flops for load in loads.values()),
    repeated=per_device.repeated_fraction(loads),
    prediction=pricer and price.predict(pricer, layout, order=order),
  )


def find_traffic(
  workload: price.Workload, layouts: Iterable[layout_lib.Layout]
) -> list[Traffic]:
  """Finds the line of each layout, through what it sends at two batches.

  At the batch of the workload `features` become outputs or inputs, the same
  along the line, although another batch may choose otherwise.
  """
  lines = {}
  for layout in layouts:
    one, two = layout.devices, 2 * layout.devices
    chosen = plan_lib.choose_placements(
      workload.network,
      layout,
      batch_size=workload.batch_size,
      exchange_dtype=workload.exchange_dtype,
    )
    sent = [
      sum(
        exchange.sent_bytes
        for exchange in dataclasses.replace(
          workload, batch_size=size
        ).make_plan(chosen)
      )
      for size in (one, two)
    ]
    per_image = (sent[1] - sent[0]) / (two - one)
    line = sent[0] - per_image * one, per_image
    lines.setdefault(line, []).append(layout)
  return [
    Traffic(layouts=tuple(same), fixed=fixed, per_image=per_image)
    for (fixed, per_image), same in lines.items()
  ]


def find_overtakings(traffic: Sequence[Traffic]) -> list[Overtaking]:
  """Finds pairs of lines that are equal at a batch >= 1, in its order."""
  overtakings = []
  for first, second in itertools.combinations(traffic, 2):
    if first.per_image == second.per_image:
      continue
    below, above = sorted((first, second), key=lambda line: line.fixed)
    batch_size = (above.fixed - below.fixed) / (
      below.per_image - above.per_image
    )
    if batch_size >= 1:
      lowest = min(line.at(batch_size) for line in traffic)
      overtakings.append(
        Overtaking(
          below=below,
          above=above,
          batch_size=batch_size,
          least=below.at(batch_size) <= lowest * (1 + 1e-9),  # as rounded
        )
      )
  return sorted(overtakings, key=lambda overtaking: overtaking.batch_size)


def describe(line: Traffic) -> str:
  """Lists the layouts of a line, each with its mesh."""
  return " = ".join(
    f"{layout.name} ({layout_lib.format_mesh(layout.mesh)})"
    for layout in line.layouts
  )
