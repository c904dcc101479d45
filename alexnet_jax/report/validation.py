"""What a run computes of its validation split, for the sections of the page.

One pass over the split, in batches. Pictures are not kept: the few that are
shown are read again.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from alexnet_jax.data import host_batches, pictures, records
from alexnet_jax.figures import examples
from alexnet_jax.training import evaluation, loaded_run
from alexnet_jax.training import predictions as predictions_lib


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
  """Outputs for the images of a split, or for some of them, evenly spread.

  Attributes:
    name: of the split, such as `photos/validation`.
    images: of the whole split.
    rows: of the split: i64[N], ascending.
    predictions: for these; a label may be `records.NO_LABEL`.
    hidden_layer: the name of the last hidden layer; None: there is none.
    hidden: f32[N, units], its outputs; units is 0 without one.
    class_names: by label.
    replaced: images whose own record could not be read.
    records: from which pictures are read again.
  """

  name: str
  images: int
  rows: np.ndarray
  predictions: predictions_lib.Predictions
  hidden_layer: str | None
  hidden: np.ndarray
  class_names: tuple[str, ...]
  replaced: int
  records: records.Records

  def __len__(self) -> int:
    return len(self.rows)

  def read_pictures(self, places: Sequence[int]) -> np.ndarray:
    """Reads some of the N images again: u8[places, side, side, 3].

    Raises:
      source.RecordError: one cannot be read.
    """
    return self.records.read(self.rows[np.asarray(places, int)].tolist()).images

  def find_name(self, place: int) -> str | None:
    """Returns the true class of one of the N images; None: no label."""
    label = self.predictions.labels[place]
    return None if label == records.NO_LABEL else self.class_names[label]


def read(
  run: loaded_run.LoadedRun,
  *,
  data_dir: str | None,
  most: int,
  report: Callable[[int, int], object] = lambda done, total: None,
) -> Validation | str:
  """Computes the outputs of a run for its validation split.

  Nothing is written, and no set is prepared.

  Args:
    data_dir: folder of TFDS's sets; None: TFDS's default.
    most: images of a larger split that are computed, evenly spread.
    report: called with the numbers of images that are computed, and of all that
      will be; first with 0, then after each batch.

  Returns:
    A line that says what is missing and what helps, if the split cannot be read
    or an output is not finite.
  """
  try:
    split = evaluation.open_split(run.trained, data_dir=data_dir, builds=False)
    return _compute(run, split, most, report)
  except (ValueError, OSError, ImportError, FloatingPointError) as error:
    reason = str(error).replace("Set step", "Set --checkpoint_step").rstrip()
    if "--" not in reason:
      reason = f"{reason.rstrip('.')}. Set --data_dir to where the set is."
    return f"The validation split could not be used: {reason}"


def _compute(
  run: loaded_run.LoadedRun,
  split: evaluation.OpenedSplit,
  most: int,
  report: Callable[[int, int], object],
) -> Validation:
  """As `read`, of an opened split.

  Raises:
    source.RecordError: a record cannot be read.
    FloatingPointError: an output is not finite.
  """
  last, hidden_layer = run.network.layers[-1].name, None
  if run.network.layers[:-1]:
    hidden_layer = run.network.layers[-2].name
  layers = [name for name in (hidden_layer, last) if name is not None]
  rows = examples.choose_evenly(len(split.records), most)
  size = min(loaded_run.MAX_BATCH, len(rows))
  labels = np.empty(len(rows), np.int32)
  outputs: dict[str, np.ndarray] = {}
  replaced = 0
  batches = host_batches.validation_batches(
    split.records,
    rows=range(size),
    batch_size=size,
    threads=run.config.data.threads,
    chosen=rows,
  )
  name = split.records.source.name
  report(0, len(rows))
  with contextlib.closing(batches):
    for start, batch in zip(range(0, len(rows), size), batches, strict=True):
      # Blank rows fill up the last batch: another size would be compiled.
      numbers = np.resize(rows[start : start + size], size)
      of_batch = run.activations_of_layers(
        pictures.Pictures(
          pixels=batch.images,
          names=tuple(f"image {number} of {name}" for number in numbers),
        ),
        layers,
      )
      stop = min(start + size, len(rows))
      labels[start:stop] = batch.labels[: stop - start]
      for layer, values in of_batch.items():
        flat = values.reshape(size, -1)[: stop - start]
        if layer not in outputs:
          outputs[layer] = np.empty((len(rows), flat.shape[1]), flat.dtype)
        outputs[layer][start:stop] = flat
      replaced += len(batch.replaced)
      report(stop, len(rows))
  return Validation(
    name=name,
    images=len(split.records),
    rows=rows,
    predictions=predictions_lib.Predictions(
      name=run.workdir,
      views=1,
      labels=labels,
      log_probabilities=to_log_probabilities(outputs[last]),
    ),
    hidden_layer=hidden_layer,
    hidden=outputs.get(hidden_layer, np.empty((len(rows), 0), np.float32)),
    class_names=split.class_names,
    replaced=replaced,
    records=split.records,
  )


def to_log_probabilities(logits: np.ndarray) -> np.ndarray:
  """Computes the log-softmax of f32[N, classes], in its own memory."""
  logits -= logits.max(axis=1, keepdims=True)
  logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
  return logits
