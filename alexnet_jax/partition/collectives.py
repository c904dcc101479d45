"""The collectives that a program has: as JAX traced it, as XLA compiled it.

Both readings give `plan.Collective`s, so that they can be compared with a plan
and with each other. The layer is found by the `jax.named_scope` it runs in.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from jax.extend import core as jex_core

from alexnet_jax.partition import plan as plan_lib

Exchange = plan_lib.Collective

# Operations that name mesh axes and send nothing.
_LOCAL_PRIMITIVES = frozenset({"axis_index", "pvary", "pcast", "shard_map"})
# Named inside the scope of their layer.
_KINDS = {
  "psum": "sum",
  "psum_invariant": "sum",
  "all-gather": "all_gather",
  "all-reduce": "sum",
  "reduce-scatter": "reduce_scatter",
  "all-to-all": "all_to_all",
}
_HLO_COLLECTIVE = re.compile(
  r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>.*?) "
  r"(?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|"
  r"ragged-all-to-all|collective-permute|collective-broadcast)"
  r"(?P<start>-start)?\((?P<rest>.*)$"
)
_HLO_PIECE = re.compile(
  r"= .*? get-tuple-element\(%?(?P<name>[\w.\-]+)\), index=(?P<index>\d+)"
  r".*op_name=\"(?P<scope>[^\"]*)\""
)
_HLO_DONE = re.compile(
  r"%?(?P<name>[\w.\-]+) = .*? [a-z\-]+-done\(%?(?P<start>[\w.\-]+)\)"
)
_HLO_ARRAY = re.compile(
  r"(?P<type>[a-z]+)(?P<bits>\d*)\w*\[(?P<shape>[\d,]*)\]"
)


def find_traced(
  jaxpr: jex_core.ClosedJaxpr,
  layers: Sequence[str],
  mesh: Mapping[str, int],
) -> Iterator[Exchange]:
  """Yields the collectives of a traced step over more than one device."""
  for primitive, axes, (elements, size), scope in _walk(jaxpr.jaxpr, ""):
    devices = math.prod(mesh.get(axis, 1) for axis in axes)
    kind = _KINDS.get(primitive, primitive)
    if devices == 1:
      continue
    if kind in ("all_gather", "all_to_all"):  # the whole array, not the block
      elements *= devices
    axes = plan_lib.crossed(axes, mesh)
    yield _exchange(kind, axes, devices, (elements, size), scope, layers)


def find_compiled(
  hlo: str, layers: Sequence[str], mesh: Mapping[str, int]
) -> Iterator[Exchange]:
  """Yields the collectives of a compiled step, combined ones piece by piece.

  Args:
    hlo: the text of the optimized module.
    layers: names to look for in the scopes.
    mesh: axis name -> devices, slowest axis first.
  """
  lines = hlo.splitlines()
  started = {
    match["name"]: match["start"]
    for match in filter(None, map(_HLO_DONE.search, lines))
  }
  scopes = {}
  for match in filter(None, map(_HLO_PIECE.search, lines)):
    name = started.get(match["name"], match["name"])
    scopes[name, int(match["index"])] = match["scope"]
  groups = groups_by_axes(
    {axis: size for axis, size in mesh.items() if size > 1}
  )
  chains = set()
  for line in lines:
    match = _HLO_COLLECTIVE.match(line)
    if not match:
      continue
    shapes = _results(match)
    own_scope = re.search(r"op_name=\"([^\"]*)\"", match["rest"])
    # TPU's compiler runs a collective piece by piece beside the computations
    # of one chain, and writes it out whole in each.
    if chain := re.search(r"chain_id=\"(\d+)\"", line):
      piece = (chain[1], match["kind"], *shapes, own_scope and own_scope[1])
      if piece in chains:
        continue
      chains.add(piece)
    kind = _KINDS.get(match["kind"], match["kind"])
    axes, devices = axes_of(match["rest"], groups)
    if devices == 1:
      continue
    pieces = list(shapes)
    if kind == "all_to_all":  # a result per device, or one for all
      pieces = [(sum(count for count, _ in pieces), pieces[0][1])]
    for index, (elements, size) in enumerate(pieces):
      if kind in ("reduce_scatter", "all_to_all"):
        elements *= devices
      scope = scopes.get((match["name"], index))
      if scope is None or len(pieces) == 1:
        scope = own_scope[1] if own_scope else ""
      yield _exchange(kind, axes, devices, (elements, size), scope, layers)


def grouped_convolutions(hlo: str) -> list[str]:
  """The lines of a compiled program that convolve in groups; none is right."""
  return [
    line.strip()
    for line in hlo.splitlines()
    if re.search(r"(feature|batch)_group_count=([2-9]|1\d)", line)
  ]


def find_layers(jaxpr: jex_core.ClosedJaxpr) -> set[str]:
  """Layers that the traced step has exchanges in, planned or not."""
  return {
    name
    for _, _, _, scope in _walk(jaxpr.jaxpr, "")
    for name in re.findall(r"\b(?:conv|fc)\d+\b", scope)
  }


def _walk(
  jaxpr: jex_core.Jaxpr, outer: str
) -> Iterator[tuple[str, tuple[str, ...], tuple[int, int], str]]:
  """Yields (primitive, axes, (elements, bytes of each), scope)."""
  for equation in jaxpr.eqns:
    scope = f"{outer}/{equation.source_info.name_stack}"
    parameters = equation.params
    axes = parameters.get("axis_name", parameters.get("axes", ()))
    axes = axes if isinstance(axes, tuple) else (axes,)
    names = tuple(axis for axis in axes if isinstance(axis, str))
    if names and equation.primitive.name not in _LOCAL_PRIMITIVES:
      elements = sum(math.prod(var.aval.shape) for var in equation.invars)
      size = equation.invars[0].aval.dtype.itemsize
      yield equation.primitive.name, names, (elements, size), scope
    for inner in jex_core.jaxprs_in_params(parameters):
      yield from _walk(inner, scope)


def _exchange(
  kind: str,
  axes: tuple[str, ...],
  devices: int,
  size: tuple[int, int],
  scope: str,
  layers: Iterable[str],
) -> Exchange:
  names = "|".join(map(re.escape, layers))
  tensors = "|".join(plan_lib.NAMED)
  match = re.search(rf"\b({names})\b(?:\)*/({tensors})\b)?", scope)
  found = match if match and match[1] else None
  return Exchange(
    layer=found[1] if found else "",
    direction=(
      plan_lib.BACKWARD if "transpose(" in scope else plan_lib.FORWARD
    ),
    tensor=(found and found[2]) or plan_lib.ACTIVATION,
    kind=kind,
    axes=axes,
    devices=devices,
    elements=size[0],
    bytes_per_element=size[1],
  )


def _results(match: re.Match[str]) -> tuple[tuple[int, int], ...]:
  """(elements, bytes of each) of what a collective results in.

  One that is only started, but a sum, has a tuple: operands, results and, for
  some, numbers of its own.
  """
  text = match["type"]
  if match["start"] and match["kind"] != "all-reduce":
    depth, parts = 0, [""]
    for character in text[1:-1]:
      depth += (character in "([{") - (character in ")]}")
      if character == "," and depth == 0:
        parts.append("")
      else:
        parts[-1] += character
    text = parts[1]
  return tuple(map(_size, _HLO_ARRAY.finditer(text)))


def _size(match: re.Match[str]) -> tuple[int, int]:
  """Elements, and bytes of each; `pred` and other types without bits have 1."""
  elements = math.prod(int(n) for n in match["shape"].split(",") if n)
  return elements, max(1, int(match["bits"] or 8) // 8)


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
