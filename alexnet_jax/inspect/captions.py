"""The words in the picture of a split network: sizes, exchanges, bytes."""

from __future__ import annotations

import collections
import dataclasses
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib

UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
NOTES = (
  "between devices",
  "values of an image, and",
  "bytes that one device",
  "sends in a step",
)
SIGNS = {
  "link": "read from its own device",
  "loop": "inside a group of devices",
  "partial": "partial sums",
  "repeated": "computed by several devices alike",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
  """A row of the table under the picture.

  Attributes:
    head: its lines of text.
    kind: of exchange; None for a row about something else.
    cells: layer -> text.
  """

  head: tuple[str, ...]
  kind: str | None
  cells: Mapping[str, str]


def to_text(sent_bytes: int) -> str:
  """Bytes with a decimal unit and three digits: 11.1 MB."""
  for unit, size in UNITS:
    if sent_bytes >= 0.9995 * size:
      value = sent_bytes / size
      digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
      return f"{value:.{digits}f} {unit}"
  return f"{sent_bytes} B"


def named(kind: str) -> str:
  """A kind of exchange as a person writes it."""
  return kind.replace("_", "-")


def over(axes: Iterable[str]) -> list[str]:
  """The axes of an exchange, in lines that fit into a gap."""
  return textwrap.wrap(f"over {' × '.join(axes)}", 18)


def title(
  network: wiring.Network, layout: layout_lib.Layout, batch_size: int
) -> tuple[str, str]:
  """The layout's name, and what the picture was computed from."""
  mesh = layout_lib.listed(layout.mesh)
  size = network.image_size
  return layout.name, (
    f"mesh {mesh}  ·  network {network.name}  ·  {size} × {size} pixels  ·  "
    f"{batch_size} images in a step"
  )


def crossing(
  forward: plan_lib.Collective | None, backward: plan_lib.Collective | None
) -> list[str]:
  """An exchange of an activation and its way back; either may be missing."""
  if forward is None:
    return [
      named(backward.kind),
      *over(backward.axes),
      "on the way back",
      to_text(backward.sent_bytes),
    ]
  lines = [
    named(forward.kind),
    *over(forward.axes),
    f"of {forward.elements_per_image:,} values",
    to_text(forward.sent_bytes),
  ]
  if backward is not None:
    lines += [
      f"back: {to_text(backward.sent_bytes)}",
      f"by {named(backward.kind)}",
    ]
  return lines


def layer(row: wiring.Layer) -> list[str]:
  """The head of a layer's column."""
  if not row.window:
    return [row.name, "dense"]
  stride = f", stride {row.stride}" if row.stride > 1 else ""
  pool = [f"{row.pool.kind} pooling"] if row.pool else []
  return [row.name, f"{row.window} × {row.window}{stride}", *pool]


def device(
  place: Mapping[str, int],
  devices: Sequence[int],
  hidden: Mapping[str, int],
) -> list[str]:
  """The name of a row.

  Args:
    place: axis -> position, for the axes that are told apart.
    devices: their numbers.
    hidden: axis -> size, for the axes that are not told apart.
  """
  first, *others = devices
  if not others:
    numbers = f"device {first}"
  elif devices == tuple(range(first, first + len(devices))):
    numbers = f"devices {first} to {devices[-1]}"
  elif len(devices) < 5 and first + devices[-1] < 100:
    numbers = f"devices {', '.join(map(str, devices))}"
  else:
    numbers = f"devices {first}, {others[0]}, … {devices[-1]}"
  lines = [numbers, *(f"{axis} {index}" for axis, index in place.items())]
  along = [f"{size} along {axis}" for axis, size in hidden.items()]
  return [line for text in lines + along for line in textwrap.wrap(text, 24)]


def likewise(before: Mapping[str, int], after: Mapping[str, int]) -> str:
  """Stands for the rows between two places on one axis."""
  ((axis, first), last) = *before.items(), after[next(iter(after))]
  return f"{axis} {first + 1} to {last - 1} likewise"


def table(
  network: wiring.Network,
  layout: layout_lib.Layout,
  plan: Sequence[plan_lib.Collective],
  batch_size: int,
) -> list[Entry]:
  """What belongs to single layers, and not between two of them."""
  entries = []
  shares = {
    each.name: layout.size(layout.placement(each.name).batch)
    for each in network.layers
  }
  if max(shares.values()) > 1:
    entries.append(
      Entry(
        head=("images on a device",),
        kind=None,
        cells={
          name: f"{batch_size // share} of {batch_size}"
          for name, share in shares.items()
        },
      )
    )
  sums = {}
  for exchange in plan:
    if exchange.tensor not in (plan_lib.ACTIVATION, plan_lib.NORM):
      forward = exchange.direction == plan_lib.FORWARD
      what = "weights" if forward else "gradients"
      if exchange.tensor not in plan_lib.PARAMETERS:
        what = exchange.tensor if forward else f"{exchange.tensor}, back"
      key = not forward, exchange.kind, exchange.axes, what
      sums.setdefault(key, []).append(exchange)
  for (_, kind, axes, what), exchanges in sorted(sums.items()):
    own = (plan_lib.BIAS, plan_lib.SCALE)
    if all(exchange.tensor in own for exchange in exchanges):
      what = f"biases' {what}"
    sent = collections.Counter()
    for exchange in exchanges:
      sent[exchange.layer] += exchange.sent_bytes
    entries.append(
      Entry(
        head=_in_two(f"{what}: {named(kind)}", f"over {' × '.join(axes)}"),
        kind=kind,
        cells={name: to_text(number) for name, number in sent.items()},
      )
    )
  return entries


def total(plan: Sequence[plan_lib.Collective]) -> str:
  """What one device sends in a step, and for what."""
  parts = collections.Counter()
  for exchange in plan:
    if exchange.tensor in plan_lib.PARAMETERS:
      forward = exchange.direction == plan_lib.FORWARD
      what = "of weights" if forward else "of gradients"
    elif exchange.tensor == plan_lib.NORM:
      what = "of norms"
    elif exchange.tensor != plan_lib.ACTIVATION:
      what = f"of {exchange.tensor}"
    else:
      what = "of activations" if exchange.images else "for the loss"
    parts[what] += exchange.sent_bytes
  if not parts:
    return "Nothing crosses devices."
  sent = [f"{to_text(size)} {what}" for what, size in parts.most_common()]
  if len(sent) == 1:
    return f"One device sends {sent[0]} in a step."
  whole = to_text(sum(parts.values()))
  return f"One device sends {whole} in a step: {', '.join(sent)}."


def features(layer: str, side: int, number: int) -> str:
  """What stands below a box."""
  if side == 1:
    return str(number)
  return f"{number} {'channels' if layer == 'image' else 'maps'}"


def _in_two(first: str, second: str) -> tuple[str, ...]:
  """One line, or two where one would be long."""
  line = f"{first} {second}"
  return (line,) if len(line) < 26 else (first, *textwrap.wrap(second, 26))
