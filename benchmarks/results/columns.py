"""Do the columns specialize? Trains runs of two columns, and controls.

    python -m benchmarks.results.columns --workdir=runs/columns

Makes the tables and pictures of docs/columns.md: ten seeds of the network of
2012 on the embedded photographs (configs/photos.py), and as many of three
controls. Each run is in WORKDIR/WIRING-SEED and is trained if it is not
finished: about two minutes each on two cores, on one device since a layout does
not change the numbers. --train=false measures those that are finished.
"""

from __future__ import annotations

import dataclasses
import os
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import ml_collections
import numpy as np
from absl import app, flags
from matplotlib import figure
from scipy import stats

import alexnet_jax
from alexnet_jax.checkpoints import reports
from alexnet_jax.cli import command
from alexnet_jax.figures import charts, kernel_charts, kernels
from benchmarks import page
from benchmarks.results import curves
from configs import photos

SEEDS = range(10)
CONTROL = "one_gpu"
# Wirings, and what they are, from most contact of the two halves to least. All
# have 96 kernels in conv1.
WIRINGS = {
  CONTROL: "one column, cut in half",
  "alexnet2012": "two columns, as in 2012",
  "join_at_conv4": "columns that meet at conv4",
  "independent_columns": "columns that meet at the logits",
}
# Those whose kernels are drawn.
SHOWN = ("alexnet2012", "independent_columns")
COLUMNS = 2
LEVEL = 0.05
# Inches across the drawing.
_WIDTH = 6.4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """What is measured of a run.

  Attributes:
    error: top-1, of the last validation.
    kernel: f32[window, window, 3, maps], of conv1.
    compared: columns, or halves, by the learned kernels: {measure: result}.
    compared_smooth: the same, where each weight is the mean of 3 x 3 of them
      before, which leaves a ninth of the noise.
    energies: of each column's kernels, as multiples of that at the start.
  """

  seed: int
  error: float
  kernel: np.ndarray
  measures: kernels.Measures
  compared: Mapping[str, kernels.Comparison]
  compared_smooth: Mapping[str, kernels.Comparison]
  energies: np.ndarray

  def find_difference(self, name: str) -> float:
    """Returns the absolute difference of the two means of a measure."""
    first, second = self.compared[name].means
    return abs(first - second)


def define_flags() -> None:
  command.define_data_dir()
  command.define_path(
    "workdir", "The folder of the runs.", default="runs/columns"
  )
  command.define_path(
    "pictures",
    "The folder for columns.svg and for the kernels of the first seed.",
    default="docs",
  )
  flags.DEFINE_bool("train", True, "Train the runs that are not finished.")
  page.define_markdown()


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  page.check_markdown()
  if not os.path.isdir(flags.FLAGS.pictures):
    raise ValueError(
      f"there is no folder {flags.FLAGS.pictures!r} for the pictures. Set "
      "--pictures."
    )
  console = command.make_console()
  runs: dict[str, list[Run]] = {name: [] for name in WIRINGS}
  for name, seed in ((name, seed) for name in WIRINGS for seed in SEEDS):
    workdir = os.path.join(flags.FLAGS.workdir, f"{name}-{seed}")
    config = make_config(name, seed)
    if flags.FLAGS.train and not is_finished(workdir, config):
      command.print_line(console, f"trains {workdir}")
      curves.train_to_end(
        config, data_dir=flags.FLAGS.data_dir, workdir=workdir
      )
    if is_finished(workdir, config):
      runs[name].append(read_run(workdir, seed))
  runs = {name: found for name, found in runs.items() if found}
  if not runs:
    raise ValueError(
      f"no run in {flags.FLAGS.workdir!r} is finished, expected folders such "
      f"as {CONTROL}-0. Set --workdir, or leave out --train=false."
    )
  tables = make_tables(runs)
  for table in tables:
    console.print(table.to_rich())
  page.write(
    "Tables of docs/columns.md",
    "`python -m benchmarks.results.columns --markdown=FILE` writes them.",
    __doc__,
    *(f"{table.title}:\n\n{table.to_markdown()}" for table in tables),
  )
  draw(runs)


def make_config(name: str, seed: int) -> ml_collections.ConfigDict:
  config = photos.get_config()
  config.seed = seed
  config.network.wiring = name
  # The numbers are those of any layout.
  config.layout.name = "one_device"
  config.max_to_keep = 1
  return config


def is_finished(workdir: str, config: ml_collections.ConfigDict) -> bool:
  """Tests whether a run has had its last validation, and is saved after it."""
  if not os.path.isdir(workdir):
    return False
  found = reports.read_curves(workdir)
  epochs = found.get("validation_epoch", [0.0])
  saved = reports.find_saved_step(workdir)
  return (
    epochs[-1] >= config.num_epochs and saved == found["validation_step"][-1]
  )


def read_run(workdir: str, seed: int) -> Run:
  """Reads and measures a run."""
  loaded = alexnet_jax.load(workdir)
  kernel = loaded.parameters["conv1"]["kernel"]
  start = kernel[..., 0].size * loaded.network.layer("conv1").kernel_std ** 2
  measures = kernels.measure(kernel)
  smooth = dataclasses.replace(
    kernels.measure(average_neighbors(kernel)),
    # The same kernels count.
    smoothness=measures.smoothness,
  )
  compared, compared_smooth = (
    {result.name: result for result in kernels.compare(one, COLUMNS)}
    for one in (measures, smooth)
  )
  return Run(
    seed=seed,
    error=float(loaded.metrics["validation_top1_error"][-1]),
    kernel=kernel,
    measures=measures,
    compared=compared,
    compared_smooth=compared_smooth,
    energies=measures.energy.reshape(COLUMNS, -1).mean(axis=1) / start,
  )


def average_neighbors(kernel: np.ndarray) -> np.ndarray:
  """Averages 3 x 3 weights: [w, w, ...] -> [w - 2, w - 2, ...]."""
  side = kernel.shape[0] - 2
  parts = [kernel[y : y + side, x : x + side] for y, x in np.ndindex(3, 3)]
  return np.mean(parts, axis=0)


def make_tables(runs: Mapping[str, Sequence[Run]]) -> list[page.Table]:
  return [
    _make_summary(runs),
    _make_trend_table(runs),
    _make_color_table(runs),
    _make_run_table(runs),
  ]


def _make_summary(runs: Mapping[str, Sequence[Run]]) -> page.Table:
  """Makes a row for each wiring and measure."""
  rows = []
  for name, found in runs.items():
    for measure, label in kernels.COMPARED.items():
      values = [one.compared[measure].p for one in found]
      smooth = [one.compared_smooth[measure].p for one in found]
      differences = [one.find_difference(measure) for one in found]
      against = "-"
      if name != CONTROL and CONTROL in runs:
        control = [one.find_difference(measure) for one in runs[CONTROL]]
        against = kernels.format_p(
          stats.mannwhitneyu(differences, control, alternative="greater").pvalue
        )
      rows.append(
        (
          WIRINGS[name],
          label,
          f"{np.mean(differences):.3f}",
          f"{sum(p < LEVEL for p in values)} of {len(found)}",
          kernels.format_p(stats.combine_pvalues(values).pvalue),
          against,
          f"{sum(p < LEVEL for p in smooth)} of {len(found)}",
        )
      )
  return page.Table(
    "Whether columns differ, over runs",
    (
      *(
        "network",
        "measure",
        "> mean difference",
        f"> runs with p < {LEVEL:g}",
      ),
      *(
        "> combined p",
        "> p against one column",
        f"> less noise, p < {LEVEL:g}",
      ),
    ),
    rows,
  )


def _make_trend_table(runs: Mapping[str, Sequence[Run]]) -> page.Table:
  """Makes a row for each measure: whether less contact makes columns differ."""
  rows = []
  for measure, label in kernels.COMPARED.items():
    places, differences = zip(
      *(
        (place, one.find_difference(measure))
        for place, found in enumerate(runs.values())
        for one in found
      ),
      strict=True,
    )
    result = stats.kendalltau(places, differences)
    rows.append(
      (label, f"{result.statistic:.2f}", kernels.format_p(result.pvalue))
    )
  return page.Table(
    "Trend of the differences, from most to least contact",
    ("measure", "> Kendall's tau", "> p"),
    rows,
  )


def _make_color_table(runs: Mapping[str, Sequence[Run]]) -> page.Table:
  """Makes a row for each wiring: errors, and the direction of color."""
  rows = []
  for name, found in runs.items():
    shares = np.array([one.compared["color"].means for one in found])
    more = int((shares[:, 0] > shares[:, 1]).sum())
    explained = [_find_explained(one) for one in found]
    behind = sum(
      np.argmax(one.compared["color"].means) == np.argmin(one.energies)
      for one in found
    )
    errors = [one.error for one in found]
    rows.append(
      (
        WIRINGS[name],
        str(len(found)),
        f"{np.mean(errors):.1%} ({min(errors):.1%} to {max(errors):.1%})",
        f"{shares.min(axis=1).mean():.2f}",
        f"{shares.max(axis=1).mean():.2f}",
        f"{np.mean(explained):.1%}",
        f"{more} of {len(found)}",
        f"{behind} of {len(found)}",
      )
    )
  return page.Table(
    "Color, over runs",
    (
      *("network", "> runs", "> validation top-1 error"),
      *("> grayer column", "> more colored", "> variance explained"),
      *("> column 0 has more color", "> the one of less energy has"),
    ),
    rows,
  )


def _find_explained(run: Run) -> float:
  """Returns the part of the variance of color that is between the columns."""
  groups = run.measures.split("color", COLUMNS)
  values = np.concatenate(groups)
  mean = values.mean()
  between = sum(len(one) * (one.mean() - mean) ** 2 for one in groups)
  return float(between / ((values - mean) ** 2).sum())


def _make_run_table(runs: Mapping[str, Sequence[Run]]) -> page.Table:
  rows = []
  for name, found in runs.items():
    for one in found:
      cells = [WIRINGS[name], str(one.seed), f"{one.error:.1%}"]
      learned = np.split(one.measures.is_learned, COLUMNS)
      cells.append(", ".join(str(half.sum()) for half in learned))
      cells.append(", ".join(f"{energy:.1f}" for energy in one.energies))
      for measure in kernels.COMPARED:
        result = one.compared[measure]
        if measure != "direction":
          digits = 3 if measure == "frequency" else 2
          cells.append(", ".join(f"{mean:.{digits}f}" for mean in result.means))
        cells.append(kernels.format_p(result.p))
      rows.append(tuple(cells))
  return page.Table(
    "Every run: means of column 0 and column 1 (or halves), and p",
    (
      *("network", "> seed", "> error", "> learned", "> energy"),
      *("> color", "> p", "> selectivity", "> p", "> p of orientation"),
      *("> frequency", "> p"),
    ),
    rows,
  )


def draw(runs: Mapping[str, Sequence[Run]]) -> None:
  """Draws the shares of color of all runs, and the kernels of some."""
  drawn = to_figure(
    {
      textwrap.fill(WIRINGS[name], 18): [
        one.compared["color"].means for one in found
      ]
      for name, found in runs.items()
    }
  )
  with matplotlib.rc_context(charts.SETTINGS):
    charts.save(drawn, os.path.join(flags.FLAGS.pictures, "columns.svg"))
    for name in SHOWN:
      if name in runs:
        first = runs[name][0]
        order = kernels.sort(first.measures, COLUMNS)
        shown = kernel_charts.draw_kernels(first.kernel, COLUMNS, order=order)
        # For pages that are white or black.
        shown.patch.set_alpha(1)
        file = f"columns_{name}.png"
        charts.save(shown, os.path.join(flags.FLAGS.pictures, file))


def to_figure(
  shares: Mapping[str, Sequence[tuple[float, float]]],
) -> figure.Figure:
  """Draws the mean share of color of both columns, a line for each run.

  Args:
    shares: 0..1, {what runs have in common: (column 0, column 1) of each run}.
  """
  with matplotlib.rc_context(charts.SETTINGS):
    rows = sum(map(len, shares.values()))
    drawn = figure.Figure(
      figsize=(_WIDTH, 0.8 + 0.14 * (rows + 2 * len(shares))),
      layout="constrained",
    )
    panel = drawn.subplots()
    place, places = 0, {}
    for name, runs in shares.items():
      first = place
      for pair in runs:
        panel.plot(pair, [place] * 2, color="0.6", linewidth=0.9, zorder=1)
        for index, (value, marker) in enumerate(zip(pair, "os", strict=True)):
          panel.scatter(
            value,
            place,
            s=18,
            color=kernel_charts.COLORS[index],
            marker=marker,
            zorder=2,
            label=f"column {index}" if place == 0 else None,
          )
        place += 1
      places[name] = (first + place - 1) / 2
      place += 1
    panel.set_yticks([*places.values()], [*places])
    panel.invert_yaxis()
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel("mean share of color of a column's learned kernels")
    panel.spines[["top", "right", "left"]].set_visible(False)
    # Pale on white and on black.
    panel.grid(axis="x", color="0.5", alpha=0.25, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.set_xlim(0, 1)
    drawn.legend(loc="outside upper right", ncols=2, frameon=False)
  return drawn


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)
