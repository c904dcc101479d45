"""What `inspect` alone shows: the loads of a device, its memory and FLOPs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import rich.console
import rich.table

from alexnet_jax.figures import hosts as hosts_lib
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import per_device
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.planner import price
from alexnet_jax.program import compiled_step, summary
from alexnet_jax.program import program as program_lib


def make_load_tables(program: program_lib.Program) -> rich.console.Group:
  """Makes a row per layer: what one device holds of it, and computes."""
  loads, optimizer = program.device_loads, program.optimizer_bytes
  held = summary.make_table(
    None,
    *("layer", "kernel", "> weights", "> MB", "> optimizer", "> optimizer MB"),
  )
  # Partial sums of some images may be kept as sums of fewer.
  scatters = any(load.kept_images < load.images for load in loads.values())
  work = summary.make_table(
    None,
    *("layer", "> images", *(["> kept"] if scatters else [])),
    *("> values", "> MB", "> multiplications"),
    *("> passes", "> GFLOP"),
  )
  for name, load in loads.items():
    kernel = " x ".join(map(str, load.kernel))
    held.add_row(
      *(
        name,
        kernel,
        f"{load.parameters:,}",
        summary.to_mb(load.parameter_bytes),
      ),
      f"{optimizer[name] // per_device.FLOAT32:,}",
      summary.to_mb(optimizer[name]),
    )
    work.add_row(
      *(name, f"{load.images:,}"),
      *([f"{load.kept_images:,}"] if scatters else []),
      f"{load.values:,}",
      *(summary.to_mb(load.activation_bytes), f"{load.multiplications:,}"),
      *(str(load.passes), f"{load.flops / 1e9:,.3f}"),
    )
  total = {
    field: sum(getattr(load, field) for load in loads.values())
    for field in ("parameters", "parameter_bytes", "activation_bytes", "flops")
  }
  for table in (held, work):
    table.add_section()
  held.add_row(
    *("sum", "", f"{total['parameters']:,}"),
    summary.to_mb(total["parameter_bytes"]),
    f"{sum(optimizer.values()) // per_device.FLOAT32:,}",
    summary.to_mb(sum(optimizer.values())),
  )
  work.add_row(
    *("sum", "", "", *[""] * scatters),
    *(summary.to_mb(total["activation_bytes"]), "", ""),
    f"{total['flops'] / 1e9:,.3f}",
  )
  itemsize = plan_lib.DTYPE_BYTES[program.compute_dtype]
  return rich.console.Group(
    "\nweights that one device holds",
    held,
    f"MB = weights x {per_device.FLOAT32} bytes, optimizer MB = optimizer x "
    f"{per_device.FLOAT32} bytes",
    "weights: the kernel and the biases; optimizer: the values that it keeps",
    "\noutputs that one device computes in a step",
    work,
    f"MB = {'kept' if scatters else 'images'} x values x {itemsize} bytes; "
    "values: outputs of one image, before pooling",
    *(
      ["kept: images whose outputs remain here after partial sums are added"]
      if scatters
      else []
    ),
    "GFLOP = 2 x images x multiplications x passes / 10^9; multiplications: of "
    "one",
    "  image, forward; passes: forward, gradient of the kernel, of the input",
  )


def make_time_tables(
  prediction: price.Prediction,
  machine: machine_lib.Machine,
  order: Sequence[str],
  hosts: hosts_lib.Hosts | None,
) -> rich.console.Group:
  """Makes a row per layer of the time it takes, and says what shares a host.

  Args:
    order: see `price.predict`.
    hosts: from `hosts.find_hosts`.
  """
  table = summary.make_table(
    None,
    *("layer", "> forward", "> backward", "> update", "> exchange"),
    *("> gradients", "> sum"),
  )
  fields = ("forward", "backward", "update", "exchange", "gradients", "seconds")
  layers = {
    "augmentation": price.LayerTime(forward=prediction.augmentation),
    **prediction.layers,
  }
  for name, layer in layers.items():
    table.add_row(
      name, *(summary.to_ms(getattr(layer, field)) for field in fields)
    )
  table.add_section()
  sums = [
    sum(getattr(layer, field) for layer in layers.values()) for field in fields
  ]
  table.add_row("sum", *map(summary.to_ms, sums))
  shortest, longest = prediction.overlapped_seconds, prediction.seconds
  batch = prediction.workload.batch_size
  mbs = [
    f"{summary.with_unit(round(sent))} over {level}"
    for level, sent in prediction.bytes_by_level.items()
  ]
  needs, has = (
    summary.with_unit(round(number))
    for number in (prediction.memory_bytes, machine.memory_bytes)
  )
  too_much = prediction.memory_bytes > machine.memory_bytes
  lines = [
    f"a step: {summary.to_ms_range(shortest, longest)} ms, if all that may "
    "overlap does .. if nothing does",
    f"  {batch / longest:,.0f} to {batch / shortest:,.0f} images/s on "
    f"{prediction.layout.devices} devices",
    f"one device sends, on average: {', '.join(mbs)}",
    f"one device needs about {needs} of its {has} of memory"
    f"{': NOT ENOUGH' * too_much}",
  ]
  shared = []
  if hosts:
    shared = [
      f"\nwhich devices share a {hosts.word}: their indices along each axis",
      hosts_lib.make_table(hosts),
    ]
  return rich.console.Group(
    f"\nwhat a step takes on machine {machine.name}, predicted, in ms",
    *(table, *lines),
    *describe_levels(prediction.layout, machine, order, hosts),
    *shared,
  )


def describe_levels(
  layout: layout_lib.Layout,
  machine: machine_lib.Machine,
  order: Sequence[str],
  hosts: hosts_lib.Hosts | None,
) -> list[str]:
  """Says over which links of a machine each axis runs.

  Args:
    order: see `price.predict`.
    hosts: from `hosts.find_hosts`.
  """
  levels = price.Nested(layout, order, machine.links).levels
  lines = []
  for axis, size in layout.mesh.items():
    runs = []
    for link, before, after in zip(
      machine.links, levels, levels[1:], strict=False
    ):
      joined = after[axis] // before[axis]
      if joined == 1:
        continue
      where = f"over {link.name}"
      if hosts:
        is_outermost = link is machine.links[-1]
        inside = f"inside a {hosts.word}"
        where = f"{hosts.between_word if is_outermost else inside}, {where}"
      runs.append(where if joined == size else f"{joined} {where}")
    if runs:
      lines.append(f"axis {axis}: {size} devices, {'; '.join(runs)}")
  return lines


def time_to_json(
  prediction: price.Prediction,
  machine: machine_lib.Machine,
  hosts: hosts_lib.Hosts | None,
) -> dict:
  """Returns what `make_time_tables` shows, in seconds and bytes."""
  found = {"machine": machine.name, **prediction.to_json()}
  found["layers"] = {
    name: dataclasses.asdict(layer) for name, layer in prediction.layers.items()
  }
  if hosts:
    found["hosts"] = {
      "count": hosts.count,
      "axes_inside": dict(hosts.inside),
      "axes_between": dict(hosts.between),
    }
  return found


def describe_memory(compiled: jax.stages.Compiled) -> list[str]:
  """Gives the compiler's estimate of the memory of one device."""
  sizes = compiled_step.find_memory(compiled)
  if not sizes:
    return ["the compiler reports no memory on this platform"]
  return [
    "memory at the peak of a step, by the compiler: "
    f"{summary.with_unit(sizes['peak'])}, of which "
    f"{summary.with_unit(sizes['arguments'])} state and batch, "
    f"{summary.with_unit(sizes['temporaries'])} temporary"
  ]


def describe_flops(
  program: program_lib.Program, compiled: jax.stages.Compiled
) -> list[str]:
  """Leads from the products of the table to the count of the compiler."""
  network, implementations = program.network, program.implementations
  sizes = network.sizes()
  all_products, unpadded, computed, winograd = 0, 0.0, 0.0, []
  for name, load in program.device_loads.items():
    layer = network.layer(name)
    all_products += load.flops
    unpadded += load.flops * load.unpadded
    if implementations.uses_winograd(layer, program.compute_dtype):
      winograd.append(name)
      computed += load.flops * implementations.fewer_multiplications(
        sizes[name], passes=load.passes
      )
    else:
      computed += load.flops * load.unpadded

  def line(flops: float, text: str) -> str:
    return f"  {flops / 1e9:12,.3f}  {text}"

  lines = [
    "GFLOP of one device in a step, 2 for each multiply-add:",
    line(all_products, "convolutions and products, as in the table"),
  ]
  if unpadded < all_products:
    lines.append(
      line(unpadded, "without multiplications by the zeros of padding")
    )
  if winograd:
    lines.append(
      line(
        computed,
        f"with {', '.join(winograd)} by Winograd's method: 16 multiplications "
        "instead of 36",
      )
    )
  counted = (compiled.cost_analysis() or {}).get("flops", 0.0)
  if counted > 0:
    lines.append(
      line(
        counted,
        "counted by the compiler, with all other operations: activations, "
        "pooling, optimizer",
      )
    )
  else:
    lines.append("  the compiler counts no operations on this platform")
  return lines
