"""Measures the speed of a part of a run, on this machine.

    python -m alexnet_jax.bench --what=input \
      --config=configs/one_device.py:imagenet --data_dir=DIR

--what=input: how many images a second are read, decoded, made into batches and
brought to the devices, each alone and all together; which of these bounds the
others; and how much of the decoder's own speed is left. Nothing is trained.

--what=augmentation: what the augmentation adds to the training step, which it
is a part of. Needs no data.

--what=layers: how long one device takes for each layer, forward and backward,
for its convolution or product alone, and for what is beside the layers.

--what=forms: how long each operation takes in each form that --forms knows.

--what=exchange: how long a step waits for its exchanges, and how long each
takes alone. None of these needs data.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

import rich.table
from absl import app, flags

from alexnet_jax import command, compiler_options, settings, step_speed
from alexnet_jax import program as program_lib
from alexnet_jax import run as run_lib
from alexnet_jax.data import sets, speed
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.speed import (
  exchange_tables,
  exchanges,
  form_tables,
  forms,
  layer_tables,
  layers,
)

_CONFIG = command.define_config()
_WHAT = flags.DEFINE_enum(
  "what",
  "input",
  ["input", "augmentation", "layers", "forms", "exchange"],
  "What to measure.",
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Where TFDS keeps its sets. Default: TFDS's own."
)
_SIMULATE_DEVICES = command.define_simulate_devices()
_ROUNDS = flags.DEFINE_integer(
  "rounds", 5, "How often each stage or step is measured.", lower_bound=1
)
_SECONDS = flags.DEFINE_float(
  "seconds", 1.0, "How long, each time; of the input.", lower_bound=0.0
)
command.check_finite(_SECONDS)
_XLA_OPTIONS = command.define_xla_options()
_FORMS = command.define_forms()
_FORMAT = flags.DEFINE_enum(
  "format", "table", ["table", "json"], "A table for people, or data."
)

_NO_TRANSFER = (
  "devices of the platform cpu take over the memory of a batch as it is: "
  "nothing is transferred",
)


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  with command.in_one_line(ValueError, TypeError, OSError):
    match _WHAT.value:
      case "input":
        found = _measure_input()
        data, tables = input_data(found), [input_table(found)]
        lines = input_lines(found)
      case "augmentation":
        found = step_speed.measure(_make_program(), rounds=_ROUNDS.value)
        data, tables = step_data(found), [step_table(found)]
        lines = [step_line(found)]
      case "layers":
        found = layers.measure(**_measured())
        data, lines = layer_tables.to_data(found), layer_tables.to_lines(found)
        tables = [
          layer_tables.layer_table(found),
          layer_tables.product_table(found),
        ]
      case "forms":
        found = forms.measure(**_measured())
        data, lines = form_tables.to_data(found), form_tables.to_lines(found)
        tables = [form_tables.to_table(found)]
      case "exchange":
        found = exchanges.measure(**_measured())
        data = exchange_tables.to_data(found)
        lines = exchange_tables.to_lines(found)
        tables = [
          exchange_tables.step_table(found),
          exchange_tables.plan_table(found),
        ]
  if _FORMAT.value == "json":
    print(json.dumps(data, indent=2))
    return
  console = command.make_console()
  for table in tables:
    command.print_whole(console, table)
  console.print()
  for line in lines:
    console.print(line, soft_wrap=True, highlight=False)


def _make_program() -> program_lib.Program:
  network, layout = settings.check(_CONFIG.value)
  settings.check_single(_CONFIG.value, command="bench")
  mesh_lib.simulate_devices(
    _SIMULATE_DEVICES.value or layout.devices,
    only_cpu=_SIMULATE_DEVICES.value is not None,
  )
  return run_lib.make_program(
    _CONFIG.value, network, layout, forms=_FORMS.value
  )


def _measured() -> dict[str, Any]:
  """What is measured of a program, and how often."""
  program = _make_program()
  options = compiler_options.choose(
    program.mesh.devices.flat, mode=_XLA_OPTIONS.value
  )
  return {
    "program": program,
    "rounds": _ROUNDS.value,
    "options": options.used,
  }


def _measure_input() -> speed.Speed:
  config, program = _CONFIG.value, _make_program()
  builder = sets.open_builder(config.data.name, data_dir=_DATA_DIR.value)
  sets.check_classes(builder, config.network.num_classes)
  records, _ = run_lib.open_splits(config, builder)
  return speed.measure(
    records,
    batch_size=config.batch_size,
    seed=config.seed,
    shardings=program.batch_shardings,
    threads=config.data.threads,
    batches_ahead=config.data.batches_ahead,
    rounds=_ROUNDS.value,
    seconds=_SECONDS.value,
  )


def input_data(found: speed.Speed) -> dict:
  """What the table shows, as data, and the rate of every round."""
  return {
    "threads": found.threads,
    "cores": found.cores,
    "rows": found.rows,
    "platform": found.platform,
    "stored_bytes_per_image": found.stored_bytes,
    "pixel_bytes_per_image": found.pixel_bytes,
    "images_per_second": {stage: found.median(stage) for stage in speed.STAGES},
    "images_per_second_of_rounds": found.rates,
    "slowest": found.slowest(),
    "host_of_decoder": found.of_decoder(),
  }


def input_table(found: speed.Speed) -> rich.table.Table:
  """A row for each stage."""
  table = rich.table.Table(
    title="\ninput of this process", title_justify="left", box=None
  )
  table.add_column("stage")
  for header in ("images/s", "per core", "MB/s", "lowest", "highest"):
    table.add_column(header, justify="right")
  for stage in speed.STAGES:
    rate, rates = found.median(stage), found.rates[stage]
    megabytes = rate * found.bytes_per_image(stage) / 1e6
    numbers = (rate, rate / found.cores, megabytes, min(rates), max(rates))
    table.add_row(stage, *(f"{number:,.0f}" for number in numbers))
  return table


def input_lines(found: speed.Speed) -> list[str]:
  """What the table means."""
  times = found.pixel_bytes / found.stored_bytes
  return [
    f"{found.threads} threads on {found.cores} cores, {found.rows} images of "
    f"each batch; medians of {len(found.rates['all'])} rounds",
    f"an image is {found.stored_bytes:,.0f} bytes as it is stored and "
    f"{found.pixel_bytes:,} as pixels, {times:.1f} times as many",
    f"of the stages alone, the slowest is {found.slowest()}",
    *(
      [
        f"the host makes batches at {found.of_decoder():.2f} of the speed of "
        "the decoder on images in memory, in the same threads"
      ]
      if found.median("decode") < found.median("read")
      else []  # there is hardly anything to decode
    ),
    *(_NO_TRANSFER if found.platform == "cpu" else ()),
  ]


def step_data(found: step_speed.Speed) -> dict:
  """What the table shows, as data, and the seconds of every step."""
  return {
    "batch_size": found.batch_size,
    "seconds_with": found.with_augmentation,
    "seconds_without": found.without,
    "added": found.added(),
  }


def step_table(found: step_speed.Speed) -> rich.table.Table:
  """A row for each step."""
  table = rich.table.Table(
    title=f"\na step of {found.batch_size} images, in ms",
    title_justify="left",
    box=None,
  )
  table.add_column("augmentation")
  for header in ("median", "lowest", "highest"):
    table.add_column(header, justify="right")
  for name, seconds in (
    ("with", found.with_augmentation),
    ("without", found.without),
  ):
    times = (statistics.median(seconds), min(seconds), max(seconds))
    table.add_row(name, *(f"{1e3 * time:,.1f}" for time in times))
  return table


def step_line(found: step_speed.Speed) -> str:
  """What the table means."""
  return (
    f"the augmentation adds {found.added():.1%} to a step: median of "
    f"{len(found.without)} pairs of steps, each with and without"
  )


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)
