"""Finds TFDS sets by name, checks them, and opens their splits."""

from __future__ import annotations

import contextlib
import glob
import io
import logging
import os
import pathlib
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import naming
from tensorflow_datasets.core.utils import file_utils

from alexnet_jax.data import (
  decode,
  digits,
  imagenet256,
  metadata_check,
  own_set,
  photos,
  preparation,
  records,
  shards,
  source,
  statistics,
)

# Sets of this project; importing their builders registers them with TFDS.
# The embedded ones are built when they are first read.
EMBEDDED = (digits.Digits.name, photos.Photos.name)
OWN = (*EMBEDDED, imagenet256.Imagenet256.name)
# Sets that a message lists of a folder.
_MOST_LISTED = 8
# What may be done about a set with features of other kinds.
_OTHER_FEATURES = "Prepare the set again, or set config.data.name"


def open_builder(
  name: str, *, data_dir: str | None
) -> tfds.core.DatasetBuilder:
  """Finds a prepared set; writes nothing.

  Args:
    name: `digits`, `photos`, `imagenet256/jpeg`, `imagenet256/raw`, or an
      image-classification set of TFDS.
    data_dir: folder of TFDS's sets; None: TFDS's default.

  Raises:
    ValueError: neither a folder nor TFDS has the set or its version.
    FileNotFoundError: the set is not prepared in `data_dir`, or the package
      with its pictures is not installed.
  """
  builder = find_builder(name, data_dir=data_dir)
  in_bucket = metadata_check.is_bucket(builder.data_dir)
  if builder.info.splits:
    return builder
  if builder.name in EMBEDDED and not in_bucket:
    if builder.name == photos.Photos.name:
      photos.find_pictures()  # before anything is written
    return builder
  folder, version = os.path.split(os.fspath(builder.data_dir))
  if in_bucket:
    raise FileNotFoundError(
      f"dataset {name!r} is not in {folder} in version {version}. Prepare it "
      "in a folder and copy that there, or set --data_dir."
    )
  place = " " + shlex.quote(f"--data_dir={data_dir}") if data_dir else ""
  config = (
    f" --encoding={builder.builder_config.name}" if builder.name in OWN else ""
  )
  how = (
    "Prepare it: `python -m alexnet_jax.prepare --from=FOLDER_OF_THE_PICTURES"
    f"{config}{place}`"
    if builder.name in OWN
    else "Prepare it where TensorFlow is installed: "
    f"`tfds build {name} --file_format=array_record{place}`"
  )
  other = "set --data_dir to its folder"
  if advice := _advise_parent(builder.name, data_dir):
    how, other = advice, "to another folder with the set"
  entries = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
  others = [
    entry
    for entry in entries
    if tfds.core.Version.is_valid(entry) and entry != version
  ]
  if others:
    raise FileNotFoundError(
      f"dataset {name!r} is in {folder} in version {', '.join(others)}, "
      f"expected {version}. {how}, or {other}."
    )
  started = f"{version}{preparation.UNFINISHED}" in entries
  raise FileNotFoundError(
    f"dataset {name!r} is not {'completely ' if started else ''}prepared: "
    f"{builder.data_dir}/dataset_info.json does not exist"
    f"{'' if started else _describe_absent(data_dir)}. {how}, or {other}."
  )


def find_builder(
  name: str, *, data_dir: str | None, field: str = "config.data.name"
) -> tfds.core.DatasetBuilder:
  """Finds a set, prepared or not; writes nothing.

  Arguments and errors are those of `open_builder`; messages name `field`.
  """
  metadata_check.check_name(name, data_dir=data_dir, field=field)
  options = {}
  if naming.parse_builder_name_kwargs(name)[0].name in OWN:
    options["file_format"] = "array_record"
  try:
    with _no_warning_about_info():  # `open_builder` reports it
      return tfds.builder(name, data_dir=data_dir, **options)
  except tfds.core.DatasetNotFoundError:
    if folder := _find_unfinished(name, data_dir):
      raise FileNotFoundError(
        f"dataset {name!r} in {folder} is not completely prepared. Repeat the "
        "`python -m alexnet_jax.prepare` that has begun it."
      ) from None
    raise ValueError(
      _describe_unknown(name, data_dir=data_dir, field=field)
    ) from None
  except (ValueError, AssertionError) as error:
    # Unknown config or version, or an invalid name.
    reason = str(error).partition("\n")[0].rpartition('}": ')[2]
    reason = reason.partition(". ")[0].rstrip(".")
    raise ValueError(
      f"dataset {name!r} cannot be opened ({reason}), expected "
      f"NAME, NAME/CONFIG or NAME:VERSION of TFDS. Set {field}."
    ) from None


def _find_unfinished(name: str, data_dir: str | None) -> str | None:
  """Returns the folder of sets in which `prepare` has begun a set, if any."""
  base = naming.parse_builder_name_kwargs(name)[0].name
  for folder in map(os.fspath, file_utils.list_data_dirs(data_dir)):
    place = os.path.join(folder, base)
    if not metadata_check.is_bucket(place) and glob.glob(
      f"{glob.escape(place)}/*{preparation.UNFINISHED}"
    ):
      return folder
  return None


def default_manual_dir(data_dir: str | None) -> str:
  """Returns TFDS's folder for files that users download themselves."""
  name = imagenet256.Imagenet256.name
  return find_builder(name, data_dir=data_dir).default_manual_dir


def make_to_prepare(
  name: str,
  *,
  data_dir: str | None,
  encoding: str,
  side: int,
  class_names: Sequence[str],
) -> tfds.core.DatasetBuilder:
  """Makes the builder of a set for `prepare`: of imagenet256, or of a new set.

  Args:
    name: imagenet256, or one that no set of TFDS has.
    data_dir: folder of TFDS's sets; None: TFDS's default.
    encoding: jpeg or raw.
    side: of the squares, pixels.
    class_names: in the order of the labels.

  Raises:
    ValueError: the set is another one, which is prepared otherwise, or it has
      other squares; or the name or a class cannot be stored.
  """
  if name == imagenet256.Imagenet256.name:
    if side != shards.SIDE:
      raise ValueError(
        f"--size is {side}, but {name} has squares of {shards.SIDE} pixels. "
        "Set --name for a set of another size."
      )
    return find_builder(f"{name}/{encoding}", data_dir=data_dir, field="--name")
  own_set.check_name(name)
  if name in OWN:
    raise ValueError(
      f"{name!r} needs no preparation: the first read makes it. Set --name to "
      "another name."
    )
  if name in tfds.list_builders(with_community_datasets=False):
    raise ValueError(
      f"{name!r} is prepared by TFDS, with TensorFlow: `pip install tensorflow "
      f"&& tfds build {name} --file_format=array_record`; reading it then "
      "needs no TensorFlow. Set --name to another name, for a set of your own."
    )
  metadata_check.check_name(name, data_dir=data_dir, field="--name")
  with _no_warning_about_info():
    return own_set.OwnSet(
      name=name,
      data_dir=data_dir,
      encoding=encoding,
      side=side,
      class_names=class_names,
    )


def check_prepared(builder: tfds.core.DatasetBuilder) -> None:
  """Refuses a complete set that is not the one to be prepared.

  Args:
    builder: from `make_to_prepare`, of a set that is complete.

  Raises:
    ValueError: the set is not from this package, or has other squares or
      classes than the builder was made for.
  """
  place = f"{builder.info.full_name} in {builder.data_dir}"
  if find_statistics(builder) is None:
    raise ValueError(
      f"{place} is not from this command: it has no statistics. Set --name to "
      "another name."
    )
  there = tfds.builder_from_directory(builder.data_dir).info.features
  here = builder.info.features
  format, asked = map(shards.find_format, (there, here))
  differences = [
    f"{name} {one} there, {other} here"
    for name, one, other in (
      ("--encoding", format.encoding, asked.encoding),
      ("--size", format.side, asked.side),
      *_compare_names(there["label"].names, here["label"].names),
    )
    if one != other
  ]
  if differences:
    raise ValueError(
      f"{place} is complete, but another set: {'; '.join(differences)}. Set "
      "--name to another name, or delete that folder to prepare it again."
    )


def _compare_names(
  there: Sequence[str], here: Sequence[str]
) -> list[tuple[str, Any, Any]]:
  """Returns what is compared of class names: (what, there, here)."""
  compared = [("number of classes", len(there), len(here))]
  pairs = zip(there, here, strict=False)
  different = [(one, other) for one, other in pairs if one != other]
  if different:
    compared.append(("class", *map(repr, different[0])))
  return compared


def find_keys(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
  """Returns the names of the features with the image and with its label.

  They are the supervised keys of the set; without any, `image` and `label`.

  Raises:
    ValueError: the set has no image with a class label, or stores them as
      `records` cannot read them.
  """
  features = dict(builder.info.features)
  keys = builder.info.supervised_keys
  if keys is None:
    keys = ("image", "label")
  # Other sets have three of them, or nested ones.
  image, label = (
    [features.get(key) for key in keys]
    if len(keys) == 2 and all(isinstance(key, str) for key in keys)
    else (None, None)
  )
  if not _is_image(image) or not isinstance(label, tfds.features.ClassLabel):
    raise ValueError(
      f"dataset {builder.name!r} is not for image classification: its "
      f"supervised keys are {builder.info.supervised_keys} and its features "
      f"{', '.join(features)}, expected an image and a class label, as "
      "supervised keys or under 'image' and 'label'. Set config.data.name."
    )
  if problem := _find_unreadable(image):
    raise ValueError(
      f"dataset {builder.name!r} has images {problem}. {_OTHER_FEATURES}."
    )
  if label.num_classes is None:
    raise ValueError(
      f"dataset {builder.name!r} does not say how many classes it has, "
      "expected tfds.features.ClassLabel with names or num_classes. "
      f"{_OTHER_FEATURES}."
    )
  return keys


def count_classes(builder: tfds.core.DatasetBuilder) -> int:
  """Returns the number of classes; errors are those of `find_keys`."""
  _, label_key = find_keys(builder)
  return builder.info.features[label_key].num_classes


def check_classes(builder: tfds.core.DatasetBuilder, num_classes: int) -> None:
  """Refuses a set that does not have images in `num_classes` classes."""
  found = count_classes(builder)
  if found != num_classes:
    raise ValueError(
      f"the network has {num_classes} classes, but dataset {builder.name!r} "
      f"has {found}. Set config.network.num_classes={found}, or None to take "
      "the set's."
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
  allow_unlabeled: bool = False,
) -> tuple[records.Records, ...]:
  """Opens splits of a set; builds an embedded set at its first use.

  Args:
    builder: a set that `check_classes` accepts.
    splits: in TFDS's notation, `train` or `train[:90%]`.
    stored_size, unreadable, allow_unlabeled: see `records.Records`.

  Raises:
    ValueError, FileNotFoundError: see `source.open_source`.
  """
  if builder.name in EMBEDDED and not builder.info.splits:
    _build(builder)
  decode.ignore_warnings()  # before threads decode
  image_key, label_key = find_keys(builder)
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
      allow_unlabeled=allow_unlabeled,
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
  _, label_key = find_keys(builder)
  label = builder.info.features[label_key]
  return tuple(map(label.int2str, range(label.num_classes)))


def _is_image(feature: Any) -> bool:
  """Tests for an encoded image, or the pixels of one."""
  return isinstance(feature, tfds.features.Image) or (
    isinstance(feature, tfds.features.Tensor)
    and feature.np_dtype == np.uint8
    and len(feature.shape) == 3
  )


def _find_unreadable(image: Any) -> str | None:
  """Says why `records` cannot read a feature of images; None if it can."""
  if isinstance(image, tfds.features.Image):
    # TFDS stores the bits of four bytes as the colors of a PNG.
    return (
      "of float32, expected uint8 or uint16: their scale is not known"
      if image.np_dtype == np.float32
      else None
    )
  encoding = image.to_json_content().encoding
  height, width, channels = image.shape
  if height and width and channels in (1, 3) and encoding == "bytes":
    return None
  return (
    f"as a Tensor of shape {image.shape} with encoding={encoding!r}, expected "
    "(height, width, 3) or (height, width, 1), the same for all, with "
    "encoding='bytes'; or tfds.features.Image, which stores pictures of any "
    "size"
  )


def _describe_unknown(name: str, *, data_dir: str | None, field: str) -> str:
  """Says where a set was searched that neither a folder nor TFDS has."""
  set_name = naming.parse_builder_name_kwargs(name)[0].name
  searched = [
    _describe_folder(os.fspath(folder), set_name)
    for folder in file_utils.list_data_dirs(data_dir)
  ]
  advice = _advise_parent(set_name, data_dir) or (
    "Set --data_dir to the folder that has it"
  )
  return (
    f"dataset {name!r} is not in {'; nor in '.join(searched)}; and TFDS has "
    f"none of this name. {advice}, or {field} to one of {', '.join(OWN)}, or "
    "to an image-classification set of TFDS."
  )


def _describe_folder(folder: str, set_name: str) -> str:
  """Names a folder that was searched, and the sets in it."""
  if metadata_check.is_bucket(folder):
    return folder
  if not os.path.isdir(folder):
    exists = os.path.lexists(folder)
    return f"{folder}, which {'is no folder' if exists else 'does not exist'}"
  if not os.access(folder, os.R_OK | os.X_OK):
    return f"{folder}, which is not yours to read"
  root = pathlib.Path(folder)
  # NAME/VERSION and NAME/CONFIG/VERSION.
  found = sorted(
    f"{info.parent.parent.relative_to(root).as_posix()}:{info.parent.name}"
    for depth in ("*/*", "*/*/*")
    for info in root.glob(f"{depth}/dataset_info.json")
    if tfds.core.Version.is_valid(info.parent.name)
  )
  shown = ", ".join(found[:_MOST_LISTED]) or "no prepared set"
  if len(found) > _MOST_LISTED:
    shown += f" and {len(found) - _MOST_LISTED} others"
  if (root / set_name).is_dir() and not any(
    re.match(rf"{re.escape(set_name)}[:/]", one) for one in found
  ):
    shown += f" ({set_name}/ has no VERSION/dataset_info.json)"
  return f"{folder}, which has {shown}"


def _advise_parent(set_name: str, data_dir: str | None) -> str | None:
  """Advises on a --data_dir that is the folder of the set, or inside it."""
  if data_dir is None or metadata_check.is_bucket(data_dir):
    return None
  folder = pathlib.Path(os.path.abspath(data_dir))
  for inner in (folder, *folder.parents[:2]):
    if inner.name == set_name and inner.is_dir():
      place = shlex.quote(f"--data_dir={inner.parent}")
      return f"Set {place}"
  return None


def _describe_absent(data_dir: str | None) -> str:
  """Says that a --data_dir does not exist; empty if it does."""
  if data_dir is None or os.path.isdir(data_dir):
    return ""
  return f", nor does the folder {data_dir}"


@contextlib.contextmanager
def _no_warning_about_info() -> Iterator[None]:
  """Keeps TFDS's warning of a missing dataset_info.json from the terminal."""
  logger = logging.getLogger("absl")
  logger.addFilter(_is_not_about_info)
  try:
    yield
  finally:
    logger.removeFilter(_is_not_about_info)


def _is_not_about_info(record: logging.LogRecord) -> bool:
  return "dataset_info.json" not in record.getMessage()
