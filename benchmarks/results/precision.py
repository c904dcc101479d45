"""Reproduces "bfloat16" of docs/results.md, with the full-size network.

    python -m benchmarks.results.precision

Runs the same 50 steps twice on one device, from the same weights, on the same
crops of scikit-learn's two photographs with random labels of 1,000 classes:
once computed in float32, and once in bfloat16 with float32 parameters and
optimizer. With `--layout=two_column`, activations also cross in bfloat16.
"""

from __future__ import annotations

import jax
import numpy as np
from absl import app, flags
from sklearn import datasets

from alexnet_jax.cli import command
from alexnet_jax.partition import mesh
from alexnet_jax.program import compiled_step, summary
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from configs import default

# More than 50 steps read, so that no image comes twice, as in ImageNet.
IMAGES, CLASSES = 2048, 1000
IMAGENET_IMAGES = 1_281_167


def define_flags() -> None:
  flags.DEFINE_integer("batch", 32, "Images in a step.")
  flags.DEFINE_integer("steps", 50, "Steps.")
  flags.DEFINE_string("layout", "one_device", "Layout.")


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  images, labels = make_set(side=256)
  runs = {}
  for precision in ("float32", "bfloat16"):
    config = default.get_config("imagenet")
    config.layout.name = flags.FLAGS.layout
    config.batch_size = flags.FLAGS.batch
    config.compute_dtype = precision
    config.exchange_dtype = precision
    runs[precision] = take_steps(config, images, labels)
  first, second = (np.array(losses) for losses in runs.values())
  differences = np.abs(second - first) / first
  table = summary.make_table(
    f"Loss of the full-size network, batch {flags.FLAGS.batch}",
    *("> step", *(f"> {precision}" for precision in runs), "> difference"),
  )
  for step in sorted({0, *range(4, len(first), 5), len(first) - 1}):
    table.add_row(
      str(step + 1),
      f"{first[step]:.4f}",
      f"{second[step]:.4f}",
      f"{differences[step]:.2%}",
    )
  console = command.make_console()
  console.print(table)
  console.print(
    f"largest relative difference of {len(first)} steps: "
    f"{differences.max():.2%}, mean {differences.mean():.2%}",
    highlight=False,
  )


def make_set(side: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns crops of photographs: u8[IMAGES, side, side, 3], i32[IMAGES]."""
  rng = np.random.default_rng(0)
  photographs = datasets.load_sample_images().images
  images = []
  for number in range(IMAGES):
    photo = photographs[number % len(photographs)]
    top, left = (rng.integers(size - side + 1) for size in photo.shape[:2])
    images.append(photo[top : top + side, left : left + side])
  labels = rng.integers(0, CLASSES, IMAGES, dtype=np.int32)
  return np.stack(images), labels


def take_steps(config, images: np.ndarray, labels: np.ndarray) -> list[float]:
  """Returns the loss of each step, before its update."""
  network, layout = settings.check(config)
  mesh.simulate_devices(2, only_cpu=False)
  # With the schedule of ImageNet, all of these steps have its first rate.
  program = run_lib.make_program(
    config, network, layout, num_images=IMAGENET_IMAGES
  )
  compiled, _ = compiled_step.compile_step(program)
  init_key, step_key = program.make_keys(config.seed)
  state = program.init(init_key)
  losses = []
  for step in range(flags.FLAGS.steps):
    rows = np.arange(flags.FLAGS.batch) + step * flags.FLAGS.batch
    rows %= IMAGES
    batch = jax.device_put(
      (images[rows], labels[rows]), program.batch_shardings
    )
    state, totals = compiled(state, step_key, *batch)
    losses.append(float(totals[0]) / flags.FLAGS.batch)
  return losses


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)
