"""Compares the collectives of a step with the plan.

There are two readings of one step. The traced program (jaxpr) must equal the
plan exactly. In the compiled program (HLO) the compiler may have combined
collectives or replaced one kind by another, which is reported; it must not
send what is not planned.
"""

from __future__ import annotations

import collections
import dataclasses
import operator
from collections.abc import Mapping, Sequence

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
  mesh: Mapping[str, int],
) -> Audit:
  """Compares a step with its plan; raises nothing, so that all can be shown.

  Args:
    plan: from `plan.make_plan`.
    jaxpr: from `jax.jit(step).trace(...).jaxpr`.
    hlo: from `.lower().compile().as_text()`.
    mesh: axis name -> devices, slowest axis first.
  """
  layers = sorted(
    {planned.layer for planned in plan} | collectives.find_layers(jaxpr)
  )
  traced = tuple(collectives.find_traced(jaxpr, layers, mesh))
  compiled = tuple(collectives.find_compiled(hlo, layers, mesh))
  planned_counts = collections.Counter(plan)
  traced_counts = collections.Counter(traced)
  unplanned = sorted((traced_counts - planned_counts).elements())
  missing = sorted((planned_counts - traced_counts).elements())
  compiled_bytes, compiler_unplanned, notes = _match_compiled(plan, compiled)
  return Audit(
    plan=tuple(plan),
    traced=traced,
    compiled=compiled,
    lines=tuple(
      Line(
        planned=planned,
        traced_bytes=0 if planned in missing else planned.sent_bytes,
        compiled_bytes=sent,
      )
      for planned, sent in zip(plan, compiled_bytes, strict=True)
    ),
    unplanned=(
      *(f"traced: {describe(collective)}" for collective in unplanned),
      *(f"compiled: {line}" for line in compiler_unplanned),
    ),
    missing=tuple(f"traced: {describe(collective)}" for collective in missing),
    notes=tuple(notes),
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


def describe(collective: plan_lib.Collective) -> str:
  """Describes a collective in one line, its layer first."""
  return (
    f"{collective.layer or 'outside every layer'} {collective.direction}: "
    f"{collective.kind} of the {collective.tensor} over "
    f"{' x '.join(collective.axes)}, {collective.elements:,} elements"
  )


def _match_compiled(
  plan: Sequence[plan_lib.Collective], compiled: Sequence[plan_lib.Collective]
) -> tuple[list[int], list[str], list[str]]:
  """Matches the collectives of a compiled step with those of its plan.

  Returns:
    The bytes that one device sends for each collective of the plan; a line for
    each collective that matches no planned one; a line for each change that
    the compiler made.
  """
  sent = [0] * len(plan)
  unplanned, notes = [], []
  unmatched = list(range(len(plan)))  # indices into the plan
  changed = sorted(compiled)
  for matches in (operator.eq, _is_replaced, _is_moved):
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
  # Combined collectives do not always tell which piece belongs to which layer.
  for kind, axes in sorted({(each.kind, each.axes) for each in changed}):
    combined = [e for e in changed if (e.kind, e.axes) == (kind, axes)]
    planned = [
      index
      for index in unmatched
      if (plan[index].kind, plan[index].axes) == (kind, axes)
    ]
    total = sum(collective.elements for collective in combined)
    if total != sum(plan[index].elements for index in planned):
      unplanned.extend(map(describe, combined))
      continue
    unmatched = [index for index in unmatched if index not in planned]
    total_bytes = sum(collective.sent_bytes for collective in combined)
    for index in planned:
      sent[index] = total_bytes * plan[index].elements // total
    notes.append(
      f"{', '.join(plan[index].layer for index in planned)}: the compiler "
      f"combined {len(planned)} of kind {kind} over {' x '.join(axes)} into "
      f"{len(combined)}, {total:,} elements as planned"
    )
  notes.extend(
    f"{describe(plan[index])}: the compiler removed it, or merged it with "
    "another"
    for index in unmatched
  )
  return sent, unplanned, notes


def _is_replaced(
  planned: plan_lib.Collective, compiled: plan_lib.Collective
) -> bool:
  """Whether the two are of one tensor, and no more is sent than planned."""
  scope = operator.attrgetter("layer", "direction", "tensor", "axes")
  return scope(planned) == scope(compiled) and (
    planned.elements >= compiled.elements
  )


def _is_moved(
  planned: plan_lib.Collective, compiled: plan_lib.Collective
) -> bool:
  """Whether the two may be the same collective in different scopes.

  A combined sum may have the scope of one of its pieces for all, or none. On
  TPUs, gradients of a `fully_sharded` step have the scope of the loss, forward.
  """
  return (
    (planned.axes, planned.elements) == (compiled.axes, compiled.elements)
    and compiled.kind in (planned.kind, "sum")
    and planned.kind in (compiled.kind, "reduce_scatter")
    and (
      not compiled.layer
      or compiled.kind == "sum"
      or planned.direction == compiled.direction
    )
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
    change += "moved it"
  if (compiled.layer, compiled.tensor) != (planned.layer, planned.tensor):
    change += f", as part of one in {compiled.layer or 'no layer'}"
  return (
    f"{describe(planned)}: {change} ({planned.sent_bytes:,} bytes planned, "
    f"{compiled.sent_bytes:,} sent)"
  )
