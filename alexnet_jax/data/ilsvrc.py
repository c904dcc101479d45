"""The official tar files of ILSVRC 2012, checked and listed file by file.

The training tar holds one tar per class, the validation tar the files
themselves. Nothing is unpacked: a file is known by its place in its tar.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import tensorflow_datasets as tfds

from alexnet_jax.data import atomic

TARS = {
  "train": "ILSVRC2012_img_train.tar",
  "validation": "ILSVRC2012_img_val.tar",
}
# Sizes of the official tars, and images in them.
BYTES = {"train": 147_897_477_120, "validation": 6_744_924_160}
IMAGES = {"train": 1_281_167, "validation": 50_000}

# Two blocks of zeros end a tar.
_END = bytes(1024)
_CLASS = re.compile(r"(n\d{8})\.tar")
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_LISTING = "files.json"
_THREADS = 16


class Member(NamedTuple):
  """A picture in a tar.

  Attributes:
    name: file name, as n01440764_18.JPEG.
    label: 0..999, classes in the order of their WordNet ids.
    offset: of its first byte in the tar.
    size: in bytes.
  """

  name: str
  label: int
  offset: int
  size: int


# {split: its files, in the order of the records}.
Listing = dict[str, list[Member]]


class TarSection(NamedTuple):
  """A byte range of a tar that is a tar itself, and is listed on its own.

  Attributes:
    split: train or validation.
    path: of the outer tar.
    class_name: WordNet id of a class of the training tar; else empty.
    offset: of its first header in the outer tar.
    end: of its bytes in the outer tar.
  """

  split: str
  path: str
  class_name: str
  offset: int
  end: int


def labels_file() -> str:
  """Returns the path of TFDS's list of the 1,000 WordNet ids, in order."""
  return os.fspath(tfds.core.tfds_path("datasets/imagenet2012/labels.txt"))


@functools.cache
def class_names() -> tuple[str, ...]:
  """Returns the WordNet ids, in order."""
  with open(labels_file()) as file:
    return tuple(file.read().split())


@functools.cache
def validation_labels() -> tuple[str, ...]:
  """Returns the WordNet ids of validation images 1 to 50,000, from TFDS."""
  path = "datasets/imagenet2012/validation_labels.txt"
  with open(tfds.core.tfds_path(path)) as file:
    return tuple(file.read().split())


def find_tars(manual_dir: str, *, subset: bool) -> dict[str, str]:
  """Finds the two tars in a folder, by split.

  Args:
    subset: accept tars of another size than the official ones.

  Raises:
    FileNotFoundError: a tar is missing.
    ValueError: a tar does not have the size of the official one.
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
        "complete official file. Download it again, or set --subset for tars "
        "of your own in the same layout."
      )
  return paths


def tar_fingerprint(path: str) -> str:
  """Hashes the size, the first and the last megabyte of a tar."""
  size = os.path.getsize(path)
  digest = hashlib.blake2b(str(size).encode(), digest_size=16)
  with open(path, "rb") as file:
    for place in (0, max(0, size - 2**20)):
      file.seek(place)
      digest.update(file.read(2**20))
  return digest.hexdigest()


def list_files(tars: Mapping[str, str]) -> Listing:
  """Lists both tars, shuffled: in the order of a hash of the file name.

  Raises:
    ValueError: a tar is damaged, or not as the official one.
  """
  listing = {}
  # Threads, since nearly all of the time is spent waiting for the disk.
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    for split, path in tars.items():
      sections = find_sections(split, path)
      members = [
        member for each in pool.map(list_members, sections) for member in each
      ]
      _check_members(split, path, members)
      listing[split] = sorted(members, key=_hash_name)
  return listing


def load_listing(
  folder: str, made_from: Mapping[str, object]
) -> Listing | None:
  """Loads the listing of an earlier, interrupted preparation; None: none.

  Reading the headers of a million files takes a while.

  Raises:
    ValueError: the earlier preparation was not `made_from` the same.
  """
  try:
    with open(os.path.join(folder, _LISTING)) as file:
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
      f"the unfinished set in {folder} was started with other inputs "
      f"({'; '.join(differences)}). Set them back to resume, or delete that "
      "folder to start again."
    )
  return {
    split: [Member(*fields) for fields in members]
    for split, members in stored["files"].items()
  }


def find_modified(folder: str, tars: Mapping[str, str]) -> list[str]:
  """Names the tars that were modified after their listing was saved."""
  try:
    saved = os.stat(os.path.join(folder, _LISTING)).st_mtime_ns
  except FileNotFoundError:
    return []
  return [path for path in tars.values() if os.stat(path).st_mtime_ns > saved]


def save_listing(
  folder: str, made_from: Mapping[str, object], listing: Listing
) -> None:
  """Saves a listing for `load_listing`, unless there is one."""
  path = os.path.join(folder, _LISTING)
  if not os.path.exists(path):
    with atomic.replace(path) as partial, open(partial, "w") as file:
      json.dump({"made_from": made_from, "files": listing}, file)


def read_member(file, member: Member) -> bytes:
  """Reads a picture from its tar, which is open for reading bytes."""
  return os.pread(file.fileno(), member.size, member.offset)


def find_sections(split: str, path: str) -> list[TarSection]:
  """Finds the tars of the classes; the validation tar is a single section.

  Raises:
    ValueError: it is no tar, is truncated, or holds something else.
  """
  if split == "validation":
    return [TarSection(split, path, "", 0, os.path.getsize(path))]
  sections = []
  for header in _read_headers(path, 0):
    if header.isdir():
      continue
    match = _CLASS.fullmatch(os.path.basename(header.name))
    if not match or match[1] not in class_names() or not _is_plain(header):
      raise ValueError(
        f"{path} holds {header.name!r}, expected one tar for each of the "
        f"1,000 classes, as {class_names()[0]}.tar: it is not the official "
        "training tar. Download it again, or set --manual_dir."
      )
    start = header.offset_data
    sections.append(
      TarSection(split, path, match[1], start, start + header.size)
    )
  return sections


def list_members(section: TarSection) -> list[Member]:
  """Lists the pictures of a section, from headers alone.

  A link, hard or symbolic, is the picture that it leads to.

  Raises:
    ValueError: as for `find_sections`; or an entry is no file, or a link that
      leads to no file of the section.
  """
  members: list[Member] = []
  # {path in the section: offset and size of the content}.
  contents: dict[str, tuple[int, int]] = {}
  links: list[tarfile.TarInfo] = []
  for header in _read_headers(section.path, section.offset, section.end):
    if header.isdir():
      continue
    label = _find_label(section, header.name)
    if header.islnk() or header.issym():
      links.append(header)
      continue
    if not _is_plain(header):
      raise ValueError(
        f"{section.path} holds {header.name!r}, which is no ordinary file, "
        "expected pictures. Download it again, or leave that entry out."
      )
    content = header.offset_data, header.size
    contents[os.path.normpath(header.name)] = content
    members.append(Member(os.path.basename(header.name), label, *content))
  while links:  # a link may lead to a link
    unresolved = []
    for header in links:
      target = header.linkname
      if header.issym():
        target = os.path.join(os.path.dirname(header.name), target)
      content = contents.get(os.path.normpath(target))
      if content is None:
        unresolved.append(header)
        continue
      label = _find_label(section, header.name)
      contents[os.path.normpath(header.name)] = content
      members.append(Member(os.path.basename(header.name), label, *content))
    if len(unresolved) == len(links):
      raise ValueError(
        f"{section.path} holds {links[0].name!r}, a link to "
        f"{links[0].linkname!r}, which is no picture of the same tar. Replace "
        "the link by the picture, or leave it out."
      )
    links = unresolved
  return members


def _is_plain(header: tarfile.TarInfo) -> bool:
  """Tests whether the content is in the tar, in one piece."""
  return header.isreg() and not header.issparse()


@functools.cache
def _labels() -> dict[str, int]:
  return {name: label for label, name in enumerate(class_names())}


def _find_label(section: TarSection, name: str) -> int:
  base, class_name = os.path.basename(name), section.class_name
  if class_name:
    if base.startswith(f"{class_name}_") and base.endswith(".JPEG"):
      return _labels()[class_name]
    expected = f"pictures as {class_name}_18.JPEG in {class_name}.tar"
  else:
    match = _VALIDATION.fullmatch(base)
    if match and 1 <= int(match[1]) <= len(validation_labels()):
      return _labels()[validation_labels()[int(match[1]) - 1]]
    expected = "pictures ILSVRC2012_val_00000001.JPEG to 00050000"
  raise ValueError(
    f"{section.path} holds {name!r}, expected {expected}: it is not the "
    f"official {section.split} tar. Download it again, or set --manual_dir."
  )


def _check_members(split: str, path: str, members: list[Member]) -> None:
  """Refuses an empty tar, duplicate names, and a wrong number of pictures."""
  if not members:
    raise ValueError(
      f"{path} holds no pictures. Download it again, or set --manual_dir."
    )
  names = sorted(member.name for member in members)
  for name, following in itertools.pairwise(names):
    if name == following:
      raise ValueError(
        f"{path} holds two files of the name {name!r}, expected one. Download "
        "it again, or set --manual_dir."
      )
  is_official = os.path.getsize(path) == BYTES[split]
  if is_official and len(members) != IMAGES[split]:
    raise ValueError(
      f"{path} holds {len(members):,} pictures, expected {IMAGES[split]:,}: it "
      "is damaged. Download it again."
    )


def _hash_name(member: Member) -> bytes:
  return hashlib.blake2b(member.name.encode(), digest_size=8).digest()


def _read_headers(
  path: str, start: int, end: int | None = None
) -> Iterator[tarfile.TarInfo]:
  """Yields the headers of a tar at bytes `start` to `end` of a file."""
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
      f"{path} is not a complete tar file ({error}). Download it again."
    ) from None
