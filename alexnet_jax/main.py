"""Trains a network: python -m alexnet_jax.main --config=configs/two_device.py

This file is the command line and no more; `train.py` is the program.
"""

import os
import sys

from absl import app, flags

from alexnet_jax import command, train
from alexnet_jax import run as run_lib
from alexnet_jax.data import source
from alexnet_jax.partition import audit

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


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  workdir = _WORKDIR.value or os.path.join("runs", command.config_name())
  with command.in_one_line(ValueError, TypeError, OSError):
    run = run_lib.prepare(
      _CONFIG.value,
      workdir=workdir,
      data_dir=_DATA_DIR.value,
      simulate_devices=_SIMULATE_DEVICES.value,
    )
  try:
    with command.in_one_line(
      audit.PlanMismatch, FloatingPointError, source.RecordError, OSError
    ):
      train.train(run, command.make_console())
  except KeyboardInterrupt:
    sys.exit("interrupted; the same command goes on from the last checkpoint.")


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)
