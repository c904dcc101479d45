"""Measures the speed of a run, or of a part of it, on this machine.

    python -m alexnet_jax.bench --config=configs/two_device.py
    python -m alexnet_jax.bench --what=input \\
      --config=configs/one_device.py:imagenet --data_dir=DIR

--what=step: the training step of the config, compared with the peak of the
devices; memory; the cost of the host.
With --profile=DIR also a trace of five steps, with a table of where they go.

--what=run: the time of a real run that is spent outside its steps, and on what:
waiting for input, reports, checkpoints.

--what=startup: from the command to the end of the first step, phase by phase,
with an empty compilation cache and with a filled one.

--what=input: images per second that are read, decoded, made into batches and
transferred to the devices, each stage alone and all together; which stage is
the slowest. Nothing is trained.

--what=augmentation: what the augmentation adds to the training step.

--what=layers: the time of each layer on one device, forward and backward, of
its convolution or product alone, and of the other parts of the step.

--what=implementations: the time of each operation in each implementation that
--implementations can choose.

--what=exchange: how long a step waits for its exchanges, and the time of each
exchange alone.

--what=machine --json=mine.json: a machine file for the planner: layers and the
other parts of a step in the shapes that layouts of as many devices give them,
and collectives over each kind of link. Started by a launcher, as main, it
measures the devices of all processes. In a file that exists, what was measured
of other networks and batches stays.

Only run, startup and input need data.
"""

from __future__ import annotations

import contextlib
import sys

from alexnet_jax.distributed import malloc

if __name__ == "__main__":  # as main does, before the imports that take seconds
  malloc.keep_freed_memory(sys.argv)

from absl import app, flags

from alexnet_jax.bench import (
  augmentation,
  exchanges,
  implementations,
  layers,
  machine,
  report,
  startup,
  step,
)
from alexnet_jax.bench import input as bench_input
from alexnet_jax.bench import run as bench_run
from alexnet_jax.cli import command
from alexnet_jax.data import sets, source
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.partition import audit
from alexnet_jax.program import (
  compilation_cache,
  compiler_options,
  devices,
  profiler,
)
from alexnet_jax.program import program as program_lib
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib

# What needs only the program of the config.
_OF_PROGRAM = {
  "layers": layers.measure,
  "implementations": implementations.measure,
  "exchange": exchanges.measure,
  "augmentation": augmentation.measure,
}

_CONFIG = command.define_config()
_WHAT = flags.DEFINE_enum(
  "what",
  "step",
  ["step", *_OF_PROGRAM, "machine", "run", "startup", "input"],
  "What to measure.",
)
_DATA_DIR = command.define_data_dir()
_SIMULATE_DEVICES = command.define_simulate_devices()
_XLA_OPTIONS = command.define_xla_options()
_IMPLEMENTATIONS = command.define_implementations()
_COMPILATION_CACHE = command.define_compilation_cache()
_ROUNDS = flags.DEFINE_integer(
  "rounds",
  None,
  "How often each thing is measured. Default: 5; for startup 3.",
  lower_bound=1,
)
_SECONDS = flags.DEFINE_float(
  "seconds",
  1.0,
  "For the input: how long each stage is measured in a round.",
  lower_bound=0.0,
)
command.check_finite(_SECONDS)
_STEPS = flags.DEFINE_integer(
  "steps",
  60,
  "For the run: how many steps it has.",
  lower_bound=bench_run.FEWEST,
)
_JSON = command.define_path(
  "json", "For the machine: the file to write, or to add to; required."
)
_LINK_GBITS = flags.DEFINE_float(
  "link_gbits",
  None,
  "For the machine: nominal rate of the link between processes or hosts, in "
  "Gbit/s and one direction. Default: the best rate of a collective.",
  lower_bound=1e-6,
)
command.check_finite(_LINK_GBITS)
_PROFILE = command.define_path(
  "profile", "For the step: a new folder, for a trace of five further steps."
)
_DISTRIBUTED = command.define_distributed()
_START_TIMEOUT = command.define_start_timeout()
_FORMAT = command.define_format()


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  errors = (
    *(ValueError, TypeError, OSError, FloatingPointError),
    *(audit.PlanMismatch, source.RecordError),
  )
  with contextlib.ExitStack() as stack:
    with command.exit_on_error(*errors):
      _check_flags()
    group = group_lib.alone()
    if _WHAT.value == "machine":
      same = settings.find_shared_fields(_CONFIG.value) | {
        f"--{flag.name}": str(flag.value)
        for flag in (_ROUNDS, _LINK_GBITS, _XLA_OPTIONS, _IMPLEMENTATIONS)
      }
      group = stack.enter_context(
        command.start_group(_DISTRIBUTED, _START_TIMEOUT, same=same)
      )
    with (
      command.exit_on_error(*errors, group=group),
      devices.explain_out_of_memory(),
    ):
      result = _measure(group)
  if group.is_first:
    _show(result)


def _check_flags() -> None:
  """Checks the config, and flags of one measurement only.

  Raises:
    ValueError, TypeError, OSError: names the flag, field or folder.
  """
  if _PROFILE.value is not None and _WHAT.value != "step":
    raise ValueError(
      f"--profile is {_PROFILE.value!r}, but --what={_WHAT.value} does not use "
      "it. Set --what=step, or leave --profile out."
    )
  profiler.make_request(_PROFILE.value, None)
  run_lib.check(_CONFIG.value, data_dir=_DATA_DIR.value)
  settings.check_single(_CONFIG.value, command="bench")
  if _WHAT.value == "machine":
    if _JSON.value is None:
      raise ValueError(
        "--what=machine writes a file, and none is named. Set --json, for "
        "example --json=mine.json."
      )
    return
  for flag in (_JSON, _LINK_GBITS):
    if flag.value is not None:
      raise ValueError(
        f"--{flag.name} is {flag.value!r}, but --what={_WHAT.value} does not "
        f"use it. Set --what=machine, or leave --{flag.name} out."
      )


def _show(result: report.Result) -> None:
  if _FORMAT.value == "json":
    print(command.to_json(report.to_data(result)))
    return
  console = command.make_console()
  for table in result.tables():
    command.print_table(console, table)
  console.print()
  for line in result.lines():
    command.print_line(console, line)


def _measure(group: group_lib.Group) -> report.Result:
  rounds = _ROUNDS.value or (3 if _WHAT.value == "startup" else 5)
  match _WHAT.value:
    case "machine":
      if group.is_first:  # which writes it
        command.check_path(_JSON.value, flag="json", endings=(".json",))
      is_json = _FORMAT.value == "json"
      console = command.make_console(
        group, file=sys.stderr if is_json else None
      )
      program, options = _make_program(group)
      with command.mute_gloo(group, program.mesh):
        return machine.measure(
          program,
          options,
          rounds=rounds,
          path=_JSON.value,
          group=group,
          console=console,
          link_gbits=_LINK_GBITS.value,
        )
    case "run":
      return bench_run.measure(
        _CONFIG.value,
        steps=_STEPS.value,
        data_dir=_DATA_DIR.value,
        simulate_devices=_SIMULATE_DEVICES.value,
        xla_options=_XLA_OPTIONS.value,
        implementations=_IMPLEMENTATIONS.value,
        cache_dir=_COMPILATION_CACHE.value,
      )
    case "startup":
      _open_builder()  # prepares `digits` if needed
      return startup.measure(sys.argv[1:], rounds=rounds)
    case "input":
      program, _ = _make_program(group)
      records, _ = run_lib.open_splits(_CONFIG.value, _open_builder())
      return bench_input.measure(
        records,
        batch_size=_CONFIG.value.batch_size,
        seed=_CONFIG.value.seed,
        shardings=program.batch_shardings,
        threads=_CONFIG.value.data.threads,
        batches_ahead=_CONFIG.value.data.batches_ahead,
        rounds=rounds,
        seconds=_SECONDS.value,
      )
    case "step":
      return step.measure(
        *_make_program(group), rounds=rounds, trace_folder=_PROFILE.value
      )
    case what:
      return _OF_PROGRAM[what](*_make_program(group), rounds=rounds)


def _make_program(
  group: group_lib.Group,
) -> tuple[program_lib.Program, report.Options]:
  network, layout = settings.check(_CONFIG.value)
  run_lib.start_devices(_CONFIG.value, layout, group, _SIMULATE_DEVICES.value)
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


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse_flags)
