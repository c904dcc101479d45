"""What networks predict for the images of a split, and how good that is.

Log-probabilities of every image and class, from which everything else follows:
errors, their confidence, each class by itself, the average over networks.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
import statistics
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from alexnet_jax.program import metrics

# Probability that an interval holds the error that endless images would give.
CONFIDENCE = 0.95
# The classes whose probabilities count, for the top-5 error.
FIRST = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
  """For every image of a split, in its order.

  Attributes:
    name: of the network, or of the ensemble.
    views: of each image, whose softmax outputs are averaged.
    labels: i32[N].
    log_probabilities: f32[N, classes], finite.
  """

  name: str
  views: int
  labels: np.ndarray
  log_probabilities: np.ndarray

  @functools.cached_property
  def ranks(self) -> np.ndarray:
    """The place of each label among the classes: i32[N], 0 is first."""
    # In JAX, so that there is one definition of it.
    found = metrics.ranks(
      jnp.asarray(self.log_probabilities), jnp.asarray(self.labels)
    )
    return np.asarray(found)

  @property
  def probabilities(self) -> np.ndarray:
    """f32[N, classes]."""
    return np.exp(self.log_probabilities)

  @property
  def loss(self) -> float:
    """The mean cross-entropy, nats."""
    rows = np.arange(len(self.labels))
    of_label = self.log_probabilities[rows, self.labels]
    return -float(np.mean(of_label, dtype=np.float64))

  def errors(self, first: int) -> int:
    """Images whose label is not among so many first classes."""
    return int(np.sum(self.ranks >= first))

  def find_first(self, count: int = FIRST) -> np.ndarray:
    """The most probable classes, falling: i32[N, at most count]."""
    falling = np.argsort(-self.log_probabilities, axis=1, kind="stable")
    return falling[:, :count].astype(np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfClass:
  """How the images of one class are predicted.

  Attributes:
    label: of the class.
    images: that it has.
    top1_errors: of these, those whose label is not first.
    top5_errors: of these, those whose label is not among the first five.
    wrong: the class that stands before or beside it most often; the lowest of
      several. None where there is no error.
    wrong_images: how often.
  """

  label: int
  images: int
  top1_errors: int
  top5_errors: int
  wrong: int | None
  wrong_images: int


def average(members: Sequence[Predictions]) -> Predictions:
  """The ensemble: the average of the members' probabilities.

  Args:
    members: at least one; of the same images, and as many views.

  Raises:
    ValueError: two members were asked about different images.
  """
  first = members[0]
  total = first.log_probabilities.astype(np.float64)
  for member in members[1:]:
    if not np.array_equal(member.labels, first.labels):
      raise ValueError(
        f"the labels of the images that {member.name} and {first.name} were "
        "evaluated on differ, expected the same images in the same order. Set "
        "--workdir to runs on one set, or --split."
      )
    # In logarithms, where no probability is too small for a number.
    total = np.logaddexp(total, member.log_probabilities)
  return Predictions(
    name=f"ensemble of {len(members)}",
    views=first.views,
    labels=first.labels,
    log_probabilities=(total - math.log(len(members))).astype(np.float32),
  )


def find_interval(
  errors: int, images: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
  """The confidence interval of an error, fractions of 0..1.

  Wilson's: unlike errors +- a multiple of their standard deviation, it is
  right for few images and for hardly any errors, and stays in 0..1.

  Source: Wilson 1927, as method 3 of Newcombe 1998, Statistics in Medicine 17.
  """
  z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
  share = errors / images
  spread = z / images * math.sqrt(images * share * (1 - share) + z * z / 4)
  middle = share + z * z / (2 * images)
  whole = 1 + z * z / images
  # Rounding alone could leave 0..1.
  return max((middle - spread) / whole, 0.0), min(
    (middle + spread) / whole, 1.0
  )


def find_classes(found: Predictions) -> list[OfClass]:
  """Each class by itself, in their order; also those without an image."""
  is_error = found.ranks >= 1
  # The most probable class but for the label: where that ties with the label,
  # it ranks before it.
  others = found.log_probabilities.copy()
  others[np.arange(len(found.labels)), found.labels] = -np.inf
  answers = np.argmax(others, axis=1)
  classes = []
  for label in range(others.shape[1]):
    own = found.labels == label
    wrong, counts = np.unique(answers[own & is_error], return_counts=True)
    most = int(np.argmax(counts)) if len(counts) else None
    classes.append(
      OfClass(
        label=label,
        images=int(np.sum(own)),
        top1_errors=int(np.sum(own & is_error)),
        top5_errors=int(np.sum(own & (found.ranks >= FIRST))),
        wrong=None if most is None else int(wrong[most]),
        wrong_images=0 if most is None else int(counts[most]),
      )
    )
  return classes


def find_worst(classes: Sequence[OfClass], count: int) -> list[OfClass]:
  """The classes of the largest top-1 error, largest first."""
  wrong = [one for one in classes if one.top1_errors]
  wrong.sort(key=lambda one: (-one.top1_errors / one.images, one.label))
  return wrong[:count]


ENDINGS = (".csv", ".npz")


def write(
  path: str,
  found: Sequence[Predictions],
  class_names: Sequence[str],
) -> None:
  """Writes predictions of the same images.

  .csv: a line for each image of each prediction: its number in the split, its
  label, and the five most probable classes with their probabilities.

  .npz: names and views of the predictions, P; class_names; labels i32[N]; and
  probabilities f32[P, N, classes]. `np.load(path, allow_pickle=False)` reads
  it.

  Args:
    path: that `command.check_picture_path` has accepted.
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
  count = min(FIRST, len(class_names))
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
