"""Finds TFDS sets by name, checks them, and opens their splits."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shlex
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from alexnet_jax.data import (
  digits,
  imagenet256,
  metadata_check,
  preparation,
  records,
  source,
  statistics,
)

# Sets of this project; importing their builders registers them with TFDS.
OWN = (digits.Digits.name, imagenet256.Imagenet256.name)


def open_builder(
  name: str, *, data_dir: str | None
) -> tfds.core.DatasetBuilder:
  """Finds a prepared set; writes nothing.

  Args:
    name: `digits`, `imagenet256/jpeg`, `imagenet256/raw`, or an
      image-classification set of TFDS.
    data_dir: folder of TFDS's sets; None: TFDS's default.

  Raises:
    ValueError: the set or its version does not exist.
    FileNotFoundError: the set is not prepared in `data_dir`.
  """
  builder = find_builder(name, data_dir=data_dir)
  in_bucket = metadata_check.is_bucket(builder.data_dir)
  if builder.info.splits or (builder.name == "digits" and not in_bucket):
    return builder
  folder, version = os.path.split(os.fspath(builder.data_dir))
  if in_bucket:
    raise FileNotFoundError(
      f"dataset {name!r} is not in {folder} in version {version}. Prepare it "
      "in a folder and copy that there, or set --data_dir."
    )
  place = " " + shlex.quote(f"--data_dir={data_dir}") if data_dir else ""
  how = (
    f"Prepare it: `python -m alexnet_jax.prepare --dataset={name} "
    f"--manual_dir=FOLDER_OF_THE_TARS{place}`"
    if builder.name in OWN
    else "Prepare it where TensorFlow is installed: "
    f"`tfds build {name} --file_format=array_record{place}`"
  )
  entries = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
  others = list(filter(tfds.core.Version.is_valid, entries))
  if others:
    raise FileNotFoundError(
      f"dataset {name!r} is in {folder} in version {', '.join(others)}, "
      f"expected {version}. {how}, or set --data_dir."
    )
  started = f"{version}{preparation.UNFINISHED}" in entries
  raise FileNotFoundError(
    f"dataset {name!r} is not {'completely ' if started else ''}prepared: "
    f"{builder.data_dir}/dataset_info.json does not exist. {how}, or set "
    "--data_dir to its folder."
  )


def find_builder(
  name: str, *, data_dir: str | None, field: str = "config.data.name"
) -> tfds.core.DatasetBuilder:
  """Finds a set, prepared or not; writes nothing.

  Arguments and errors are those of `open_builder`; messages name `field`.
  """
  metadata_check.check_name(name, data_dir=data_dir, field=field)
  options = {}
  if name.partition("/")[0].partition(":")[0] in OWN:
    options["file_format"] = "array_record"
  # TFDS warns of a missing dataset_info.json; `open_builder` reports it.
  logging.getLogger("absl").addFilter(_is_not_about_info)
  try:
    return tfds.builder(name, data_dir=data_dir, **options)
  except tfds.core.DatasetNotFoundError:
    raise ValueError(
      f"unknown dataset {name!r}, expected {', '.join(OWN)} or the name of an "
      f"image-classification set of TFDS. Set {field}."
    ) from None
  except (ValueError, AssertionError) as error:
    # Unknown config or version, or an invalid name.
    reason = str(error).partition("\n")[0].rpartition('}": ')[2]
    reason = reason.partition(". ")[0].rstrip(".")
    raise ValueError(
      f"dataset {name!r} cannot be opened ({reason}), expected "
      f"NAME, NAME/CONFIG or NAME:VERSION of TFDS. Set {field}."
    ) from None
  finally:
    logging.getLogger("absl").removeFilter(_is_not_about_info)


def find_to_prepare(
  name: str, *, data_dir: str | None
) -> imagenet256.Imagenet256:
  """Finds a set for `prepare`; a ValueError says how to prepare another."""
  builder = find_builder(name, data_dir=data_dir, field="--dataset")
  if isinstance(builder, imagenet256.Imagenet256):
    return builder
  if builder.name in OWN:
    raise ValueError(
      f"{name!r} needs no preparation: the first read makes it. Set "
      "--dataset=imagenet256."
    )
  raise ValueError(
    f"{name!r} is prepared by TFDS, with TensorFlow: `pip install tensorflow "
    f"&& tfds build {name} --file_format=array_record`; reading it then needs "
    "no TensorFlow. Set --dataset=imagenet256, which this command prepares."
  )


def check_classes(builder: tfds.core.DatasetBuilder, num_classes: int) -> None:
  """Refuses a set that does not have images in `num_classes` classes."""
  image_key, label_key = builder.info.supervised_keys or (None, None)
  features = dict(builder.info.features)
  image, label = features.get(image_key), features.get(label_key)
  if not _is_image(image) or not isinstance(label, tfds.features.ClassLabel):
    raise ValueError(
      f"dataset {builder.name!r} is not for image classification: its "
      f"supervised keys are {builder.info.supervised_keys}, expected an image "
      "and a class label. Set config.data.name."
    )
  if label.num_classes != num_classes:
    raise ValueError(
      f"the network has {num_classes} classes, but dataset {builder.name!r} "
      f"has {label.num_classes}. Set config.network.num_classes."
    )


def count_images(name: str, split: str) -> int | None:
  """Counts the images of a split; None unless the set is prepared."""
  try:
    splits = find_builder(name, data_dir=None).info.splits
    return splits[split].num_examples if splits else None
  except (ValueError, KeyError, OSError, ImportError):
    return None


def open_splits(
  builder: tfds.core.DatasetBuilder,
  splits: tuple[str, ...],
  *,
  stored_size: int,
  unreadable: str = "stop",
) -> tuple[records.Records, ...]:
  """Opens splits of a set; builds `digits` at its first use.

  Args:
    builder: a set that `check_classes` accepts.
    splits: in TFDS's notation, `train` or `train[:90%]`.
    stored_size, unreadable: see `records.Records`.

  Raises:
    ValueError, FileNotFoundError: see `source.open_source`.
  """
  if builder.name == "digits" and not builder.info.splits:
    _build(builder)
  image_key, label_key = builder.info.supervised_keys
  image = builder.info.features[image_key]
  is_encoded = isinstance(image, tfds.features.Image)
  return tuple(
    records.Records(
      source=source.open_source(builder, split),
      image_key=image_key,
      label_key=label_key,
      num_classes=builder.info.features[label_key].num_classes,
      stored_size=stored_size,
      raw_shape=None if is_encoded else image.shape,
      unreadable=unreadable,
    )
    for split in splits
  )


def _build(builder: tfds.core.DatasetBuilder) -> None:
  """Builds a set unless it exists; other processes may do so meanwhile."""
  # TFDS announces a download that does not happen.
  with contextlib.redirect_stdout(io.StringIO()):
    tfds.disable_progress_bar()
    try:
      builder.download_and_prepare()
    except OSError as error:
      # Each process builds in a folder of its own; the first rename wins.
      if not os.path.exists(builder.data_dir):
        raise OSError(
          f"dataset {builder.name!r} cannot be made in "
          f"{os.fspath(builder.data_dir)!r}: {error.strerror or error}. Set "
          "--data_dir to a folder of yours."
        ) from error
  builder.info.read_from_directory(builder.data_dir)


def find_statistics(
  builder: tfds.core.DatasetBuilder,
) -> statistics.Statistics | None:
  """Returns the statistics in the metadata of a set; None if it has none."""
  fields = (builder.info.metadata or {}).get("statistics")
  return None if fields is None else statistics.from_metadata(fields)


def find_class_names(builder: tfds.core.DatasetBuilder) -> tuple[str, ...]:
  """Returns the class names by label; numbers if a set names no classes."""
  _, label_key = builder.info.supervised_keys
  label = builder.info.features[label_key]
  return tuple(map(label.int2str, range(label.num_classes)))


def _is_image(feature: Any) -> bool:
  """Tests for an encoded image, or the pixels of one."""
  return isinstance(feature, tfds.features.Image) or (
    isinstance(feature, tfds.features.Tensor)
    and feature.np_dtype == np.uint8
    and len(feature.shape) == 3
  )


def _is_not_about_info(record: logging.LogRecord) -> bool:
  return "dataset_info.json" not in record.getMessage()
