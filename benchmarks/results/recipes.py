"""Reproduces "Recipes and ablations, under two layouts" of docs/results.md.

    python -m benchmarks.results.recipes

Trains the `digits` variant of every recipe and ablation under two layouts,
shortened to a few steps that still include each event of its schedule. Reports
the largest relative difference of their training losses, and exits with 1 if
one is above 1e-5. Sums in another order differ by less in so few steps. In more
steps, a near tie in pooling or at the zero of a ReLU may amplify rounding, on
one device too: see `alexnet_jax/verify.py`, and try another `--seed`.
"""

from __future__ import annotations

import importlib
import sys

import ml_collections
import numpy as np
from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.program import summary
from benchmarks.results import curves
from configs import ablations, default, lenet5

RECIPES = ("paper", "source", "source_2013", "one_weird_trick")
RECIPES += ("batch_norm", "large_batch")
LAYOUTS = ("one_device", "two_column")
TOLERANCE = 1e-5
BATCH, STEPS, IMAGES = 32, 5, 1498


def define_flags() -> None:
  flags.DEFINE_integer("steps", STEPS, "For each run.")
  flags.DEFINE_integer("seed", 0, "For each run.")
  command.define_data_dir()
  command.define_list("only", [], "Names of configs. Default: all.")


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  table = summary.make_table(
    f"{flags.FLAGS.steps} steps of {BATCH} images of digits",
    *("config", "> loss at the start", "> at the end", "> difference"),
  )
  worst = 0.0
  for name in flags.FLAGS.only or list_configs():
    losses = [
      train(
        make_config(name, steps=flags.FLAGS.steps, seed=flags.FLAGS.seed),
        layout,
        data_dir=flags.FLAGS.data_dir,
      )
      for layout in LAYOUTS
    ]
    difference = differ(*losses)
    worst = max(worst, difference)
    start, *_, end = losses[0]
    table.add_row(name, f"{start:.4f}", f"{end:.4f}", f"{difference:.1e}")
  console = command.make_console()
  console.print(table)
  console.print(f"largest relative difference: {worst:.1e}", highlight=False)
  sys.exit(0 if worst <= TOLERANCE else 1)


def list_configs() -> list[str]:
  """Returns the names of recipes, ablations, and LeNet-5."""
  return [*RECIPES, *ablations.ABLATIONS, "lenet5"]


def make_config(
  name: str, *, steps: int = STEPS, seed: int = 0
) -> ml_collections.ConfigDict:
  """Returns the config of a name, shortened to a few steps."""
  if name in RECIPES:
    module = importlib.import_module(f"configs.recipes.{name}")
    config = module.get_config("digits")
  elif name == "lenet5":
    config = lenet5.get_config()
  else:
    config = ablations.get_config(name)
  config.seed = seed
  config.batch_size = BATCH
  default.shorten(config, steps * BATCH / IMAGES)
  config.layout.mesh.update({"data": None, "column": None, "model": None})
  config.log_every_steps = 1
  # So that the rate drops at a plateau within these steps.
  config.eval_every_steps = 1
  config.optimizer.plateau_patience = 1
  config.optimizer.plateau_min_change = 0.9
  config.validation_views = 1
  config.data.validation_split = "validation[:32]"
  config.checkpoint_every_steps = 10**6
  return config


def train(
  config: ml_collections.ConfigDict, layout: str, *, data_dir: str | None
) -> np.ndarray:
  """Returns the training losses under a layout, f32[steps].

  Raises:
    FloatingPointError: one is not finite.
  """
  config.layout.name = layout
  _, lines = curves.train_to_end(config, data_dir=data_dir, simulate_devices=2)
  return np.array(
    [line["training_loss"] for line in lines if "training_loss" in line]
  )


def differ(losses: np.ndarray, others: np.ndarray) -> float:
  """Returns the largest relative difference of two curves of one length."""
  return float(np.max(np.abs(losses - others) / np.abs(others)))


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)
