"""The official tar files of ILSVRC 2012: checked, and listed file by file.

The training tar holds one tar for each class, the validation tar the files
themselves. Nothing is unpacked: a file is known by its place in its tar.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import tensorflow_datasets as tfds

TARS = {
  "train": "ILSVRC2012_img_train.tar",
  "validation": "ILSVRC2012_img_val.tar",
}
# Of the official files.
BYTES = {"train": 147_897_477_120, "validation": 6_744_924_160}
IMAGES = {"train": 1_281_167, "validation": 50_000}

# Two blocks of zeros end a tar.
_END = bytes(1024)
_CLASS = re.compile(r"(n\d{8})\.tar")
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


class Member(NamedTuple):
  """A picture in a tar.

  Attributes:
    name: of the file, as n01440764_18.JPEG.
    label: 0..999, classes in the order of their WordNet ids.
    offset: of its first byte in the tar.
    size: in bytes.
  """

  name: str
  label: int
  offset: int
  size: int


class Part(NamedTuple):
  """A piece of a tar that is listed on its own.

  Attributes:
    split: train or validation.
    path: of the tar.
    class_name: WordNet id of a class of the training tar; else empty.
    offset: where its first header lies in the tar.
    end: where it ends.
  """

  split: str
  path: str
  class_name: str
  offset: int
  end: int


def labels_file() -> str:
  """TFDS's own file of the 1,000 WordNet ids, in order."""
  return os.fspath(tfds.core.tfds_path("datasets/imagenet2012/labels.txt"))


@functools.cache
def class_names() -> tuple[str, ...]:
  """WordNet ids, in order."""
  with open(labels_file()) as file:
    return tuple(file.read().split())


@functools.cache
def validation_labels() -> tuple[str, ...]:
  """WordNet ids of the validation images, in the order of their numbers.

  As TFDS's own imagenet2012 has them.
  """
  path = "datasets/imagenet2012/validation_labels.txt"
  with open(tfds.core.tfds_path(path)) as file:
    return tuple(file.read().split())


def find_tars(manual_dir: str, *, subset: bool) -> dict[str, str]:
  """Finds the two tars.

  Args:
    manual_dir: the folder that holds them.
    subset: whether they may be smaller than the official ones.

  Returns:
    {split: path}.

  Raises:
    FileNotFoundError: one is not there.
    ValueError: one has another size than the official file.
  """
  paths = {
    split: os.path.join(manual_dir, name) for split, name in TARS.items()
  }
  missing = [path for path in paths.values() if not os.path.isfile(path)]
  if missing:
    raise FileNotFoundError(
      f"there is no {' and no '.join(missing)}. Both tars come from "
      "https://image-net.org/download-images (after registration); set "
      "--manual_dir to the folder that holds them."
    )
  for split, path in paths.items():
    size = os.path.getsize(path)
    if size != BYTES[split] and not subset:
      raise ValueError(
        f"{path} has {size:,} bytes, expected {BYTES[split]:,}: it is not the "
        "whole official file. Fetch it again, or set --subset for tars of "
        "your own in the same layout."
      )
  return paths


def fingerprint(path: str) -> str:
  """Of the size, the first and the last megabyte of a tar."""
  size = os.path.getsize(path)
  found = hashlib.blake2b(str(size).encode(), digest_size=16)
  with open(path, "rb") as file:
    for place in (0, max(0, size - 2**20)):
      file.seek(place)
      found.update(file.read(2**20))
  return found.hexdigest()


def find_parts(split: str, path: str) -> list[Part]:
  """The pieces of a tar: its classes, or the validation tar as a whole.

  Raises:
    ValueError: it is no tar, is cut short, or holds something else.
  """
  if split == "validation":
    return [Part(split, path, "", 0, os.path.getsize(path))]
  parts = []
  for header in _headers(path, 0):
    found = _CLASS.fullmatch(os.path.basename(header.name))
    if not found or found[1] not in class_names():
      raise ValueError(
        f"{path} holds {header.name!r}, expected one tar for each of the "
        f"1,000 classes, as {class_names()[0]}.tar: it is not the official "
        "training tar. Fetch it again, or set --manual_dir."
      )
    start = header.offset_data
    parts.append(Part(split, path, found[1], start, start + header.size))
  return parts


def list_members(part: Part) -> list[Member]:
  """The pictures of a piece, without reading them.

  Raises:
    ValueError: as for `find_parts`.
  """
  return [
    Member(
      os.path.basename(header.name),
      _find_label(part, header.name),
      header.offset_data,
      header.size,
    )
    for header in _headers(part.path, part.offset, part.end)
    if header.isfile()
  ]


def check_complete(split: str, path: str, members: list[Member]) -> None:
  """Refuses two pictures of one name, and none at all.

  Raises:
    ValueError: names the file.
  """
  if not members:
    raise ValueError(
      f"{path} holds no pictures. Fetch it again, or set --manual_dir."
    )
  names = sorted(member.name for member in members)
  for name, following in zip(names, names[1:], strict=False):
    if name == following:
      raise ValueError(
        f"{path} holds two files of the name {name!r}, expected one. Fetch it "
        "again, or set --manual_dir."
      )
  whole = os.path.getsize(path) == BYTES[split]
  if whole and len(members) != IMAGES[split]:
    raise ValueError(
      f"{path} holds {len(members):,} pictures, expected {IMAGES[split]:,}: it "
      "is damaged. Fetch it again."
    )


def read(file, member: Member) -> bytes:
  """The bytes of a picture.

  Args:
    file: the tar, opened for reading bytes.
    member: of that tar.
  """
  return os.pread(file.fileno(), member.size, member.offset)


@functools.cache
def _labels() -> dict[str, int]:
  return {name: label for label, name in enumerate(class_names())}


def _find_label(part: Part, name: str) -> int:
  base = os.path.basename(name)
  if part.class_name:
    if base.startswith(f"{part.class_name}_") and base.endswith(".JPEG"):
      return _labels()[part.class_name]
    expected = f"pictures as {part.class_name}_18.JPEG in {part.class_name}.tar"
  else:
    found = _VALIDATION.fullmatch(base)
    if found and 1 <= int(found[1]) <= len(validation_labels()):
      return _labels()[validation_labels()[int(found[1]) - 1]]
    expected = "pictures ILSVRC2012_val_00000001.JPEG to 00050000"
  raise ValueError(
    f"{part.path} holds {name!r}, expected {expected}: it is not the official "
    f"{part.split} tar. Fetch it again, or set --manual_dir."
  )


def _headers(
  path: str, start: int, end: int | None = None
) -> Iterator[tarfile.TarInfo]:
  """The headers of a tar that lies from `start` to `end` of a file."""
  end = end or os.path.getsize(path)
  try:
    with open(path, "rb") as file:
      file.seek(start)
      with tarfile.open(fileobj=file, mode="r:") as tar:
        for header in tar:
          if header.offset_data + header.size > end:
            raise tarfile.ReadError(f"{header.name} is cut short")
          yield header
      # Python's tarfile takes a damaged header for the end.
      file.seek(tar.offset)
      mark = file.read(len(_END))
      if mark != _END or tar.offset + len(_END) > end:
        raise tarfile.ReadError(
          f"damaged or cut short at byte {tar.offset:,}: neither a header nor "
          "the end"
        )
  except tarfile.TarError as error:
    raise ValueError(
      f"{path} is not a whole tar file ({error}). Fetch it again."
    ) from None


# The files of both tars, in the order of the records, and kept on the disk.
#
# A listing takes a header for each of a million files, so a preparation that is
# started again reads it from where the first start has left it.

# {split: its files, in the order of the records}.
Files = dict[str, list[Member]]

_NAME = "files.json"
_THREADS = 16


def make(tars: Mapping[str, str]) -> Files:
  """Lists both tars; the order is that of a hash of the name: shuffled.

  Args:
    tars: {split: path}, from `ilsvrc.find_tars`.

  Raises:
    ValueError: a tar is not what it should be.
  """
  files = {}
  # Threads: most of the time is waiting for the disk.
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    for split, path in tars.items():
      parts = find_parts(split, path)
      listed = [
        member for found in pool.map(list_members, parts) for member in found
      ]
      check_complete(split, path, listed)
      files[split] = sorted(listed, key=_shuffled)
  return files


def load(folder: str, made_from: Mapping[str, object]) -> Files | None:
  """The files as an earlier start has listed them; None at the first start.

  Args:
    folder: of the unfinished set.
    made_from: the tars and settings that the shards depend on.

  Raises:
    ValueError: the earlier start had others.
  """
  try:
    with open(os.path.join(folder, _NAME)) as file:
      stored = json.load(file)
  except FileNotFoundError:
    return None
  differences = [
    f"{name}: {stored['made_from'].get(name)} there, {value} here"
    for name, value in made_from.items()
    if stored["made_from"].get(name) != value
  ]
  if differences:
    raise ValueError(
      f"the unfinished set in {folder} was begun with others "
      f"({'; '.join(differences)}). Set them back to go on, or delete that "
      "folder to begin anew."
    )
  return {
    split: [Member(*fields) for fields in listed]
    for split, listed in stored["files"].items()
  }


def save(folder: str, made_from: Mapping[str, object], files: Files) -> None:
  """Keeps a listing for `load`."""
  path = os.path.join(folder, _NAME)
  if not os.path.exists(path):
    with open(f"{path}.partial", "w") as file:
      json.dump({"made_from": made_from, "files": files}, file)
    os.replace(f"{path}.partial", path)


def _shuffled(member: Member) -> bytes:
  return hashlib.blake2b(member.name.encode(), digest_size=8).digest()
