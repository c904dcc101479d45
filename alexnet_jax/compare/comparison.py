"""Several layouts side by side: what one device sends, computes and holds.

What a layout sends is a straight line over the batch: gradients and weights
cost the same for any batch, activations so much for each image. Where two
lines cross, one layout overtakes the other.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

from alexnet_jax.network import wiring
from alexnet_jax.partition import check, per_device
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.program import metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
  """Bytes that one device sends in a step, as a line over the batch.

  Attributes:
    layouts: that send just as much, each on its mesh.
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
  """Two lines, and the batch at which they are equal.

  Attributes:
    below: sends less for smaller batches.
    above: sends less for larger ones.
    batch_size: at which they send the same; seldom a whole number.
  """

  below: Traffic
  above: Traffic
  batch_size: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One layout on one mesh at one batch; bytes of one device in one step.

  Attributes:
    layout: on its mesh.
    batch_size: images in a step, over all devices.
    activation_bytes: sent for all but gradients and weights.
    parameter_bytes: sent for gradients and weights.
    flops: computed, forward and backward.
    repeated: part of the work that is done a second time or more, 0 to 1.
    compiled_bytes: what the compiled step sends; None: not compiled.
    memory_bytes: at the peak of a step; None: not known.
    agrees: whether the audit does; None: not compiled.
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

  @property
  def planned_bytes(self) -> int:
    return self.activation_bytes + self.parameter_bytes


def find_layouts(
  network: wiring.Network,
  layouts: Iterable[layout_lib.Layout],
  devices: int,
  *,
  batch_size: int,
  precision: str = "float32",
  norms: bool = False,
) -> Iterator[layout_lib.Layout]:
  """Yields each layout on each mesh of that many devices that it allows.

  Of those that come to the same, only the one with the fewest axes of one
  device: `data_parallel`, and no other layout with one device along `model`.
  None that splits nothing.
  """
  candidates = [
    candidate
    for layout in layouts
    for candidate in layout_lib.find_meshes(layout, devices)
    if check.fits(candidate, network, batch_size=batch_size)
  ]
  plainest = {}
  for candidate in sorted(
    candidates, key=lambda layout: list(layout.mesh.values()).count(1)
  ):
    plan = _make_plan(network, candidate, batch_size, precision, norms)
    shares = per_device.find_shares(network, candidate, batch_size=batch_size)
    splits = any(share.times < devices for share in shares.values())
    if splits or devices == 1:
      plainest.setdefault((plan, *shares.values()), candidate)
  kept = list(plainest.values())
  yield from (candidate for candidate in candidates if candidate in kept)


def make_row(
  network: wiring.Network,
  layout: layout_lib.Layout,
  *,
  batch_size: int,
  precision: str = "float32",
  norms: bool = False,
) -> Row:
  """What the plan says, before anything compiles."""
  plan = _make_plan(network, layout, batch_size, precision, norms)
  shares = per_device.find_shares(network, layout, batch_size=batch_size)
  sent = {True: 0, False: 0}
  for exchange in plan:
    is_parameter = exchange.tensor in plan_lib.PARAMETERS
    sent[is_parameter] += exchange.sent_bytes
  return Row(
    layout=layout,
    batch_size=batch_size,
    activation_bytes=sent[False],
    parameter_bytes=sent[True],
    flops=sum(share.flops for share in shares.values()),
    repeated=per_device.repeated_share(shares),
  )


def find_traffic(
  network: wiring.Network,
  layouts: Iterable[layout_lib.Layout],
  *,
  precision: str = "float32",
  norms: bool = False,
) -> list[Traffic]:
  """The line of each layout, through what it sends at two batches."""
  lines = {}
  for layout in layouts:
    one, two = layout.devices, 2 * layout.devices
    sent = [
      make_row(
        network, layout, batch_size=size, precision=precision, norms=norms
      ).planned_bytes
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
  """The pairs of lines that are equal at some batch of one image or more.

  Returns:
    In the order of these batches.
  """
  found = []
  for first, second in itertools.combinations(traffic, 2):
    if first.per_image == second.per_image:
      continue
    below, above = sorted((first, second), key=lambda line: line.fixed)
    batch_size = (above.fixed - below.fixed) / (
      below.per_image - above.per_image
    )
    if batch_size >= 1:
      found.append(Overtaking(below=below, above=above, batch_size=batch_size))
  return sorted(found, key=lambda overtaking: overtaking.batch_size)


def describe(line: Traffic) -> str:
  """The layouts of a line, each with its mesh."""
  return " = ".join(
    f"{layout.name} ({layout_lib.listed(layout.mesh)})"
    for layout in line.layouts
  )


def _make_plan(
  network: wiring.Network,
  layout: layout_lib.Layout,
  batch_size: int,
  precision: str,
  norms: bool,
) -> tuple[plan_lib.Collective, ...]:
  return plan_lib.make_plan(
    network,
    layout,
    batch_size=batch_size,
    loss_values=len(metrics.NAMES),
    precision=precision,
    norms=norms,
  )
