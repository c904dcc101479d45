"""Shows what a layout does, before any run.

    python -m alexnet_jax.inspect --config=configs/two_device.py:imagenet

Lists what each device holds, computes and sends, what of it the traced and the
compiled step send, and the compiler's memory analysis. With --machine, also the
time that each layer takes on a machine, and what shares a host. Needs no data.
Compiles for the attached devices, for simulated ones, or for a TPU slice that
is not attached (--topology=v5e:2x4). Exits with 1 if the step does not
communicate as planned.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import jax
import rich.console
from absl import app

from alexnet_jax.cli import command
from alexnet_jax.figures import hosts as hosts_lib
from alexnet_jax.figures import layout as layout_figure
from alexnet_jax.inspect import tables
from alexnet_jax.partition import audit as audit_lib
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import mesh
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.planner import machine as machine_lib
from alexnet_jax.planner import price
from alexnet_jax.program import (
  compilation_cache,
  compiled_step,
  compiler_options,
  summary,
)
from alexnet_jax.program import program as program_lib
from alexnet_jax.settings import build, settings
from alexnet_jax.training import run as run_lib

_CONFIG = command.define_config()
_SIMULATE_DEVICES = command.define_simulate_devices()
_FORMAT = command.define_format()
_PICTURE = command.define_path(
  "picture", "Draw the layout to this file, .svg or .png."
)
_MACHINE = command.define_machine()
_HOSTS = command.define_hosts()
_TOPOLOGY = command.define_topology()
_XLA_OPTIONS = command.define_xla_options()
_COMPILATION_CACHE = command.define_compilation_cache()


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  with command.exit_on_error(ValueError, TypeError, OSError, ImportError):
    if _PICTURE.value:
      command.check_path(
        _PICTURE.value, flag="picture", endings=command.PICTURES
      )
    config = _CONFIG.value
    network, layout = settings.check(config)
    machine = command.load_machine(_MACHINE.value, _HOSTS.value)
    if machine:
      settings.check_single(config, command="inspect --machine")
      _check_hosts(machine, layout)
      # Refuses a machine that does not fit, before anything is compiled.
      pricer = price.Pricer(machine, build.make_workload(config, network))
      machine.check_devices(layout.devices)
    devices = command.choose_devices(
      config.ensemble * layout.devices,
      simulated=_SIMULATE_DEVICES.value,
      topology_name=_TOPOLOGY.value,
    )
    program = run_lib.make_program(config, network, layout, devices=devices)
    cache = compilation_cache.open_cache(
      _COMPILATION_CACHE.value, attached=not _TOPOLOGY.value
    )
    options = compiler_options.choose(
      program.mesh.devices.flat, mode=_XLA_OPTIONS.value
    )
    prediction = hosts = None
    if machine:
      order = program.nested_axes
      prediction = price.predict(pricer, layout, order=order)
      hosts = hosts_lib.find_hosts(machine, layout, order)
    if _PICTURE.value:
      layout_figure.draw(
        program.network,
        plan_lib.choose_placements(
          program.network,
          program.layout,
          batch_size=program.batch_size,
          exchange_dtype=program.exchange_dtype,
        ),
        program.plan,
        batch_size=program.batch_size,
        path=_PICTURE.value,
        hosts=hosts,
      )
  with cache.watch("the step") as compilation:
    compiled, audit = compiled_step.compile_step(program, options=options.used)
  if _FORMAT.value == "json":
    found = _to_json(program, compiled, audit, options)
    if machine:
      found["predicted"] = tables.time_to_json(prediction, machine, hosts)
    print(command.to_json(found))
  else:
    lines = (*options.lines(), *compilation.lines())
    times = []
    if machine:
      times.append(
        tables.make_time_tables(prediction, machine, program.nested_axes, hosts)
      )
    _print_tables(program, compiled, audit, lines, times)
  sys.exit(0 if audit.agrees else 1)


def _check_hosts(
  machine: machine_lib.Machine, layout: layout_lib.Layout
) -> None:
  """Refuses --hosts of other devices than a layout has.

  Raises:
    ValueError: names both numbers.
  """
  if _HOSTS.value and machine.devices != layout.devices:
    raise ValueError(
      f"--hosts={_HOSTS.value} are {machine.devices} devices, but layout "
      f"{layout.name!r} has {layout.devices} "
      f"({layout_lib.format_mesh(layout.mesh)}). Set --hosts or "
      "config.layout.mesh."
    )


def _to_json(
  program: program_lib.Program,
  compiled: jax.stages.Compiled,
  audit: audit_lib.Audit,
  options: compiler_options.Options,
) -> dict:
  """Returns what the tables show; bytes are of one device in one step."""
  layout = program.layout
  sent = plan_lib.sent_along(program.plan)
  return {
    "layout": layout.name,
    "network": program.network.name,
    "members": program.ensemble.members,
    "mesh": dict(program.mesh.shape),
    "devices": program.mesh.size,
    "device_kind": program.mesh.devices.flat[0].device_kind,
    "batch": program.batch_size,
    "xla_options": dict(options.used),
    "axes": [
      {
        "axis": axis,
        "devices": program.mesh.shape[axis],
        "sent_bytes": sent.get(axis, 0),
        "links": links,
      }
      for axis, links in mesh.find_links(program.mesh).items()
    ],
    "nested_axes": program.nested_axes,
    "layers": [
      {
        "layer": name,
        "reads": program.network.layer(name).reads,
        "frozen": name in program.network.frozen,
        "batch_axes": load.placement.batch,
        "inputs_axes": load.placement.inputs,
        "outputs_axes": load.placement.outputs,
        "features_axes": layout.placement(program.network.layer(name)).features,
        "fsdp_axes": load.placement.fsdp,
        "arrives": program.arrivals[name],
        "overlap_gather": load.placement.overlap_gather,
        "overlaps": load.overlaps,
        "inputs": load.inputs,
        "outputs": load.outputs,
        "are_partial_sums": load.is_partial,
        "kernel": load.kernel,
        "images": load.images,
        "kept_images": load.kept_images,
        "values_per_image": load.values,
        "multiplications_per_image": load.multiplications,
        "passes": load.passes,
        "parameter_bytes": load.parameter_bytes,
        "optimizer_bytes": program.optimizer_bytes[name],
        "activation_bytes": load.activation_bytes,
        "flops": load.flops,
        "times_computed": load.times_computed,
      }
      for name, load in program.device_loads.items()
    ],
    "loss_arrives": program.arrivals[plan_lib.LOSS],
    "exchanges": [
      {
        "layer": line.planned.layer,
        "direction": line.planned.direction,
        "tensor": line.planned.tensor,
        "kind": line.planned.kind,
        "axes": line.planned.axes,
        "devices": line.planned.devices,
        "elements": line.planned.elements,
        "images": line.planned.images,
        "elements_per_image": line.planned.elements_per_image,
        "bytes_per_element": line.planned.bytes_per_element,
        "planned_bytes": line.planned.sent_bytes,
        "traced_bytes": line.traced_bytes,
        "compiled_bytes": line.compiled_bytes,
      }
      for line in audit.lines
    ],
    "memory": compiled_step.find_memory(compiled),
    "audit": {
      name: getattr(audit, name)
      for name in ("agrees", "unplanned", "missing", "notes")
    },
  }


def _print_tables(
  program: program_lib.Program,
  compiled: jax.stages.Compiled,
  audit: audit_lib.Audit,
  lines: Sequence[str],
  times: Sequence[rich.console.Group],
) -> None:
  console = command.make_console()
  for group in (
    summary.make_layout_table(program),
    tables.make_load_tables(program),
    summary.make_plan_table(program, audit.lines),
    *times,
  ):
    command.print_table(console, group)
  console.print()
  for line in (
    *settings.describe_published(program.network),
    *summary.describe_axes(program),
    *summary.describe_repeated(program),
    *summary.describe_idle_overlaps(program),
    *program.describe_runs(_CONFIG.value.seed),
    *lines,
    *tables.describe_memory(compiled),
    *tables.describe_flops(program, compiled),
    *summary.describe_audit(audit),
    *([f"the picture is in {_PICTURE.value}"] if _PICTURE.value else []),
  ):
    command.print_line(console, line)


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)
