"""Trains a network: python -m alexnet_jax.main --config=configs/two_device.py

This file is the command line and no more; `train.py` is the program.
"""

import os
import sys

from absl import app, flags

from alexnet_jax import command, devices, settings, train
from alexnet_jax import run as run_lib
from alexnet_jax.data import source
from alexnet_jax.partition import audit
from alexnet_jax.processes import group as group_lib

_CONFIG = command.define_config()
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Where metrics and checkpoints go; a run that is there goes on. "
  "Default: runs/NAME, or runs/NAME-VARIANT, after the config.",
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Where TFDS keeps its sets. Default: TFDS's own."
)
_SIMULATE_DEVICES = command.define_simulate_devices()
_DISTRIBUTED = command.define_distributed()
_START_TIMEOUT = command.define_start_timeout()
_XLA_OPTIONS = command.define_xla_options()
_COMPILATION_CACHE = command.define_compilation_cache()


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  config = _CONFIG.value
  workdir = _WORKDIR.value or os.path.join("runs", command.config_name())
  with command.in_one_line(ValueError, TypeError, OSError):
    settings.check(config)
    same = settings.find_same(config) | {
      "--workdir": os.path.abspath(workdir),
      "--xla_options": _XLA_OPTIONS.value,
      "--compilation_cache": str(_COMPILATION_CACHE.value),
    }
  with command.start(_DISTRIBUTED, _START_TIMEOUT, same=same) as group:
    with command.in_one_line(ValueError, TypeError, OSError, group=group):
      run = run_lib.prepare(
        config,
        group=group,
        workdir=workdir,
        data_dir=_DATA_DIR.value,
        simulate_devices=_SIMULATE_DEVICES.value,
        xla_options=_XLA_OPTIONS.value,
        cache_dir=_COMPILATION_CACHE.value,
      )
    try:
      with (
        command.mute_gloo(run.group, run.program.mesh),
        command.in_one_line(
          audit.PlanMismatch,
          FloatingPointError,
          source.RecordError,
          OSError,
          group=group,
        ),
        devices.name_shortage(),
      ):
        train.train(run, command.make_console(group))
    except train.Stopped as stopped:
      if group.is_first:
        print(stopped)
      sys.exit(group_lib.STOPPED)
    except KeyboardInterrupt:
      sys.exit(
        "interrupted; the same command goes on from the last checkpoint."
      )


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)
