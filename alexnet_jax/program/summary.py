"""Tables and lines for the user: devices, layout, plan, memory, audit."""

from __future__ import annotations

import dataclasses
import fractions
import textwrap
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import rich.console
import rich.table

from alexnet_jax.partition import audit as audit_lib
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.program import program as program_lib


def make_device_table(
  mesh: jax.sharding.Mesh, memory: Mapping[int, str] | None = None
) -> rich.table.Table:
  """Makes a row per device: its place in the mesh, its kind, its process.

  Args:
    memory: device id -> text on its memory; None or {}: no such column.
  """
  table = make_table(
    "devices",
    *("device", *mesh.axis_names, "kind", "process"),
    *(["> memory"] if memory else []),
  )
  for place, device in np.ndenumerate(mesh.devices):
    table.add_row(
      *(str(device.id), *map(str, place), device.device_kind),
      str(device.process_index),
      *([memory.get(device.id, "-")] if memory else []),
    )
  return table


def make_layout_table(program: program_lib.Program) -> rich.console.Group:
  """Makes a row per layer: which part of it one device computes.

  A second table has what each layer reads, and what of it arrives from other
  devices.
  """
  network, layout = program.network, program.layout
  loads, sizes = program.device_loads, network.sizes()
  axes = {
    field: {
      name: _listed(getattr(load.placement, field), layout)
      for name, load in loads.items()
    }
    for field in ("batch", "inputs", "outputs", "fsdp")
  }
  has = {field: any(of_layers.values()) for field, of_layers in axes.items()}
  table = make_table(
    None,
    *("layer", "> images", *["over"] * has["batch"]),
    *("> inputs", *["over"] * has["inputs"]),
    *("> outputs", *["over"] * has["outputs"]),
  )
  for name, load in loads.items():
    table.add_row(
      *(name, _part(load.images, program.batch_size)),
      *[axes["batch"][name]] * has["batch"],
      _part(load.inputs, sizes[name].channels),
      *[axes["inputs"][name]] * has["inputs"],
      _part(load.outputs, network.layer(name).features),
      *[axes["outputs"][name]] * has["outputs"],
    )
  notes = _describe_features(program)
  if names := [name for name, load in loads.items() if load.overlaps]:
    notes.append(
      f"{', '.join(names)}: computes with its own inputs while the others "
      "arrive"
    )
  if network.frozen:
    lowest = network.trained[0]
    ends = f"; the backward pass ends at {lowest}"
    notes.append(
      f"frozen, without gradients: {', '.join(network.frozen)}"
      f"{ends * (lowest != network.layers[0].name)}"
    )
  stored = {}
  for name, text in axes["fsdp"].items():
    stored.setdefault(text, []).append(name)
  for text, names in stored.items():
    if text:
      names = "every layer" if len(stored) == 1 else ", ".join(names)
      notes.append(
        f"{names}: the kernel is stored sharded over {text}, and gathered for "
        "use"
      )
  held = sum(load.parameters for load in loads.values())
  parameters = sum(size.parameters for size in sizes.values())
  notes.append(f"one device holds {_part(held, parameters)} weights and biases")
  mesh = layout_lib.format_mesh(program.mesh.shape)
  return rich.console.Group(
    f"\nlayout {layout.name}, mesh {mesh}, network {network.name}",
    "which part of each layer one device computes",
    *(table, *notes),
    *_make_arrival_table(program),
  )


def _describe_features(program: program_lib.Program) -> list[str]:
  """Says which `features` of the layout became inputs, and which outputs."""
  layout, names = program.layout, {"inputs": [], "outputs": []}
  for layer in program.network.layers:
    if features := layout.placement(layer).features:
      inputs = program.routes[layer.name].placement.inputs
      field = "inputs" if set(features) <= set(inputs) else "outputs"
      names[field] += [layer.name] if layout.size(features) > 1 else []
  became = [f"{field} in {', '.join(of)}" for field, of in names.items() if of]
  if not became:
    return []
  return [f"features: {' and '.join(became)}, with which a step sends least"]


def _make_arrival_table(
  program: program_lib.Program,
) -> list[rich.table.Table | str]:
  """Makes a row per layer: what it reads, and what arrives, step by step."""
  network = program.network
  own = "column" if network.columns > 1 else "all"  # the only column is all
  reads = {
    layer.name: own if layer.reads == "own" else layer.reads
    for layer in network.layers
  }
  if program.arrivals[plan_lib.LOSS]:
    reads[plan_lib.LOSS] = "all"
  table = make_table(None, "layer", "reads", "arrives from other devices")
  used = sum(max(map(len, cells)) + 2 for cells in (reads, reads.values()))
  for name in reads:
    lines = [
      line
      for step in program.arrivals[name]
      for line in textwrap.wrap(
        step,
        max(78 - used, 40),
        subsequent_indent="  ",
        break_long_words=False,
      )
    ]
    table.add_row(name, reads[name], "\n".join(lines) or "-")
  notes = []
  if "column" in reads.values():
    notes.append(
      f"column: reads its own column alone, of the network's {network.columns}"
    )
  if any(load.is_partial for load in program.device_loads.values()):
    notes.append("partial sums: of the layer's outputs, added after it")
  return ["\nwhat each layer reads, and what of it arrives", table, *notes]


@dataclasses.dataclass(kw_only=True)
class _PlanRow:
  """Exchanges that are shown as one: of one layer, or of its parameters.

  Attributes:
    collective: the first of them.
    what: is exchanged.
    values: of the complete array that a group of devices exchanges; of one
      image, if it belongs to images.
    sent: bytes that one device sends: planned and, after an audit, traced and
      compiled.
  """

  collective: plan_lib.Collective
  what: str
  values: int
  sent: list[int]


def make_plan_table(
  program: program_lib.Program,
  lines: Sequence[audit_lib.Line] | None = None,
) -> rich.console.Group:
  """Makes a row per exchange; the parameters of a layer get one row.

  Args:
    lines: of the audit, with the traced and compiled bytes of each exchange;
      None: before the audit.
  """
  rows = _find_plan_rows(program.plan, lines)
  if not rows:
    return rich.console.Group("\none device sends nothing")
  differs = any(len(set(row.sent)) > 1 for row in rows)
  of_images = [row for row in rows if row.collective.images]
  of_step = [row for row in rows if not row.collective.images]
  parts = []
  if of_images:
    parts += [
      f"\nwhat one device sends in a step, for {program.batch_size:,} images",
      *_make_plan_section(of_images, program.mesh.shape, differs=differs),
      "values of one image, and images: what the group holds together",
    ]
  if of_step:
    parts += [
      "\nwhat one device sends in a step, for any number of images",
      *_make_plan_section(of_step, program.mesh.shape, differs=differs),
      "values: of the array that the group sums, gathers or scatters",
    ]
  total = sum(row.sent[0] for row in rows)
  return rich.console.Group(
    *parts,
    "share that each of P devices sends: all-gather, reduce-scatter (P-1)/P,",
    "  sum (an all-reduce) 2(P-1)/P, all-to-all (P-1)/P^2",
    f"in all, one device sends {with_unit(total)} in a step",
  )


def _find_plan_rows(
  plan: Sequence[plan_lib.Collective], lines: Sequence[audit_lib.Line] | None
) -> list[_PlanRow]:
  rows = {}
  for index, collective in enumerate(plan):
    sent = [collective.sent_bytes]
    if lines is not None:
      sent += [lines[index].traced_bytes, lines[index].compiled_bytes]
    what = _describe_tensor(collective)
    values = collective.elements_per_image or collective.elements
    is_parameter = collective.tensor in plan_lib.PARAMETERS
    key = (
      *(collective.layer, collective.direction),
      *(collective.kind, collective.axes),
    )
    if is_parameter and key in rows:  # a kernel's biases follow it
      row = rows[key]
      row.values += values
      row.sent = [a + b for a, b in zip(row.sent, sent, strict=True)]
    else:
      rows[key if is_parameter else index] = _PlanRow(
        collective=collective, what=what, values=values, sent=sent
      )
  return list(rows.values())


def _describe_tensor(collective: plan_lib.Collective) -> str:
  """Says what is exchanged: `input`, or `output grad`, the gradient of it."""
  is_forward = collective.direction == plan_lib.FORWARD
  what = collective.tensor
  if what in plan_lib.PARAMETERS:
    what = "weight" if what == plan_lib.KERNEL else "bias"
    what += "s" * is_forward
  elif what == plan_lib.ACTIVATION and not collective.images:
    what = "loss, errors"
  elif what == plan_lib.ACTIVATION:
    # Partial sums are of the output; what follows them backward is a gather.
    ends = ("sum", "reduce_scatter") if is_forward else ("all_gather",)
    what = "output" if collective.kind in ends else "input"
  return what if is_forward else f"{what} grad"


def _make_plan_section(
  rows: Sequence[_PlanRow], mesh: Mapping[str, int], *, differs: bool
) -> list[rich.table.Table | str]:
  """Makes a table of rows that all belong to images, or none; and its formula.

  Args:
    differs: whether to show traced and compiled bytes beside the planned ones.
  """
  of_images = bool(rows[0].collective.images)
  itemsizes = {row.collective.bytes_per_element for row in rows}
  mixed = len(itemsizes) > 1
  table = make_table(
    None,
    *("layer", "what", "exchange", "group", "> values"),
    *(["> images"] if of_images else []),
    *(["> bytes"] if mixed else []),
    "> share",
    *(["> MB planned", "> traced", "> compiled"] if differs else ["> MB"]),
  )
  shown = len(rows[0].sent) if differs else 1
  for row in rows:
    collective = row.collective
    kind, devices = collective.kind, collective.devices
    share = fractions.Fraction(
      plan_lib.ring_elements(kind, devices, devices**2), devices**2
    )
    table.add_row(
      *(collective.layer, row.what, kind.replace("_", "-")),
      layout_lib.format_mesh({axis: mesh[axis] for axis in collective.axes}),
      f"{row.values:,}",
      *([f"{collective.images:,}"] if of_images else []),
      *([str(collective.bytes_per_element)] if mixed else []),
      *(str(share), *map(to_mb, row.sent[:shown])),
    )
  table.add_section()
  totals = [sum(row.sent[index] for row in rows) for index in range(shown)]
  blanks = [""] * (len(table.columns) - 1 - shown)
  table.add_row("sum", *blanks, *map(to_mb, totals))
  itemsize = "bytes" if mixed else f"{itemsizes.pop()} bytes"
  images = " x images" * of_images
  return [table, f"MB = values{images} x {itemsize} x share"]


def describe_axes(
  program: program_lib.Program, hosts: Mapping[int, str] | None = None
) -> list[str]:
  """Describes each axis of the mesh, its bytes and links, and their nesting.

  Args:
    hosts: process index -> name of its host; None: unknown.
  """
  sent = plan_lib.sent_along(program.plan)
  links = mesh_lib.find_links(program.mesh, hosts)
  lines = []
  for axis, size in program.mesh.shape.items():
    line = f"axis {axis}: {size} device{'s' if size > 1 else ''}"
    if size > 1:
      line += f", {with_unit(sent.get(axis, 0))} sent along it in a step"
      line += f", {links[axis]}"
    lines.append(line)
  if any(len(collective.axes) > 1 for collective in program.plan):
    lines.append("an exchange over several axes counts for each of them")
  nested, by_bytes = (
    [axis for axis in order if program.mesh.shape[axis] > 1]
    for order in (program.nested_axes, program.axes_by_bytes)
  )
  if len(nested) > 1 and nested == by_bytes:
    lines.append(f"nested by these bytes, slowest first: {', '.join(nested)}")
  elif len(nested) > 1:
    lines.append(
      "nested as config.layout.axes has it, slowest first: "
      f"{', '.join(nested)}; by these bytes: {', '.join(by_bytes)}"
    )
  is_tpu = program.mesh.devices.flat[0].platform == "tpu"
  if is_tpu and {*links.values()} & {*mesh_lib.PROCESS_LINKS}:
    lines.append(
      "inside a slice, a TPU's chips are joined directly, whichever process "
      "or host they belong to"
    )
  return lines


def describe_repeated(program: program_lib.Program) -> list[str]:
  """Names the layers that are computed several times."""
  layout = program.layout
  repeated: dict[tuple[str, ...], list[str]] = {}
  for layer in program.network.layers:
    split = layout.placement(layer).axes
    axes = tuple(
      axis
      for axis, size in layout.mesh.items()
      if size > 1 and axis not in split
    )
    if axes:
      repeated.setdefault(axes, []).append(layer.name)
  return [
    f"computed {layout.size(axes)} times, once on each device of "
    f"{'axis' if len(axes) == 1 else 'axes'} "
    f"{' and '.join(map(repr, axes))}: {', '.join(layers)}"
    for axes, layers in repeated.items()
  ]


def describe_idle_overlaps(program: program_lib.Program) -> list[str]:
  """Names the layers whose `overlap_gather` does nothing, and says why."""
  idle: dict[str, list[str]] = {}
  for layer in program.network.layers:
    route = program.routes[layer.name]
    if not route.placement.overlap_gather or route.overlap_gather:
      continue
    gathers = any(
      reshard.gathers_features and program.layout.size(reshard.axes) > 1
      for reshard in route.reshards
    )
    if layer.reads == "image":
      reason = "reads the image"
    elif layer.reads == "own":
      reason = "reads its own column"
    elif not gathers:
      reason = "gathers no features"
    else:
      reason = "does not gather features last"
    idle.setdefault(reason, []).append(layer.name)
  if not idle:
    return []
  reasons = [f"{', '.join(of)} ({reason})" for reason, of in idle.items()]
  return [f"overlap_gather does nothing in {', '.join(reasons)}"]


def describe_audit(audit: audit_lib.Audit) -> list[str]:
  """Says whether the step communicates as planned."""
  if not audit.agrees:
    return [
      "audit: the step does NOT communicate as planned",
      *(f"  not planned: {line}" for line in audit.unplanned),
      *(f"  planned, but missing: {line}" for line in audit.missing),
    ]
  sent = sum(exchange.sent_bytes for exchange in audit.compiled)
  return [
    f"audit: the traced step has the {len(audit.plan)} exchanges of the plan "
    "and no others; the compiled one sends "
    f"{with_unit(sent)} from each device",
    *(f"  {line}" for line in audit.notes),
  ]


def to_mb(number: int) -> str:
  """Formats bytes as MB of 10^6, or as `2,560 B` where that says more."""
  return f"{number:,} B" if 0 < number < 10_000 else f"{number / 1e6:,.3f}"


def to_short(number: float) -> str:
  """Formats with three digits or more: `0.012`, `1.23`, `1,234`; 0 is `0`."""
  if number >= 100:
    return f"{number:,.0f}"
  return f"{number:.3g}" if number >= 0.001 or not number else "<0.001"


def to_ms(seconds: float) -> str:
  """Formats seconds as milliseconds, `1.20` or `1,235`."""
  number = seconds * 1e3
  digits = 2 if number < 100 else 1 if number < 1000 else 0
  return f"{number:,.{digits}f}"


def to_ms_range(shortest: float, longest: float) -> str:
  """Formats seconds as milliseconds, `1.20..1.35`."""
  return "..".join(dict.fromkeys(map(to_ms, (shortest, longest))))


def with_unit(number: int) -> str:
  """Formats bytes for a sentence: `1.049 MB`, `16 B`."""
  text = to_mb(number)
  return text if text.endswith("B") else f"{text} MB"


def make_table(title: str | None, *headers: str) -> rich.table.Table:
  """Makes an empty table; headers that begin with > are right-aligned."""
  table = rich.table.Table(
    title=f"\n{title}" if title else None, title_justify="left", box=None
  )
  for header in headers:
    justify = "right" if header.startswith("> ") else "left"
    table.add_column(header.removeprefix("> "), justify=justify)
  return table


def _part(part: int, complete: int) -> str:
  """Formats a part of something: `48 of 96`; `96` if it is complete."""
  return f"{part:,}" + f" of {complete:,}" * (part != complete)


def _listed(axes: tuple[str, ...], layout: layout_lib.Layout) -> str:
  """Lists the axes that have several devices, in their order."""
  return ", ".join(axis for axis in axes if layout.mesh[axis] > 1)
