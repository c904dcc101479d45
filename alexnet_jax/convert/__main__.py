"""Converts a run into one of an equivalent network with other columns.

    python -m alexnet_jax.convert --workdir=runs/demo --new_workdir=runs/new \\
      --config=configs/two_device.py --config.network.wiring=block_diagonal

Layers that read their own column become layers that read all of them, with
zeros where the columns do not meet, or the reverse if these are zeros: see
`convert/block_diagonal.py`. The new run resumes at the same step, with the same
optimizer; the old one is not changed.
"""

from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.convert import conversion
from alexnet_jax.partition import mesh as mesh_lib

_CONFIG = command.define_config()
_WORKDIR = command.define_path(
  "workdir",
  "Workdir of the run to convert.",
  remedy=command.READ_HERE,
  required=True,
)
_NEW_WORKDIR = command.define_path(
  "new_workdir",
  "Workdir of the new run; must not exist yet.",
  remedy=command.RUN_HERE,
  required=True,
)
_STEP = flags.DEFINE_integer(
  "checkpoint_step", None, "Step of the checkpoint. Default: the newest."
)


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  with command.exit_on_error(
    ValueError, TypeError, OSError, FloatingPointError
  ):
    mesh_lib.simulate_devices(1, only_cpu=True)
    console = command.make_console()
    for line in conversion.convert(
      _CONFIG.value,
      workdir=_WORKDIR.value,
      new_workdir=_NEW_WORKDIR.value,
      step=_STEP.value,
    ):
      command.print_line(console, line)


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)
