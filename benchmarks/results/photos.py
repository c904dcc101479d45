"""Trains two columns on the embedded photographs, and draws their kernels.

    python -m benchmarks.results.photos

Makes the section "Natural pictures" of docs/results.md: the errors of three
seeds, and conv1's kernels of the first one, a panel for each column. About nine
minutes on two cores, with tests beside the first seed.
"""

from __future__ import annotations

import tempfile
import time

import matplotlib
import numpy as np
from absl import app, flags
from matplotlib import figure

from alexnet_jax.cli import command
from benchmarks.results import curves
from configs import photos

SEEDS = (0, 1, 2)
_PER_ROW = 8


def define_flags() -> None:
  command.define_path(
    "picture",
    "Where the kernels are drawn, .svg or .png.",
    default="docs/photos_kernels.png",
  )


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  console = command.make_console()
  command.check_path(
    flags.FLAGS.picture, flag="picture", endings=command.PICTURES
  )
  kernels = []
  with tempfile.TemporaryDirectory() as data_dir:
    for seed in SEEDS:
      config = photos.get_config()
      config.seed = seed
      since = time.monotonic()
      state, lines = curves.train_to_end(config, data_dir=data_dir)
      seconds = time.monotonic() - since
      _, errors = curves.find_errors(lines)
      kernels.append(np.asarray(state.parameters["conv1"]["kernel"]))
      shares = find_color_shares(kernels[-1])
      command.print_line(
        console,
        f"seed {seed}: validation top-1 error after each epoch "
        f"{', '.join(f'{error:.1%}' for error in errors)}; {seconds:.0f} s; "
        "median share of color in the kernels of the columns "
        f"{', '.join(f'{np.median(one):.2f}' for one in shares)}",
      )
  draw(kernels[0], flags.FLAGS.picture)
  command.print_line(console, f"the kernels are in {flags.FLAGS.picture}")


def find_color_shares(kernel: np.ndarray) -> list[np.ndarray]:
  """Returns for each column the part of each kernel's energy that is no gray.

  Args:
    kernel: f32[window, window, 3, maps] of two columns.
  """
  gray = kernel.mean(axis=2, keepdims=True)
  shares = ((kernel - gray) ** 2).sum((0, 1, 2)) / (kernel**2).sum((0, 1, 2))
  return np.split(shares, 2)


def draw(kernel: np.ndarray, path: str) -> None:
  """Draws the kernels of each column, those of most energy first.

  Args:
    kernel: f32[window, window, 3, maps] of two columns; each is scaled so that
      its largest value is black or white, and 0 is gray.
  """
  columns = np.split(kernel, 2, axis=-1)
  rows = -(-columns[0].shape[-1] // _PER_ROW)
  with matplotlib.rc_context({"svg.hashsalt": "alexnet_jax", "font.size": 9}):
    drawn = figure.Figure(figsize=(9, 0.55 * rows + 0.4), layout="constrained")
    panels = drawn.subfigures(1, 2, wspace=0.05)
    for number, (panel, column) in enumerate(zip(panels, columns, strict=True)):
      panel.suptitle(f"column {number}")
      order = np.argsort(-(column**2).sum((0, 1, 2)), kind="stable")
      places = panel.subplots(rows, _PER_ROW, squeeze=False).ravel()
      for place in places:
        place.axis("off")
      for place, index in zip(places, order, strict=False):
        one = column[..., index]
        place.imshow(0.5 + 0.5 * one / np.abs(one).max())
    metadata = {"Date": None} if path.endswith("svg") else {}
    drawn.savefig(path, dpi=120, metadata=metadata)


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)
