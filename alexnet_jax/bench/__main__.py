"""Measures the speed of a run, or of a part of it, on this machine.

    python -m alexnet_jax.bench --config=configs/two_device.py
    python -m alexnet_jax.bench --what=input \
      --config=configs/one_device.py:imagenet --data_dir=DIR

--what=step: the training step of the config, beside what the devices can do at
most; memory; what the host costs. Needs no data.

--what=run: what share of a real run is spent outside its steps, and on what:
waiting for input, reports, checkpoints.

--what=startup: from the command to the end of the first step, phase by phase,
with an empty compilation cache and with one that is there.

--what=input: how many images a second are read, decoded, made into batches and
brought to the devices, each alone and all together; which of these bounds the
others; and how much of the decoder's own speed is left. Nothing is trained.

--what=augmentation: what the augmentation adds to the training step, which it
is a part of. Needs no data.

--what=layers: how long one device takes for each layer, forward and backward,
for its convolution or product alone, and for what is beside the layers.

--what=implementations: how long each operation takes in each form that --implementations knows.

--what=exchange: how long a step waits for its exchanges, and how long each
takes alone. None of these needs data.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from alexnet_jax.distributed import malloc

if __name__ == "__main__":  # as main does, before the imports that take seconds
  malloc.keep(sys.argv)

from absl import app, flags

from alexnet_jax.bench import exchanges, implementations, layers, startup, turns
from alexnet_jax.bench import input as input_speed
from alexnet_jax.bench import run as run_speed
from alexnet_jax.bench import step as step_lib
from alexnet_jax.cli import command
from alexnet_jax.data import sets, source
from alexnet_jax.partition import audit
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.program import compilation_cache, compiler_options, devices
from alexnet_jax.program import program as program_lib
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib

_CONFIG = command.define_config()
_WHAT = flags.DEFINE_enum(
  "what",
  "step",
  [
    *("step", "layers", "implementations", "exchange", "run", "startup"),
    *("input", "augmentation"),
  ],
  "What to measure.",
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Where TFDS keeps its sets. Default: TFDS's own."
)
_SIMULATE_DEVICES = command.define_simulate_devices()
_XLA_OPTIONS = command.define_xla_options()
_IMPLEMENTATIONS = command.define_implementations()
_COMPILATION_CACHE = command.define_compilation_cache()
_ROUNDS = flags.DEFINE_integer(
  "rounds",
  None,
  "How often each stage, step or start is measured. Default: 5; 3 of startup.",
  lower_bound=1,
)
_SECONDS = flags.DEFINE_float(
  "seconds", 1.0, "How long, each time; of the input.", lower_bound=0.0
)
command.check_finite(_SECONDS)
_STEPS = flags.DEFINE_integer(
  "steps", 60, "Of the run.", lower_bound=run_speed.FEWEST
)
_FORMAT = flags.DEFINE_enum(
  "format", "table", ["table", "json"], "A table for people, or data."
)


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  with (
    command.in_one_line(
      *(ValueError, TypeError, OSError, FloatingPointError),
      *(audit.PlanMismatch, source.RecordError),
    ),
    devices.name_shortage(),
  ):
    found = _measure()
  if _FORMAT.value == "json":
    print(json.dumps(found.data, indent=2))
    return
  console = command.make_console()
  for table in found.tables:
    command.print_whole(console, table)
  console.print()
  for line in found.lines:
    console.print(line, soft_wrap=True, highlight=False)


def _measure() -> turns.Shown:
  settings.check(_CONFIG.value)
  settings.check_single(_CONFIG.value, command="bench")
  rounds = _ROUNDS.value or (3 if _WHAT.value == "startup" else 5)
  match _WHAT.value:
    case "step":
      found = step_lib.measure(*_make_program(), rounds=rounds)
      return step_lib.show(found)
    case "layers":
      found = layers.measure(*_make_program(), rounds=rounds)
      return layers.show(found)
    case "implementations":
      found = implementations.measure(*_make_program(), rounds=rounds)
      return implementations.show(found)
    case "exchange":
      found = exchanges.measure(*_make_program(), rounds=rounds)
      return exchanges.show(found)
    case "run":
      return run_speed.show_run(_measure_run())
    case "startup":
      _open_builder()  # which makes `digits`, where it is not there
      found = startup.measure(sys.argv[1:], rounds=rounds)
      return run_speed.show_startup(found)
    case "input":
      return input_speed.show_input(_measure_input(rounds))
    case "augmentation":
      found = input_speed.measure_augmentation(*_make_program(), rounds=rounds)
      return input_speed.show_augmentation(found)


def _make_program() -> tuple[
  program_lib.Program, Mapping[str, compiler_options.Value]
]:
  """That of the config, and its options; what it compiles is kept."""
  network, layout = settings.check(_CONFIG.value)
  mesh_lib.simulate_devices(
    _SIMULATE_DEVICES.value or layout.devices,
    only_cpu=_SIMULATE_DEVICES.value is not None,
  )
  program = run_lib.make_program(
    _CONFIG.value, network, layout, implementations=_IMPLEMENTATIONS.value
  )
  compilation_cache.open_cache(_COMPILATION_CACHE.value)
  options = compiler_options.choose(
    program.mesh.devices.flat, mode=_XLA_OPTIONS.value
  )
  return program, options.used


def _open_builder():
  builder = sets.open_builder(_CONFIG.value.data.name, data_dir=_DATA_DIR.value)
  sets.check_classes(builder, _CONFIG.value.network.num_classes)
  return builder


def _measure_run() -> run_speed.Speed:
  return run_speed.measure(
    _CONFIG.value,
    steps=_STEPS.value,
    data_dir=_DATA_DIR.value,
    simulate_devices=_SIMULATE_DEVICES.value,
    xla_options=_XLA_OPTIONS.value,
    implementations=_IMPLEMENTATIONS.value,
    cache_dir=_COMPILATION_CACHE.value,
  )


def _measure_input(rounds: int) -> input_speed.Speed:
  config, (program, _) = _CONFIG.value, _make_program()
  records, _ = run_lib.open_splits(config, _open_builder())
  return input_speed.measure(
    records,
    batch_size=config.batch_size,
    seed=config.seed,
    shardings=program.batch_shardings,
    threads=config.data.threads,
    batches_ahead=config.data.batches_ahead,
    rounds=rounds,
    seconds=_SECONDS.value,
  )


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)
