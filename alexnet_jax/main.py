"""Trains a network.

    python -m alexnet_jax.main --config=configs/two_device.py

Writes metrics.jsonl, TensorBoard events and checkpoints to the workdir. The
same command resumes a run that was interrupted, also on another layout or
another number of devices. So does --workdir without --config, with the config
that the run has stored there.
"""

import functools
import os
import sys

from alexnet_jax.distributed import malloc, preemption

if __name__ == "__main__":  # before the imports that take seconds
  malloc.keep_freed_memory(sys.argv)
  _SIGNALS = preemption.handle_signals()

from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.data import source
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.partition import audit
from alexnet_jax.program import devices, profiler
from alexnet_jax.settings import settings
from alexnet_jax.training import loop, tracker, train
from alexnet_jax.training import run as run_lib

_CONFIG = command.define_config()
_WORKDIR = command.define_path(
  "workdir",
  "The folder of metrics and checkpoints; a run in it is resumed. Default: "
  "runs/NAME or runs/NAME-VARIANT, after the config.",
  remedy=command.RUN_HERE,
)
_DATA_DIR = command.define_data_dir()
_SIMULATE_DEVICES = command.define_simulate_devices()
_DISTRIBUTED = command.define_distributed()
_START_TIMEOUT = command.define_start_timeout()
_XLA_OPTIONS = command.define_xla_options()
_IMPLEMENTATIONS = command.define_implementations()
_COMPILATION_CACHE = command.define_compilation_cache()
_HANG_TIMEOUT = flags.DEFINE_float(
  "hang_timeout_seconds",
  1800.0,
  "Seconds without a finished step, validation batch or checkpoint, once the "
  "step is compiled, after which the run ends with code 70 and the stacks of "
  "all threads. 0 disables it.",
  lower_bound=0.0,
)
_ALLOW_CONFIG_CHANGES = flags.DEFINE_boolean(
  "allow_config_changes",
  False,
  "Resume the run in --workdir with another config than it was trained with; "
  "the earlier config is kept beside the new one.",
)
_TRACKER = flags.DEFINE_string(
  "tracker",
  None,
  "MODULE:FUNCTION that gets the config and every scalar of the run, for "
  "trackers such as wandb or mlflow; docs/training.md has examples.",
)
_PROFILE = command.define_path(
  "profile",
  "Write a trace of some steps to this new folder, with a table of where their "
  "time goes.",
)
_PROFILE_STEPS = flags.DEFINE_string(
  "profile_steps",
  None,
  "With --profile: the steps to trace, as 100:105 for steps 100 to 104. "
  "Default: five steps, after ten others.",
)


def main(argv: list[str], *, signals: preemption.Signals | None = None) -> None:
  command.check_no_arguments(argv)
  config = _CONFIG.value
  workdir = _WORKDIR.value or os.path.join("runs", command.config_name())
  with command.exit_on_error(ValueError, TypeError, OSError):
    trace = profiler.make_request(_PROFILE.value, _PROFILE_STEPS.value)
    run_lib.check(config, data_dir=_DATA_DIR.value)
    same = settings.find_shared_fields(config) | {
      "--workdir": os.path.abspath(workdir),
      "--xla_options": _XLA_OPTIONS.value,
      "--implementations": _IMPLEMENTATIONS.value,
      "--compilation_cache": str(_COMPILATION_CACHE.value),
      "--allow_config_changes": str(_ALLOW_CONFIG_CHANGES.value),
      "--profile": str(trace and os.path.abspath(trace.folder)),
      "--profile_steps": str(_PROFILE_STEPS.value),
    }
  with command.start_group(
    _DISTRIBUTED, _START_TIMEOUT, same=same, signals=signals
  ) as group:
    with command.exit_on_error(
      ValueError, TypeError, OSError, tracker.TrackerError, group=group
    ):
      make_tracker = None
      if _TRACKER.value is not None and group.is_first:
        make_tracker = tracker.find(_TRACKER.value)
      run = run_lib.prepare(
        config,
        group=group,
        workdir=workdir,
        data_dir=_DATA_DIR.value,
        simulate_devices=_SIMULATE_DEVICES.value,
        xla_options=_XLA_OPTIONS.value,
        implementations=_IMPLEMENTATIONS.value,
        cache_dir=_COMPILATION_CACHE.value,
        allow_config_changes=_ALLOW_CONFIG_CHANGES.value,
        trace=trace,
      )
    console = command.make_console(group, command.PipeSafeConsole)
    try:
      with (
        command.mute_gloo(run.group, run.program.mesh),
        command.exit_on_error(
          audit.PlanMismatch,
          FloatingPointError,
          source.RecordError,
          OSError,
          tracker.TrackerError,
          group=group,
        ),
        devices.explain_out_of_memory(),
      ):
        train.train(
          run,
          console,
          hang_timeout_seconds=_HANG_TIMEOUT.value,
          make_tracker=make_tracker,
        )
    except loop.Stopped as stopped:
      command.print_line(console, stopped)
      sys.exit(group_lib.STOPPED)


if __name__ == "__main__":
  app.run(
    functools.partial(main, signals=_SIGNALS), flags_parser=command.parse_flags
  )
