"""TFDS sets: found by name, checked, and opened split by split."""

from __future__ import annotations

import contextlib
import io
import logging
from typing import Any

import tensorflow_datasets as tfds

from alexnet_jax.data import digits, records


def open_builder(
  name: str, *, data_dir: str | None
) -> tfds.core.DatasetBuilder:
  """Finds a set; writes nothing.

  Args:
    name: `digits`, or an image-classification set of TFDS.
    data_dir: where TFDS keeps its sets; None for TFDS's own default.

  Raises:
    ValueError: there is no such set.
    FileNotFoundError: the set has not been prepared in `data_dir`.
  """
  if name == "digits":
    return digits.Digits(data_dir=data_dir, file_format="array_record")
  # TFDS warns of a missing dataset_info.json; the error below says it better.
  logging.getLogger("absl").addFilter(_is_not_about_info)
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError:
    raise ValueError(
      f"unknown dataset {name!r}, expected 'digits' or the name of an "
      "image-classification set of TFDS. Set config.data.name."
    ) from None
  finally:
    logging.getLogger("absl").removeFilter(_is_not_about_info)
  if not builder.info.splits:
    raise FileNotFoundError(
      f"dataset {name!r} is not prepared: there is no {builder.data_dir}/"
      "dataset_info.json. Prepare it on a machine with TensorFlow, `tfds build "
      f"{name} --file_format=array_record`, and point --data_dir at it."
    )
  return builder


def check_classes(builder: tfds.core.DatasetBuilder, num_classes: int) -> None:
  """Refuses a set that is not one of images in so many classes.

  Raises:
    ValueError: names what the set has instead.
  """
  image_key, label_key = builder.info.supervised_keys or (None, None)
  features = dict(builder.info.features)
  image, label = features.get(image_key), features.get(label_key)
  if not isinstance(image, tfds.features.Image) or not isinstance(
    label, tfds.features.ClassLabel
  ):
    raise ValueError(
      f"dataset {builder.name!r} is not one of image classification: its "
      f"supervised keys are {builder.info.supervised_keys}, expected an image "
      "and a class label. Set config.data.name."
    )
  if label.num_classes != num_classes:
    raise ValueError(
      f"the network has {num_classes} classes, but dataset {builder.name!r} "
      f"has {label.num_classes}. Set config.network.num_classes."
    )


def open_splits(
  builder: tfds.core.DatasetBuilder,
  splits: tuple[str, ...],
  *,
  stored_size: int,
) -> tuple[records.Records, ...]:
  """Opens splits of a set; builds `digits` at its first use.

  Args:
    builder: that `check_classes` has accepted.
    splits: in TFDS's notation, `train` or `train[:90%]`.
    stored_size: side of the images to return, in pixels.

  Raises:
    ValueError: there is no such split, it is empty, or it cannot be read at
      random.
  """
  if builder.name == "digits":
    # TFDS announces a download; there is none.
    with contextlib.redirect_stdout(io.StringIO()):
      tfds.disable_progress_bar()
      builder.download_and_prepare()
  image_key, label_key = builder.info.supervised_keys
  return tuple(
    records.Records(
      name=f"{builder.name}/{split}",
      source=_open_source(builder, split, image_key),
      image_key=image_key,
      label_key=label_key,
      num_classes=builder.info.features[label_key].num_classes,
      stored_size=stored_size,
    )
    for split in splits
  )


def _open_source(
  builder: tfds.core.DatasetBuilder, split: str, image_key: str
) -> Any:
  try:
    source = builder.as_data_source(
      split=split, decoders={image_key: tfds.decode.SkipDecoding()}
    )
  except (ValueError, KeyError) as error:
    reason = str(error).partition("\n")[0].rstrip(".")
    raise ValueError(
      f"dataset {builder.name!r} has no split {split!r} ({reason}), expected "
      f"one of {', '.join(builder.info.splits)} or a part of one, as "
      "'train[:90%]'. Set config.data.train_split or "
      "config.data.validation_split."
    ) from None
  except NotImplementedError:
    raise ValueError(
      f"dataset {builder.name!r} is stored as "
      f"{builder.info.file_format.value}, which has no random access, expected "
      "array_record. Prepare it again with --file_format=array_record."
    ) from None
  return source


def _is_not_about_info(record: logging.LogRecord) -> bool:
  return "dataset_info.json" not in record.getMessage()
