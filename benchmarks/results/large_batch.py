"""Reproduces "A batch of 1,024" of docs/results.md: SGD against LARS.

    python -m benchmarks.results.large_batch

Trains the default network of `digits` for 24 epochs, which are 562 updates at a
batch of 64 and 36 at 1,024. SGD has the rate of the batch of 64 times 16, with
and without a warm-up of 5 epochs. LARS has the same warm-up. Both have the same
schedule, a polynomial of power 2, so that only the update rule differs.
"""

from __future__ import annotations

import statistics

import ml_collections
from absl import app, flags

from alexnet_jax.cli import command
from benchmarks.results import curves
from configs import default

SEEDS = (0, 1, 2)
SMALL, LARGE = 64, 1024
RATE = 0.01
# name -> batch, fields of config.optimizer.
SCALED = RATE * LARGE / SMALL
FALLS = {"schedule": "polynomial", "drop_epochs": ()}
RUNS = {
  f"SGD, batch {SMALL}": (SMALL, {"learning_rate": RATE}),
  f"SGD, batch {LARGE}, rate {SCALED:g}": (
    LARGE,
    {"learning_rate": SCALED, **FALLS},
  ),
  f"SGD, batch {LARGE}, rate {SCALED:g}, warm-up": (
    LARGE,
    {"learning_rate": SCALED, "warmup_epochs": 5.0, **FALLS},
  ),
  **{
    f"LARS, batch {LARGE}, rate {rate:g}, warm-up": (
      LARGE,
      {
        "learning_rate": rate,
        "warmup_epochs": 5.0,
        "trust_coefficient": 0.001,
        # LARS does not adapt biases: they have the rate of SGD.
        "bias_lr_multiplier": SCALED / rate,
        **FALLS,
      },
    )
    for rate in (2.5, 5.0, 10.0)
  },
}


def define_flags() -> None:
  command.define_data_dir()
  command.define_path(
    "picture",
    "Where the curves are drawn, .svg or .png.",
    default="docs/large_batch.svg",
  )


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  console = command.make_console()
  lines = {}
  for name, (batch, fields) in RUNS.items():
    lines[name] = [
      curves.train_while_finite(
        make_config(batch, fields, seed), data_dir=flags.FLAGS.data_dir
      )
      for seed in SEEDS
    ]
    command.print_line(console, _say(name, lines[name]))
  best = min(
    (name for name in RUNS if name.startswith("LARS")),
    key=lambda name: statistics.fmean(_final(run) for run in lines[name]),
  )
  shown = [name for name in RUNS if not name.startswith("LARS")] + [best]
  curves.draw(
    {
      name: [_curve(run, RUNS[name][0]) for run in lines[name]]
      for name in shown
    },
    title="Training loss on digits, 24 epochs, three seeds each",
    x="epochs",
    y="training loss, nats",
    path=flags.FLAGS.picture,
    top=3.0,
  )


def make_config(
  batch: int, fields: dict[str, object], seed: int
) -> ml_collections.ConfigDict:
  config = default.get_config("digits")
  config.seed = seed
  config.batch_size = batch
  config.optimizer.update(fields)
  config.log_every_steps = 1
  config.eval_every_steps = 10**6
  config.checkpoint_every_steps = 10**6
  return config


def _curve(
  run: list[dict[str, float]], batch: int
) -> tuple[list[float], list[float]]:
  """Epochs, and the loss averaged over the last 1,024 images."""
  losses = [line["training_loss"] for line in run if "training_loss" in line]
  window = LARGE // batch
  means = [
    statistics.fmean(losses[end - window : end])
    for end in range(window, len(losses) + 1)
  ]
  return [(window + index) * batch / 1498 for index in range(len(means))], means


def _final(run: list[dict[str, float]]) -> float:
  """Validation error at the end; 1 if the loss was not finite."""
  _, errors = curves.find_errors(run)
  return errors[-1] if errors else 1.0


def _say(name: str, runs: list[list[dict[str, float]]]) -> str:
  ends = [
    f"{_final(run):.1%}"
    if "validation_top1_error" in run[-1]
    else f"not finite after step {run[-1]['step'] if run else 0}"
    for run in runs
  ]
  losses = [
    f"{_curve(run, RUNS[name][0])[1][-1]:.3f}" if len(run) > 16 else "none"
    for run in runs
  ]
  return (
    f"{name}: validation top-1 error {', '.join(ends)}; training loss at the "
    f"end {', '.join(losses)}"
  )


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)
