"""The official tar files of ILSVRC 2012, checked and listed file by file.

The training tar holds one tar per class, the validation tar the files
themselves. A training tar that somebody has packed again, without tars inside,
is read, too. Nothing is unpacked: a file is known by its place in its tar.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from alexnet_jax.data import ilsvrc, origin

TARS = {
  "train": "ILSVRC2012_img_train.tar",
  "validation": "ILSVRC2012_img_val.tar",
}
# Sizes of the official tars.
BYTES = {"train": 147_897_477_120, "validation": 6_744_924_160}

# Two blocks of zeros end a tar.
_END = bytes(1024)
_CLASS = re.compile(r"(n\d{8})\.tar")
# First bytes of compressed files, and what decompresses them.
_COMPRESSED = {
  b"\x1f\x8b": "gunzip",
  b"BZh": "bunzip2",
  b"\xfd7zXZ": "unxz",
  b"\x28\xb5\x2f\xfd": "unzstd",
}
# Endings of names that compressed tars have.
_ENDINGS = ("", ".gz", ".bz2", ".xz", ".zst")


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tars(origin.Origin):
  """The two tars in a folder.

  Attributes:
    subset: accept tars with fewer pictures than the official ones.
  """

  subset: bool

  def describe(self) -> str:
    return f"the tars of ILSVRC 2012 in {self.folder}"

  def fingerprint(self) -> dict[str, object]:
    return {
      name: _hash_tar(os.path.join(self.folder, name)) for name in TARS.values()
    }

  def list_files(
    self, labels: Mapping[str, int], *, is_imagenet: bool
  ) -> origin.Listing:
    del is_imagenet  # the names are the official ones
    files, skipped = {}, 0
    with concurrent.futures.ThreadPoolExecutor(origin.THREADS) as pool:
      for split, name in TARS.items():
        path = os.path.join(self.folder, name)
        members: list[origin.Member] = []
        for listed, count in pool.map(list_members, find_sections(split, path)):
          members += listed
          skipped += count
        self._check_count(split, path, members)
        files[split] = [
          member._replace(label=labels[ilsvrc.class_names()[member.label]])
          for member in members
        ]
    return origin.Listing(files=files, skipped=skipped)

  def _check_count(
    self, split: str, path: str, members: list[origin.Member]
  ) -> None:
    """Refuses an empty tar, and a wrong number of pictures."""
    if not members:
      raise ValueError(
        f"{path} holds no pictures. Download it again, or set --from."
      )
    expected = ilsvrc.IMAGES[split]
    if self.subset or len(members) == expected:
      return
    size = os.path.getsize(path)
    problem = (
      f"{path} holds {len(members):,} pictures, expected {expected:,}: it"
    )
    if size == BYTES[split]:
      raise ValueError(f"{problem} is damaged. Download it again.")
    raise ValueError(
      f"{problem} has {size:,} bytes, expected {BYTES[split]:,}: it is not the "
      "complete official file. Download it again, or set --subset for tars of "
      "your own in the same layout."
    )

  def find_inputs(self, listing: origin.Listing) -> list[str]:
    del listing
    return [os.path.join(self.folder, name) for name in TARS.values()]

  def locate(self, member: origin.Member) -> str:
    return f"{member.name} in {os.path.join(self.folder, member.file)}"

  @contextlib.contextmanager
  def open(self, scratch: str) -> Iterator[Callable[[origin.Member], bytes]]:
    del scratch
    with contextlib.ExitStack() as stack:
      tars = {}

      def read(member: origin.Member) -> bytes:
        path = os.path.join(self.folder, member.file)
        with origin.name_errors(path):
          if path not in tars:
            tars[path] = stack.enter_context(open(path, "rb"))
          return os.pread(tars[path].fileno(), member.size, member.offset)

      yield read


def find(folder: str, *, subset: bool) -> Tars | None:
  """Finds the two tars in a folder; None: there is neither.

  Args:
    subset: accept tars with fewer pictures than the official ones.

  Raises:
    FileNotFoundError: one is missing.
    ValueError: one is compressed.
  """
  found = {
    split: [
      path
      for ending in _ENDINGS
      if os.path.isfile(path := os.path.join(folder, name + ending))
    ]
    for split, name in TARS.items()
  }
  if not any(found.values()):
    return None
  check_complete(folder, [split for split, paths in found.items() if not paths])
  for path, *_ in found.values():
    with open(path, "rb") as file:
      start = file.read(8)
    for magic, program in _COMPRESSED.items():
      if start.startswith(magic):
        raise ValueError(
          f"{path} is compressed, expected a plain tar: pictures are read from "
          f"any place in it. Run {program} on it."
        )
  for (path, *_), name in zip(found.values(), TARS.values(), strict=True):
    if os.path.basename(path) != name:
      raise ValueError(f"{path} is not compressed. Rename it to {name}.")
  return Tars(folder=folder, class_names=ilsvrc.class_names(), subset=subset)


def check_complete(folder: str, missing: list[str]) -> None:
  """Refuses a folder that lacks the tar of a split."""
  if missing:
    paths = [os.path.join(folder, TARS[split]) for split in missing]
    raise FileNotFoundError(
      f"there is no {' and no '.join(paths)}. Both tars come from "
      "https://image-net.org/download-images (after registration); set --from "
      "to the folder that holds them, or to ImageNet in another form."
    )


def _hash_tar(path: str) -> str:
  """Hashes the size, the first and the last megabyte of a tar."""
  size = os.path.getsize(path)
  digest = hashlib.blake2b(str(size).encode(), digest_size=16)
  with open(path, "rb") as file:
    for place in (0, max(0, size - 2**20)):
      file.seek(place)
      digest.update(file.read(2**20))
  return digest.hexdigest()


def find_sections(split: str, path: str) -> list[TarSection]:
  """Finds the tars of the classes; a tar of pictures is a single section.

  Raises:
    ValueError: it is no tar, is truncated, or holds something else.
  """
  everything = TarSection(split, path, "", 0, os.path.getsize(path))
  if split == "validation":
    return [everything]
  sections = []
  for header in _read_headers(path, 0):
    base = os.path.basename(header.name)
    if header.isdir() or _is_of_system(header.name):
      continue
    if not sections and ilsvrc.find_label(split, base) is not None:
      return [everything]  # packed again without inner tars
    match = _CLASS.fullmatch(base)
    if not match or match[1] not in ilsvrc.labels() or not _is_plain(header):
      raise ValueError(
        f"{path} holds {header.name!r}, expected one tar for each of the "
        f"1,000 classes, as {ilsvrc.class_names()[0]}.tar: it is not the "
        "official training tar. Download it again, or set --from."
      )
    start = header.offset_data
    sections.append(
      TarSection(split, path, match[1], start, start + header.size)
    )
  return sections


def list_members(section: TarSection) -> tuple[list[origin.Member], int]:
  """Lists the pictures of a section, from headers alone.

  A link, hard or symbolic, is the picture that it leads to.

  Returns:
    Pictures with the official labels, and the number of files skipped.

  Raises:
    ValueError: as for `find_sections`; or an entry is no file, or a link that
      leads to no file of the section.
  """
  tar = os.path.basename(section.path)
  members: list[origin.Member] = []
  skipped = 0
  # {path in the section: offset and size of the content}.
  contents: dict[str, tuple[int, int]] = {}
  links: list[tarfile.TarInfo] = []
  for header in _read_headers(section.path, section.offset, section.end):
    if header.isdir():
      continue
    if _is_of_system(header.name):
      skipped += 1
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
    name = os.path.basename(header.name)
    members.append(origin.Member(name, label, tar, *content))
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
      name = os.path.basename(header.name)
      members.append(origin.Member(name, label, tar, *content))
    if len(unresolved) == len(links):
      raise ValueError(
        f"{section.path} holds {links[0].name!r}, a link to "
        f"{links[0].linkname!r}, which is no picture of the same tar. Replace "
        "the link by the picture, or leave it out."
      )
    links = unresolved
  return members, skipped


def _is_of_system(name: str) -> bool:
  parts = os.path.normpath(name).split("/")
  return any(origin.is_of_system(part) for part in parts if part != "..")


def _is_plain(header: tarfile.TarInfo) -> bool:
  """Tests whether the content is in the tar, in one piece."""
  return header.isreg() and not header.issparse()


def _find_label(section: TarSection, name: str) -> int:
  label = ilsvrc.find_label(section.split, os.path.basename(name))
  expected = ilsvrc.EXPECTED[section.split]
  if section.class_name:
    expected = (
      f"pictures as {section.class_name}_18.JPEG in {section.class_name}.tar"
    )
    if label != ilsvrc.labels()[section.class_name]:
      label = None
  if label is None:
    raise ValueError(
      f"{section.path} holds {name!r}, expected {expected}: it is not the "
      f"official {section.split} tar. Download it again, or set --from."
    )
  return label


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
