"""An evaluation as tables and as data: a line for each network and ensemble."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.table

from alexnet_jax.evaluate import predictions as predictions_lib
from alexnet_jax.program import summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
  """Loss and errors, of one network, of an ensemble, or a mean over members.

  Attributes:
    name: of whose they are.
    views: of each image.
    images: in the split.
    loss: mean cross-entropy, nats.
    top1_error: fraction, 0..1.
    top5_error: fraction, 0..1.
    top1_interval: of confidence; None for a mean, which counts no images.
    top5_interval: the same.
    predictions: that they come from; None for a mean.
  """

  name: str
  views: int
  images: int
  loss: float
  top1_error: float
  top5_error: float
  top1_interval: tuple[float, float] | None = None
  top5_interval: tuple[float, float] | None = None
  predictions: predictions_lib.Predictions | None = None


def make_lines(
  found: Sequence[Sequence[predictions_lib.Predictions]],
) -> list[Line]:
  """All there is to say of networks that were asked about the same images.

  Args:
    found: for each network, predictions for each number of views.

  Returns:
    For each network its lines; of several, then for each number of views the
    mean over them and their ensemble.

  Raises:
    ValueError: two networks were asked about different images.
  """
  lines = [_make_line(one) for of_network in found for one in of_network]
  if len(found) > 1:
    for members in zip(*found, strict=True):
      of_members = [_make_line(one) for one in members]
      lines.append(
        Line(
          name=f"mean of {len(members)}",
          views=members[0].views,
          images=len(members[0].labels),
          **{
            name: float(np.mean([getattr(one, name) for one in of_members]))
            for name in ("loss", "top1_error", "top5_error")
          },
        )
      )
      lines.append(_make_line(predictions_lib.average(members)))
  return lines


def _make_line(found: predictions_lib.Predictions) -> Line:
  images = len(found.labels)
  top1, top5 = found.errors(1), found.errors(predictions_lib.FIRST)
  return Line(
    name=found.name,
    views=found.views,
    images=images,
    loss=found.loss,
    top1_error=top1 / images,
    top5_error=top5 / images,
    top1_interval=predictions_lib.find_interval(top1, images),
    top5_interval=predictions_lib.find_interval(top5, images),
    predictions=found,
  )


def table(lines: Sequence[Line]) -> rich.table.Table:
  """A row for each line; errors in %."""
  confidence = f"> {predictions_lib.CONFIDENCE:.0%} interval"
  made = summary.make_table(
    "errors in %, loss in nats",
    *("network", "> views", "> top-1", confidence, "> top-5", confidence),
    *("> loss", "> images"),
  )
  for line in lines:
    made.add_row(
      *(line.name, str(line.views)),
      *(f"{100 * line.top1_error:.2f}", _between(line.top1_interval)),
      *(f"{100 * line.top5_error:.2f}", _between(line.top5_interval)),
      *(f"{line.loss:.4g}", f"{line.images:,}"),
    )
  return made


def class_table(
  found: predictions_lib.Predictions,
  classes: Sequence[predictions_lib.OfClass],
  class_names: Sequence[str],
) -> rich.table.Table:
  """A row for each of some classes.

  Args:
    found: the predictions that the classes come from.
    classes: to show.
    class_names: of all classes.
  """
  views = f"{found.views} view{'s' if found.views > 1 else ''}"
  made = summary.make_table(
    f"{found.name}, {views}: {len(classes)} of {len(class_names)} classes",
    *("class", "> images", "> top-1 errors", "> %", "> top-5 errors"),
    *("most often wrong", "> images"),
  )
  for one in classes:
    share = f"{one.top1_errors / one.images:.2%}" if one.images else "-"
    made.add_row(
      *(class_names[one.label], f"{one.images:,}", f"{one.top1_errors:,}"),
      *(share.removesuffix("%"), f"{one.top5_errors:,}"),
      "-" if one.wrong is None else class_names[one.wrong],
      f"{one.wrong_images:,}",
    )
  return made


def to_json(
  lines: Sequence[Line],
  classes: Sequence[predictions_lib.OfClass],
  class_names: Sequence[str],
) -> dict[str, Any]:
  """What the tables show, as data; errors are fractions, 0..1.

  Args:
    lines: from `make_lines`.
    classes: all, of the last line.
    class_names: of all classes.
  """
  return {
    "confidence": predictions_lib.CONFIDENCE,
    "lines": [
      {
        field.name: getattr(line, field.name)
        for field in dataclasses.fields(line)
        if field.name != "predictions"
      }
      for line in lines
    ],
    "classes_of": {"name": lines[-1].name, "views": lines[-1].views},
    "classes": [
      {
        "class": class_names[one.label],
        "images": one.images,
        "top1_errors": one.top1_errors,
        "top5_errors": one.top5_errors,
        "wrong": None if one.wrong is None else class_names[one.wrong],
        "wrong_images": one.wrong_images,
      }
      for one in classes
    ],
  }


def _between(interval: tuple[float, float] | None) -> str:
  if interval is None:
    return "-"
  return " - ".join(f"{100 * end:.2f}" for end in interval)
