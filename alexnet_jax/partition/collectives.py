"""Reads the collectives of a program, as JAX traced it and as XLA compiled it.

Both readings give `plan.Collective`s, so that they can be compared with a plan
and with each other. The `jax.named_scope` of a collective names its layer.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from jax.extend import core as jex_core

from alexnet_jax.partition import plan as plan_lib

# Operations that name mesh axes and send nothing.
_LOCAL_PRIMITIVES = frozenset({"axis_index", "pvary", "pcast", "shard_map"})
# Kinds of `plan.Collective`, by JAX's and by XLA's names where they differ.
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
) -> Iterator[plan_lib.Collective]:
  """Yields the collectives of a traced step over more than one device."""
  for primitive, axes, (elements, size), scope in _walk(jaxpr.jaxpr, ""):
    devices = math.prod(mesh.get(axis, 1) for axis in axes)
    kind = _KINDS.get(primitive, primitive)
    if devices == 1:
      continue
    if kind in ("all_gather", "all_to_all"):  # of the array, not the shard
      elements *= devices
    axes = plan_lib.crossed_axes(axes, mesh)
    yield _to_collective(kind, axes, devices, (elements, size), scope, layers)


def find_compiled(
  hlo: str, layers: Sequence[str], mesh: Mapping[str, int]
) -> Iterator[plan_lib.Collective]:
  """Yields the collectives of a compiled step, each piece of combined ones.

  `hlo` is the text of the optimized module; `mesh` has the slowest axis first.
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
  axes_by_groups = _find_axes_by_groups(
    {axis: size for axis, size in mesh.items() if size > 1}
  )
  seen_in_chains = set()
  for line in lines:
    match = _HLO_COLLECTIVE.match(line)
    if not match:
      continue
    pieces = _find_results(match)
    own_scope = re.search(r"op_name=\"([^\"]*)\"", match["rest"])
    own_scope = own_scope[1] if own_scope else ""
    # TPU's compiler runs a collective piece by piece beside the computations
    # of one chain, and writes the complete one in each.
    if chain := re.search(r"chain_id=\"(\d+)\"", line):
      key = (chain[1], match["kind"], *pieces, own_scope)
      if key in seen_in_chains:
        continue
      seen_in_chains.add(key)
    kind = _KINDS.get(match["kind"], match["kind"])
    axes, devices = _find_axes(match["rest"], axes_by_groups)
    if devices == 1:
      continue
    if kind == "all_to_all":  # a result per device, or one for all
      pieces = [(sum(count for count, _ in pieces), pieces[0][1])]
    for index, (elements, size) in enumerate(pieces):
      if kind in ("reduce_scatter", "all_to_all"):
        elements *= devices
      scope = scopes.get((match["name"], index))
      if scope is None or len(pieces) == 1:
        scope = own_scope
      yield _to_collective(kind, axes, devices, (elements, size), scope, layers)


def find_layers(jaxpr: jex_core.ClosedJaxpr) -> set[str]:
  """Returns the layers with collectives in the traced step, planned or not."""
  return {
    name
    for _, _, _, scope in _walk(jaxpr.jaxpr, "")
    for name in re.findall(r"\b(?:conv|fc)\d+\b", scope)
  }


def _walk(
  jaxpr: jex_core.Jaxpr, outer: str
) -> Iterator[tuple[str, tuple[str, ...], tuple[int, int], str]]:
  """Yields (primitive, axes, (elements, bytes of each), scope) recursively."""
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


def _to_collective(
  kind: str,
  axes: tuple[str, ...],
  devices: int,
  size: tuple[int, int],
  scope: str,
  layers: Iterable[str],
) -> plan_lib.Collective:
  names = "|".join(map(re.escape, layers))
  tensors = "|".join(plan_lib.NAMED_SCOPES)
  match = re.search(rf"\b({names})\b(?:\)*/({tensors})\b)?", scope)
  layer, tensor = match.groups() if match else ("", None)
  is_backward = "transpose(" in scope
  return plan_lib.Collective(
    layer=layer,
    direction=plan_lib.BACKWARD if is_backward else plan_lib.FORWARD,
    tensor=(layer and tensor) or plan_lib.ACTIVATION,
    kind=kind,
    axes=axes,
    devices=devices,
    elements=size[0],
    bytes_per_element=size[1],
  )


def _find_results(match: re.Match[str]) -> list[tuple[int, int]]:
  """Returns (elements, bytes of each) of each result of a collective.

  An asynchronous one, except a sum, has a tuple: operands, results and, for
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
  return [
    (
      math.prod(int(n) for n in array["shape"].split(",") if n),
      max(1, int(array["bits"] or 8) // 8),  # pred has no bits, and 1 byte
    )
    for array in _HLO_ARRAY.finditer(text)
  ]


def _find_axes_by_groups(
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


def _find_groups(numbers: np.ndarray, axes: Sequence[int]) -> list[list[int]]:
  """Returns the groups of numbers along some axes of their array."""
  moved = np.moveaxis(numbers, axes, range(-len(axes), 0))
  return moved.reshape(-1, math.prod(numbers.shape[i] for i in axes)).tolist()


def _find_axes(
  attributes: str, axes_by_groups: Mapping[frozenset, tuple[str, ...]]
) -> tuple[tuple[str, ...], int]:
  """Returns the axes of a compiled collective, and the devices in a group."""
  all_devices = max(axes_by_groups, key=lambda key: max(map(len, key)))
  groups = _read_replica_groups(attributes) or [list(*all_devices)]
  key = frozenset(map(frozenset, groups))
  axes = axes_by_groups.get(key, (f"device groups {groups}",))
  return axes, max(map(len, groups))


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
