"""Asks a trained run about every image of a split, once."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from alexnet_jax.checkpoints import metadata, reader
from alexnet_jax.data import pipeline, records
from alexnet_jax.evaluate import predictions as predictions_lib
from alexnet_jax.program import eval_step
from alexnet_jax.program import program as program_lib
from alexnet_jax.training import trained_run

# How far the host runs ahead of the devices, which do not hold the answers to
# a whole split.
BATCHES_AHEAD = 2


def load_variables(
  run: trained_run.TrainedRun, program: program_lib.Program
) -> dict[str, dict[str, jax.Array]]:
  """What a run evaluates with, onto the layout of a program for its network.

  Raises:
    CheckpointError: the checkpoint is damaged; names a sound one before it.
  """
  like = program.abstract_state
  try:
    state = reader.load(run.workdir, run.step, like)
  except metadata.DamagedError as error:
    sound = reader.find_sound_before(run.workdir, run.step, like)
    hint = (
      "No earlier one is sound."
      if sound is None
      else f"Set --checkpoint_step={sound}, which is sound."
    )
    raise metadata.CheckpointError(f"{error} {hint}") from error
  return eval_step.find_variables(state)


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
  """Asks a network about every image of a split, once.

  Args:
    program: of the network, on the devices.
    variables: of the network, on its layout: from `load_variables`.
    validation_records: the split.
    name: of the network, for what it predicts.
    views: of each image; for each number, predictions.
    threads: that read and decode.
    batches_ahead: batches that are on the devices before they are asked for.

  Returns:
    Predictions for each number of views, and the images of this process whose
    own record could not be read.

  Raises:
    source.RecordError: a record cannot be read.
    FloatingPointError: the network's answer is no number.
  """
  programs = [dataclasses.replace(program, views=count) for count in views]
  answers, replaced = [], 0
  batches = pipeline.validation_batches(
    validation_records,
    batch_size=program.batch_size,
    shardings=program.batch_shardings,
    threads=threads,
    batches_ahead=batches_ahead,
  )
  with contextlib.closing(batches):
    for images, labels, lost in batches:
      answers.append(
        [one.predict(variables, images, labels) for one in programs]
      )
      if len(answers) > BATCHES_AHEAD:
        late = -BATCHES_AHEAD - 1
        answers[late] = jax.device_get(answers[late])
      replaced += lost
  found = []
  for count, of_views in zip(
    views, zip(*jax.device_get(answers), strict=True), strict=True
  ):
    log_probabilities, labels = map(np.concatenate, zip(*of_views, strict=True))
    is_image = labels >= 0
    log_probabilities = log_probabilities[is_image]
    if not np.isfinite(log_probabilities).all():
      row = int(np.argmin(np.isfinite(log_probabilities).all(axis=1)))
      raise FloatingPointError(
        f"what {name!r} answers to image {row} of "
        f"{validation_records.source.name} is not finite, expected "
        "log-probabilities. Set --checkpoint_step to an earlier checkpoint."
      )
    found.append(
      predictions_lib.Predictions(
        name=name,
        views=count,
        labels=labels[is_image],
        log_probabilities=log_probabilities,
      )
    )
  return found, replaced
