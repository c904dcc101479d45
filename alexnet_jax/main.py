"""Trains a network: python -m alexnet_jax.main --config=configs/two_device.py

This file is the command line and no more; `train.py` is the program.
"""

import functools
import os
import sys

from alexnet_jax.distributed import malloc, preemption

if __name__ == "__main__":  # before the imports that take seconds
  malloc.keep(sys.argv)
  _SIGNALS = preemption.handle_signals()

from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.data import source
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.partition import audit
from alexnet_jax.program import devices
from alexnet_jax.settings import settings
from alexnet_jax.training import loop, train
from alexnet_jax.training import run as run_lib

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
_IMPLEMENTATIONS = command.define_implementations()
_COMPILATION_CACHE = command.define_compilation_cache()
_STUCK_SECONDS = flags.DEFINE_float(
  "hang_timeout_seconds",
  1800.0,
  "End with code 70 and the stacks of all threads where no step, no batch of a "
  "validation and no checkpoint gets done for so long, from when the step is "
  "compiled; 0: never. More than any of them takes, less than a night.",
  lower_bound=0.0,
)
_ACCEPT_CHANGES = flags.DEFINE_boolean(
  "allow_config_changes",
  False,
  "Go on in --workdir with another config than it was trained with. The config "
  "of before is kept beside the new one.",
)


def main(argv: list[str], *, signals: preemption.Signals | None = None) -> None:
  command.check_no_arguments(argv)
  config = _CONFIG.value
  workdir = _WORKDIR.value or os.path.join("runs", command.config_name())
  with command.in_one_line(ValueError, TypeError, OSError):
    settings.check(config)
    same = settings.find_same(config) | {
      "--workdir": os.path.abspath(workdir),
      "--xla_options": _XLA_OPTIONS.value,
      "--implementations": _IMPLEMENTATIONS.value,
      "--compilation_cache": str(_COMPILATION_CACHE.value),
      "--allow_config_changes": str(_ACCEPT_CHANGES.value),
    }
  with command.start(
    _DISTRIBUTED, _START_TIMEOUT, same=same, signals=signals
  ) as group:
    with command.in_one_line(ValueError, TypeError, OSError, group=group):
      run = run_lib.prepare(
        config,
        group=group,
        workdir=workdir,
        data_dir=_DATA_DIR.value,
        simulate_devices=_SIMULATE_DEVICES.value,
        xla_options=_XLA_OPTIONS.value,
        implementations=_IMPLEMENTATIONS.value,
        cache_dir=_COMPILATION_CACHE.value,
        allow_config_changes=_ACCEPT_CHANGES.value,
      )
    console = command.make_console(group, command.Lasting)
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
        train.train(run, console, hang_timeout_seconds=_STUCK_SECONDS.value)
    except loop.Stopped as stopped:
      console.print(stopped, highlight=False, soft_wrap=True)
      sys.exit(group_lib.STOPPED)


if __name__ == "__main__":
  app.run(
    functools.partial(main, signals=_SIGNALS), flags_parser=command.parse_flags
  )
