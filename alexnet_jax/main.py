"""Trains a network: python -m alexnet_jax.main --config=configs/two_device.py

This file is the command line and no more; `train.py` is the program.
"""

import os
import sys

import rich.console
from absl import app, flags, logging
from ml_collections import config_flags

from alexnet_jax import run as run_lib
from alexnet_jax import train
from alexnet_jax.partition import audit

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The config: configs/NAME.py or configs/NAME.py:VARIANT."
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Where metrics and checkpoints go; a run that is there goes on. "
  "Default: runs/NAME, or runs/NAME-VARIANT, after the config.",
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Where TFDS keeps its sets. Default: TFDS's own."
)
_SIMULATE_DEVICES = flags.DEFINE_integer(
  "simulate_devices",
  None,
  "Use this many devices simulated on the CPU, and no accelerator. Default: "
  "as many as the layout needs, where there is no accelerator.",
  lower_bound=1,
)
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    _fail(ValueError(f"unexpected argument {argv[1]!r}, expected flags only."))
  config = _CONFIG.value
  console = rich.console.Console()
  if not console.is_terminal:
    console.width = 120
  try:
    run = run_lib.prepare(
      config,
      workdir=_WORKDIR.value or _default_workdir(),
      data_dir=_DATA_DIR.value,
      simulate_devices=_SIMULATE_DEVICES.value,
    )
  except (ValueError, TypeError, OSError) as error:
    _fail(error)
  try:
    train.train(run, console)
  except (audit.PlanMismatch, FloatingPointError, OSError) as error:
    _fail(error)
  except KeyboardInterrupt:
    sys.exit("interrupted; the same command goes on from the last checkpoint.")


def _default_workdir() -> str:
  name = config_flags.get_config_filename(flags.FLAGS["config"])
  path, _, variant = name.partition(":")
  stem = os.path.splitext(os.path.basename(path))[0]
  return os.path.join("runs", f"{stem}-{variant}" if variant else stem)


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    unused = flags.FLAGS(argv)
  except (AttributeError, KeyError) as error:  # no such field
    _fail(_name_field(error, argv))
  except ImportError as error:
    _fail(ImportError(f"{error}. Start from the folder that holds configs/."))
  except (flags.Error, ValueError, TypeError, OSError) as error:
    _fail(error)
  if flags.FLAGS["verbosity"].using_default_value:
    flags.FLAGS.verbosity = logging.WARNING  # libraries talk a lot
  return unused


def _name_field(error: Exception, argv: list[str]) -> Exception:
  """The error of ml_collections for a misspelt field, with its whole name."""
  while isinstance(error.args[0], Exception):
    error = error.args[0]
  name, _, hint = error.args[0].partition("\n")
  given = [flag.split("=")[0].lstrip("-") for flag in argv]
  fields = [flag for flag in given if name.strip("'") in flag.split(".")]
  return ValueError(
    f"the config has no field {' or '.join(fields) or name}. "
    f"{hint or 'configs/default.py lists all fields.'}"
  )


def _fail(error: Exception) -> None:
  """Ends with one line on standard error; --verbosity=1 adds the place."""
  logging.debug("where it was found:", exc_info=error)
  sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
  app.run(main, flags_parser=_parse_flags)
