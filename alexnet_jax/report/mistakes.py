"""Sections on a validation: predictions, nearest neighbors, mistakes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from alexnet_jax.figures import confusion, confusion_charts, examples
from alexnet_jax.program import metrics
from alexnet_jax.report import section as section_lib
from alexnet_jax.report import validation as validation_lib
from alexnet_jax.training import loaded_run
from alexnet_jax.training import predictions as predictions_lib

# Of the first section, which alone is there without a validation.
NAME, TITLE = "predictions", "Predictions"
# Pairs of classes in the table, and classes in the drawing and in the table.
_MOST_PAIRS, _MOST_DRAWN, _MOST_LISTED = 20, 40, 1_000
# Differences of features that are computed for the share of neighbors of the
# same class: a second.
_MOST_DIFFERENCES = 500_000_000
_COLORS = "The bar of the true class is orange, and its name is bold."


def make_sections(
  run: loaded_run.LoadedRun, validation: validation_lib.Validation | str
) -> list[section_lib.Section]:
  """Makes the sections, in the order of the page.

  Args:
    validation: from `validation.read`; a line that says why there is none is
      all that the page then shows.

  Raises:
    source.RecordError: a picture cannot be read.
  """
  if isinstance(validation, str):
    return [section_lib.Section(name=NAME, title=TITLE, text=(validation,))]
  labeled = _take_labeled(validation.predictions)
  return [
    _make_predictions(run, validation, labeled),
    _make_neighbors(validation),
    _make_mistakes(validation, labeled),
  ]


def _take_labeled(
  predictions: predictions_lib.Predictions,
) -> predictions_lib.Predictions | None:
  """Returns the predictions for images that have a label; None: none has."""
  has_label = predictions.labels >= 0
  if not has_label.any():
    return None
  return dataclasses.replace(
    predictions,
    labels=predictions.labels[has_label],
    log_probabilities=predictions.log_probabilities[has_label],
  )


def _make_predictions(
  run: loaded_run.LoadedRun,
  validation: validation_lib.Validation,
  labeled: predictions_lib.Predictions | None,
) -> section_lib.Section:
  """Makes the section of best classes: Figure 4 of the paper, left."""
  evenly = examples.choose_evenly(len(validation), examples.EXAMPLES)
  wrong = examples.find_confident_mistakes(
    validation.predictions.labels,
    validation.predictions.log_probabilities,
    examples.EXAMPLES,
  )
  parts = [
    _draw_best(
      validation,
      evenly,
      name="best_classes",
      caption=f"Images evenly spread over {validation.name}, with their most "
      f"probable classes. {_COLORS}",
    )
  ]
  if len(wrong):
    parts.append(
      _draw_best(
        validation,
        wrong,
        name="confident_mistakes",
        caption="The mistakes with the highest probability of a wrong class. "
        f"{_COLORS}",
      )
    )
  return section_lib.Section(
    name=NAME,
    title=TITLE,
    text=_describe(run, validation, labeled),
    parts=parts,
  )


def _describe(
  run: loaded_run.LoadedRun,
  validation: validation_lib.Validation,
  labeled: predictions_lib.Predictions | None,
) -> list[str]:
  """Says which images were computed, and with which errors."""
  count = len(validation)
  which = f"all {count:,} images"
  if count < validation.images:
    which = f"{count:,} of the {validation.images:,} images, evenly spread,"
  lines = [
    f"The checkpoint of step {run.step:,} on {which} of {validation.name}, the "
    "center crop of each."
  ]
  if validation.replaced:
    lines.append(
      f"{validation.replaced:,} of them cannot be read, and others stand in "
      "for them."
    )
  if labeled is None:
    lines.append("They have no labels, so that no errors are shown.")
    return lines
  images = len(labeled.labels)
  if images < count:
    lines.append(
      f"{count - images:,} of them have no label, and do not count as errors."
    )
  errors = "; ".join(
    f"top-{k} error {_describe_share(labeled.count_errors(k), images)}"
    for k in metrics.choose_top_k(len(validation.class_names))
  )
  lines.append(f"Loss {labeled.loss:.4g}; {errors}.")
  return lines


def _describe_share(part: int, count: int) -> str:
  low, high = predictions_lib.find_interval(part, count)
  return (
    f"{part / count:.2%} ({part:,} of {count:,}; "
    f"{predictions_lib.CONFIDENCE:.0%} interval {low:.2%} to {high:.2%})"
  )


def _draw_best(
  validation: validation_lib.Validation,
  places: np.ndarray,
  *,
  name: str,
  caption: str,
) -> section_lib.Drawing:
  """Draws some of the images with their best classes."""
  predictions = validation.predictions
  chosen = dataclasses.replace(
    predictions,
    labels=predictions.labels[places],
    log_probabilities=predictions.log_probabilities[places],
  )
  shown, rows, words = [], [], []
  for place, picture, label, classes, probabilities in zip(
    places,
    validation.read_pictures(places),
    chosen.labels.tolist(),
    *map(np.ndarray.tolist, chosen.find_first()),
    strict=True,
  ):
    best = [
      (validation.class_names[one], probability)
      for one, probability in zip(classes, probabilities, strict=True)
    ]
    true = validation.find_name(place)
    shown.append(
      examples.Example(
        picture=picture,
        name=true,
        best=best,
        correct=classes.index(label) if label in classes else None,
      )
    )
    number = f"{validation.rows[place]:,}"
    rows.append(
      (
        *(number, true or "no label"),
        *(f"{one} {probability:.1%}" for one, probability in best),
      )
    )
    words.append(
      f"image {number}, {true or 'no label'}: {best[0][0]} {best[0][1]:.1%}"
    )
  header = ["image", "true class", "most probable"]
  header += [f"{place}." for place in range(2, len(rows[0]) - 1)]
  return section_lib.Drawing(
    name=name,
    figure=examples.draw_best(shown),
    kind="svg",
    caption=caption,
    alternative=f"Pictures with their most probable class: {'; '.join(words)}.",
    table=section_lib.Table(
      header=header,
      rows=rows,
      caption="Images by their number in the split, and their classes.",
      numeric=(0,),
    ),
  )


def _make_neighbors(
  validation: validation_lib.Validation,
) -> section_lib.Section:
  """Makes the section of nearest neighbors: Figure 4, right."""
  title = {"name": "nearest-neighbors", "title": "Nearest neighbors"}
  if validation.hidden_layer is None or len(validation) < 2:
    reason = (
      "The network has no hidden layer."
      if validation.hidden_layer is None
      else "There is only one image."
    )
    return section_lib.Section(**title, text=(reason,))
  places = examples.choose_evenly(len(validation), examples.QUERIES)
  found, distances = examples.find_neighbors(
    validation.hidden, places, examples.NEIGHBORS
  )
  shown, rows, words = [], [], []
  for place, near, of_near in zip(places, found, distances, strict=True):
    together = [place, *near]
    names = [validation.find_name(one) for one in together]
    shown.append(
      examples.Neighbors(
        pictures=validation.read_pictures(together),
        names=names,
        distances=of_near,
      )
    )
    texts = [
      f"{name or 'no label'} (image {validation.rows[one]:,})"
      for name, one in zip(names, together, strict=True)
    ]
    _, *others = (name or "no label" for name in names)
    words.append(f"{texts[0]}: {', '.join(others)}")
    rows.append(
      (
        texts[0],
        *(
          f"{text}, {distance:.4g}"
          for text, distance in zip(texts[1:], of_near, strict=True)
        ),
      )
    )
  width = validation.hidden.shape[1]
  return section_lib.Section(
    **title,
    text=(
      "Images whose outputs of the last hidden layer, "
      f"{validation.hidden_layer} with {width:,} values, have the smallest "
      "Euclidean distance.",
      *_describe_neighbors(validation),
    ),
    parts=(
      section_lib.Drawing(
        name="nearest_neighbors",
        figure=examples.draw_neighbors(shown),
        kind="svg",
        caption="Left: images evenly spread over the split. Beside each: those "
        "nearest to it, the nearest first; another class is in brackets.",
        alternative="Pictures, and the classes of those nearest to them: "
        f"{'; '.join(words)}.",
        table=section_lib.Table(
          header=("image", *(f"{n}." for n in range(1, len(rows[0])))),
          rows=rows,
          caption="Nearest images and their distances.",
        ),
      ),
    ),
  )


def _describe_neighbors(validation: validation_lib.Validation) -> list[str]:
  """Says how many neighbors are of the same class, and by chance would be."""
  labels = validation.predictions.labels
  if (labels < 0).any():
    return []
  most = max(1, _MOST_DIFFERENCES // validation.hidden.size)
  places = examples.choose_evenly(len(labels), most)
  found, _ = examples.find_neighbors(
    validation.hidden, places, examples.NEIGHBORS
  )
  same = float(np.mean(labels[found] == labels[places, None]))
  others = np.bincount(labels)[labels[places]] - 1
  chance = float(np.mean(others / (len(labels) - 1)))
  which = "all" if len(places) == len(labels) else "evenly spread"
  return [
    f"Of the {found.shape[1]} nearest of {len(places):,} images ({which}), "
    f"{same:.1%} are of the same class; of images taken at random, "
    f"{chance:.1%} would be."
  ]


def _make_mistakes(
  validation: validation_lib.Validation,
  labeled: predictions_lib.Predictions | None,
) -> section_lib.Section:
  """Makes the section of confused classes."""
  title = {"name": "mistakes", "title": "Mistakes"}
  if labeled is None:
    return section_lib.Section(
      **title, text=(f"The images of {validation.name} have no labels.",)
    )
  parts: list[section_lib.Drawing | section_lib.Table] = []
  text = []
  names = validation.class_names
  if len(names) > confusion.MOST_CLASSES:
    text.append(
      f"The confusion matrix is left out: there are {len(names):,} classes, "
      f"and it is drawn of up to {confusion.MOST_CLASSES:,}."
    )
  else:
    matrix = confusion.count(
      labeled.labels,
      labeled.log_probabilities.argmax(axis=1),
      num_classes=len(names),
    )
    pairs = confusion.find_pairs(matrix, _MOST_PAIRS)
    parts += _draw_matrices(matrix, names, pairs)
    if pairs:
      parts.append(_make_pair_table(pairs, names))
    else:
      text.append("No image is taken for another class.")
  parts.append(_draw_classes(labeled, names))
  return section_lib.Section(**title, text=text, parts=parts)


def _draw_matrices(
  matrix: np.ndarray,
  names: Sequence[str],
  pairs: Sequence[confusion.Pair],
) -> list[section_lib.Drawing]:
  """Draws the confusion matrix, and a part of it if it is large."""
  correct, images = int(np.trace(matrix)), int(matrix.sum())
  most = ", ".join(
    f"{pair.taken[0]:,} of {pair.images[0]:,} images of {names[pair.first]} "
    f"for {names[pair.second]}"
    for pair in pairs[:3]
  )
  said = (
    f"{correct:,} of {images:,} images are on the diagonal. Most often taken "
    f"for another: {most or 'none'}."
  )
  shares = (
    "Shares of the images of each true class, on a logarithmic scale; blue: "
    "correct, orange: taken for another class."
  )
  size = confusion.find_cell(len(names))
  cells = f" A cell is {size} times {size} classes." if size > 1 else ""
  if len(names) <= confusion_charts.MOST_COUNTED:
    cells = " Numbers are images."
  drawings = [
    section_lib.Drawing(
      name="confusion_matrix",
      figure=confusion_charts.draw_matrix(matrix, names),
      kind="svg",
      caption=f"Confusion matrix. {shares}{cells}",
      alternative=f"Confusion matrix of {len(names):,} classes. {said}",
    )
  ]
  classes = confusion.find_confused(matrix)
  if len(names) > confusion_charts.MOST_NAMED and classes:
    drawings.append(
      section_lib.Drawing(
        name="confused_classes",
        figure=confusion_charts.draw_matrix(matrix, names, classes=classes),
        kind="svg",
        caption=f"Confusion matrix of the {len(classes)} classes that are most "
        "often taken for each other. Numbers are images; shares are of all "
        "images of a class.",
        alternative="Part of the confusion matrix: "
        f"{', '.join(names[one] for one in classes)}. {said}",
      )
    )
  return drawings


def _make_pair_table(
  pairs: Sequence[confusion.Pair], names: Sequence[str]
) -> section_lib.Table:
  """Makes the table of the most confused pairs, both directions."""
  rows = []
  for pair in pairs:
    row = [names[pair.first], names[pair.second]]
    for taken, images in zip(pair.taken, pair.images, strict=True):
      row += [
        f"{taken:,} of {images:,}",
        f"{taken / images:.1%}" if images else "-",
      ]
    rows.append(row)
  return section_lib.Table(
    header=(
      *("class", "other class", "taken for the other", "rate"),
      *("the other taken for it", "rate"),
    ),
    rows=rows,
    caption="The pairs of classes with most images taken for each other.",
    numeric=(2, 3, 4, 5),
  )


def _draw_classes(
  labeled: predictions_lib.Predictions, names: Sequence[str]
) -> section_lib.Drawing:
  """Draws the classes by their error, with a table of them all."""
  classes = predictions_lib.count_class_errors(labeled)
  ordered = predictions_lib.find_worst(classes, len(classes))
  worst = len(ordered)
  ordered += [one for one in classes if one.images and not one.errors[1]]
  errors = [one.errors[1] / one.images for one in ordered]
  intervals = [
    predictions_lib.find_interval(one.errors[1], one.images)
    for one in ordered[:_MOST_LISTED]
  ]
  drawn = ordered[:_MOST_DRAWN]
  overall = labeled.count_errors(1) / len(labeled.labels)
  rows = [
    (
      names[one.label],
      f"{one.images:,}",
      f"{one.errors[1]:,}",
      f"{error:.1%}",
      f"{low:.1%} to {high:.1%}",
      "-"
      if one.wrong is None
      else f"{names[one.wrong]} ({one.wrong_images:,})",
    )
    for one, error, (low, high) in zip(ordered, errors, intervals, strict=False)
  ]
  unseen = [one for one in classes if not one.images]
  rows += [(names[one.label], "0", *4 * ("-",)) for one in unseen]
  which = "Classes"
  if len(ordered) > len(drawn):
    which = f"The {len(drawn)} of {len(names):,} classes with the largest error"
  listed = ", ".join(
    f"{names[one.label]}: {error:.1%}"
    for one, error in zip(drawn[:5], errors, strict=False)
  )
  first = f"The first: {listed}." if worst else ""
  return section_lib.Drawing(
    name="classes_by_error",
    figure=confusion_charts.draw_classes(
      [names[one.label] for one in drawn],
      errors[: len(drawn)],
      intervals[: len(drawn)],
      overall=overall,
    ),
    kind="svg",
    caption=f"{which} by top-1 error, with {predictions_lib.CONFIDENCE:.0%} "
    "intervals (Wilson); dashed: the error on all images.",
    alternative=f"Top-1 error of {len(drawn)} classes, the largest first, "
    f"{overall:.1%} on all images. {first}".rstrip(),
    table=section_lib.Table(
      header=(
        *("class", "images", "errors", "error", "interval"),
        "most often taken for (images)",
      ),
      rows=rows[:_MOST_LISTED],
      caption="Top-1 errors by class.",
      numeric=(1, 2, 3, 4),
    ),
  )
