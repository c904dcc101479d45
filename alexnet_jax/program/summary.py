"""Tables and lines for the user: devices, layout, plan, memory, audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np
import rich.table

from alexnet_jax.network import implementations as implementations_lib
from alexnet_jax.network import wiring
from alexnet_jax.partition import audit as audit_lib
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.partition import per_device
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.program import compiled_step
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


def make_layout_table(program: program_lib.Program) -> rich.table.Table:
  """Makes a row per layer: its placement, and one device's part of it."""
  network, layout = program.network, program.layout
  mesh = layout_lib.format_mesh(program.mesh.shape)
  fsdp = any(layout.placement(name).fsdp for name in program.device_loads)
  table = make_table(
    f"layout {layout.name}, mesh {mesh}, network {network.name}: one device's "
    "part in bytes",
    *("layer", "reads", "batch", "features", "arrive"),
    *(["fsdp"] if fsdp else []),
    *("kernel", "> parameters", "> optimizer", "> activations", "> MFLOP"),
  )
  sums = [0.0] * 4
  for name, load in program.device_loads.items():
    placement = layout.placement(name)
    numbers = (
      load.parameter_bytes,
      program.optimizer_bytes[name],
      load.activation_bytes,
      load.flops / 1e6,
    )
    sums = [total + number for total, number in zip(sums, numbers, strict=True)]
    table.add_row(
      *(name, network.layer(name).reads),
      *(_listed(placement.batch), _listed(placement.features)),
      load.arrive if placement.features else "-",
      *([_listed(placement.fsdp)] if fsdp else []),
      "x".join(map(str, load.kernel)),
      *(f"{number:,.0f}" for number in numbers),
    )
  table.add_section()
  blanks = [""] * (len(table.columns) - 5)
  table.add_row("sum", *blanks, *(f"{number:,.0f}" for number in sums))
  parameters = sum(sizes.parameters for sizes in network.sizes().values())
  table.caption = (
    f"one device holds {sums[0]:,.0f} of "
    f"{per_device.FLOAT32 * parameters:,} bytes of parameters"
  )
  table.caption_justify = "left"
  return table


def make_plan_table(
  exchanges: Sequence[plan_lib.Collective],
  *,
  batch_size: int,
  lines: Sequence[audit_lib.Line] | None = None,
) -> rich.table.Table:
  """Makes a row per exchange; the parameters of a layer get one row.

  Args:
    lines: of the audit, with the traced and compiled bytes of each exchange;
      None: before the audit.
  """
  headers = ["bytes"] if lines is None else ["planned", "traced", "compiled"]
  table = make_table(
    f"plan, a step of {batch_size} images: bytes that one device sends",
    *("layer", "direction", "tensor", "kind", "axes", "> elements per image"),
    *(f"> {header}" for header in headers),
  )
  rows = {}
  for index, exchange in enumerate(exchanges):
    tensor = exchange.tensor
    if tensor in plan_lib.PARAMETERS:
      tensor = "weights" if exchange.direction == "forward" else "gradients"
    per_image = f"{exchange.elements_per_image:,}" if exchange.images else "-"
    axes = _listed(exchange.axes)
    key = (exchange.layer, exchange.direction, tensor, axes, per_image)
    sent = [exchange.sent_bytes]
    if lines is not None:
      sent += [lines[index].traced_bytes, lines[index].compiled_bytes]
    kinds, sums = rows.get(key, ([], [0] * len(sent)))
    if exchange.kind not in kinds:
      kinds.append(exchange.kind)
    rows[key] = kinds, [a + b for a, b in zip(sums, sent, strict=True)]
  for (layer, direction, tensor, axes, per_image), found in rows.items():
    kinds, sent = found
    kind = ", ".join(kinds).replace("_", "-")
    table.add_row(
      *(layer, direction, tensor, kind, axes, per_image),
      *(f"{number:,}" for number in sent),
    )
  table.add_section()
  totals = map(sum, zip(*(sent for _, sent in rows.values()), strict=True))
  table.add_row("sum", *[""] * 5, *(f"{number:,}" for number in totals))
  return table


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
      line += f", {sent.get(axis, 0):,} bytes sent along it in a step"
      line += f", {links[axis]}"
    lines.append(line)
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


def describe_repeated(
  network: wiring.Network, layout: layout_lib.Layout
) -> list[str]:
  """Names the layers that are computed several times, axis by axis."""
  lines = []
  for axis, size in layout.mesh.items():
    layers = [
      layer.name
      for layer in network.layers
      if axis not in layout.placement(layer.name).batch
      and axis not in layout.placement(layer.name).features
    ]
    if layers and size > 1:
      lines.append(
        f"computed {size} times over, once on each device of axis {axis!r}: "
        f"{', '.join(layers)}"
      )
  return lines


def describe_memory(
  compiled: jax.stages.Compiled,
  implementations: implementations_lib.Implementations,
) -> list[str]:
  """Gives the compiler's estimate of memory and operations of one device."""
  sizes = compiled_step.find_memory(compiled)
  if not sizes:
    return ["the compiler reports no memory on this platform"]
  flops = (compiled.cost_analysis() or {}).get("flops", 0.0)
  is_fewer = implementations.conv3x3 == "winograd"
  fewer = ", about half as many in 3 x 3 convolutions" if is_fewer else ""
  return [
    f"the compiler: {sizes['peak']:,} bytes of memory at the peak of a step, "
    f"of which {sizes['arguments']:,} state and batch, "
    f"{sizes['temporaries']:,} temporary; {flops / 1e6:,.0f} MFLOP, without "
    f"multiplications by padding{fewer}"
  ]


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
    f"and no others; the compiled one sends {sent:,} bytes from each device",
    *(f"  {line}" for line in audit.notes),
  ]


def make_table(title: str, *headers: str) -> rich.table.Table:
  """Makes an empty table; headers that begin with > are right-aligned."""
  table = rich.table.Table(title=f"\n{title}", title_justify="left", box=None)
  for header in headers:
    justify = "right" if header.startswith("> ") else "left"
    table.add_column(header.removeprefix("> "), justify=justify)
  return table


def _listed(axes: tuple[str, ...]) -> str:
  return " x ".join(axes) or "-"
