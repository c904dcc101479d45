"""Pictures with their best classes, and with their nearest neighbors.

As Figure 4 of the paper: Krizhevsky et al. 2012, section 6.1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import figure
from PIL import Image

from alexnet_jax.figures import charts, confusion

# Pictures and their best classes; pictures and their neighbors; as the paper.
EXAMPLES, BEST, QUERIES, NEIGHBORS = 8, 5, 5, 6
# Side of a drawn picture in pixels at most: the page holds some sixty.
_SIDE = 96
# Inches of a figure, of which a row of pictures takes the width.
_WIDTH = 6.4
_ACROSS = 4
# In sides of a picture: the line above it, a bar, and the space between two.
_TITLE, _BAR, _GAP = 0.12, 0.13, 0.08
# Rows of features that are compared at once.
_BLOCK = 1024
# Points of names: above large pictures, and all others.
_LARGE, _SMALL = 7.5, 6.5
# Of both brackets, in the size of the font.
_BRACKETS = 0.8


def choose_evenly(count: int, most: int) -> np.ndarray:
  """Chooses up to `most` of `count` rows, evenly spread: i64[chosen]."""
  chosen = min(count, most)
  return np.arange(chosen, dtype=np.int64) * count // max(1, chosen)


def find_confident_mistakes(
  labels: np.ndarray, log_probabilities: np.ndarray, most: int
) -> np.ndarray:
  """Finds the mistakes whose first class has the highest probability.

  Args:
    labels: i32[N]; negative for an image without one, which is no mistake.
    log_probabilities: f32[N, classes]; the lower class of a tie is first.

  Returns:
    i64[found]: rows, the most confident first; of equal ones the lower row.
  """
  first = log_probabilities.argmax(axis=1)
  (wrong,) = np.nonzero((labels >= 0) & (first != labels))
  confidence = log_probabilities[wrong, first[wrong]]
  return wrong[np.argsort(-confidence, kind="stable")][:most]


def find_neighbors(
  features: np.ndarray, queries: Sequence[int], most: int
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the nearest other rows by Euclidean distance.

  Args:
    features: f32[N, units].
    queries: rows.
    most: neighbors of each; at most the N - 1 others.

  Returns:
    Rows i64[queries, found], the nearest first and of equally near ones the
    lower row, and their distances f64[queries, found].
  """
  from scipy.spatial import distance  # takes a while to import

  queries = np.asarray(queries, np.int64)
  of_queries = features[queries].astype(np.float64)
  distances = np.empty((len(queries), len(features)))
  for start in range(0, len(features), _BLOCK):
    block = slice(start, start + _BLOCK)
    # From the differences: from products, what is equal would differ.
    distances[:, block] = distance.cdist(
      of_queries, features[block].astype(np.float64)
    )
  distances[np.arange(len(queries)), queries] = np.inf  # itself
  most = min(most, len(features) - 1)
  order = np.argsort(distances, axis=1, kind="stable")[:, :most]
  return order, np.take_along_axis(distances, order, axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Example:
  """A picture and its best classes.

  Attributes:
    picture: u8[side, side, 3].
    name: its true class; None: it has no label.
    best: (class name, probability) pairs, the most probable first.
    correct: the index in `best` of the true class; None: it is not there.
  """

  picture: np.ndarray
  name: str | None
  best: Sequence[tuple[str, float]]
  correct: int | None


def draw_best(examples: Sequence[Example]) -> figure.Figure:
  """Draws pictures with a bar for each of their best classes.

  The bar of the true class has another color, and its name is bold.
  """
  height = 1 + _TITLE + (BEST + 0.5) * _BAR + _GAP
  down = math.ceil(len(examples) / _ACROSS)
  with matplotlib.rc_context(charts.SETTINGS):
    drawn, axes = _make_grid(_ACROSS * (1 + _GAP) - _GAP, down * height - _GAP)
    for place, one in enumerate(examples):
      row, column = divmod(place, _ACROSS)
      left, top = column * (1 + _GAP), row * height + _TITLE
      _draw_picture(
        *(axes, one.picture, one.name or "no label", left, top), size=_LARGE
      )
      _draw_bars(axes, one, left, top + 1 + _BAR / 2)
  return drawn


def _make_grid(width: float, height: float):
  """Makes a figure with one axes, in sides of a picture, y downwards.

  One axes for each picture would take seconds.
  """
  drawn = figure.Figure(
    figsize=(_WIDTH, _WIDTH * height / width), facecolor="none"
  )
  axes = drawn.add_axes((0, 0, 1, 1))
  axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
  axes.set_axis_off()
  return drawn, axes


def _draw_bars(axes, one: Example, left: float, top: float) -> None:
  """Draws the best classes, their names over the bars; 1 is the full width."""
  middles = top + _BAR * (np.arange(len(one.best)) + 0.5)
  axes.barh(
    middles,
    [probability for _, probability in one.best],
    left=left,
    height=0.86 * _BAR,
    color=[
      confusion.WRONG if place == one.correct else confusion.CORRECT
      for place in range(len(one.best))
    ],
    alpha=0.55,
  )
  side = _find_side(axes)
  for place, (name, _) in enumerate(one.best):
    weight = "bold" if place == one.correct else "normal"
    axes.text(
      *(left + 0.03, middles[place]),
      charts.fit(name, 0.94 * side, size=_SMALL, weight=weight),
      va="center",
      fontsize=_SMALL,
      weight=weight,
    )
  ends = top, top + BEST * _BAR
  axes.plot((left, left), ends, color="black", linewidth=0.8)


def _draw_picture(
  axes,
  picture: np.ndarray,
  text: str,
  left: float,
  top: float,
  *,
  size: float,
  weight: str = "normal",
  in_brackets: bool = False,
) -> None:
  """Draws a picture with a text above it, which is no wider."""
  axes.imshow(
    _shrink(picture),
    interpolation="none",
    extent=(left, left + 1, top + 1, top),
  )
  points = _find_side(axes) - _BRACKETS * size * in_brackets
  short = charts.fit(text, points, size=size, weight=weight)
  axes.text(
    *(left + 0.5, top - 0.02),
    f"({short})" if in_brackets else short,
    ha="center",
    va="bottom",
    fontsize=size,
    weight=weight,
  )


def _find_side(axes) -> float:
  """Returns the points of a picture's side."""
  return 72 * _WIDTH / (axes.get_xlim()[1] - axes.get_xlim()[0])


def _shrink(picture: np.ndarray) -> np.ndarray:
  """Scales a picture down to `_SIDE` pixels: u8[side, side, 3]."""
  if len(picture) <= _SIDE:
    return picture
  image = Image.fromarray(picture)
  return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Neighbors:
  """A picture and the ones nearest to it, the nearest first.

  Attributes:
    pictures: u8[1 + found, side, side, 3], itself first.
    names: of the true classes; None: it has no label.
    distances: f64[found].
  """

  pictures: np.ndarray
  names: Sequence[str | None]
  distances: np.ndarray


def draw_neighbors(queries: Sequence[Neighbors]) -> figure.Figure:
  """Draws a row for each picture: itself, and those nearest to it.

  The name of another class than that of the first picture is in brackets.
  """
  across = max(len(one.pictures) for one in queries)
  title = 2 * _TITLE  # of smaller pictures
  with matplotlib.rc_context(charts.SETTINGS):
    drawn, axes = _make_grid(
      across * (1 + _GAP) + _GAP, len(queries) * (1 + title)
    )
    for row, one in enumerate(queries):
      for column, picture in enumerate(one.pictures):
        # A wider gap after the first.
        left = column * (1 + _GAP) + 2 * _GAP * bool(column)
        name = one.names[column]
        _draw_picture(
          *(axes, picture, name or "", left, row * (1 + title) + title),
          size=_SMALL,
          weight="normal" if column else "bold",
          in_brackets=name != one.names[0],
        )
  return drawn
