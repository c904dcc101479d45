"""Predictions of networks for the images of a split, and their errors.

Everything follows from the log-probability of every image and class: errors and
their confidence intervals, errors of each class, the average over networks. A
split without labels has no errors.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.data import records
from alexnet_jax.program import metrics

# Endings of the files that `write` writes.
ENDINGS = (".csv", ".npz")
# Probability that an interval contains the error on endless images.
CONFIDENCE = 0.95
# Most probable classes of each image in a CSV file, and in JSON.
_FIRST = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
  """Predictions for every image of a split, in its order.

  Attributes:
    name: of the run, or of the average.
    views: of each image, whose softmax outputs are averaged; of several runs,
      the most of any.
    labels: i32[N]; all of them `records.NO_LABEL` if the split has none.
    log_probabilities: f32[N, classes], finite.
  """

  name: str
  views: int
  labels: np.ndarray
  log_probabilities: np.ndarray

  @property
  def has_labels(self) -> bool:
    return self.labels[0] != records.NO_LABEL

  @functools.cached_property
  def ranks(self) -> np.ndarray:
    """The rank of each label among the classes: i32[N], 0 is first."""
    # By the function that training uses.
    ranks = jax.jit(metrics.ranks)(
      jnp.asarray(self.log_probabilities), jnp.asarray(self.labels)
    )
    return np.asarray(ranks)

  @property
  def probabilities(self) -> np.ndarray:
    """f32[N, classes]."""
    return np.exp(self.log_probabilities)

  @property
  def loss(self) -> float:
    """The mean cross-entropy, nats; never below 0, nor -0."""
    rows = np.arange(len(self.labels))
    label_log_probabilities = self.log_probabilities[rows, self.labels]
    return max(0.0, -float(np.mean(label_log_probabilities, dtype=np.float64)))

  def count_errors(self, k: int) -> int:
    """Counts top-k errors: images whose label is not among k first classes."""
    return int(np.sum(self.ranks >= k))

  def find_first(self) -> tuple[np.ndarray, np.ndarray]:
    """Finds the classes of each image that are most probable, up to five.

    Returns:
      The classes i64[N, k], the lower one of a tie first, and their
      probabilities f32[N, k].
    """
    order = np.argsort(-self.log_probabilities, axis=1, kind="stable")
    first = order[:, :_FIRST]
    chosen = np.take_along_axis(self.log_probabilities, first, axis=1)
    return first, np.exp(chosen)


def average_runs(runs: Sequence[Predictions]) -> Predictions:
  """Averages the probabilities of runs: the predictions of their ensemble.

  Raises:
    ValueError: two runs have predictions for different images.
  """
  first = runs[0]
  total = first.log_probabilities.astype(np.float64)
  for run in runs[1:]:
    if not np.array_equal(run.labels, first.labels):
      raise ValueError(
        f"the labels of the images that {run.name} and {first.name} were "
        "evaluated on differ, expected the same images in the same order. Set "
        "--workdir to runs on one set, or --split."
      )
    # Of logarithms, since probabilities can underflow.
    total = np.logaddexp(total, run.log_probabilities)
  return Predictions(
    name=f"ensemble of {len(runs)}",
    views=max(run.views for run in runs),
    labels=first.labels,
    log_probabilities=(total - math.log(len(runs))).astype(np.float32),
  )


def find_interval(errors: int, images: int) -> tuple[float, float]:
  """Computes the confidence interval of an error, as fractions of 0..1.

  Wilson's: unlike errors +- a multiple of their standard deviation, it is
  right for few images and for hardly any errors, and stays in 0..1.

  Source: Wilson 1927, as method 3 of Newcombe 1998, Statistics in Medicine 17.
  """
  from scipy import stats  # a second to import, and the last thing needed

  test = stats.binomtest(errors, images)
  return tuple(map(float, test.proportion_ci(CONFIDENCE, method="wilson")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassErrors:
  """Errors on the images of one class.

  Attributes:
    images: of the class.
    errors: {k: top-k errors}, for k of `metrics.TOP_K`.
    wrong: the class that most often ranks first instead of this one; the lowest
      of several. None without errors.
    wrong_images: how often.
  """

  label: int
  images: int
  errors: dict[int, int]
  wrong: int | None
  wrong_images: int


def count_class_errors(predictions: Predictions) -> list[ClassErrors]:
  """Counts the errors of every class, also of those without images."""
  ranks, labels = predictions.ranks, predictions.labels
  # The most probable of the other classes, the lower one of two that tie, as
  # `metrics.ranks` has it.
  others = predictions.log_probabilities.copy()
  others[np.arange(len(labels)), labels] = -np.inf
  rivals = np.argmax(others, axis=1)
  classes = []
  for label in range(others.shape[1]):
    is_class = labels == label
    wrong, counts = np.unique(
      rivals[is_class & (ranks >= 1)], return_counts=True
    )
    most = int(np.argmax(counts)) if len(counts) else None
    classes.append(
      ClassErrors(
        label=label,
        images=int(np.sum(is_class)),
        errors={k: int(np.sum(ranks[is_class] >= k)) for k in metrics.TOP_K},
        wrong=None if most is None else int(wrong[most]),
        wrong_images=0 if most is None else int(counts[most]),
      )
    )
  return classes


def find_worst(classes: Sequence[ClassErrors], count: int) -> list[ClassErrors]:
  """Returns the classes with the largest top-1 errors, largest first."""
  with_errors = [one for one in classes if one.errors[1]]
  with_errors.sort(key=lambda one: (-one.errors[1] / one.images, one.label))
  return with_errors[:count]


def write(
  path: str,
  predictions: Sequence[Predictions],
  class_names: Sequence[str],
) -> None:
  """Writes predictions for the same images.

  .csv: a line for each image of each prediction: its number in the split, its
  label, empty if it has none, and the five most probable classes with their
  probabilities.

  .npz: names and views of the predictions, P; class_names; labels i32[N], -1
  for none; and probabilities f32[P, N, classes].
  `np.load(path, allow_pickle=False)` reads it.

  `command.check_path` must accept the path.
  """
  if path.endswith(".csv"):
    _write_csv(path, predictions, class_names)
    return
  np.savez(
    path,
    names=np.array([one.name for one in predictions]),
    views=np.array([one.views for one in predictions], np.int32),
    class_names=np.array(class_names),
    labels=predictions[0].labels,
    probabilities=np.stack([one.probabilities for one in predictions]),
  )


def _write_csv(path, predictions, class_names) -> None:
  count = min(_FIRST, len(class_names))
  with open(path, "w", newline="") as file:
    lines = csv.writer(file)
    header = ["name", "views", "index", "label"]
    for place in range(1, count + 1):
      header += [f"class_{place}", f"p_{place}"]
    lines.writerow(header)
    for one in predictions:
      first, chosen = one.find_first()
      for index, label in enumerate(one.labels):
        name = class_names[label] if one.has_labels else ""
        line = [one.name, one.views, index, name]
        for number, p in zip(first[index], chosen[index], strict=True):
          line += [class_names[number], f"{p:.6g}"]
        lines.writerow(line)
