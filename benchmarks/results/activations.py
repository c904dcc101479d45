"""Reproduces "ReLU against tanh" of docs/results.md, the paper's figure 1.

    python -m benchmarks.results.activations
    python -m benchmarks.results.activations --init=source

Trains the network of four layers (`four_layer`) on the embedded digits, without
regularization: no dropout, weight decay, crops or colors. Each activation has
the learning rate with which it gets below 25 % training error soonest, as in
the paper. The error at a step is the mean over the last 14 steps, which are an
epoch of 1,498 images. With `he`, initial weights and inputs have unit scale.
With `source`, weights of standard deviation .01 read pixels of 0..255 minus
their mean, as in 2012.
"""

from __future__ import annotations

import statistics

import ml_collections
import numpy as np
import rich.console
import rich.table
from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.program import summary
from benchmarks.results import curves
from configs import default

ACTIVATIONS = ("relu", "tanh")
RATES = {
  "he": (0.001, 0.003, 0.01, 0.03, 0.1),
  "source": (3e-4, 1e-3, 3e-3, 1e-2),
}
SEEDS = (0, 1, 2)
GOAL = 0.25
# An epoch of 1,498 images is exactly 14 steps.
BATCH, STEPS_PER_EPOCH = 107, 14


def define_flags() -> None:
  command.define_data_dir()
  command.define_path(
    "picture",
    "Where the curves are drawn, .svg or .png.",
    default="docs/activations.svg",
  )
  flags.DEFINE_enum("init", "he", list(RATES), "Initial weights.")
  flags.DEFINE_float("epochs", 5.0, "Length of each run.")


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  console = command.make_console()
  errors, rates = {}, RATES[flags.FLAGS.init]
  for activation in ACTIVATIONS:
    for rate in rates:
      errors[activation, rate] = [
        find_errors(make_config(activation, rate, seed), flags.FLAGS.data_dir)
        for seed in SEEDS
      ]
  console.print(make_table(errors))
  best = {
    activation: min(
      rates, key=lambda rate, a=activation: _order(errors[a, rate])
    )
    for activation in ACTIVATIONS
  }
  goals = {
    activation: statistics.fmean(map(epochs_to_goal, errors[activation, rate]))
    for activation, rate in best.items()
  }
  command.print_line(
    console,
    f"epochs to {GOAL:.0%} training error, mean of {len(SEEDS)} seeds: "
    + ", ".join(
      f"{activation} {epochs:.2f} (rate {best[activation]:g})"
      for activation, epochs in goals.items()
    )
    + f"; tanh needs {goals['tanh'] / goals['relu']:.2f} times as many",
  )
  curves.draw(
    {
      f"{activation}, rate {rate:g}": [
        (_epochs(of_seed), of_seed) for of_seed in errors[activation, rate]
      ]
      for activation, rate in best.items()
    },
    title="Training error on digits, four-layer network, three seeds each",
    x="epochs",
    y="training error of the last epoch",
    path=flags.FLAGS.picture,
    mark=GOAL,
  )


def make_config(
  activation: str, rate: float, seed: int
) -> ml_collections.ConfigDict:
  config = default.get_config("digits")
  config.seed = seed
  config.batch_size = BATCH
  config.num_epochs = flags.FLAGS.epochs
  config.network.wiring = "four_layer"
  config.network.width = 1.0
  config.network.image_size = 32
  config.network.activation = activation
  config.data.stored_size = 32
  config.network.init = flags.FLAGS.init
  if flags.FLAGS.init == "source":
    config.augment.scale = 1.0
  config.augment.color_noise = 0.0
  config.optimizer.learning_rate = rate
  config.optimizer.drop_epochs = ()
  config.optimizer.weight_decay = 0.0
  config.log_every_steps = 1
  config.eval_every_steps = 10**6
  config.checkpoint_every_steps = 10**6
  return config


def find_errors(
  config: ml_collections.ConfigDict, data_dir: str | None
) -> np.ndarray:
  """Returns the error over the last epoch, at each step from epoch 1 on."""
  lines = curves.train_while_finite(config, data_dir=data_dir)
  steps = [
    line["training_top1_error"]
    for line in lines
    if "training_top1_error" in line
  ]
  window = np.ones(STEPS_PER_EPOCH) / STEPS_PER_EPOCH
  return np.convolve(steps, window, mode="valid")


def epochs_to_goal(errors: np.ndarray) -> float:
  """Returns the epochs until the error is below the goal; infinite if never."""
  below = np.flatnonzero(errors < GOAL)
  return float(_epochs(errors)[below[0]]) if len(below) else np.inf


def make_table(errors: dict) -> rich.table.Table:
  table = summary.make_table(
    f"Epochs to {GOAL:.0%} training error, by seed",
    *("activation", "> rate", *(f"> {seed}" for seed in SEEDS)),
    "> error at the end",
  )
  for (activation, rate), of_seeds in errors.items():
    table.add_row(
      activation,
      f"{rate:g}",
      *(
        f"{epochs:.2f}" if np.isfinite(epochs) else "not reached"
        for epochs in map(epochs_to_goal, of_seeds)
      ),
      ", ".join(f"{of_seed[-1]:.1%}" for of_seed in of_seeds),
    )
  return table


def _epochs(errors: np.ndarray) -> np.ndarray:
  return 1 + np.arange(len(errors)) / STEPS_PER_EPOCH


def _order(of_seeds: list[np.ndarray]) -> tuple[float, float]:
  """Sorts by epochs to the goal, then by the error at the end."""
  return (
    statistics.fmean(map(epochs_to_goal, of_seeds)),
    statistics.fmean(of_seed[-1] for of_seed in of_seeds),
  )


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)
