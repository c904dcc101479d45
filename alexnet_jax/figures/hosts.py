"""Which devices of a layout share a host, and what crosses hosts."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import rich.table

from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.planner import price
from alexnet_jax.program import summary

# Rows of the table of hosts: the first ones, and the last.
_MOST_ROWS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hosts:
  """How the axes of a mesh lie over several hosts.

  A host is what the outermost links of a machine join; of TPUs it is a slice.

  Attributes:
    word: host or slice.
    order: axes as they are nested over the devices, slowest first.
    inside: {axis: devices of it in a host}.
    between: {axis: hosts along it}.
  """

  word: str
  order: tuple[str, ...]
  inside: Mapping[str, int]
  between: Mapping[str, int]

  @property
  def count(self) -> int:
    return math.prod(self.between.values())

  @property
  def between_word(self) -> str:
    """Says where an exchange runs that leaves a host."""
    return f"between {self.word}s"

  def cross(self, axes: Iterable[str]) -> bool:
    """Whether an exchange over axes goes from host to host."""
    return any(self.between[axis] > 1 for axis in axes)

  def find(self, position: Mapping[str, int]) -> tuple[int, ...]:
    """Finds the hosts of the devices at a position.

    Args:
      position: {axis: index along it}; devices are at all indices of an axis
        that is left out.
    """
    ranges = [
      [position[axis] // self.inside[axis]]
      if axis in position
      else range(self.between[axis])
      for axis in self.order
    ]
    numbers = []
    for indices in itertools.product(*ranges):
      number = 0
      for axis, index in zip(self.order, indices, strict=True):
        number = number * self.between[axis] + index
      numbers.append(number)
    return tuple(sorted(numbers))

  def name(self, numbers: Sequence[int]) -> str:
    """Names hosts of these numbers: `host 0`, `hosts 0 to 3`."""
    if len(numbers) == 1:
      return f"{self.word} {numbers[0]}"
    if len(numbers) == 2:
      return f"{self.word}s {numbers[0]} and {numbers[1]}"
    if numbers[-1] - numbers[0] == len(numbers) - 1:
      return f"{self.word}s {numbers[0]} to {numbers[-1]}"
    return f"{self.word}s {numbers[0]}, {numbers[1]}, … {numbers[-1]}"


def find_hosts(
  machine: machine_lib.Machine,
  layout: layout_lib.Layout,
  order: Sequence[str],
) -> Hosts | None:
  """Finds the hosts of a machine that a layout needs; None: one is enough.

  Args:
    order: see `price.predict`.
  """
  if len(machine.links) < 2:
    return None
  inside = price.Nested(layout, order, machine.links).levels[-2]
  between = {axis: size // inside[axis] for axis, size in layout.mesh.items()}
  if max(between.values(), default=1) == 1:
    return None
  return Hosts(
    word="slice" if machine.platform == "tpu" else "host",
    order=tuple(order),
    inside=inside,
    between=between,
  )


def make_table(hosts: Hosts) -> rich.table.Table:
  """Makes a row per host: the indices of its devices along each axis."""
  table = summary.make_table(None, hosts.word, *hosts.inside)
  rows = list(
    itertools.product(*(range(hosts.between[axis]) for axis in hosts.order))
  )
  shown = range(len(rows))
  if len(rows) > _MOST_ROWS:
    shown = (*range(_MOST_ROWS - 1), None, len(rows) - 1)
  for number in shown:
    if number is None:
      table.add_row(*["..."] * len(table.columns))
      continue
    place = dict(zip(hosts.order, rows[number], strict=True))
    table.add_row(
      str(number),
      *(
        _to_text(place[axis] * size, size)
        for axis, size in hosts.inside.items()
      ),
    )
  return table


def _to_text(first: int, size: int) -> str:
  return str(first) if size == 1 else f"{first} to {first + size - 1}"
