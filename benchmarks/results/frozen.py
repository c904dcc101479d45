"""Reproduces the time of steps with frozen layers, of docs/training.md.

    python -m benchmarks.results.frozen

Takes steps of configs/two_device.py for the digits in turns: all layers
trained, convolutions frozen for the run (`lr_multiplier=0`), and frozen at a
rate of 0 from the first epoch on (`rates`), which computes all gradients.
"""

from __future__ import annotations

import operator

import jax
from absl import app, flags

from alexnet_jax.bench import report, turns
from alexnet_jax.cli import command
from alexnet_jax.partition import mesh
from alexnet_jax.program import compiled_step, compiler_options, summary
from alexnet_jax.program import program as program_lib
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from configs import two_device

CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")
FROZEN, RATE_0 = {"lr_multiplier": 0.0}, {"rates": ((0.0, 0.0),)}
FREE = "all layers trained"
RULES = {
  FREE: {},
  "conv1 frozen": {"conv1": FROZEN},
  "five convolutions frozen": dict.fromkeys(CONVOLUTIONS, FROZEN),
  "the five at a rate of 0": dict.fromkeys(CONVOLUTIONS, RATE_0),
}


def define_flags() -> None:
  flags.DEFINE_integer("rounds", 40, "Rounds, in which each takes a step.")


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  mesh.simulate_devices(2, only_cpu=False)
  programs = {name: make_program(rules) for name, rules in RULES.items()}
  options = compiler_options.choose(jax.devices(), mode="auto").used
  calls = {}
  for name, program in programs.items():
    compiled, _ = compiled_step.compile_step(program, options=options)
    calls[name] = turns.StepRunner(program, compiled).start
  platform = jax.devices()[0].platform
  seconds = turns.take_turns(
    calls, rounds=flags.FLAGS.rounds, in_order=platform != "cpu"
  )
  table = summary.make_table(
    f"a step of configs/two_device.py, {flags.FLAGS.rounds} rounds in turns",
    *("layers", "> median ms", "> lowest", "> highest", "> times faster"),
    *("> GFLOP", "> MB sent"),
  )
  for name, program in programs.items():
    loads = program.device_loads.values()
    faster = report.median_of_rounds(
      operator.truediv, seconds[FREE], seconds[name]
    )
    table.add_row(
      *(name, *report.spread_ms(seconds[name], 1), f"{faster:.2f}"),
      f"{sum(load.flops for load in loads) / 1e9:.2f}",
      summary.to_mb(sum(one.sent_bytes for one in program.plan)),
    )
  console = command.make_console()
  console.print(table)
  console.print(
    "times faster: median over the rounds; GFLOP and MB: of one device",
    highlight=False,
  )


def make_program(rules: dict) -> program_lib.Program:
  config = two_device.get_config("digits")
  config.optimizer.layers = rules
  return run_lib.make_program(config, *settings.check(config))


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)
