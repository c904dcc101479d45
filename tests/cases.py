"""Runs a network on a layout, and compares it with one device.

A case ends in one of two ways: in one line that says what to change, or in a
step that sends what is planned and computes what one device does, in float64.
`random_cases.py` draws cases.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from alexnet_jax.data import augment
from alexnet_jax.network import wiring as wiring_lib
from alexnet_jax.partition import catalog as layouts
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.program import compiled_step, compiler_options
from alexnet_jax.program import program as program_lib
from alexnet_jax.program import step as step_lib
from tests import build

STEPS = 3
# Relative to the size of an array; for sums in another order in float64.
TOLERANCE = 1e-8
# Relative to all arrays together: a gradient that is 0 but for rounding, as
# that of a shift that the next batch normalization removes.
_ROUNDING = 1e-13
# Half the time to compile; they change machine code, and nothing that is sent.
_XLA_OPTIONS = {
  "xla_cpu_use_fusion_emitters": False,
  "xla_cpu_parallel_codegen_split_count": 1,
}
DIMENSIONS = ("batch", "outputs", "inputs", "features", "fsdp")


@functools.cache
def find_xla_options() -> dict[str, bool | int]:
  """Returns options to compile with, those that the installed XLA knows."""
  unknown = compiler_options.find_unknown(jax.devices()[0], _XLA_OPTIONS)
  return {
    name: value for name, value in _XLA_OPTIONS.items() if name not in unknown
  }


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainImages:
  """An augmentation without random numbers, which compiles fast."""

  image_size: int
  num_views: int = 1

  @property
  def stored_size(self) -> int:
    return self.image_size

  def draw(self, key, n, *, spec, step=0):
    del key, n, spec, step
    return {}

  def apply(self, images, random_numbers):
    del random_numbers
    return images.astype(float) / 64.0 - 2.0


@dataclasses.dataclass(frozen=True)
class Problem:
  """A network, and how it is trained, wherever it is computed.

  Attributes:
    table: the rows.
    size: arguments of `make_network`.
    batch_size: images in a step.
    options: of `build.make_program`.
    augments: whether images are cropped, mirrored and changed in color.
    frozen: layers that are not trained.
  """

  table: wiring_lib.Wiring
  size: Mapping[str, Any]
  batch_size: int = 8
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  augments: bool = False
  frozen: tuple[str, ...] = ()

  @functools.cached_property
  def network(self) -> wiring_lib.Network:
    return dataclasses.replace(
      wiring_lib.make_network(self.table, **self.size), frozen=self.frozen
    )

  @functools.cached_property
  def batch(self) -> tuple[np.ndarray, np.ndarray]:
    side = self.augmentation.stored_size
    images, labels = build.make_batch(side, size=self.batch_size)
    return images, labels % self.size["num_classes"]

  @property
  def augmentation(self) -> augment.Augment | PlainImages:
    side = self.size["image_size"]
    if not self.augments:
      return PlainImages(image_size=side)
    return dataclasses.replace(
      build.TINY_AUGMENTATION, stored_size=side + 2, image_size=side
    )

  def make_program(self, layout, **dtypes) -> program_lib.Program:
    """Makes the program; `dtypes` are its types, by default float64."""
    return build.make_program(
      *(layout, self.network, self.augmentation),
      batch_size=self.batch_size,
      **{"compute_dtype": "float64"} | dict(self.options) | dtypes,
    )

  @functools.cached_property
  def one_device(self) -> tuple[Any, dict]:
    """The first state on one device, as numbers, and what steps make of it."""
    program = self.make_program(layouts.ONE_DEVICE)
    compiled, _ = compiled_step.compile_step(
      program, options=find_xla_options()
    )
    state = init(program)
    numbers = jax.device_get(state)
    return numbers, take_steps(program, compiled, state, self.batch)


@dataclasses.dataclass(frozen=True)
class Case:
  """A problem on a layout.

  Attributes:
    layout: {"mesh": ..., "conv": {field: value}, "fc": ..., "layers": ...}.
    dtypes: compute_dtype and exchange_dtype; {}: float64, whose numbers are
      compared. In other types only what is sent is compared.
    inits: initialize the parameters on the layout, instead of copying them.
  """

  problem: Problem
  layout: Mapping[str, Any]
  dtypes: Mapping[str, str] = dataclasses.field(default_factory=dict)
  inits: bool = False

  def make_layout(self) -> layout_lib.Layout:
    def make(fields):
      return layout_lib.Placement(**fields)

    parts = dict(self.layout)
    parts["layers"] = {
      name: make(fields) for name, fields in parts.get("layers", {}).items()
    }
    for kind in ("conv", "fc"):
      parts[kind] = make(parts.get(kind, {}))
    return layout_lib.Layout(name="drawn", **parts)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a case ended.

  Attributes:
    kind: `ran`, `refused` or `wrong`.
    detail: the dimensions that split a layer; the error; or what is wrong.
    notes: of the audit.
  """

  kind: str
  detail: str
  notes: tuple[str, ...] = ()


def run_case(case: Case) -> Outcome:
  """Runs a case to its end; whatever is wrong with it is in the outcome."""
  try:
    layout = case.make_layout()
    program = case.problem.make_program(layout, **case.dtypes)
  except ValueError as error:
    fault = find_fault(str(error), case)
    if fault is None:
      return Outcome("refused", str(error))
    return Outcome("wrong", f"{fault}: {error}")
  except Exception:
    return Outcome("wrong", traceback.format_exc(limit=-4))
  try:
    found = _run_program(case, program)
  except Exception:
    return Outcome("wrong", traceback.format_exc(limit=-4))
  return found


def check_cases(cases: Iterable[Case], *, least: int = 1) -> None:
  """Runs cases.

  Args:
    least: how many must run, and not be refused.

  Raises:
    AssertionError: cases went wrong, which it shows as literals; or few ran.
  """
  outcomes = [(case, run_case(case)) for case in cases]
  wrong = [
    describe(case, outcome)
    for case, outcome in outcomes
    if outcome.kind == "wrong"
  ]
  assert not wrong, "\n".join(wrong)
  ran = sum(outcome.kind == "ran" for _, outcome in outcomes)
  assert ran >= least, f"{ran} of {len(outcomes)} cases ran, expected {least}"


def _run_program(case: Case, program: program_lib.Program) -> Outcome:
  compiled, found = compiled_step.compile_step(
    program, options=find_xla_options()
  )
  lines = [*found.unplanned, *found.missing]
  if sorted(found.traced) != sorted(found.plan):
    lines.append("the traced step is not the planned one")
  if not found.notes and sorted(found.compiled) != sorted(found.plan):
    lines.append("the compiled step is not the planned one, without a note")
  if not lines and not case.dtypes:
    numbers, expected = case.problem.one_device
    if case.inits:
      state = init(program)
    else:
      with jax.enable_x64(True):
        state = jax.tree.map(
          lambda number, leaf: jax.device_put(number, leaf.sharding),
          *(numbers, program.abstract_state),
        )
    steps = take_steps(program, compiled, state, case.problem.batch)
    lines += find_differences(steps, expected)
  if lines:
    return Outcome("wrong", "; ".join(lines))
  return Outcome("ran", find_dimensions(case, program.layout), found.notes)


def init(program: program_lib.Program) -> step_lib.TrainState:
  """Returns what `Program.init` does, compiled as the steps are."""

  def make_state(key):
    return step_lib.init_state(program.forward, program.optimizer, key)

  key = jax.random.key(0)
  traced = program.trace_part(make_state, key)
  return traced.lower().compile(compiler_options=find_xla_options())(key)


def take_steps(program, compiled, state, batch) -> dict[str, Any]:
  """Takes some steps: losses, first gradients, and the last state."""
  images, labels = build.put(program, batch)
  losses = []
  for step in range(STEPS):
    state, totals = compiled(state, jax.random.key(1), images, labels)
    losses.append(float(totals[0]))
    if step == 0:  # the first velocity is the gradient
      gradients = jax.device_get(optax.tree.get(state.optimizer, "trace"))
  return {
    "losses": np.array(losses),
    "gradients": gradients,
    "state": jax.device_get(state),
  }


def find_differences(found: dict, expected: dict) -> list[str]:
  """Returns a line for each array that differs by more than rounding."""
  lines = []
  if not np.isfinite(expected["losses"]).all():
    lines.append(f"the losses of one device are {expected['losses']}")
  for part in expected:
    pairs = zip(
      jax.tree.leaves_with_path(found[part]),
      jax.tree.leaves(expected[part]),
      strict=True,
    )
    pairs = [
      (path, np.asarray(a, np.float64), np.asarray(b, np.float64))
      for (path, a), b in pairs
    ]
    largest = max(_norm(b) for _, _, b in pairs)
    for path, a, b in pairs:
      limit = TOLERANCE * _norm(b) + _ROUNDING * largest
      if a.shape != b.shape or not _norm(a - b) <= limit:
        where = jax.tree_util.keystr(path)
        lines.append(f"{part}{where} differs by {_norm(a - b) / _norm(b):.1e}")
  return lines


def _norm(array: np.ndarray) -> float:
  return float(np.linalg.norm(array))


def find_dimensions(case: Case, layout: layout_lib.Layout) -> str:
  """Returns the dimensions that split a layer over several devices."""
  placements = [
    layout.placement(layer) for layer in case.problem.network.layers
  ]
  found = [
    name
    for name in DIMENSIONS
    if any(layout.size(getattr(each, name)) > 1 for each in placements)
  ]
  if any(each.overlap_gather for each in placements):
    found.append("overlap_gather")
  return " + ".join(found) or "none"


def find_fault(message: str, case: Case) -> str | None:
  """Returns what an error lacks: one line, a place, and what to write."""
  names = [layer.name for layer in case.problem.table.layers]
  names += [*case.layout["mesh"], *case.layout.get("layers", {}), "mesh"]
  if "\n" in message:
    return "more than one line"
  if not any(
    re.search(rf"\b{re.escape(str(name))}\b", message) for name in names
  ):
    return "names no layer and no axis"
  if not re.search(r"\bconfig\.\w|\b(Write|Set|Change) ", message):
    return "does not say what to write"
  return None


def describe(case: Case, outcome: Outcome) -> str:
  """Returns a case as a literal, and what is wrong with it."""
  return f"{outcome.detail}\n  {case!r}"
