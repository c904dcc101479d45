"""Reproduces "From five classes to ten" of docs/results.md.

    python -m benchmarks.results.warm_start

Trains the default network of `digits` in two columns on the digits 0 to 4. Then
trains it on all ten digits: from these layers with the convolutions frozen,
slowed to a tenth, and free, and from scratch. fc8, which has other classes, is
drawn anew in all of them. Shows the validation error by step.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence

import ml_collections
import rich.table
import tensorflow_datasets as tfds
from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.data import digits
from alexnet_jax.program import summary
from benchmarks.results import curves
from configs import default

CLASSES = 5
# Factor of the learning rate of the convolutions; None: from scratch.
RUNS = {
  "convolutions frozen": 0.0,
  "convolutions at a tenth of the rate": 0.1,
  "all layers free": 1.0,
  "from scratch": None,
}
CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")
SEEDS = (0, 1)
LAYOUT = "two_column"
SOURCE_EPOCHS = 12.0
EVAL_EVERY_STEPS = 6
# Steps whose errors the table shows.
SHOWN = (6, 12, 24, 48, 96)
GOAL = 0.1


class FirstDigits(digits.Digits):
  """TFDS builder: those images of `digits` that show 0 to 4."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}

  def _info(self) -> tfds.core.DatasetInfo:
    # Not `dataset_info_from_configs`, which wants a module of a package.
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
          "label": tfds.features.ClassLabel(num_classes=CLASSES),
        }
      ),
      supervised_keys=("image", "label"),
    )

  def _generate_examples(self, validation: bool):
    for number, example in super()._generate_examples(validation):
      if example["label"] < CLASSES:
        yield number, example


def define_flags() -> None:
  command.define_path(
    "picture",
    "Where the curves are drawn, .svg or .png.",
    default="docs/warm_start.svg",
  )
  flags.DEFINE_float("epochs", 8.0, "Length of each run on ten digits.")


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  console = command.make_console()
  with tempfile.TemporaryDirectory() as folder:
    source, data_dir = (
      os.path.join(folder, name) for name in ("source", "data")
    )
    build_set(data_dir)
    _, lines = curves.train_to_end(
      make_source_config(), data_dir=data_dir, workdir=source
    )
    command.print_line(
      console,
      f"digits 0 to 4, {SOURCE_EPOCHS:g} epochs: validation top-1 error "
      f"{curves.find_errors(lines)[1][-1]:.1%}",
    )
    errors = {
      name: [
        curves.find_errors(
          curves.train_while_finite(
            make_config(factor, seed, source), data_dir=data_dir
          )
        )
        for seed in SEEDS
      ]
      for name, factor in RUNS.items()
    }
  console.print(make_table(errors))
  curves.draw(
    errors,
    title="From five digits to ten, two columns, two seeds each",
    x="step",
    y="validation top-1 error",
    path=flags.FLAGS.picture,
  )


def build_set(data_dir: str) -> None:
  """Writes the set of the first five digits, as TFDS does."""
  builder = FirstDigits(data_dir=data_dir, file_format="array_record")
  # TFDS announces a download that does not happen.
  with contextlib.redirect_stdout(io.StringIO()):
    tfds.disable_progress_bar()
    builder.download_and_prepare()


def make_source_config() -> ml_collections.ConfigDict:
  config = default.get_config("digits")
  config.layout.name = LAYOUT
  config.data.name = FirstDigits.name
  config.network.num_classes = CLASSES
  default.shorten(config, SOURCE_EPOCHS)
  return config


def make_config(
  factor: float | None, seed: int, source: str
) -> ml_collections.ConfigDict:
  """Makes the config of a run on ten digits.

  Args:
    factor: of the learning rate of the convolutions; None: from scratch.
    seed: of the order of the images, and of the layers that are drawn.
    source: workdir of the run to start from.
  """
  config = default.get_config("digits")
  config.layout.name = LAYOUT
  config.seed = seed
  config.num_epochs = flags.FLAGS.epochs
  config.optimizer.drop_epochs = ()
  config.eval_every_steps = EVAL_EVERY_STEPS
  config.checkpoint_every_steps = 10**6
  if factor is not None:
    config.init_from.workdir = source
    config.init_from.leave_out = ("fc8",)
    config.optimizer.layers = {
      name: {"lr_multiplier": factor} for name in CONVOLUTIONS
    }
  return config


def make_table(errors: Mapping[str, Sequence]) -> rich.table.Table:
  table = summary.make_table(
    f"Validation top-1 error on ten digits, %, mean of {len(SEEDS)} seeds",
    *("start", *(f"> step {step}" for step in SHOWN), "> end"),
    f"> steps to {GOAL:.0%}",
  )
  for name, of_seeds in errors.items():
    by_step = [dict(zip(*one, strict=True)) for one in of_seeds]
    means = [
      statistics.fmean(one[step] for one in by_step)
      for step in (*SHOWN, of_seeds[0][0][-1])
    ]
    goals = [
      next((step for step, error in one.items() if error <= GOAL), None)
      for one in by_step
    ]
    table.add_row(
      name,
      *(f"{100 * mean:.1f}" for mean in means),
      ", ".join("not reached" if goal is None else str(goal) for goal in goals),
    )
  return table


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)
