"""Who takes part in a compiled collective: device numbers -> mesh axes."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping

import numpy as np


def groups_by_axes(
  mesh: Mapping[str, int],
) -> dict[frozenset[frozenset[int]], tuple[str, ...]]:
  """The groups of device numbers along every set of axes."""
  names = list(mesh)
  numbers = np.arange(math.prod(mesh.values())).reshape([*mesh.values()])
  found = {}
  for count in range(len(names) + 1):
    for axes in itertools.combinations(names, count):
      moved = np.moveaxis(
        numbers, [names.index(axis) for axis in axes], range(-count, 0)
      )
      devices = math.prod(mesh[axis] for axis in axes)
      groups = moved.reshape(-1, devices)
      key = frozenset(frozenset(map(int, group)) for group in groups)
      found.setdefault(key, axes)
  return found


def axes_of(
  attributes: str, groups: Mapping[frozenset, tuple[str, ...]]
) -> tuple[tuple[str, ...], int]:
  """The axes of a compiled collective, and the devices in a group."""
  everything = max(groups, key=lambda key: max(map(len, key)))
  rows = _replica_groups(attributes) or [list(*everything)]
  key = frozenset(map(frozenset, rows))
  names = groups.get(key, (f"device groups {rows}",))
  return names, max(map(len, rows))


def _replica_groups(attributes: str) -> list[list[int]]:
  """Reads who takes part, in any of the ways in which HLO writes it.

  {{0,1},{2,3}}; [2,2]<=[4] and [2,2]<=[2,2]T(1,0), an iota; since jax 0.12
  mesh['data'=2,'column'=2] {'column'}; of a permutation the pairs. Nothing
  stands for all devices.
  """
  if listed := re.search(r"replica_groups=\{(\{.*?\})\}", attributes):
    return [_numbers(row) for row in re.findall(r"\{([\d,]+)\}", listed[1])]
  if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes):
    return _joined(map(_numbers, re.findall(r"\{([\d,]+)\}", pairs[1])))
  if named := re.search(
    r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}",
    attributes,
  ):
    mesh = dict(re.findall(r"'([^']*)'=(\d+)", named[1]))
    sizes = [int(size) for size in mesh.values()]
    numbers = _iota(named[2] or f"[{math.prod(sizes)}]<=[{math.prod(sizes)}]")
    axes = [list(mesh).index(axis) for axis in re.findall(r"\w+", named[3])]
    moved = np.moveaxis(numbers.reshape(sizes), axes, range(-len(axes), 0))
    return moved.reshape(-1, math.prod(sizes[axis] for axis in axes)).tolist()
  if iota := re.search(r"replica_groups=(\[\S+)", attributes):
    return _iota(iota[1]).tolist()
  return []


def _iota(text: str) -> np.ndarray:
  """[2,2]<=[2,2]T(1,0): shape, then the sizes and order of the count.

  [2,2]T(1,0) stands for the same. A plain list of numbers is taken as it is.
  """
  text = re.sub(r"^(\[[\d,]+\])T", r"\1<=\1T", text)
  if "<=" not in text:
    return np.array(_numbers(text))
  shape, sizes, order = re.match(
    r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text
  ).groups()
  counted = np.arange(math.prod(_numbers(sizes))).reshape(_numbers(sizes))
  if order:
    counted = counted.transpose(_numbers(order))
  return counted.reshape(_numbers(shape))


def _joined(pairs: Iterable[list[int]]) -> list[list[int]]:
  """The groups of devices that pairs connect."""
  groups: list[set[int]] = []
  for pair in pairs:
    touched = [group for group in groups if group & {*pair}]
    groups = [group for group in groups if group not in touched]
    groups.append(set(pair).union(*touched))
  return [sorted(group) for group in groups]


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(",")]
