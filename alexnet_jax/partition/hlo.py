"""Parses the text of a compiled program (HLO), as far as an audit needs it.

The instructions of each computation, the computations that an instruction runs
and how often, where an operand comes from, and what a collective sends among
which devices.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(
  r"\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>.*?) "
  r"(?P<opcode>[a-z][\w\-]*)\((?P<rest>.*)$"
)
_COMMENT = re.compile(r"/\*.*?\*/")
_ATTRIBUTE = re.compile(r"([\w\-]+)=(\{[^{}]*\}|%?[\w.\-]+)")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_TRIP_COUNT = re.compile(r'"known_trip_count":\s*\{\s*"n":\s*"?(\d+)')
_ARRAY = re.compile(r"(?P<type>[a-z]+)(?P<bits>\d*)\w*\[(?P<shape>[\d,]*)\]")
# An asynchronous operation names its computation in each of its parts.
_LATER_PARTS = ("async-update", "async-done")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    rest: the text behind the operands: attributes and metadata.
  """

  name: str
  type: str
  opcode: str
  operands: tuple[str, ...]
  rest: str

  @functools.cached_property
  def scope(self) -> str:
    """The `jax.named_scope` and primitive it was made of; "" if unknown."""
    match = re.search(r"op_name=\"([^\"]*)\"", self.rest)
    return match[1] if match else ""

  @functools.cached_property
  def attributes(self) -> str:
    """The attributes, without the text of any string."""
    return _STRING.sub('""', self.rest)

  @functools.cached_property
  def references(self) -> list[tuple[str, str]]:
    """Each word of the value of an attribute, after the attribute's name."""
    return [
      (name, word)
      for name, value in _ATTRIBUTE.findall(self.attributes)
      for word in re.findall(r"[\w.\-]+", value)
    ]

  @property
  def trip_count(self) -> int | None:
    """How often a `while` runs its body; None if that is not known."""
    # Older versions of XLA put this text into a string.
    match = _TRIP_COUNT.search(self.rest.replace("\\", ""))
    return int(match[1]) if match else None


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program.

  Attributes:
    computations: {name: {name of an instruction: itself}}; "" has the lines
      that are in no computation.
    entry: the name of the computation that the program runs.
  """

  computations: Mapping[str, Mapping[str, Instruction]]
  entry: str

  def find_called(self, instruction: Instruction) -> dict[str, str]:
    """Returns {computation: attribute that names it} of an instruction."""
    if instruction.opcode in _LATER_PARTS:
      return {}
    return {
      word: name
      for name, word in instruction.references
      if name != "control-predecessors" and word in self.computations
    }

  def find_scopes(self, computation: str, operand: str) -> Iterator[str]:
    """Yields the scopes of the operations that an operand is the result of.

    Operations without a scope, which the compiler added, are followed to their
    operands. Yields "" for an argument of the program.
    """
    seen = set()
    operands = [(computation, operand)]
    while operands:
      place = operands.pop()
      if place in seen:
        continue
      seen.add(place)
      computation, name = place
      found = self.computations[computation].get(name)
      if found and found.opcode == "parameter":
        callers = self._callers.get(computation, ())
        if len(callers) == 1:
          ((where, caller),) = callers
          index = int(found.operands[0])
          if index < len(caller.operands):
            operands.append((where, caller.operands[index]))
            continue
        yield ""
      elif found and not found.scope and found.operands:
        operands.extend((computation, each) for each in found.operands)
      else:
        yield found.scope if found else ""

  @functools.cached_property
  def _callers(self) -> dict[str, list[tuple[str, Instruction]]]:
    callers = {}
    for computation, instructions in self.computations.items():
      for instruction in instructions.values():
        for called in self.find_called(instruction):
          callers.setdefault(called, []).append((computation, instruction))
    return callers


def parse(text: str) -> Module:
  """Parses the text of a module; what is not an instruction is left out."""
  computations: dict[str, dict[str, Instruction]] = {"": {}}
  entry = current = ""
  for line in _COMMENT.sub("", text).splitlines():
    if line.startswith("}"):
      current = ""
    elif match := _INSTRUCTION.match(line):
      name, lines = match["name"], computations[current]
      if name in lines:  # parts of programs, as in tests; none may get lost
        name = f"{name}#{len(lines)}"
      operands, rest = _split_operands(match["rest"])
      lines[name] = Instruction(
        name, match["type"], match["opcode"], operands, rest
      )
    elif match := _COMPUTATION.match(line):
      current = match["name"]
      computations[current] = {}
      if match["entry"]:
        entry = current
  return Module(computations, entry)


def _split(text: str) -> list[str]:
  """Splits at the commas that are in no brackets."""
  depth, parts = 0, [""]
  for character in text:
    depth += (character in "([{") - (character in ")]}")
    if character == "," and depth == 0:
      parts.append("")
    else:
      parts[-1] += character
  return parts


def _split_operands(text: str) -> tuple[tuple[str, ...], str]:
  """Splits what follows an opening parenthesis: names of operands, the rest."""
  depth = 1
  for bracket in re.finditer(r"[()]", text):
    depth += 1 if bracket[0] == "(" else -1
    if depth == 0:
      words = map(str.split, _split(text[: bracket.start()]))
      names = (word[-1].lstrip("%") for word in words if word)
      return tuple(names), text[bracket.end() :]
  return (), text


def read_results(
  instruction: Instruction, *, is_pair: bool
) -> list[tuple[int, int]]:
  """Returns (elements, bytes of each) of each result of a collective.

  `is_pair`: its type is a tuple of operands, results and, for some, numbers of
  its own, as that of an asynchronous one is, except a sum.
  """
  text = instruction.type
  if is_pair:
    text = _split(text[1:-1])[1]
  return [
    (
      math.prod(int(n) for n in array["shape"].split(",") if n),
      max(1, int(array["bits"] or 8) // 8),  # pred has no bits, and 1 byte
    )
    for array in _ARRAY.finditer(text)
  ]


def find_axes_by_groups(
  mesh: Mapping[str, int],
) -> dict[frozenset[frozenset[int]], tuple[str, ...]]:
  """Maps the groups of device numbers along every set of axes to these axes."""
  names = list(mesh)
  numbers = np.arange(math.prod(mesh.values())).reshape([*mesh.values()])
  axes_by_groups = {}
  for count in range(len(names) + 1):
    for axes in itertools.combinations(names, count):
      groups = _find_groups(numbers, [names.index(axis) for axis in axes])
      axes_by_groups.setdefault(frozenset(map(frozenset, groups)), axes)
  return axes_by_groups


def find_axes(
  attributes: str, axes_by_groups: Mapping[frozenset, tuple[str, ...]]
) -> tuple[tuple[str, ...], int]:
  """Returns the axes of a compiled collective, and the devices in a group."""
  all_devices = max(axes_by_groups, key=lambda key: max(map(len, key)))
  groups = _read_replica_groups(attributes) or [list(*all_devices)]
  key = frozenset(map(frozenset, groups))
  axes = axes_by_groups.get(key, (f"device groups {groups}",))
  return axes, max(map(len, groups))


def _find_groups(numbers: np.ndarray, axes: Sequence[int]) -> list[list[int]]:
  """Returns the groups of numbers along some axes of their array."""
  moved = np.moveaxis(numbers, axes, range(-len(axes), 0))
  return moved.reshape(-1, math.prod(numbers.shape[i] for i in axes)).tolist()


def _read_replica_groups(attributes: str) -> list[list[int]]:
  """Reads the groups of devices, in any of the notations of HLO.

  {{0,1},{2,3}}; [2,2]<=[4] and [2,2]<=[2,2]T(1,0), an iota; since jax 0.12
  mesh['data'=2,'column'=2] {'column'}; for a permutation the pairs. An empty
  list means all devices.
  """
  if listed := re.search(r"replica_groups=\{(\{.*?\})\}", attributes):
    return _read_rows(listed[1])
  if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes):
    return _join_pairs(_read_rows(pairs[1]))
  if named := re.search(
    r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}",
    attributes,
  ):
    mesh = dict(re.findall(r"'([^']*)'=(\d+)", named[1]))
    sizes = [int(size) for size in mesh.values()]
    ids = named[2] or f"[{math.prod(sizes)}]<=[{math.prod(sizes)}]"
    axes = [list(mesh).index(axis) for axis in re.findall(r"\w+", named[3])]
    return _find_groups(_read_iota(ids).reshape(sizes), axes)
  if iota := re.search(r"replica_groups=(\[\S+)", attributes):
    return _read_iota(iota[1]).tolist()
  return []


def _read_iota(text: str) -> np.ndarray:
  """Reads [2,2]<=[2,2]T(1,0): shape, then the sizes and order of the count.

  [2,2]T(1,0) is short for the same. A plain list of numbers is read as one.
  """
  text = re.sub(r"^(\[[\d,]+\])T", r"\1<=\1T", text)
  if "<=" not in text:
    return np.array(_read_numbers(text))
  shape, sizes, order = re.match(
    r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text
  ).groups()
  sizes = _read_numbers(sizes)
  counted = np.arange(math.prod(sizes)).reshape(sizes)
  if order:
    counted = counted.transpose(_read_numbers(order))
  return counted.reshape(_read_numbers(shape))


def _join_pairs(pairs: Iterable[list[int]]) -> list[list[int]]:
  """Returns the groups of devices that pairs connect."""
  groups: list[set[int]] = []
  for pair in pairs:
    touched = [group for group in groups if group & {*pair}]
    groups = [group for group in groups if group not in touched]
    groups.append(set(pair).union(*touched))
  return [sorted(group) for group in groups]


def _read_rows(text: str) -> list[list[int]]:
  return [_read_numbers(row) for row in re.findall(r"\{([\d,]+)\}", text)]


def _read_numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(",")]
