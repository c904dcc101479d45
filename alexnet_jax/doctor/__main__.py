"""Checks whether a run would start: the first thing to run on a new cluster.

    python -m alexnet_jax.doctor --config=configs/two_device.py

Every process runs it, started by the same launcher as `main`. It compares
versions and devices, checks data, workdir and memory, and times the links
between devices. It makes no data set and no workdir. With problems, all
processes end with code 1, and process 0 prints a line for each.
"""

from __future__ import annotations

import os
import sys

from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.distributed import environment
from alexnet_jax.doctor import examination
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib

_CONFIG = command.define_config()
_WORKDIR = command.define_path(
  "workdir",
  "Where a run would write. Default: that of main.",
  remedy=command.RUN_HERE,
)
_DATA_DIR = command.define_data_dir()
_SIMULATE_DEVICES = command.define_simulate_devices()
_DISTRIBUTED = command.define_distributed()
_START_TIMEOUT = command.define_start_timeout()
_TIMEOUT = flags.DEFINE_float(
  "timeout_seconds",
  30.0,
  "How long devices may take to answer each other.",
  lower_bound=1.0,
)
command.check_finite(_TIMEOUT)
_FORMAT = command.define_format()


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  config = _CONFIG.value
  workdir = _WORKDIR.value or os.path.join("runs", command.config_name())
  with command.exit_on_error(ValueError, TypeError, OSError):
    network, layout = run_lib.check(config, data_dir=_DATA_DIR.value)
    same = settings.find_shared_fields(config) | {
      "--workdir": os.path.abspath(workdir)
    }
  variables = environment.find_settings()  # before this process adds its own
  with (
    command.start_group(_DISTRIBUTED, _START_TIMEOUT, same=same) as group,
    command.exit_on_error(ValueError, OSError, group=group),
  ):
    run_lib.start_devices(config, layout, group, _SIMULATE_DEVICES.value)
    console = command.make_console(group)
    console.quiet |= _FORMAT.value == "json"
    examined = examination.Examination(group, config, console)
    examined.examine_processes(variables)
    program = examined.examine_program(network, layout)
    data = examined.examine_data(network, _DATA_DIR.value)
    examined.examine_workdir(workdir, data)
    ended = program is None or examined.examine_links(program, _TIMEOUT.value)
    examined.conclude()
    if _FORMAT.value == "json" and group.is_first:
      print(command.to_json(examined.facts))
    code = 1 if examined.problems else 0
    if not ended:
      group.exit_together(code)
  sys.exit(code)


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)
