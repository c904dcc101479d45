"""Compares the collectives of a step with the plan.

There are two readings of one step. The traced program (jaxpr) must equal the
plan exactly. In the compiled program (HLO) the compiler may have combined
collectives or replaced one kind by another, which is reported; it must not
send what is not planned.
"""

from __future__ import annotations

import dataclasses
import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from jax.extend import core as jex_core

from alexnet_jax.partition import collectives
from alexnet_jax.partition import plan as plan_lib


class PlanMismatch(ValueError):
  """A step does not communicate as planned."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
  """One planned collective and what became of it.

  Attributes:
    planned: the collective.
    traced_bytes: that one device sends for it in the traced step.
    compiled_bytes: the same in the compiled step; 0 if the compiler removed it
      or merged it into another.
  """

  planned: plan_lib.Collective
  traced_bytes: int
  compiled_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
  """The result of an audit: the collectives of the plan and of the step.

  Attributes:
    lines: the plan, each collective with what became of it.
    unplanned: a line of text for each collective that is not planned.
    missing: a line for each planned collective that the traced step lacks.
    notes: a line for each change that the compiler made.
  """

  plan: tuple[plan_lib.Collective, ...]
  traced: tuple[plan_lib.Collective, ...]
  compiled: tuple[plan_lib.Collective, ...]
  lines: tuple[Line, ...]
  unplanned: tuple[str, ...]
  missing: tuple[str, ...]
  notes: tuple[str, ...]

  @property
  def agrees(self) -> bool:
    return not self.unplanned and not self.missing


def audit_step(
  plan: Sequence[plan_lib.Collective],
  *,
  jaxpr: jex_core.ClosedJaxpr,
  hlo: str,
  layers: Sequence[str],
  mesh: Mapping[str, int],
) -> Audit:
  """Compares a step with its plan; raises nothing, so that all can be shown.

  Args:
    plan: from `plan.make_plan`.
    jaxpr: from `jax.jit(step).trace(...).jaxpr`.
    hlo: from `.lower().compile().as_text()`.
    layers: names of the network's layers.
    mesh: axis name -> devices, slowest axis first.
  """
  layers = (*layers, plan_lib.LOSS, plan_lib.UPDATE)
  traced = collectives.read_traced(jaxpr, layers, mesh)
  compiled = collectives.read_compiled(hlo, layers, mesh)
  planned_counts = Counter(plan)
  traced_counts = Counter(traced.collectives)
  missing = planned_counts - traced_counts
  matched = _match_compiled(plan, compiled.collectives)
  return Audit(
    plan=tuple(plan),
    traced=traced.collectives,
    compiled=compiled.collectives,
    lines=tuple(
      Line(
        planned=planned,
        traced_bytes=0 if planned in missing else planned.sent_bytes,
        compiled_bytes=sent,
      )
      for planned, sent in zip(plan, matched.sent, strict=True)
    ),
    unplanned=(
      *_describe("traced", traced_counts - planned_counts),
      *(f"traced: {line}" for line in traced.refused),
      *_describe("compiled", Counter(matched.unplanned)),
      *(f"compiled: {line}" for line in compiled.refused),
    ),
    missing=(
      *_describe("traced", missing),
      *(f"compiled: {line}" for line in matched.unread),
    ),
    notes=(*matched.notes, *traced.notes, *compiled.notes),
  )


def check(audit: Audit) -> None:
  """Refuses a step that does not communicate as planned.

  Raises:
    PlanMismatch: names each layer at which step and plan differ.
  """
  if not audit.agrees:
    lines = [f"not planned: {line}" for line in audit.unplanned]
    lines += [f"planned, but missing: {line}" for line in audit.missing]
    raise PlanMismatch(
      "the step does not communicate as planned: "
      + "; ".join(lines)
      + ". Set config.layout.allow_unplanned to train nevertheless."
    )


def _describe(
  program: str, counts: Counter[plan_lib.Collective]
) -> Iterator[str]:
  """Yields a line for each collective, with how often it is there."""
  for collective, times in sorted(counts.items()):
    line = f"{program}: {collectives.describe(collective)}"
    yield line if times == 1 else f"{line}, {times} times"


@dataclasses.dataclass(frozen=True)
class _Match:
  """The plan and the collectives of a compiled step, side by side.

  Attributes:
    sent: the bytes that one device sends for each collective of the plan.
    unplanned: what matches no planned collective.
    unread: a line for each kind of the plan of which nothing was read.
    notes: a line for each change that the compiler made.
  """

  sent: list[int]
  unplanned: list[plan_lib.Collective]
  unread: list[str]
  notes: list[str]


def _match_compiled(
  plan: Sequence[plan_lib.Collective], compiled: Sequence[plan_lib.Collective]
) -> _Match:
  """Matches the collectives of a compiled step with those of its plan."""
  sent = [0] * len(plan)
  unplanned, notes = [], []
  unmatched = list(range(len(plan)))  # indices into the plan
  changed = sorted(compiled)
  for matches in (operator.eq, _is_rounded, _is_replaced, _is_moved):
    candidates, changed = changed, []
    for collective in candidates:
      same = [index for index in unmatched if matches(plan[index], collective)]
      if not same:
        changed.append(collective)
        continue
      unmatched.remove(same[0])
      sent[same[0]] = collective.sent_bytes
      if matches is not operator.eq:
        notes.append(_describe_change(plan[same[0]], collective))
  # A collective in several parts, or several in one, is of one layer.
  for key in sorted({_key(each) for each in changed}):
    parts = [each for each in changed if _key(each) == key]
    planned = [index for index in unmatched if _key(plan[index]) == key]
    total = sum(collective.elements for collective in parts)
    if total != sum(plan[index].elements for index in planned) or not all(
      any(_may_be_of_tensor(plan[index], each) for index in planned)
      and _is_as_narrow(plan[planned[0]], each)
      for each in parts
    ):
      unplanned.extend(parts)
      continue
    unmatched = [index for index in unmatched if index not in planned]
    total_bytes = sum(collective.sent_bytes for collective in parts)
    for index in planned:
      sent[index] = total_bytes * plan[index].elements // total
    first = plan[planned[0]]
    notes.append(
      f"{first.layer} {first.direction}: the compiler combined {len(planned)} "
      f"of kind {first.kind} over {' x '.join(first.axes)} into {len(parts)}, "
      f"{total:,} elements as planned"
    )
  notes.extend(
    f"{collectives.describe(plan[index])}: the compiler removed it, or merged "
    "it with another"
    for index in unmatched
  )
  kinds = Counter(plan[index].kind for index in unmatched)
  unread = [
    f"nothing of kind {kind} was read, expected {times} more"
    for kind, times in sorted(kinds.items())
    if kind not in {collective.kind for collective in compiled}
  ]
  return _Match(sent, unplanned, unread, notes)


def _key(collective: plan_lib.Collective) -> tuple:
  """Returns what parts of one collective have in common."""
  fields = ("layer", "direction", "kind", "axes")
  return operator.attrgetter(*fields)(collective)


def _is_rounded(
  planned: plan_lib.Collective, compiled: plan_lib.Collective
) -> bool:
  """Whether the two differ in their precision alone."""
  scope = operator.attrgetter("tensor", "elements")
  return (
    _key(planned) == _key(compiled)
    and scope(planned) == scope(compiled)
    and _is_as_narrow(planned, compiled)
  )


def _is_replaced(
  planned: plan_lib.Collective, compiled: plan_lib.Collective
) -> bool:
  """Whether the two are of one tensor, and no more is sent than planned."""
  scope = operator.attrgetter("layer", "direction", "tensor", "axes")
  return scope(planned) == scope(compiled) and (
    _is_scattered_sum(planned, compiled)
    or (
      _is_as_narrow(planned, compiled)
      and planned.elements >= compiled.elements
      and planned.sent_elements >= compiled.sent_elements
    )
  )


def _is_moved(
  planned: plan_lib.Collective, compiled: plan_lib.Collective
) -> bool:
  """Whether the two may be the same collective, one without a scope.

  A combined sum has the scope of one of its pieces for all, or none. The layer
  and the direction of each piece are then those of what it sums, and its tensor
  is not known.
  """
  scope = operator.attrgetter("layer", "direction", "axes", "elements")
  return (
    scope(planned) == scope(compiled)
    and compiled.layer != ""
    and _may_be_of_tensor(planned, compiled)
    and _is_as_narrow(planned, compiled)
    and (planned.kind == compiled.kind or _is_scattered_sum(planned, compiled))
  )


def _may_be_of_tensor(
  planned: plan_lib.Collective, compiled: plan_lib.Collective
) -> bool:
  """Whether the two may be of one tensor, as far as that is known.

  `activation` may be any, as the scope of a layer alone. What is combined of a
  layer's parameters may have the scope of either.
  """
  return compiled.tensor in (planned.tensor, plan_lib.ACTIVATION) or (
    {planned.tensor, compiled.tensor} <= {*plan_lib.PARAMETERS}
  )


def _is_as_narrow(
  planned: plan_lib.Collective, compiled: plan_lib.Collective
) -> bool:
  """Whether elements are as planned; compilers may sum bfloat16 as float32."""
  return compiled.bytes_per_element <= max(4, planned.bytes_per_element)


def _is_scattered_sum(
  planned: plan_lib.Collective, compiled: plan_lib.Collective
) -> bool:
  """Whether a sum takes the place of a reduce-scatter, and sends twice."""
  return (
    (planned.kind, compiled.kind) == ("reduce_scatter", "sum")
    and planned.elements == compiled.elements
    and _is_as_narrow(planned, compiled)
  )


def _describe_change(
  planned: plan_lib.Collective, compiled: plan_lib.Collective
) -> str:
  change = "the compiler "
  if (compiled.kind, compiled.elements) != (planned.kind, planned.elements):
    change += f"made it a {compiled.kind}"
  elif compiled.bytes_per_element != planned.bytes_per_element:
    change += (
      f"sends {compiled.bytes_per_element} bytes an element instead of "
      f"{planned.bytes_per_element}"
    )
  else:
    change += "combined it with others"
  return (
    f"{collectives.describe(planned)}: {change} ({planned.sent_bytes:,} bytes "
    f"planned, {compiled.sent_bytes:,} sent)"
  )
