"""Predictions as a file: .csv to look at, .npz to compute with."""

from __future__ import annotations

import csv
from collections.abc import Sequence

import numpy as np

from alexnet_jax.evaluate import predictions as predictions_lib

ENDINGS = (".csv", ".npz")


def write(
  path: str,
  found: Sequence[predictions_lib.Predictions],
  class_names: Sequence[str],
) -> None:
  """Writes predictions of the same images.

  .csv: a line for each image of each prediction: its number in the split, its
  label, and the five most probable classes with their probabilities.

  .npz: names and views of the predictions, P; class_names; labels i32[N]; and
  probabilities f32[P, N, classes]. `np.load(path, allow_pickle=False)` reads
  it.

  Args:
    path: that `picture_files.check_path` has accepted.
    found: at least one.
    class_names: of all classes.
  """
  if path.endswith(".csv"):
    _write_csv(path, found, class_names)
    return
  np.savez(
    path,
    names=np.array([one.name for one in found]),
    views=np.array([one.views for one in found], np.int32),
    class_names=np.array(class_names),
    labels=found[0].labels,
    probabilities=np.stack([one.probabilities for one in found]),
  )


def _write_csv(path, found, class_names) -> None:
  count = min(predictions_lib.FIRST, len(class_names))
  places = range(1, count + 1)
  with open(path, "w", newline="") as file:
    lines = csv.writer(file)
    lines.writerow(
      [
        *("name", "views", "index", "label"),
        *(f"{what}_{place}" for place in places for what in ("class", "p")),
      ]
    )
    for one in found:
      first = one.find_first(count)
      chosen = np.exp(np.take_along_axis(one.log_probabilities, first, axis=1))
      for index, label in enumerate(one.labels):
        pairs = zip(first[index], chosen[index], strict=True)
        lines.writerow(
          [
            *(one.name, one.views, index, class_names[label]),
            *(
              text
              for number, p in pairs
              for text in (class_names[number], f"{p:.6g}")
            ),
          ]
        )
