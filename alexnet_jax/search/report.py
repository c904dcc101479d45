"""What a search has found, as tables and as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import rich.console
import rich.table

from alexnet_jax.cli import command
from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.planner import price, search
from alexnet_jax.program import summary

# A link is tried at speeds up to so many times its own, and down to.
MOST_FACTORS = (16.0, 1 / 16)
_PARTS = ("compute", "exchange", "gradients")
_DIMENSIONS = {"batch": "images", "outputs": "outputs", "inputs": "inputs"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
  """How much a link must change until another layout is better.

  Attributes:
    link: name of the level.
    most: the factor up to which its speed was changed.
    found: the factor and the other layout; None: none is better.
  """

  link: str
  most: float
  found: tuple[float, search.Found] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
  """What was found for one batch size.

  Attributes:
    search_seconds: that the search for the fastest layout took.
    kinds: the fastest layout, and the fastest of other kinds.
    catalog: of each layout of the catalog, its prediction on its best mesh.
  """

  machine: machine_lib.Machine
  goal: search.Goal
  search_seconds: float
  kinds: Sequence[search.Found]
  catalog: Sequence[price.Prediction]
  changes: Sequence[Change]

  @property
  def best(self) -> search.Found:
    return self.kinds[0]


def find_best_meshes(
  pricer: price.Pricer, devices: int, goal: search.Goal
) -> list[price.Prediction]:
  """Predicts each layout of the catalog on its best mesh, the best first."""
  best: dict[str, price.Prediction] = {}
  for layout in search.find_catalog(pricer.workload, devices):
    prediction = price.predict(pricer, layout)
    known = best.get(layout.name)
    if known is None or goal.measure(prediction) < goal.measure(known):
      best[layout.name] = prediction
  return sorted(best.values(), key=goal.measure)


def show(answer: Answer, console: rich.console.Console, *, top: int) -> None:
  """Prints an answer: tables and lines.

  Args:
    top: kinds of layouts to show.
  """
  best = answer.best.prediction
  command.print_table(console, _make_table(answer, top))
  command.print_line(console, "")
  for line in _find_lines(answer):
    command.print_line(console, line)
  rival = None
  if len(answer.kinds) > 1:
    rival = answer.kinds[1].prediction
  command.print_table(console, _make_layer_table(best, rival))
  command.print_line(console, "")
  for line in _describe_changes(answer):
    command.print_line(console, line)


def _make_table(answer: Answer, top: int) -> rich.table.Table:
  workload = answer.best.prediction.workload
  devices = answer.best.layout.devices
  levels = [link.name for link in answer.machine.find_links(devices)]
  table = summary.make_table(
    f"{workload.network.name}, {workload.batch_size:,} images in a step, on "
    f"{devices} devices of {answer.machine.name}: predicted time in ms",
    *("what layers split, or layout", "mesh", "> a step"),
    *(f"> {part}" for part in _PARTS),
    *("> images/s", "> GB"),
    *(f"> MB over\n{level}" for level in levels),
  )

  def add(name: str, prediction: price.Prediction) -> None:
    table.add_row(
      name,
      "x".join(map(str, prediction.layout.mesh.values())),
      summary.to_ms_range(prediction.overlapped_seconds, prediction.seconds),
      *(_to_ms(getattr(prediction, part)) for part in _PARTS),
      f"{prediction.images_per_second:,.0f}",
      f"{prediction.memory_bytes / 1e9:,.2f}",
      *(f"{prediction.bytes_by_level[level] / 1e6:,.1f}" for level in levels),
    )

  for found in answer.kinds[:top]:
    add(describe_kind(found.layout, workload.network), found.prediction)
  table.add_section()
  for prediction in answer.catalog:
    fits = answer.goal.admits(prediction)
    add(f"{prediction.layout.name}{'' if fits else ' (too large)'}", prediction)
  return table


def _find_lines(answer: Answer) -> list[str]:
  best = answer.best.prediction
  sought = {"time": "if nothing overlaps", "overlapped": "if all overlaps"}
  lines = [
    f"the first is the fastest {sought[answer.goal.least]}, of all meshes of "
    f"up to {search.MOST_AXES} axes and all placements; found in "
    f"{answer.search_seconds:.1f} s",
    "a step: if all that may overlap does .. if nothing does; the latter is "
    "the sum of the next three",
    "the layouts of the catalog are on their best meshes; MB: that a device "
    "sends, on average",
  ]
  if all(
    load.times_computed > 1
    for load in best.workload.find_loads(best.layout).values()
  ):
    lines.append(
      "devices repeat each other's work: no split of this network and batch "
      f"uses all {best.layout.devices}"
    )
  return lines


def _make_layer_table(
  best: price.Prediction, rival: price.Prediction | None
) -> rich.table.Table:
  """Makes a row per layer: how it is split, its time, that of the next best."""
  network = best.workload.network
  headers = ("layer", "split", *(f"> {part}" for part in _PARTS), "> ms")
  if rival:
    headers += ("the next best: split", "> ms", "> more")
  table = summary.make_table("the fastest, layer by layer, in ms", *headers)
  for name, time in best.layers.items():
    cells = [
      name,
      _describe_split(best, network, name),
      *(_to_ms(getattr(time, part)) for part in _PARTS),
      _to_ms(time.seconds),
    ]
    if rival:
      other = rival.layers.get(name, price.LayerTime())
      cells += [
        _describe_split(rival, network, name),
        _to_ms(other.seconds),
        f"{1e3 * (other.seconds - time.seconds):+,.2f}",
      ]
    table.add_row(*cells)
  table.add_row(
    "images",
    "augmentation",
    _to_ms(best.augmentation),
    "",
    "",
    _to_ms(best.augmentation),
  )
  table.add_section()
  total = ["sum", "", *(_to_ms(getattr(best, part)) for part in _PARTS)]
  total.append(_to_ms(best.seconds))
  if rival:
    total += ["", _to_ms(rival.seconds)]
    total.append(f"{1e3 * (rival.seconds - best.seconds):+,.2f}")
  table.add_row(*total)
  return table


def _describe_split(
  prediction: price.Prediction, network: wiring.Network, name: str
) -> str:
  """Says how a layer is split: `images 4 (x), inputs 2 (y)`."""
  rows = {layer.name: layer for layer in network.layers}
  if name not in rows:
    return ""
  layout = prediction.layout
  placement = layout.placement(rows[name])
  words = {**_DIMENSIONS, "fsdp": "stored"}
  parts = [
    f"{word} {layout.size(axes)} ({' '.join(axes)})"
    for field, word in words.items()
    if layout.size(axes := getattr(placement, field)) > 1
  ]
  return ", ".join(parts) or "repeated"


def describe_kind(layout: layout_lib.Layout, network: wiring.Network) -> str:
  """Says what the layers of each kind split, in a few words."""
  parts = []
  for kind in layout_lib.KINDS:
    placements = [
      layout.placement(layer) for layer in network.layers if layer.kind == kind
    ]
    split = [
      word
      for field, word in _DIMENSIONS.items()
      if any(layout.size(getattr(one, field)) > 1 for one in placements)
    ]
    if placements:
      parts.append(f"{kind}: {', '.join(split) or 'repeated'}")
  stored = [layout.placement(layer).fsdp for layer in network.layers]
  if any(layout.size(axes) > 1 for axes in stored):
    parts.append("fsdp")
  return "; ".join(parts)


def _describe_changes(answer: Answer) -> list[str]:
  lines = ["another layout saves 1 % or more"]
  network = answer.best.prediction.workload.network
  for change in answer.changes:
    faster = change.most > 1
    if change.found is None:
      lines.append(
        f"  {change.link}: not if it is up to {_to_factor(change.most)} "
        f"{'faster' if faster else 'slower'}"
      )
      continue
    factor, found = change.found
    lines.append(
      f"  {change.link}: if it is {_to_factor(factor)} "
      f"{'faster' if faster else 'slower'} "
      f"({describe_kind(found.layout, network)} on "
      f"{layout_lib.format_mesh(found.layout.mesh)})"
    )
  return lines


def _to_factor(factor: float) -> str:
  return f"{max(factor, 1 / factor):,.3g} times"


def _to_ms(seconds: float) -> str:
  return summary.to_ms(seconds) if seconds else "-"


def to_gb(number: float) -> str:
  """Formats bytes: `3.02 GB`."""
  return f"{number / 1e9:,.2f} GB"


def parse_memory(text: str | None, default: float) -> float:
  """Parses bytes of memory, as `16GB`, `40GiB` or `500MB`.

  Raises:
    ValueError: it is none of these.
  """
  if text is None:
    return default
  units = {"MB": 1e6, "GB": 1e9, "MiB": 2.0**20, "GiB": 2.0**30}
  number, unit = text.rstrip("MGiB"), text[len(text.rstrip("MGiB")) :]
  try:
    value = float(number) * units[unit]
  except (KeyError, ValueError):
    value = 0.0
  if not 0 < value < float("inf"):
    raise ValueError(
      f"--memory is {text!r}, expected a number above 0 with one of "
      f"{', '.join(units)}. Set --memory=16GB."
    )
  return value


def to_json(answer: Answer) -> dict:
  """Returns what the tables show."""
  return {
    "machine": answer.machine.name,
    "devices": answer.best.layout.devices,
    "batch": answer.best.prediction.workload.batch_size,
    "search_seconds": answer.search_seconds,
    "kinds": [
      {"kind": found.kind, **_to_data(found.prediction)}
      for found in answer.kinds
    ],
    "catalog": [
      {"fits": answer.goal.admits(one), **_to_data(one)}
      for one in answer.catalog
    ],
    "changes": [
      {
        "link": change.link,
        "up_to": change.most,
        "factor": change.found and change.found[0],
        "layout": change.found and layout_lib.to_fields(change.found[1].layout),
      }
      for change in answer.changes
    ],
  }


def _to_data(prediction: price.Prediction) -> dict:
  return {
    "layout": layout_lib.to_fields(prediction.layout),
    **prediction.to_json(),
    "layers": {
      name: dataclasses.asdict(time) for name, time in prediction.layers.items()
    },
  }
