"""The records of a split, parsed and decoded: uint8 images and int labels.

A record is a `tf.train.Example` as TFDS writes it; TensorFlow is not used.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from google.protobuf import message
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data import decode
from alexnet_jax.data import source as source_lib

# TFDS's label of an image that has none.
NO_LABEL = -1
# Records after an unreadable one that are tried in its place.
_NEIGHBORS = 64
# `Records.fingerprint` reads all records of a split of so many (200 MB of those
# of ImageNet), and `_SAMPLED`, evenly spaced, of a larger one, several at once.
_SMALL, _SAMPLED, _READ_AT_ONCE = 2048, 256, 8


class HostBatch(NamedTuple):
  """Some rows of a batch, in the memory of this process.

  Attributes:
    images: u8[n, side, side, 3].
    labels: i32[n].
    replaced: rows, 0 to n - 1, that hold another record than their own, which
      could not be read.
  """

  images: np.ndarray
  labels: np.ndarray
  replaced: list[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records:
  """One split of a set; `records[i]` is u8[side, side, 3] and its label.

  Attributes:
    image_key: the feature with the image.
    label_key: the feature with the label.
    num_classes: labels are 0..num_classes-1.
    stored_size: side of the images returned, in pixels.
    raw_shape: height, width and channels of images stored as pixels; None if
      they are encoded.
    allow_unlabeled: labels may be `NO_LABEL` as well, as in a test split whose
      labels are not published.
    unreadable: `stop` raises for a record that cannot be read or decoded;
      `replace` takes the first readable one of the next 64 records, counted on
      from the start of the split after its end.
  """

  source: source_lib.Source
  image_key: str
  label_key: str
  num_classes: int
  stored_size: int
  raw_shape: tuple[int, int, int] | None = None
  allow_unlabeled: bool = False
  unreadable: str = "stop"

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
    """Reads and decodes one record; errors are those of `fill`."""
    images, labels, _ = self.read([index])
    return images[0], int(labels[0])

  def fingerprint(self) -> str | None:
    """Returns a hash of images and labels; of a large split, of some of them.

    Another order of the records gives another one. None if one is unreadable:
    training decides what happens then. The labels of all others are checked.

    Raises:
      source.RecordError: a label is out of range, or see `fill`.
    """
    count = len(self) if len(self) <= _SMALL else _SAMPLED
    indices = [number * len(self) // count for number in range(count)]

    def read_some(first: int) -> bytes | None:
      found, is_readable = hashlib.blake2b(), True
      for index in indices[first::_READ_AT_ONCE]:
        try:
          image, label = self.read_encoded(index)
        except source_lib.UnreadableError:
          is_readable = False
          continue
        found.update(f"{label} {len(image)} ".encode() + image)
      return found.digest() if is_readable else None

    with concurrent.futures.ThreadPoolExecutor(_READ_AT_ONCE) as pool:
      parts = list(pool.map(read_some, range(_READ_AT_ONCE)))
    if None in parts:
      return None
    return hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()

  def read(self, indices: Sequence[int]) -> HostBatch:
    """Reads and decodes records; errors are those of `fill`."""
    side = self.stored_size
    images = np.empty((len(indices), side, side, 3), np.uint8)
    labels = np.empty(len(indices), np.int32)
    return HostBatch(images, labels, self.fill(indices, images, labels))

  def fill(
    self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray
  ) -> list[int]:
    """Reads and decodes records into rows of a batch.

    Args:
      indices: n records.
      images: u8[n, side, side, 3], contiguous; filled.
      labels: i32[n]; filled.

    Returns:
      The rows whose record was replaced.

    Raises:
      source.RecordError: a label is out of range, a file of the split cannot
        be opened, or a record cannot be read and `unreadable` is `stop`.
    """
    replaced = []
    for row, index in enumerate(indices):
      try:
        labels[row] = self._read(index, images[row])
      except source_lib.UnreadableError as error:
        if self.unreadable == "stop":
          raise
        labels[row] = self._read_neighbor(index, images[row], error)
        replaced.append(row)
    return replaced

  def read_encoded(self, index: int) -> tuple[bytes, int]:
    """Reads a stored image and its label, undecoded; errors as for `fill`."""
    try:
      record = tf_example_pb2.Example.FromString(self.source[index])
    except message.DecodeError as error:
      raise source_lib.UnreadableError(
        f"{self.source.describe(index)} is no tf.train.Example ({error}). "
        "Prepare the set again, or set config.data.unreadable=replace to train "
        "without it."
      ) from error
    features = record.features.feature
    # A missing feature has no values.
    images = features[self.image_key].bytes_list.value
    labels = features[self.label_key].int64_list.value
    if len(images) != 1 or len(labels) != 1:
      raise source_lib.RecordError(
        f"{self.source.describe(index)} has {len(images)} images as bytes "
        f"under {self.image_key!r} and {len(labels)} labels under "
        f"{self.label_key!r}, expected one of each. Set config.data.name to "
        "a set of images, or prepare the set again."
      )
    label = labels[0]
    if label == NO_LABEL and not self.allow_unlabeled:
      raise source_lib.RecordError(
        f"{self.source.describe(index)} has no label ({NO_LABEL}). Set "
        "config.data.train_split and config.data.validation_split to splits "
        "with labels; only `evaluate --split` takes others."
      )
    if not 0 <= label < self.num_classes and label != NO_LABEL:
      raise source_lib.RecordError(
        f"{self.source.describe(index)} has label {label}, expected "
        f"0..{self.num_classes - 1}. Prepare the set again."
      )
    return images[0], label

  def decode(self, image: bytes, out: np.ndarray) -> None:
    """Decodes a stored image into u8[side, side, 3].

    Raises:
      ValueError: the reason why it cannot be decoded.
    """
    if self.raw_shape is None:
      decode.decode(image, out)
    else:
      decode.copy_pixels(image, self.raw_shape, out)

  def _read(self, index: int, out: np.ndarray) -> int:
    image, label = self.read_encoded(index)
    try:
      self.decode(image, out)
    except ValueError as error:
      raise source_lib.UnreadableError(
        f"{self.source.describe(index)} has an image that cannot be decoded "
        f"({error}). Prepare the set again, or set "
        "config.data.unreadable=replace to train without it."
      ) from error
    return label

  def _read_neighbor(
    self, index: int, out: np.ndarray, error: source_lib.UnreadableError
  ) -> int:
    for distance in range(1, _NEIGHBORS + 1):
      try:
        return self._read((index + distance) % len(self), out)
      except source_lib.UnreadableError:
        continue
    raise source_lib.RecordError(
      f"{error} None of the {_NEIGHBORS} records after it can be read either."
    ) from error
