"""Draws networks and layouts, and runs them; see `cases.py`.

    python -m tests.random_cases --cases=400

Prints how often a case was refused, and why, or ran, and what its layout split;
exits with 1 if a case did neither. `tests/partition/test_random.py` and
`test_random_catalog.py` run such cases, too.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import itertools
import random
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import wiring as wiring_lib
from alexnet_jax.partition import mesh as mesh_lib
from tests import cases as cases_lib
from tests.cases import Case, Problem

# Of a forward pass of a batch: convolutions in float64 are slow.
_MOST_MULTIPLICATIONS = 1.5e6

# Names that begin alike, that a scope has for its own purposes, and that are
# words of a layout.
_LAYER_NAMES = (
  "a a1 a_1 a11 conv1 conv11 Conv conv_a fc8 fc10 stem Block7 dense logits "
  "layer_0 x x9_y head h2o body cond branch sum psum data batch_1 inputs "
  "outputs features fsdp pool"
).split()
_AXIS_NAMES = (
  "data column model a b a1 Rows x_2 i batch inputs outputs conv fc6 expert q"
).split()
_MESHES = (
  *((1,), (2,), (2,), (2,), (3,), (4,), (4,), (4,), (5,), (6,), (7,), (8,)),
  *((2, 2), (2, 2), (2, 2), (2, 4), (4, 2), (2, 3), (3, 2), (1, 4), (2, 1)),
  *((2, 2), (2, 4), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
  *((2, 1, 4), (1, 2, 2), (2, 3, 1)),
)


def draw_cases(
  seed: int,
  *,
  table: wiring_lib.Wiring | None = None,
  cases: int,
  most_layers: int = 6,
) -> Iterator[Case]:
  """Draws cases of one network.

  Args:
    table: the wiring, which is shrunk; None: one of its own rows.
    cases: their number.
    most_layers: of a wiring of its own.
  """
  rng = random.Random(f"{seed} {table and table.name}")
  problem = draw_problem(rng, table, most_layers)
  problem = freeze_some(random.Random(f"{seed} frozen"), problem)
  for _ in range(cases):
    dtypes = {}
    if rng.random() < 0.1:
      compute, exchange = rng.choice(
        [("float32", "bfloat16"), ("bfloat16", "bfloat16")]
        + [("float32", "float32"), ("bfloat16", "float32")]
      )
      dtypes = {"compute_dtype": compute, "exchange_dtype": exchange}
    layout = draw_fitting_layout(rng, problem)
    if rng.random() < 0.22:
      layout = spoil(rng, problem, layout)
    yield Case(problem, layout, dtypes, inits=rng.random() < 0.08)


def draw_of_catalog(table: wiring_lib.Wiring) -> Iterator[Case]:
  """Draws cases of a network of the catalog; two of them are not refused.

  Networks of the catalog take seconds to compile, and a refusal takes none.
  """
  accepted = 0
  for case in draw_cases(0, table=table, cases=8):
    accepted += is_accepted(case)
    yield case
    if accepted == 2:
      return


def is_accepted(case: Case) -> bool:
  """Returns whether a case is not refused."""
  try:
    case.problem.make_program(case.make_layout(), **case.dtypes)
  except ValueError:
    return False
  return True


def draw_problem(
  rng: random.Random, table: wiring_lib.Wiring | None, most_layers: int
) -> Problem:
  """Draws a network that can be made, and how it is trained."""
  options = {
    "accumulate": rng.choice([1, 1, 1, 2]),
    "trust_coefficient": rng.choice([None, None, None, 0.01]),
    "ema_decay": rng.choice([None, None, 0.9]),
    "label_smoothing": rng.choice([0.0, 0.0, 0.1]),
  }
  size = {
    "num_classes": rng.choice([8, 8, 12, 16, 10]),
    "init": "he",
    "dropout_scaling": rng.choice(wiring_lib.DROPOUT_SCALINGS),
  }
  augments = rng.random() < 0.1
  if table is not None:
    table = shrink(table)
    size["image_size"] = find_least_size(table, size)
    if rng.random() < 0.2:
      size["normalization"] = "batch"
    batch_size = rng.choice([8, 8, 12])
    return Problem(table, size, batch_size, options, augments)
  while True:
    table, size["image_size"] = draw_wiring(rng, most_layers)
    problem = Problem(
      table,
      dict(size),
      batch_size=rng.choice([8, 8, 8, 12, 24]),
      options=options,
      augments=augments,
    )
    sizes = problem.network.sizes().values()
    work = sum(each.multiplications for each in sizes)
    if problem.batch_size * work < _MOST_MULTIPLICATIONS:
      return problem


def freeze_some(rng: random.Random, problem: Problem) -> Problem:
  """Freezes some layers, but not all, of a third of the networks."""
  names = [layer.name for layer in problem.table.layers]
  frozen = rng.sample(names, rng.randint(1, len(names) - 1))
  if rng.random() < 2 / 3:
    return problem
  frozen = tuple(name for name in names if name in frozen)
  return dataclasses.replace(problem, frozen=frozen)


def shrink(table: wiring_lib.Wiring) -> wiring_lib.Wiring:
  """Returns a wiring with few features, and otherwise its own rows."""
  return dataclasses.replace(
    table,
    layers=tuple(
      dataclasses.replace(layer, features=(8, 16)[index % 2])
      for index, layer in enumerate(table.layers)
    ),
  )


def find_least_size(table: wiring_lib.Wiring, size: Mapping[str, Any]) -> int:
  """Returns the side of the smallest image that a wiring can read."""
  for side in range(9, table.published_size + 1):
    try:
      wiring_lib.make_network(table, **size, image_size=side)
    except ValueError:
      continue
    return side
  raise AssertionError(table.name)


def draw_wiring(
  rng: random.Random, most_layers: int
) -> tuple[wiring_lib.Wiring, int]:
  """Draws a wiring and the side of its image, in pixels."""
  columns = rng.choice([1, 1, 2, 2, 4])
  count = rng.randint(2, most_layers)
  convolutions = rng.randint(0 if count < 3 else 1, count - 1)
  image_size = side = rng.randint(9, 16)
  names = rng.sample(_LAYER_NAMES, count)
  rows = []
  for index, name in enumerate(names):
    reads = rng.choice(["own", "all", "all"]) if index else "image"
    fields = {"name": name, "reads": reads}
    if index == count - 1:
      fields |= {"reads": "all", "features": 8, "activation": "linear"}
    elif index < convolutions:
      more, side = _draw_convolution(rng, columns, side)
      fields |= more
    else:
      fields["features"] = rng.choice([8, 16, 16, 24])
      fields["normalize"] = rng.choice(["none", "none", "batch"])
    if index < count - 1:
      pool = fields.get("pool")
      stochastic = pool is not None and pool.kind == "stochastic"
      fields["activation"] = rng.choice(
        ["relu", "relu", "sigmoid", *([] if stochastic else ["tanh", "linear"])]
      )
      fields["dropout"] = rng.random() < 0.15
      rate = rng.choice([None, 0.2])
      fields["dropout_rate"] = rate if fields["dropout"] else None
    rows.append(wiring_lib.Layer(**fields))
  table = wiring_lib.Wiring(
    name="drawn",
    columns=columns,
    layers=tuple(rows),
    image_channels=rng.choice([3, 3, 1]),
  )
  return table, image_size


def _draw_convolution(
  rng: random.Random, columns: int, side: int
) -> tuple[dict[str, Any], int]:
  """Draws what a row of a convolution has, and the side that it leaves."""
  window = rng.choice([size for size in (1, 2, 3, 3, 5) if size <= side])
  most = min(window - 1, 3)
  padding = rng.randint(0, most), rng.randint(0, most)
  stride = rng.choice([1, 1, 2])
  side = (side + sum(padding) - window) // stride + 1
  fields = {
    "features": columns * rng.choice([4, 4, 8]) if columns < 4 else 16,
    "window": window,
    "stride": stride,
    "padding": padding,
    "normalize": rng.choice(wiring_lib.NORMALIZATIONS),
    "order": tuple(rng.sample(wiring_lib.ORDER, 3)),
    "lrn": wiring_lib.Lrn(
      size=rng.choice([1, 3, 3, 5, 7]), alpha=0.1, beta=rng.choice([0.75, 0.5])
    ),
  }
  if rng.random() < 0.5 and side > 1:
    window = rng.choice([2, 3] if side > 2 else [2])
    kinds = ["max", "max", "average"]
    if fields["order"].index("activation") < fields["order"].index("pooling"):
      kinds.append("stochastic")
    pool = wiring_lib.Pool(
      window=window,
      stride=rng.choice([1, 2, 2]),
      kind=rng.choice(kinds),
      padding=(rng.choice([0, 0, 1]), rng.choice([0, 0, 1])),
    )
    fields["pool"] = pool
    side = (side + sum(pool.padding) - pool.window) // pool.stride + 1
  return fields, side


def draw_fitting_layout(
  rng: random.Random, problem: Problem, tries: int = 80
) -> dict[str, Any]:
  """Draws layouts until one is accepted and splits a layer.

  First it chooses the mesh and what is split, so that neither is rare because
  few networks fit it. After some tries it returns one that does not fit.
  """
  sizes = rng.choice(_MESHES)
  splits = rng.choice(
    [("batch",), ("outputs",), ("inputs",), ("features",)]
    + [("batch", "outputs"), ("outputs", "inputs"), ("batch", "inputs")]
    + [("batch", "features"), ("inputs", "features"), cases_lib.DIMENSIONS[:4]]
    + [("batch", "outputs", "inputs")] * 3
  )
  # Orders that contradict each other are refused.
  keeps_order = rng.random() < 0.8
  for _ in range(tries):
    layout = draw_layout(rng, problem, sizes, splits, keeps_order)
    try:
      program = problem.make_program(Case(problem, layout).make_layout())
    except ValueError:
      continue
    if program.layout.devices == 1 or any(
      program.layout.size(program.layout.placement(layer).axes) > 1
      for layer in program.network.layers
    ):
      return layout
  return layout


def draw_layout(
  rng: random.Random,
  problem: Problem,
  sizes: tuple[int, ...],
  splits: tuple[str, ...],
  keeps_order: bool,
) -> dict[str, Any]:
  """Draws names of axes, the placements of both kinds, and of some layers."""
  mesh = dict(zip(rng.sample(_AXIS_NAMES, len(sizes)), sizes, strict=True))
  uses_fsdp, overlaps = rng.random() < 0.3, rng.random() < 0.25

  def draw_placement(splits):
    axes = {name: [] for name in (*splits, "none")}
    weights = [6] * len(splits) + [1]
    for axis in mesh:
      axes[rng.choices(list(axes), weights)[0]].append(axis)
    del axes["none"]
    if not keeps_order:
      axes = {name: rng.sample(each, len(each)) for name, each in axes.items()}
    fields = {name: tuple(each) for name, each in axes.items() if each}
    if uses_fsdp and "batch" in fields and rng.random() < 0.7:
      fields["fsdp"] = fields["batch"][-rng.randint(1, 2) :]
    if overlaps and rng.random() < 0.7:
      fields["overlap_gather"] = True
    return fields

  # The image has no features to split.
  of_image = tuple(name for name in splits if name in ("batch", "outputs"))
  layers = problem.table.layers
  placed = {
    layer.name: draw_placement(splits)
    for layer in layers[1:]
    if rng.random() < 0.25
  }
  placed[layers[0].name] = draw_placement(of_image)
  return {
    "mesh": mesh,
    "conv": draw_placement(splits),
    "fc": draw_placement(splits),
    "layers": placed,
  }


def spoil(
  rng: random.Random, problem: Problem, layout: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns a layout with a mistake that a user might make in a layer."""
  name = rng.choice(problem.table.layers).name
  axis = rng.choice(list(layout["mesh"]))
  other = rng.choice(cases_lib.DIMENSIONS[:4])
  mistakes = [
    {other: ("nowhere",)},
    {other: (axis, axis)},
    {other: axis},
    {other: [axis]},
    {other: (0,)},
    {other: None},
    {"batch": (axis,), other: (axis,)},
    {"outputs": (axis,), "inputs": (axis,)},
    {"fsdp": (axis,)},
    {"batch": (), "fsdp": (axis,)},
    {"inputs": (axis,)},
    {"overlap_gather": "yes"},
    {"batch": (axis,), "overlap_gather": True},
  ]
  spoiled = dict(layout)
  which = rng.randrange(len(mistakes) + 2)
  if which == len(mistakes):
    spoiled["mesh"] = {**layout["mesh"], axis: rng.choice([0, -2, 16, 2.0])}
  elif which == len(mistakes) + 1:
    spoiled["mesh"] = {}
  else:
    base = layout["layers"].get(name, {})
    spoiled["layers"] = {**layout["layers"], name: base | mistakes[which]}
  return spoiled


def generalize(message: str, case: Case) -> str:
  """Returns the beginning of an error without its names and numbers."""
  names = [layer.name for layer in case.problem.table.layers]
  message = message.replace("wiring 'drawn': ", "")
  for name in sorted(names, key=len, reverse=True):
    message = re.sub(rf"\b{name}\b(?!')", "LAYER", message, count=2)
  for axis in case.layout["mesh"]:
    message = message.replace(f"'{axis}'", "AXIS")
  message = re.sub(r"\(AXIS.*?\)|AXIS( x AXIS)+", "AXES", message)
  message = re.sub(r"-?\d+", "N", message)
  return message[:76]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--cases", type=int, default=400)
  parser.add_argument("--seed", type=int, default=0)
  flags = parser.parse_args()
  jax.config.update("jax_disable_most_optimizations", True)
  mesh_lib.simulate_devices(8, only_cpu=True)
  counts = {kind: collections.Counter() for kind in ("ran", "refused", "wrong")}
  with contextlib.suppress(KeyboardInterrupt):  # then prints what it has
    run_cases(flags.seed, flags.cases, counts)
  for kind, details in counts.items():
    print(f"{kind}: {details.total()}")
    for detail, times in details.most_common():
      print(f"  {times:>4}  {detail}")
  sys.exit(counts["wrong"].total() > 0)


def run_cases(
  seed: int, cases: int, counts: dict[str, collections.Counter[str]]
) -> None:
  """Runs cases, eight of each network, and counts how they end.

  Networks of the catalog first, each followed by one that is drawn. Prints a
  line for each network, and each case that went wrong.
  """
  pairs = itertools.zip_longest(wirings.WIRINGS, ())
  tables = itertools.chain.from_iterable(pairs)
  tables = itertools.chain(tables, itertools.repeat(None))
  for number, start in enumerate(range(0, cases, 8)):
    since = time.process_time()
    ended, table = collections.Counter(), next(tables)
    for case in draw_cases(
      seed + number, table=table, cases=min(8, cases - start)
    ):
      outcome = cases_lib.run_case(case)
      detail = outcome.detail
      if outcome.kind == "refused":
        detail = generalize(detail, case)
      if outcome.kind == "wrong":
        print(cases_lib.describe(case, outcome))
        detail = detail.strip().splitlines()[-1][:76]
      if outcome.kind == "ran" and case.dtypes:
        detail += f" ({', '.join(case.dtypes.values())})"
      if outcome.notes:
        detail += ", with notes of the audit"
      counts[outcome.kind][detail] += 1
      ended[outcome.kind] += 1
    print(
      f"{table.name if table else f'drawn {seed + number}'}: "
      + ", ".join(f"{times} {kind}" for kind, times in ended.items())
      + f", {time.process_time() - since:.0f} s",
      flush=True,
    )


if __name__ == "__main__":
  main()
