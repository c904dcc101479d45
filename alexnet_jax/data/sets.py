"""TFDS sets: found by name, checked, and opened split by split."""

from __future__ import annotations

import contextlib
import io
import logging
import os
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

# Sets of this project; importing their builders makes TFDS know them.
OWN = (digits.Digits.name, imagenet256.Imagenet256.name)


def open_builder(
  name: str, *, data_dir: str | None
) -> tfds.core.DatasetBuilder:
  """Finds a set that can be read; writes nothing.

  Args:
    name: `digits`, `imagenet256/jpeg`, `imagenet256/raw`, or an
      image-classification set of TFDS.
    data_dir: where TFDS keeps its sets; None for TFDS's own default.

  Raises:
    ValueError: there is no such set, or not in this version.
    FileNotFoundError: the set has not been prepared in `data_dir`.
  """
  builder = find_builder(name, data_dir=data_dir)
  if builder.name == "digits" or builder.info.splits:
    return builder
  folder, version = os.path.split(os.fspath(builder.data_dir))
  place = f" --data_dir={data_dir}" if data_dir else ""
  how = (
    f"Prepare it: `python -m alexnet_jax.prepare --dataset={name} "
    f"--manual_dir=FOLDER_OF_THE_TARS{place}`"
    if _is_own(builder)
    else "Prepare it where TensorFlow is installed: "
    f"`tfds build {name} --file_format=array_record{place}`"
  )
  others = [found for found in _list(folder) if _is_version(found)]
  if others:
    raise FileNotFoundError(
      f"dataset {name!r} is in {folder} in version {', '.join(others)}, "
      f"expected {version}. {how}, or set --data_dir."
    )
  begun = f"{version}{preparation.UNFINISHED}" in _list(folder)
  raise FileNotFoundError(
    f"dataset {name!r} is not prepared{' to the end' if begun else ''}: there "
    f"is no {builder.data_dir}/dataset_info.json. {how}, or set --data_dir to "
    "where it is."
  )


def find_builder(
  name: str, *, data_dir: str | None, field: str = "config.data.name"
) -> tfds.core.DatasetBuilder:
  """Finds a set, prepared or not; writes nothing.

  Args:
    name: as for `open_builder`.
    data_dir: as for `open_builder`.
    field: that the name comes from, for messages.

  Raises:
    ValueError: there is no such set, or not in this version.
  """
  metadata_check.check_name(name, data_dir=data_dir, field=field)
  options = {}
  if name.partition("/")[0].partition(":")[0] in OWN:
    options["file_format"] = "array_record"
  # TFDS warns of a missing dataset_info.json; `open_builder` says it better.
  logging.getLogger("absl").addFilter(_is_not_about_info)
  try:
    return tfds.builder(name, data_dir=data_dir, **options)
  except tfds.core.DatasetNotFoundError:
    raise ValueError(
      f"unknown dataset {name!r}, expected {', '.join(OWN)} or the name of an "
      f"image-classification set of TFDS. Set {field}."
    ) from None
  except (ValueError, AssertionError) as error:
    # No such config or version, or no name at all.
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
  """Finds a set that `prepare` can make.

  Raises:
    ValueError: TFDS makes it, or there is no such set.
  """
  builder = find_builder(name, data_dir=data_dir, field="--dataset")
  if isinstance(builder, imagenet256.Imagenet256):
    return builder
  if _is_own(builder):
    raise ValueError(
      f"{name!r} needs no preparation: it is made when it is first read. Set "
      "--dataset=imagenet256."
    )
  raise ValueError(
    f"{name!r} is prepared by TFDS itself, which needs TensorFlow for it: "
    f"`pip install tensorflow && tfds build {name} "
    "--file_format=array_record`; it is then read here without. Set "
    "--dataset=imagenet256 for what is prepared here."
  )


def check_classes(builder: tfds.core.DatasetBuilder, num_classes: int) -> None:
  """Refuses a set that is not one of images in so many classes.

  Raises:
    ValueError: names what the set has instead.
  """
  image_key, label_key = builder.info.supervised_keys or (None, None)
  features = dict(builder.info.features)
  image, label = features.get(image_key), features.get(label_key)
  if not _is_image(image) or not isinstance(label, tfds.features.ClassLabel):
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
  unreadable: str = "stop",
) -> tuple[records.Records, ...]:
  """Opens splits of a set; builds `digits` at its first use.

  Args:
    builder: that `check_classes` has accepted.
    splits: in TFDS's notation, `train` or `train[:90%]`.
    stored_size: side of the images to return, in pixels.
    unreadable: what becomes of records that cannot be read, see
      `records.Records`.

  Raises:
    ValueError: there is no such split, it has no records, or it cannot be read
      at random.
    FileNotFoundError: files of it are missing.
  """
  if builder.name == "digits":
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
  """Builds a set where it is not there, next to other processes that do."""
  # TFDS announces a download; there is none.
  with contextlib.redirect_stdout(io.StringIO()):
    tfds.disable_progress_bar()
    try:
      builder.download_and_prepare()
    except OSError as error:
      # Each builds in a folder of its own; the first to rename it has won.
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
  """Those kept with the metadata of a set; None where it keeps none."""
  metadata = builder.info.metadata or {}
  if "statistics" not in metadata:
    return None
  return statistics.from_metadata(metadata["statistics"])


def find_class_names(builder: tfds.core.DatasetBuilder) -> tuple[str, ...]:
  """Names of the classes, by their labels; numbers where a set has none."""
  _, label_key = builder.info.supervised_keys
  label = builder.info.features[label_key]
  return tuple(map(label.int2str, range(label.num_classes)))


def _is_image(feature: Any) -> bool:
  """Whether a feature is an encoded image, or the pixels of one."""
  return isinstance(feature, tfds.features.Image) or (
    isinstance(feature, tfds.features.Tensor)
    and feature.np_dtype == np.uint8
    and len(feature.shape) == 3
  )


def _is_own(builder: tfds.core.DatasetBuilder) -> bool:
  return builder.name in OWN


def _list(folder: str) -> list[str]:
  return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def _is_version(name: str) -> bool:
  return tfds.core.Version.is_valid(name)


def _is_not_about_info(record: logging.LogRecord) -> bool:
  return "dataset_info.json" not in record.getMessage()
