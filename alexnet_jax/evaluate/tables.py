"""An evaluation as tables and as data: a row per run, and their average."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.table

from alexnet_jax.program import metrics, summary
from alexnet_jax.training import predictions as predictions_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """Loss and errors of a run, of averaged predictions, or their mean.

  Attributes:
    views: of each image; of several runs, the most of any.
    loss: mean cross-entropy, nats; None without labels.
    errors: {k: top-k error, 0..1}, for k of `metrics.TOP_K`; none without
      labels.
    predictions: from which these follow; None for a mean.
  """

  name: str
  views: int
  images: int
  loss: float | None
  errors: dict[int, float]
  predictions: predictions_lib.Predictions | None = None

  def find_interval(self, k: int) -> tuple[float, float] | None:
    """Computes the interval of a top-k error; None for a mean."""
    if self.predictions is None:
      return None
    return predictions_lib.find_interval(
      self.predictions.count_errors(k), self.images
    )


def make_rows(
  predictions: Sequence[Sequence[predictions_lib.Predictions]],
) -> list[Row]:
  """Makes the rows of runs that were evaluated on the same images.

  Args:
    predictions: of each run, for each number of views.

  Returns:
    The rows of each run; if there are several runs, then for each number of
    views the mean over the runs, if there are labels, and their averaged
    predictions.

  Raises:
    ValueError: two runs were evaluated on different images.
  """
  rows = [_make_row(one) for of_run in predictions for one in of_run]
  if len(predictions) > 1:
    for runs in zip(*predictions, strict=True):
      if runs[0].has_labels:
        rows.append(_make_mean(runs))
      rows.append(_make_row(predictions_lib.average_runs(runs)))
  return rows


def _make_mean(runs: Sequence[predictions_lib.Predictions]) -> Row:
  of_runs = [_make_row(one) for one in runs]
  return Row(
    name=f"mean of {len(runs)}",
    views=max(run.views for run in runs),
    images=len(runs[0].labels),
    loss=float(np.mean([row.loss for row in of_runs])),
    errors={
      k: float(np.mean([row.errors[k] for row in of_runs]))
      for k in metrics.TOP_K
    },
  )


def _make_row(predictions: predictions_lib.Predictions) -> Row:
  images, has_labels = len(predictions.labels), predictions.has_labels
  top_k = metrics.TOP_K if has_labels else ()
  return Row(
    name=predictions.name,
    views=predictions.views,
    images=images,
    loss=predictions.loss if has_labels else None,
    errors={k: predictions.count_errors(k) / images for k in top_k},
    predictions=predictions,
  )


def find_lead(rows: Sequence[Row]) -> predictions_lib.Predictions:
  """Returns the predictions that tables of classes show.

  These are the first ones, of the averaged runs if there are several: for the
  fewest views, the center crop if it was evaluated.

  Args:
    rows: from `make_rows`, of views that rise.
  """
  means = [i for i, row in enumerate(rows) if row.predictions is None]
  return rows[means[0] + 1 if means else 0].predictions


def make_table(rows: Sequence[Row], num_classes: int) -> rich.table.Table:
  """Makes the table of all rows; errors in %."""
  headers = ["network", "> views"]
  top_k = metrics.choose_top_k(num_classes)
  for k in top_k:
    headers += [f"> top-{k}", f"> {predictions_lib.CONFIDENCE:.0%} interval"]
  table = summary.make_table(
    "errors in %, loss in nats", *headers, "> loss", "> images"
  )
  for row in rows:
    cells = [row.name, str(row.views)]
    for k in top_k:
      interval = row.find_interval(k)
      cells += [
        f"{100 * row.errors[k]:.2f}",
        " - ".join(f"{100 * end:.2f}" for end in interval) if interval else "-",
      ]
    table.add_row(*cells, f"{row.loss:.4g}", f"{row.images:,}")
  return table


def make_class_table(
  predictions: predictions_lib.Predictions,
  classes: Sequence[predictions_lib.ClassErrors],
  class_names: Sequence[str],
) -> rich.table.Table:
  """Makes the table of some classes; `class_names` are those of all."""
  top1, *others = metrics.choose_top_k(len(class_names))
  table = summary.make_table(
    f"{predictions.name}, {predictions.views} "
    f"view{'s' if predictions.views > 1 else ''}: "
    f"{len(classes)} of {len(class_names)} classes",
    *("class", "> images", f"> top-{top1} errors", "> %"),
    *(f"> top-{k} errors" for k in others),
    *("most often wrong", "> images"),
  )
  for one in classes:
    percent = (
      f"{100 * one.errors[top1] / one.images:.2f}" if one.images else "-"
    )
    table.add_row(
      class_names[one.label],
      *(f"{one.images:,}", f"{one.errors[top1]:,}", percent),
      *(f"{one.errors[k]:,}" for k in others),
      "-" if one.wrong is None else class_names[one.wrong],
      f"{one.wrong_images:,}",
    )
  return table


def to_json(
  rows: Sequence[Row],
  classes: Sequence[predictions_lib.ClassErrors],
  class_names: Sequence[str],
) -> dict[str, Any]:
  """Converts all rows, and the classes of `find_lead`; errors are 0..1."""
  lead = find_lead(rows)
  return {
    "confidence": predictions_lib.CONFIDENCE,
    "lines": [
      {
        "name": row.name,
        "views": row.views,
        "images": row.images,
        "loss": row.loss,
        **{f"top{k}_error": error for k, error in row.errors.items()},
        **{f"top{k}_interval": row.find_interval(k) for k in row.errors},
      }
      for row in rows
    ],
    "classes_of": {"name": lead.name, "views": lead.views},
    "classes": [
      {
        "class": class_names[one.label],
        "images": one.images,
        **{f"top{k}_errors": errors for k, errors in one.errors.items()},
        "wrong": None if one.wrong is None else class_names[one.wrong],
        "wrong_images": one.wrong_images,
      }
      for one in classes
    ],
  }


def predictions_to_json(
  rows: Sequence[Row], class_names: Sequence[str]
) -> dict[str, Any]:
  """Converts predictions without labels: what a CSV file of them has."""
  lines = []
  for row in rows:
    first, chosen = row.predictions.find_first()
    lines.append(
      {
        "name": row.name,
        "views": row.views,
        "images": row.images,
        "predictions": [
          {
            "classes": [class_names[number] for number in numbers],
            "probabilities": probabilities,
          }
          for numbers, probabilities in zip(
            first.tolist(), chosen.tolist(), strict=True
          )
        ],
      }
    )
  return {"labels": False, "lines": lines}
