"""Shows what a layout does, before any run.

    python -m alexnet_jax.inspect --config=configs/two_device.py:imagenet

What every device holds, computes and sends; what of that is in the traced and
in the compiled step; the compiler's memory analysis. Needs no data. Compiles
for the devices here, for simulated ones, or for a TPU slice that is not there
(--topology=v5e:2x4). Ends with 1 where the step does not communicate as
planned.
"""

from __future__ import annotations

import json
import sys

import jax
from absl import app, flags

from alexnet_jax import command, tables
from alexnet_jax import program as program_lib
from alexnet_jax import run as run_lib
from alexnet_jax.partition import audit as audit_lib
from alexnet_jax.picture import draw, files

_CONFIG = command.define_config()
_SIMULATE_DEVICES = command.define_simulate_devices()
_FORMAT = flags.DEFINE_enum(
  "format", "table", ["table", "json"], "A table for people, or data."
)
_PICTURE = flags.DEFINE_string(
  "picture", None, "Draw the layout to this file, .svg or .png."
)
_TOPOLOGY = command.define_topology()


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  with command.in_one_line(ValueError, TypeError, OSError, ImportError):
    if _PICTURE.value:
      files.check_path(_PICTURE.value, flag="picture")
    program = _make_program()
    if _PICTURE.value:
      draw.draw(
        program.network,
        program.layout,
        program.plan,
        batch_size=program.batch_size,
        path=_PICTURE.value,
      )
  compiled, audit = program_lib.compile_step(program)
  if _FORMAT.value == "json":
    print(json.dumps(to_json(program, compiled, audit), indent=2))
  else:
    _print_tables(program, compiled, audit)
  sys.exit(0 if audit.agrees else 1)


def _make_program() -> program_lib.Program:
  config = _CONFIG.value
  network, layout = run_lib.check(config)
  devices = command.choose_devices(
    layout.devices,
    simulated=_SIMULATE_DEVICES.value,
    topology_name=_TOPOLOGY.value,
  )
  return run_lib.make_program(config, network, layout, devices=devices)


def to_json(
  program: program_lib.Program,
  compiled: jax.stages.Compiled,
  audit: audit_lib.Audit,
) -> dict:
  """What the tables show, as data; bytes are of one device in one step."""
  layout = program.layout
  return {
    "layout": layout.name,
    "network": program.network.name,
    "mesh": dict(layout.mesh),
    "devices": layout.devices,
    "device_kind": program.mesh.devices.flat[0].device_kind,
    "batch": program.batch_size,
    "layers": [
      {
        "layer": name,
        "reads": program.network.layer(name).reads,
        "batch_axes": layout.placement(name).batch,
        "features_axes": layout.placement(name).features,
        "arrive": layout.placement(name).arrive,
        "stored_axes": layout.placement(name).stored,
        "parameter_bytes": share.parameter_bytes,
        "optimizer_bytes": program.optimizer_bytes[name],
        "activation_bytes": share.activation_bytes,
        "flops": share.flops,
        "times_computed": share.times,
      }
      for name, share in program.shares.items()
    ],
    "exchanges": [
      {
        "layer": line.planned.layer,
        "direction": line.planned.direction,
        "tensor": line.planned.tensor,
        "kind": line.planned.kind,
        "axes": line.planned.axes,
        "elements_per_image": line.planned.elements_per_image,
        "planned_bytes": line.planned.sent_bytes,
        "traced_bytes": line.traced_bytes,
        "compiled_bytes": line.compiled_bytes,
      }
      for line in audit.lines
    ],
    "memory": program_lib.find_memory(compiled),
    "audit": {
      "agrees": audit.agrees,
      "unplanned": audit.unplanned,
      "missing": audit.missing,
      "notes": audit.notes,
    },
  }


def _print_tables(
  program: program_lib.Program,
  compiled: jax.stages.Compiled,
  audit: audit_lib.Audit,
) -> None:
  console = command.make_console()
  command.print_whole(console, tables.layout(program))
  command.print_whole(
    console,
    tables.plan(program.plan, batch_size=program.batch_size, lines=audit.lines),
  )
  console.print()
  for line in (
    *tables.repeated(program.network, program.layout),
    *tables.memory(compiled),
    *tables.verdict(audit),
    *([f"the picture is in {_PICTURE.value}"] if _PICTURE.value else []),
  ):
    console.print(line, soft_wrap=True, highlight=False)


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)
