"""The words in the picture of a layout: sizes, exchanges, bytes."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
import textwrap
from collections.abc import Mapping, Sequence

from alexnet_jax.figures import hosts as hosts_lib
from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib

UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
NOTES = (
  "exchanges",
  "values per image, and",
  "bytes that one device",
  "sends in a step",
)
NORMALIZATIONS = {
  "none": (),
  "column": ("local response", "normalization"),
  "across": ("local response", "normalization"),
  "map": ("local response", "normalization", "in each map"),
  "batch": ("batch", "normalization"),
}
NAME_LENGTH = 14  # characters in a line
SIGNS = {
  "link": "read from the same device",
  "loop": "within a group of devices",
  "partial": "partial sums",
  "repeated": "repeated on several devices",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
  """A row of the table under the picture; `kind` None: not of an exchange."""

  header: tuple[str, ...]  # lines
  kind: str | None
  cells: Mapping[str, str]  # by layer


def to_text(sent_bytes: int) -> str:
  """Formats bytes with a decimal unit and three digits: 11.1 MB."""
  for unit, size in UNITS:
    if sent_bytes >= 0.9995 * size:
      value = sent_bytes / size
      digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
      return f"{value:.{digits}f} {unit}"
  return f"{sent_bytes} B"


def to_kind(kind: str) -> str:
  """Formats a kind of exchange: `all-gather`."""
  return kind.replace("_", "-")


def title(
  network: wiring.Network,
  layout: layout_lib.Layout,
  batch_size: int,
  hosts: hosts_lib.Hosts | None = None,
) -> tuple[str, str]:
  """Returns the layout's name, and what the picture was computed from."""
  mesh = layout_lib.format_mesh(layout.mesh)
  size = network.image_size
  if hosts:
    devices = math.prod(hosts.inside.values())
    mesh += f"  ·  {hosts.count} {hosts.word}s × {devices} devices"
  return layout.name, (
    f"mesh {mesh}  ·  network {network.name}  ·  {size} × {size} pixels  ·  "
    f"{batch_size} images in a step"
  )


def crossing(
  forward: plan_lib.Collective | None,
  backward: plan_lib.Collective | None,
  hosts: hosts_lib.Hosts | None = None,
) -> list[str]:
  """Describes the exchanges of an activation; either may be missing."""
  exchange = forward or backward
  lines = [to_kind(exchange.kind)]
  lines += textwrap.wrap(f"over {' × '.join(exchange.axes)}", 18)
  if hosts and hosts.cross(exchange.axes):
    lines.append(hosts.between_word)
  if forward is None:
    return [*lines, "backward pass", to_text(backward.sent_bytes)]
  lines += [
    f"of {forward.elements_per_image:,} values",
    to_text(forward.sent_bytes),
  ]
  if backward is not None:
    lines += [
      f"backward: {to_text(backward.sent_bytes)}",
      f"by {to_kind(backward.kind)}",
    ]
  return lines


def frame(hosts: hosts_lib.Hosts, numbers: Sequence[int]) -> str:
  """Names the hosts of a frame."""
  same = ", the same on each" if len(numbers) > 1 else ""
  return f"{hosts.name(numbers)}{same}"


def layer(network: wiring.Network, name: str) -> tuple[list[str], list[str]]:
  """Returns the header of a column: lines with the name, and other lines."""
  if name in ("image", "loss"):
    return ["logits" if name == "loss" else name], []
  row = network.layer(name)
  stride = f", stride {row.stride}" if row.stride > 1 else ""
  product = f"{row.window} × {row.window}{stride}" if row.window else "dense"
  return _break_name(name), [product, *_after_product(row)]


def _break_name(name: str) -> list[str]:
  """Breaks a long name, after an underscore if there is one."""
  lines = [""]
  for word in re.findall("[^_]*_+|[^_]+", name):
    if lines[-1] and len(lines[-1] + word) > NAME_LENGTH:
      lines.append("")
    lines[-1] += word
  return [
    part
    for line in lines
    for part in textwrap.wrap(line, NAME_LENGTH, break_on_hyphens=False)
  ]


def _after_product(row: wiring.Layer) -> list[str]:
  """Names normalization and pooling in their order.

  The activation is named where one of them comes before it; what is usual after
  batch normalization is not.
  """
  in_map = ["and in each map"] if row.map_lrn else []
  lines = {
    "normalization": [*NORMALIZATIONS[row.normalize], *in_map],
    "pooling": [f"{row.pool.kind} pooling"] if row.pool else [],
    "activation": [row.activation],
  }
  if row.normalize == "batch":  # first in any order
    first, order = lines.pop("normalization"), [*row.order]
    order.remove("normalization")
  else:
    first, order = [], row.order
  found = [line for word in order for line in lines[word]]
  if found[0] == row.activation or row.activation == "linear":
    found.remove(row.activation)
  return first + found


def devices(
  position: Mapping[str, int],
  numbers: Sequence[int],
  group: Mapping[str, int],
) -> list[str]:
  """Returns the header of the row at a position, of devices of these numbers.

  `group` has the sizes of the axes that rows do not distinguish.
  """
  first, *others = numbers
  if not others:
    text = f"device {first}"
  elif numbers == tuple(range(first, first + len(numbers))):
    text = f"devices {first} to {numbers[-1]}"
  elif len(numbers) < 5 and first + numbers[-1] < 100:
    text = f"devices {', '.join(map(str, numbers))}"
  else:
    text = f"devices {first}, {others[0]}, … {numbers[-1]}"
  lines = [text, *(f"{axis} {index}" for axis, index in position.items())]
  lines += [f"{size} along {axis}" for axis, size in group.items()]
  return [part for line in lines for part in textwrap.wrap(line, 24)]


def gap(before: Mapping[str, int], after: Mapping[str, int]) -> str:
  """Describes the devices between the rows at two positions on one axis."""
  ((axis, first), last) = *before.items(), after[next(iter(after))]
  return f"{axis} {first + 1} to {last - 1}: the same"


def table(
  network: wiring.Network,
  layout: layout_lib.Layout,
  plan: Sequence[plan_lib.Collective],
  batch_size: int,
  hosts: hosts_lib.Hosts | None = None,
) -> list[Entry]:
  """Returns what belongs to single layers, not between two of them."""
  entries = []
  splits = {
    each.name: layout.size(layout.placement(each).batch)
    for each in network.layers
  }
  if max(splits.values()) > 1:
    cells = {
      name: f"{batch_size // split} of {batch_size}"
      for name, split in splits.items()
    }
    entries.append(Entry(header=("images per device",), kind=None, cells=cells))
  rows = {}
  for exchange in plan:
    if exchange.tensor not in (plan_lib.ACTIVATION, plan_lib.NORM):
      forward = exchange.direction == plan_lib.FORWARD
      what = "weights" if forward else "gradients"
      if exchange.tensor not in plan_lib.PARAMETERS:
        what = exchange.tensor if forward else f"{exchange.tensor}, backward"
      key = not forward, exchange.kind, exchange.axes, what
      rows.setdefault(key, []).append(exchange)
  for (_, kind, axes, what), exchanges in sorted(rows.items()):
    if not {e.tensor for e in exchanges} - {plan_lib.BIAS, plan_lib.SCALE}:
      what = f"biases' {what}"
    sent = collections.Counter()
    for exchange in exchanges:
      sent[exchange.layer] += exchange.sent_bytes
    first, second = f"{what}: {to_kind(kind)}", f"over {' × '.join(axes)}"
    header = (f"{first} {second}",)
    if len(header[0]) >= 26:
      header = (first, *textwrap.wrap(second, 26))
    if hosts and hosts.cross(axes):
      header += (hosts.between_word,)
    cells = {name: to_text(number) for name, number in sent.items()}
    entries.append(Entry(header=header, kind=kind, cells=cells))
  return entries


def total(plan: Sequence[plan_lib.Collective]) -> str:
  """Describes what one device sends in a step, and for what."""
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
    return "Nothing is sent."
  sent = [f"{to_text(size)} {what}" for what, size in parts.most_common()]
  if len(sent) == 1:
    return f"One device sends {sent[0]} in a step."
  in_total = to_text(sum(parts.values()))
  return f"One device sends {in_total} in a step: {', '.join(sent)}."


def width(text: str, *, bold: bool = False) -> float:
  """Estimates the width of a line of the usual size, in inches."""
  wide = sum(character in "mwMW" for character in text)
  return (0.083 if bold else 0.065) * len(text) + 0.045 * wide * bold


def features(
  layer: str, side: int, number: int, complete: int
) -> tuple[str, ...]:
  """Returns what is written below a box: lines, the second of a part only."""
  text = f"{number:,}"
  if side > 1:
    text += " channels" if layer == "image" else " maps"
  return (text,) if number == complete else (text, f"of {complete:,}")
