"""The collectives that a step really has, held against the plan.

Two readings of one step. The traced program (jaxpr) shows what was asked for
and must equal the plan exactly. The compiled program (HLO) shows what the
compiler made of it: it may combine collectives or replace one kind by
another, which is reported; it may not send what nobody planned.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

from jax.extend import core as jex_core

from alexnet_jax.partition import collectives
from alexnet_jax.partition import plan as plan_lib

Exchange = plan_lib.Collective


class PlanMismatch(ValueError):
  """A step communicates otherwise than planned."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
  """One planned exchange and what became of it.

  Attributes:
    planned: the exchange.
    traced_bytes: that one device sends for it in the traced step.
    compiled_bytes: the same in the compiled step; 0 where the compiler removed
      it or made it a part of another.
  """

  planned: Exchange
  traced_bytes: int
  compiled_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
  """The outcome.

  Attributes:
    plan: what was planned.
    traced: what the traced step has.
    compiled: what the compiled step has, in the plan's terms.
    lines: the plan, each exchange with what became of it.
    unplanned: a line for each thing that is sent and not planned.
    missing: a line for each planned thing that is not in the traced step.
    notes: a line for each liberty that the compiler took.
  """

  plan: tuple[Exchange, ...]
  traced: tuple[Exchange, ...]
  compiled: tuple[Exchange, ...]
  lines: tuple[Line, ...]
  unplanned: tuple[str, ...]
  missing: tuple[str, ...]
  notes: tuple[str, ...]

  @property
  def agrees(self) -> bool:
    return not self.unplanned and not self.missing


def audit_step(
  plan: Sequence[Exchange],
  *,
  jaxpr: jex_core.ClosedJaxpr,
  hlo: str,
  mesh: Mapping[str, int],
) -> Audit:
  """Compares a step with its plan.

  Args:
    plan: from `plan.make_plan`.
    jaxpr: of the step, from `jax.jit(step).trace(...).jaxpr`.
    hlo: of the step, from `.lower().compile().as_text()`.
    mesh: axis name -> devices, slowest axis first.

  Returns:
    The audit; nothing is raised, so that it can be shown whole.
  """
  layers = sorted(
    {exchange.layer for exchange in plan} | collectives.find_layers(jaxpr)
  )
  traced = tuple(collectives.find_traced(jaxpr, layers, mesh))
  compiled = tuple(collectives.find_compiled(hlo, layers, mesh))
  unplanned, missing = _difference(plan, traced)
  compiled_bytes, compiler_unplanned, notes = _explain(plan, compiled)
  return Audit(
    plan=tuple(plan),
    traced=traced,
    compiled=compiled,
    lines=tuple(
      Line(
        planned=exchange,
        traced_bytes=0 if exchange in missing else exchange.sent_bytes,
        compiled_bytes=sent,
      )
      for exchange, sent in zip(plan, compiled_bytes, strict=True)
    ),
    unplanned=(
      *(f"traced: {describe(exchange)}" for exchange in unplanned),
      *(f"compiled: {line}" for line in compiler_unplanned),
    ),
    missing=tuple(f"traced: {describe(exchange)}" for exchange in missing),
    notes=tuple(notes),
  )


def check(audit: Audit) -> None:
  """Refuses a step that sends what was not planned, or the reverse.

  Raises:
    PlanMismatch: names each layer at which step and plan differ.
  """
  if not audit.agrees:
    lines = [f"not planned: {line}" for line in audit.unplanned]
    lines += [f"planned, but absent: {line}" for line in audit.missing]
    raise PlanMismatch(
      "the step does not communicate as planned: "
      + "; ".join(lines)
      + ". Set config.layout.allow_unplanned to train nevertheless."
    )


def describe(exchange: Exchange) -> str:
  """One line about one exchange, its layer first."""
  return (
    f"{exchange.layer or 'outside every layer'} {exchange.direction}: "
    f"{exchange.kind} of the {exchange.tensor} over "
    f"{' x '.join(exchange.axes)}, {exchange.elements:,} elements"
  )


def _difference(
  plan: Sequence[Exchange], found: Sequence[Exchange]
) -> tuple[list[Exchange], list[Exchange]]:
  planned, counted = collections.Counter(plan), collections.Counter(found)
  return (
    sorted((counted - planned).elements()),
    sorted((planned - counted).elements()),
  )


def _explain(
  plan: Sequence[Exchange], compiled: Sequence[Exchange]
) -> tuple[list[int], list[str], list[str]]:
  """What the compiler made of a plan.

  Returns:
    The bytes that one device sends for each exchange of the plan; a line for
    each thing that is not planned; a line for each liberty taken.
  """
  sent = [0] * len(plan)
  unplanned, notes = [], []
  absent = list(range(len(plan)))  # what of the plan has no answer yet
  extra = []
  for exchange in sorted(compiled):
    same = [index for index in absent if plan[index] == exchange]
    if same:
      absent.remove(same[0])
      sent[same[0]] = exchange.sent_bytes
    else:
      extra.append(exchange)

  def place(exchange: Exchange) -> tuple:
    return (exchange.layer, exchange.direction, exchange.tensor, exchange.axes)

  def is_replaced(planned: Exchange, found: Exchange) -> bool:
    return place(planned) == place(found) and planned.elements >= found.elements

  def is_elsewhere(planned: Exchange, found: Exchange) -> bool:
    """A combined sum may give all its pieces the place of one, or none.

    Gradients of TPUs' `fully_sharded` step so have that of the loss, forward.
    """
    return (
      (planned.axes, planned.elements) == (found.axes, found.elements)
      and found.kind in (planned.kind, "sum")
      and planned.kind in (found.kind, "reduce_scatter")
      and (
        not found.layer
        or found.kind == "sum"
        or planned.direction == found.direction
      )
    )

  strangers = extra
  for answers in (is_replaced, is_elsewhere):
    extra, strangers = strangers, []
    for exchange in extra:
      replaced = [index for index in absent if answers(plan[index], exchange)]
      if not replaced:
        strangers.append(exchange)
        continue
      absent.remove(replaced[0])
      sent[replaced[0]] = exchange.sent_bytes
      notes.append(_note_liberty(plan[replaced[0]], exchange))
  # Combined collectives do not always say which piece is whose.
  for kind, axes in sorted({(e.kind, e.axes) for e in strangers}):
    found = [e for e in strangers if (e.kind, e.axes) == (kind, axes)]
    planned = [
      index
      for index in absent
      if (plan[index].kind, plan[index].axes) == (kind, axes)
    ]
    total = sum(exchange.elements for exchange in found)
    if total != sum(plan[index].elements for index in planned):
      unplanned.extend(map(describe, found))
      continue
    absent = [index for index in absent if index not in planned]
    total_bytes = sum(exchange.sent_bytes for exchange in found)
    for index in planned:
      sent[index] = total_bytes * plan[index].elements // total
    notes.append(
      f"{', '.join(plan[index].layer for index in planned)}: the compiler "
      f"combined {len(planned)} of kind {kind} over {' x '.join(axes)} into "
      f"{len(found)}, {total:,} elements as planned"
    )
  notes.extend(
    f"{describe(plan[index])}: the compiler removed it, or merged it with "
    "another"
    for index in absent
  )
  return sent, unplanned, notes


def _note_liberty(planned: Exchange, found: Exchange) -> str:
  change = "the compiler "
  if (found.kind, found.elements) != (planned.kind, planned.elements):
    change += f"made it a {found.kind}"
  elif found.bytes_per_element != planned.bytes_per_element:
    change += (
      f"sends {found.bytes_per_element} bytes an element instead of "
      f"{planned.bytes_per_element}"
    )
  else:
    change += "moved it"
  if (found.layer, found.tensor) != (planned.layer, planned.tensor):
    where = found.layer or "no layer"
    change += f", as part of one in {where}"
  return (
    f"{describe(planned)}: {change} ({planned.sent_bytes:,} bytes planned, "
    f"{found.sent_bytes:,} sent)"
  )
