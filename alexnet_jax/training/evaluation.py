"""From a trained run to its predictions for every image of a split."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from alexnet_jax.data import pipeline, records, sets
from alexnet_jax.data import statistics as statistics_lib
from alexnet_jax.program import program as program_lib
from alexnet_jax.training import loaded_run, trained_run
from alexnet_jax.training import predictions as predictions_lib
from alexnet_jax.training import run as run_lib

# Batches by which the host runs ahead of the devices, which then need not hold
# the outputs for a whole split.
_BATCHES_AHEAD = 2


class OpenedRun(NamedTuple):
  """A run's program and data; `data` are facts that all processes share."""

  program: program_lib.Program
  validation_records: records.Records
  class_names: tuple[str, ...]
  data: dict[str, str | int]


class OpenedSplit(NamedTuple):
  """The validation split of a run; see `OpenedRun`.

  Attributes:
    statistics: of the training split.
  """

  records: records.Records
  class_names: tuple[str, ...]
  data: dict[str, str | int]
  statistics: statistics_lib.Statistics


def open_run(run: trained_run.TrainedRun, *, data_dir: str | None) -> OpenedRun:
  """Opens the data of a run, and makes its program.

  Raises:
    ValueError, OSError: see `open_split`, or the program does not fit the
      devices.
  """
  split = open_split(run, data_dir=data_dir)
  return OpenedRun(
    loaded_run.make_program(run, split.statistics),
    split.records,
    split.class_names,
    split.data,
  )


def open_split(
  run: trained_run.TrainedRun, *, data_dir: str | None, builds: bool = True
) -> OpenedSplit:
  """Opens the validation split of a run.

  Args:
    builds: whether an embedded set is built where it is not prepared.

  Raises:
    ValueError, OSError: the data are missing or differ from those of the run.
  """
  builder, statistics = run_lib.open_data(
    run.config, run.network, data_dir=data_dir
  )
  if not builds and not builder.info.splits:
    raise FileNotFoundError(
      f"dataset {run.config.data.name!r} is not prepared in "
      f"{os.fspath(builder.data_dir)!r}. Set --data_dir to the folder that has "
      "it."
    )
  data = {
    "dataset": builder.info.full_name,
    "statistics": statistics.fingerprint(),
  }
  trained_run.check_data(run, data)
  (opened,) = sets.open_splits(
    builder,
    (run.config.data.validation_split,),
    stored_size=run.config.data.stored_size,
    unreadable=run.config.data.unreadable,
    allow_unlabeled=True,
  )
  return OpenedSplit(
    opened,
    sets.find_class_names(builder),
    data | {"images": len(opened)},
    statistics,
  )


def predict_split(
  program: program_lib.Program,
  variables: dict[str, dict[str, jax.Array]],
  validation_records: records.Records,
  *,
  name: str,
  views: Sequence[int],
  threads: int,
  batches_ahead: int,
) -> tuple[list[predictions_lib.Predictions], int]:
  """Evaluates a network once on every image of a split.

  Args:
    variables: from `loaded_run.load_variables`.
    name: for the predictions.
    views: numbers of views of each image.
    threads, batches_ahead: see `pipeline.train_batches`.

  Returns:
    Predictions for each number of views, and the number of images of this
    process that replace one that could not be read.

  Raises:
    source.RecordError: a record cannot be read.
    ValueError: some images have a label, and some have none.
    FloatingPointError: an output of the network is not finite.
  """
  images = len(validation_records)
  programs = [dataclasses.replace(program, views=count) for count in views]
  outputs, replaced = [], 0
  batches = pipeline.validation_batches(
    validation_records,
    batch_size=program.batch_size,
    shardings=program.batch_shardings,
    threads=threads,
    batches_ahead=batches_ahead,
  )
  with contextlib.closing(batches):
    for batch in batches:
      outputs.append(
        [one.predict(variables, batch.images, batch.labels) for one in programs]
      )
      if len(outputs) > _BATCHES_AHEAD:
        late = -_BATCHES_AHEAD - 1
        outputs[late] = jax.device_get(outputs[late])
      replaced += batch.replaced
  predictions = []
  for count, of_views in zip(
    views, zip(*jax.device_get(outputs), strict=True), strict=True
  ):
    log_probabilities, labels = map(np.concatenate, zip(*of_views, strict=True))
    # Rows that fill up the last batch have the label of an image without one.
    log_probabilities, labels = log_probabilities[:images], labels[:images]
    if 0 < (unlabeled := int(np.sum(labels == records.NO_LABEL))) < images:
      raise ValueError(
        f"{unlabeled:,} of the {images:,} images of "
        f"{validation_records.source.name} have no label ({records.NO_LABEL}), "
        "expected none of them or all. Set --split."
      )
    if not np.isfinite(log_probabilities).all():
      row = int(np.argmin(np.isfinite(log_probabilities).all(axis=1)))
      raise FloatingPointError(
        f"the output of {name!r} for image {row} of "
        f"{validation_records.source.name} is not finite. Set "
        "--checkpoint_step to an earlier checkpoint."
      )
    predictions.append(
      predictions_lib.Predictions(
        name=name,
        views=count,
        labels=labels,
        log_probabilities=log_probabilities,
      )
    )
  return predictions, replaced
