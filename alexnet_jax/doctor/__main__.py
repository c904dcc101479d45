"""Says whether a run would start: the first thing to run on a new cluster.

    python -m alexnet_jax.doctor --config=configs/two_device.py

Every process runs it, by the same launcher as `main`. What each has, what all
see of workdir and data, whether the state fits, and whether the devices reach
each other, and how fast. Makes no set, no workdir; ends with 1 and a line for
each problem, in all processes.
"""

from __future__ import annotations

import json
import os
import sys

from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.distributed import machine
from alexnet_jax.doctor import examination
from alexnet_jax.partition import ensemble as ensemble_lib
from alexnet_jax.program import devices
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib

_CONFIG = command.define_config()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where a run would go. Default: that of main."
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Where TFDS keeps its sets. Default: TFDS's own."
)
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
_FORMAT = flags.DEFINE_enum(
  "format", "table", ["table", "json"], "Tables for people, or data."
)


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  config = _CONFIG.value
  workdir = _WORKDIR.value or os.path.join("runs", command.config_name())
  with command.in_one_line(ValueError, TypeError, OSError):
    network, layout = settings.check(config)
    same = settings.find_same(config) | {"--workdir": os.path.abspath(workdir)}
  variables = machine.find_settings()  # before this process adds its own
  with (
    command.start(_DISTRIBUTED, _START_TIMEOUT, same=same) as group,
    command.in_one_line(ValueError, OSError, group=group),
  ):
    run_lib.check_processes(config, group)
    run_lib.settle_devices(
      ensemble_lib.Ensemble(config.ensemble).widen(layout),
      group,
      _SIMULATE_DEVICES.value,
    )
    devices.check_start()
    console = command.make_console(group)
    console.quiet |= _FORMAT.value == "json"
    patient = examination.Examination(group, config, console)
    patient.examine_processes(variables)
    program = patient.examine_program(network, layout)
    data = patient.examine_data(network, _DATA_DIR.value)
    patient.examine_workdir(workdir, data)
    ended = program is None or patient.examine_links(program, _TIMEOUT.value)
    patient.conclude()
    if _FORMAT.value == "json" and group.is_first:
      print(json.dumps(patient.facts, indent=2))
    code = 1 if patient.problems else 0
    if not ended:
      group.leave(code)
  sys.exit(code)


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)
