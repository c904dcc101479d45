"""What a person reads before the first step: devices, layout, plan, audit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
import rich.table

from alexnet_jax.network import wiring
from alexnet_jax.partition import audit as audit_lib
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.partition import specs as specs_lib

BYTES_PER_PARAMETER = 4  # float32


def devices(mesh: jax.sharding.Mesh) -> rich.table.Table:
  """A row per device: its place in the mesh, its kind, its process."""
  table = _table("devices", "device", *mesh.axis_names, "kind", "process")
  for place, device in np.ndenumerate(mesh.devices):
    kind, process = device.device_kind, device.process_index
    table.add_row(str(device.id), *map(str, place), kind, str(process))
  return table


def layout(
  network: wiring.Network,
  layout: layout_lib.Layout,
  specs: specs_lib.Specs,
) -> rich.table.Table:
  """A row per layer: who computes what, and what one device holds of it."""
  mesh = ", ".join(f"{axis}={size}" for axis, size in layout.mesh.items())
  table = _table(
    f"layout {layout.name}, mesh {mesh}",
    *("layer", "reads", "batch", "features", "arrive"),
    *("kernel", "one device's part", "bytes", "one device's bytes"),
  )
  blocks = plan_lib.block_shapes(network, layout, specs.parameters)
  whole_bytes = device_bytes = 0
  for name, sizes in network.sizes().items():
    placement = layout.placement(name)
    whole = math.prod(sizes.kernel) * BYTES_PER_PARAMETER
    block = math.prod(blocks[name]) * BYTES_PER_PARAMETER
    whole_bytes, device_bytes = whole_bytes + whole, device_bytes + block
    table.add_row(
      *(name, network.layer(name).reads),
      *(_listed(placement.batch), _listed(placement.features)),
      placement.arrive if placement.features else "-",
      *(_shape(sizes.kernel), _shape(blocks[name])),
      *(f"{whole:,}", f"{block:,}"),
    )
  table.add_section()
  table.add_row("sum", *[""] * 6, f"{whole_bytes:,}", f"{device_bytes:,}")
  return table


def plan(
  exchanges: Sequence[plan_lib.Exchange], *, batch_size: int
) -> rich.table.Table:
  """A row per exchange of an activation; gradients in a row per axis."""
  table = _table(
    f"plan, a step of {batch_size} images",
    *("layer", "direction", "kind", "axes"),
    *("elements per image", "bytes sent by one device"),
  )
  gradients = {}
  for exchange in exchanges:
    axes = _listed(exchange.axes)
    if exchange.tensor != plan_lib.ACTIVATION:
      gradients[axes] = gradients.get(axes, 0) + exchange.sent_bytes
      continue
    per_image = exchange.elements_per_image
    table.add_row(
      *(exchange.layer, exchange.direction),
      *(exchange.kind.replace("_", "-"), axes),
      *(f"{per_image:,}" if per_image else "-", f"{exchange.sent_bytes:,}"),
    )
  for axes, sent in gradients.items():
    table.add_row("gradients", "backward", "sum", axes, "-", f"{sent:,}")
  total = sum(exchange.sent_bytes for exchange in exchanges)
  table.add_section()
  table.add_row("sum", "", "", "", "", f"{total:,}")
  return table


def repeated(network: wiring.Network, layout: layout_lib.Layout) -> list[str]:
  """A line for each axis along which layers are computed several times."""
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


def verdict(audit: audit_lib.Audit) -> list[str]:
  """The outcome of an audit, in words."""
  if not audit.agrees:
    return [
      "audit: the step does NOT communicate as planned",
      *(f"  not planned: {line}" for line in audit.unplanned),
      *(f"  planned, but absent: {line}" for line in audit.missing),
    ]
  sent = sum(exchange.sent_bytes for exchange in audit.compiled)
  return [
    f"audit: the traced step has the {len(audit.plan)} exchanges of the plan "
    f"and no others; the compiled one sends {sent:,} bytes from each device",
    *(f"  {line}" for line in audit.notes),
  ]


def _table(title: str, *headers: str) -> rich.table.Table:
  table = rich.table.Table(title=f"\n{title}", title_justify="left", box=None)
  for header in headers:
    is_number = "bytes" in header or "element" in header
    table.add_column(header, justify="right" if is_number else "left")
  return table


def _listed(axes: tuple[str, ...]) -> str:
  return " x ".join(axes) or "-"


def _shape(shape: tuple[int, ...]) -> str:
  return "x".join(map(str, shape))
