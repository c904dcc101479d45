"""Reads the collectives of a program, as JAX traced it and as XLA compiled it.

Both readings give `plan.Collective`s, each as often as it runs in a step, so
that they can be compared with a plan and with each other. The
`jax.named_scope` of a collective names its layer. Other ways to leave a device
that are known here, and what cannot be counted, are refused in words; a custom
call of an unknown name in a compiled program is noted.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from jax.extend import core as jex_core

from alexnet_jax.partition import hlo as hlo_lib
from alexnet_jax.partition import plan as plan_lib

# Operations that name mesh axes and send nothing.
_LOCAL_PRIMITIVES = frozenset({"axis_index", "pvary", "pcast", "shard_map"})
# Who takes arrays out of sight, and by which operations: the host, a library
# that is not JAX's, or a kernel, which may send them to other devices.
_RECEIVERS = {
  "the host": re.compile(
    r"callback|debug_print|outside_call|infeed|outfeed|^(send|recv)"
  ),
  "a library": re.compile(r"ffi_call"),
  "a kernel": re.compile(
    r"pallas|mosaic|mgpu|triton|tpu_custom_call|core_map|mpmd_map|^dma_"
  ),
}
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
  r"(?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|"
  r"ragged-all-to-all|collective-permute|collective-broadcast)"
  r"(?P<start>-start)?"
)
# A collective of a name that is not known here has one of these.
_HLO_UNREAD_OPCODE = re.compile(r"collective|all-")
_HLO_UNREAD_ATTRIBUTE = re.compile(
  r"\b(channel_id|replica_groups|source_target_pairs)="
)
_HLO_HOST = ("infeed", "outfeed", "send", "recv")
_HLO_HOST_TARGET = re.compile(
  r"callback|host|infeed|outfeed|send|recv", re.IGNORECASE
)
# The compiler's own custom calls, for libraries and for annotations. A kernel
# for a GPU is none of them, __gpu$xla.gpu.triton.
_HLO_KNOWN_TARGET = re.compile(
  r"__(?!gpu\$xla)|Sharding$|SPMD|TopK$|AsyncCollective|AllocateBuffer$"
  r"|ConcatBitcast$|GatherScatter|AssumeGather|Resize|Slice|X64|Pad|lapack_"
  r"|cu\w+_|annotate_"
)
# The memory space of the host, in the layout of an array.
_HLO_HOST_MEMORY = "S(5)"
# No plan has one collective as often; the list of them has to end.
_MOST_TIMES = 100_000

_Counts = collections.Counter[plan_lib.Collective]


@dataclasses.dataclass(frozen=True)
class Reading:
  """What a program sends in a step.

  Attributes:
    collectives: over more than one device, each as often as it runs.
    refused: a line for each operation that sends in another way, or an unknown
      number of times.
    notes: a line for each other operation that is worth knowing.
  """

  collectives: tuple[plan_lib.Collective, ...]
  refused: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
  """An instruction of a compiled program, for a timeline.

  Attributes:
    layer: whose name its scope has; "" outside every layer.
    direction: `forward` or `backward`.
    scope: from the compiler, that of one operation if it joined several.
    collectives: that it sends; () if it only computes.
    inner: names of the instructions of the computations that it calls.
    operands: names of the instructions whose results it reads.
  """

  layer: str
  direction: str
  scope: str
  collectives: tuple[plan_lib.Collective, ...] = ()
  inner: tuple[str, ...] = ()
  operands: tuple[str, ...] = ()


def read_traced(
  jaxpr: jex_core.ClosedJaxpr,
  layers: Sequence[str],
  mesh: Mapping[str, int],
) -> Reading:
  """Reads a traced step."""
  return _TracedReader(layers, mesh).read(jaxpr)


def read_compiled(
  hlo: str, layers: Sequence[str], mesh: Mapping[str, int]
) -> Reading:
  """Reads a compiled step, each piece of combined collectives.

  `hlo` is the text of the optimized module; `mesh` has the slowest axis first.
  """
  return _CompiledReader(hlo_lib.parse(hlo), layers, mesh).read()


def read_operations(
  hlo: str, layers: Sequence[str], mesh: Mapping[str, int]
) -> dict[str, Operation]:
  """Reads what each instruction of a compiled step belongs to, by its name.

  Args: those of `read_compiled`; `layers` may have names of other scopes.
  """
  return _CompiledReader(hlo_lib.parse(hlo), layers, mesh).find_operations()


def make_name(collective: plan_lib.Collective) -> str:
  """Names a collective: `conv3 forward all-gather column`."""
  words = [collective.layer or "unknown", collective.direction]
  if collective.tensor != plan_lib.ACTIVATION:
    words.append(collective.tensor)
  kind = collective.kind.replace("_", "-")
  return " ".join((*words, kind, *collective.axes))


def describe(collective: plan_lib.Collective) -> str:
  """Describes a collective in one line, its layer first."""
  size = collective.bytes_per_element
  return (
    f"{_describe_place(collective)}: "
    f"{collective.kind} of the {collective.tensor} over "
    f"{' x '.join(collective.axes)}, {collective.elements:,} elements"
    + (f" of {size} bytes" if size != 4 else "")
  )


class _Reader:
  """Counts the collectives of a program; both readings share this."""

  def __init__(self, layers: Sequence[str], mesh: Mapping[str, int]):
    self.mesh = mesh
    names = "|".join(map(re.escape, layers))
    tensors = "|".join(plan_lib.NAMED_SCOPES)
    self._scope = re.compile(rf"\b({names})\b(?:\)*/({tensors})\b)?")
    self.refused: list[str] = []
    self.notes: list[str] = []

  def to_reading(self, counts: _Counts) -> Reading:
    for collective, times in counts.items():
      if times > _MOST_TIMES:
        self.refused.append(f"{describe(collective)}, {times:,} times a step")
        counts[collective] = 1
    return Reading(
      tuple(counts.elements()), _unique(self.refused), _unique(self.notes)
    )

  def repeat(self, counts: _Counts, times: int | None) -> _Counts:
    """Counts the body of a loop that runs `times`; None if that is unknown."""
    if times is not None:
      return _Counts({each: times * count for each, count in counts.items()})
    self.refused.extend(
      f"{describe(each)}, in a loop that runs an unknown number of times"
      for each in counts
    )
    return _Counts()

  def choose(self, branches: Iterable[_Counts]) -> _Counts:
    """Counts the branch that sends most, which has to send all of any other."""
    branches = list(branches)
    most = max(branches, key=_Counts.total, default=_Counts())
    least = functools.reduce(operator.and_, branches, most)
    every = functools.reduce(operator.or_, branches, most)
    self.refused.extend(
      f"{describe(each)}, in one branch of a cond while another sends more"
      for each in every - most
    )
    self.notes.extend(
      f"{describe(each)}: in a branch of a cond, so not in every step"
      for each in most - least
    )
    return _Counts(most)

  def to_collective(
    self, kind, axes, devices, elements, size, scope
  ) -> plan_lib.Collective:
    match = self._scope.search(scope)
    layer, tensor = match.groups() if match else ("", None)
    is_backward = "transpose(" in scope
    return plan_lib.Collective(
      layer=layer,
      direction=plan_lib.BACKWARD if is_backward else plan_lib.FORWARD,
      tensor=(layer and tensor) or plan_lib.ACTIVATION,
      kind=kind,
      axes=axes,
      devices=devices,
      elements=elements,
      bytes_per_element=size,
    )

  def describe_place(self, scope: str) -> str:
    return _describe_place(self.to_collective("", (), 1, 0, 1, scope))


class _TracedReader(_Reader):
  """Reads a jaxpr."""

  def read(self, jaxpr: jex_core.ClosedJaxpr) -> Reading:
    return self.to_reading(self._count(jaxpr.jaxpr, ""))

  def _count(self, jaxpr: jex_core.Jaxpr, outer: str) -> _Counts:
    counts = _Counts()
    for equation in jaxpr.eqns:
      scope = _find_scope(equation, outer)
      name, parameters = equation.primitive.name, equation.params
      counts.update(self._find_collectives(equation, scope))
      self._check_host(equation, scope)
      inner = {
        key: [self._count(each, scope) for each in _find_jaxprs(value)]
        for key, value in parameters.items()
      }
      if name == "cond":
        counts += self.choose(inner.pop("branches", ()))
      times = {"scan": parameters.get("length"), "while": None}.get(name, 1)
      for each in itertools.chain(*inner.values()):
        counts += self.repeat(each, times)
    return counts

  def _find_collectives(
    self, equation: jex_core.JaxprEqn, scope: str
  ) -> Iterator[plan_lib.Collective]:
    """Yields a collective for each operand that an equation sends."""
    parameters = equation.params
    axes = parameters.get("axis_name", parameters.get("axes", ()))
    axes = axes if isinstance(axes, tuple) else (axes,)
    axes = tuple(axis for axis in axes if isinstance(axis, str))
    devices = math.prod(self.mesh.get(axis, 1) for axis in axes)
    primitive = equation.primitive.name
    if devices == 1 or primitive in _LOCAL_PRIMITIVES:
      return
    kind = _KINDS.get(primitive, primitive)
    if parameters.get("axis_index_groups") is not None:
      kind += " in groups"  # as no plan has it
    axes = plan_lib.crossed_axes(axes, self.mesh)
    for variable in equation.invars:
      elements = math.prod(variable.aval.shape)
      if kind in ("all_gather", "all_to_all"):  # of the array, not the shard
        elements *= devices
      size = variable.aval.dtype.itemsize
      yield self.to_collective(kind, axes, devices, elements, size, scope)

  def _check_host(self, equation: jex_core.JaxprEqn, scope: str) -> None:
    """Refuses an operation that hands arrays to one of `_RECEIVERS`."""
    name = equation.primitive.name
    found = [to for to, names in _RECEIVERS.items() if names.search(name)]
    if any(
      "Host" in str(getattr(variable.aval, "memory_space", ""))
      for variable in (*equation.invars, *equation.outvars)
    ):
      found.append("the host")
    if found:
      elements = sum(
        math.prod(getattr(variable.aval, "shape", ()))
        for variable in equation.invars
      )
      self.refused.append(
        f"{self.describe_place(scope)}: {name} hands {elements:,} elements to "
        f"{found[0]}"
      )


class _CompiledReader(_Reader):
  """Reads the text of a compiled program."""

  def __init__(
    self,
    module: hlo_lib.Module,
    layers: Sequence[str],
    mesh: Mapping[str, int],
  ):
    super().__init__(layers, mesh)
    self._module = module
    self._axes_by_groups = hlo_lib.find_axes_by_groups(
      {axis: size for axis, size in mesh.items() if size > 1}
    )
    self._counted: dict[str, _Counts] = {}
    self._seen_in_chains = set()

  def read(self) -> Reading:
    entries = dict.fromkeys(("", self._module.entry))
    counts = sum(map(self._count, entries), _Counts())
    if not self._module.entry:
      self.refused.append("its text has no entry, so it cannot be read")
    for name in self._module.computations:
      if name not in self._counted:  # nothing that this can read calls it
        self.repeat(self._count(name), None)
    return self.to_reading(counts)

  def find_operations(self) -> dict[str, Operation]:
    operations = {}
    for name, instructions in self._module.computations.items():
      for instruction in instructions.values():
        sent = instruction
        while sent.opcode.endswith(("-done", "-update")) and sent.operands:
          sent = instructions.get(sent.operands[0])
          if sent is None:
            break
        found = tuple(self._find_collectives(name, sent or instruction))
        place = self.to_collective("", (), 1, 0, 1, instruction.scope)
        if found:
          place = found[0]
        operations[instruction.name] = Operation(
          layer=place.layer,
          direction=place.direction,
          scope=instruction.scope,
          collectives=found,
          operands=instruction.operands,
          inner=tuple(
            each
            for called in self._module.find_called(instruction)
            for each in self._module.computations[called]
          ),
        )
    return operations

  def _count(self, name: str) -> _Counts:
    """Counts what one run of a computation sends."""
    if name not in self._counted:
      counts = self._counted[name] = _Counts()
      for instruction in self._module.computations[name].values():
        counts.update(self._find_collectives(name, instruction))
        called = self._module.find_called(instruction)
        if instruction.opcode == "conditional":
          counts += self.choose(map(self._count, called))
          continue
        is_loop = instruction.opcode == "while"
        times = instruction.trip_count if is_loop else 1
        for each, attribute in called.items():
          # The condition runs once more, to end the loop.
          last = times is not None and attribute == "condition"
          counts += self.repeat(self._count(each), times + 1 if last else times)
      self._counted[name] = counts
    return self._counted[name]

  def _find_collectives(
    self, computation: str, instruction: hlo_lib.Instruction
  ) -> Iterator[plan_lib.Collective]:
    """Yields each piece that an instruction sends; refuses what it cannot."""
    match = _HLO_COLLECTIVE.fullmatch(instruction.opcode)
    if not match:
      self._check_other(instruction)
      return
    is_pair = match["start"] and match["kind"] != "all-reduce"
    pieces = hlo_lib.read_results(instruction, is_pair=bool(is_pair))
    # TPU's compiler runs a collective piece by piece beside the computations
    # of one chain, and writes the complete one in each.
    if chain := re.search(r"chain_id=\"(\d+)\"", instruction.rest):
      key = (chain[1], match["kind"], *pieces, instruction.scope)
      if key in self._seen_in_chains:
        return
      self._seen_in_chains.add(key)
    kind = _KINDS.get(match["kind"], match["kind"])
    axes, devices = hlo_lib.find_axes(instruction.rest, self._axes_by_groups)
    if devices == 1:
      return
    if kind == "all_to_all":  # a result per device, or one for all
      pieces = [(sum(count for count, _ in pieces), pieces[0][1])]
    for index, (elements, size) in enumerate(pieces):
      if kind in ("reduce_scatter", "all_to_all"):
        elements *= devices
      scope = self._find_scope(computation, instruction, index, len(pieces))
      yield self.to_collective(kind, axes, devices, elements, size, scope)

  def _find_scope(
    self,
    computation: str,
    instruction: hlo_lib.Instruction,
    index: int,
    pieces: int,
  ) -> str:
    """Returns the scope of a piece: its own, or that of what it is made from.

    The scope of a combined collective is that of one of its pieces, or none.
    """
    scope = instruction.scope
    if pieces > 1:
      scope = self._piece_scopes.get((computation, instruction.name, index), "")
    if scope or not instruction.operands:
      return scope
    operand = instruction.operands[min(index, len(instruction.operands) - 1)]
    scopes = list(self._module.find_scopes(computation, operand))
    if len({self.describe_place(scope) for scope in scopes}) > 1:
      return ""
    # What made the operand is not what is sent, so its tensor is not known.
    return scopes[0] if scopes else ""

  @functools.cached_property
  def _piece_scopes(self) -> dict[tuple[str, str, int], str]:
    """Returns {(computation, collective, piece): scope of its result}."""
    scopes = {}
    for name, instructions in self._module.computations.items():
      for instruction in instructions.values():
        if instruction.opcode != "get-tuple-element":
          continue
        if index := re.search(r"\bindex=(\d+)", instruction.attributes):
          (source,) = instruction.operands
          found = instructions.get(source)
          if found and found.opcode.endswith("-done"):
            (source,) = found.operands
          scopes[name, source, int(index[1])] = instruction.scope
    return scopes

  def _check_other(self, instruction: hlo_lib.Instruction) -> None:
    """Refuses what sends and is no collective, or one of an unknown name."""
    opcode = instruction.opcode
    if opcode.endswith(("-done", "-update")):
      return  # of what has been read at its start
    target = opcode.startswith("custom-call") and re.search(
      r'custom_call_target="([^"]*)"', instruction.rest
    )
    if opcode in _HLO_HOST or _HLO_HOST_MEMORY in instruction.type:
      lines, line = self.refused, f"{opcode} moves data to or from the host"
    elif target and _HLO_HOST_TARGET.search(target[1]):
      lines, line = self.refused, f"custom call {target[1]} calls the host"
    elif _HLO_UNREAD_OPCODE.search(opcode) or _HLO_UNREAD_ATTRIBUTE.search(
      instruction.attributes
    ):
      lines = self.refused
      name = target[1] if target else opcode
      line = f"{name} sends, and this audit cannot read it"
    elif target and not _HLO_KNOWN_TARGET.match(target[1]):
      lines = self.notes
      line = f"the audit does not know what custom call {target[1]} does"
    else:
      return
    lines.append(f"{self.describe_place(instruction.scope)}: {line}")


def _describe_place(collective: plan_lib.Collective) -> str:
  layer = collective.layer or "outside every layer"
  return f"{layer} {collective.direction}"


def _unique(lines: Iterable[str]) -> tuple[str, ...]:
  """Returns the lines in order, with how often each is there."""
  return tuple(
    line if times == 1 else f"{line} ({times} times)"
    for line, times in collections.Counter(lines).items()
  )


def _find_scope(equation: jex_core.JaxprEqn, outer: str) -> str:
  return f"{outer}/{equation.source_info.name_stack}"


def _find_jaxprs(value: object) -> Iterator[jex_core.Jaxpr]:
  """Yields the programs in a parameter of an operation, however nested."""
  if isinstance(value, jex_core.ClosedJaxpr):
    yield value.jaxpr
  elif isinstance(value, jex_core.Jaxpr):
    yield value
  elif isinstance(value, (tuple, list, Mapping)):
    for each in value.values() if isinstance(value, Mapping) else value:
      yield from _find_jaxprs(each)
