"""Where the pictures of a set come from: a list of files, and their bytes.

Each kind of origin (`tars.py`, `folders.py`, `parquet.py`) says which classes
it has, lists its files once, and reads a file by its place. What follows is the
same for all of them: `preparation.py` and `shards.py`.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from alexnet_jax.data import atomic

# Threads that list files: nearly all of their time is spent waiting for a disk.
THREADS = 16
# What systems leave in folders, in lower case; also whatever begins with a dot,
# as .DS_Store, and ._x, which macOS puts beside x.
_OF_SYSTEMS = ("thumbs.db", "desktop.ini", "__macosx")
_LISTING = "files.json"


class Member(NamedTuple):
  """A picture of an origin.

  Attributes:
    name: in the record, as n01440764_18.JPEG; no two of a split have the same.
    label: 0..classes-1.
    file: the file that holds the picture, or its folder; relative to the folder
      of the origin.
    offset: of its first byte in that file, or its row.
    size: in bytes; 0 where the file ends with it.
  """

  name: str
  label: int
  file: str
  offset: int = 0
  size: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
  """The files of an origin.

  Attributes:
    files: {split: its files}.
    skipped: files of systems, hidden ones, and ones outside of all classes.
  """

  files: dict[str, list[Member]]
  skipped: int = 0

  def shuffle(self) -> Listing:
    """Returns a listing in the order of a hash of the names.

    So the order of the records is the same, whatever the files come from.
    """
    files = {
      split: sorted(members, key=_hash_name)
      for split, members in self.files.items()
    }
    return dataclasses.replace(self, files=files)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin(abc.ABC):
  """Pictures in classes, for training and validation.

  Processes that write shards get a copy.

  Attributes:
    folder: where its files are.
    class_names: of its classes, in the order of the labels.
  """

  folder: str
  class_names: tuple[str, ...]

  @abc.abstractmethod
  def describe(self) -> str:
    """Says what it is, for the user."""

  @abc.abstractmethod
  def fingerprint(self) -> dict[str, object]:
    """Returns what tells it from others, without listing its files."""

  @abc.abstractmethod
  def list_files(
    self, labels: Mapping[str, int], *, is_imagenet: bool
  ) -> Listing:
    """Lists all files, in any order.

    Args:
      labels: of the classes.
      is_imagenet: name the files as the official tars do.

    Raises:
      ValueError, OSError: the files are not as expected; names one of them.
    """

  @abc.abstractmethod
  def find_inputs(self, listing: Listing) -> Iterable[str]:
    """Finds the files or folders that change when a picture comes or goes."""

  def find_modified(self, listing: Listing, since_ns: int) -> list[str]:
    """Names the inputs that were modified after a time.

    Raises:
      OSError: one cannot be read, or is gone.
    """
    modified = []
    for path in self.find_inputs(listing):
      with name_errors(path):
        if os.stat(path).st_mtime_ns > since_ns:
          modified.append(path)
    return modified

  @abc.abstractmethod
  def locate(self, member: Member) -> str:
    """Names the place of a file, for messages."""

  @abc.abstractmethod
  def open(
    self, scratch: str
  ) -> contextlib.AbstractContextManager[Callable[[Member], bytes]]:
    """Opens it; yields a function that reads a file.

    The function raises ValueError if this file is no picture, and OSError if it
    cannot be read now.

    Args:
      scratch: the folder that `unpack` writes to.
    """

  @property
  def listed(self) -> tuple[str, ...]:
    """The folders of which everything is taken for pictures."""
    return ()

  def count_unpacked_bytes(self, scratch: str) -> int:
    """Returns the bytes that `unpack` will write."""
    del scratch
    return 0

  def unpack(self, scratch: str) -> None:
    """Writes what `open` needs to read files in any order.

    What is there already is not written again.
    """
    del scratch


def is_of_system(name: str) -> bool:
  """Tests for files and folders that are hidden, or that systems leave."""
  return name.startswith(".") or name.lower() in _OF_SYSTEMS


def is_folder(entry: os.DirEntry) -> bool:
  """Tests for a folder, or a link to one; a link to itself is none."""
  try:
    return entry.is_dir()
  except OSError as error:
    if error.errno == errno.ELOOP:
      return False
    raise


def load_listing(
  folder: str, made_from: Mapping[str, object]
) -> Listing | None:
  """Loads the listing of an earlier, interrupted preparation; None: none.

  Listing a million files takes a while.

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
  files = {
    # Many pictures are in one file, whose name is kept once.
    split: [
      Member(name, label, sys.intern(file), *place)
      for name, label, file, *place in members
    ]
    for split, members in stored["files"].items()
  }
  return Listing(files=files, skipped=stored["skipped"])


def find_saved_time(folder: str) -> int | None:
  """Returns when a listing was saved, in ns; None: there is none."""
  try:
    return os.stat(os.path.join(folder, _LISTING)).st_mtime_ns
  except FileNotFoundError:
    return None


def save_listing(
  folder: str, made_from: Mapping[str, object], listing: Listing
) -> None:
  """Saves a listing for `load_listing`, unless there is one."""
  path = os.path.join(folder, _LISTING)
  if not os.path.exists(path):
    content = {"made_from": made_from, **vars(listing)}
    with atomic.replace(path) as partial, open(partial, "w") as file:
      # Not `json.dump`, which takes three times as long.
      file.write(json.dumps(content))


def _hash_name(member: Member) -> bytes:
  return hashlib.blake2b(os.fsencode(member.name), digest_size=8).digest()


@contextlib.contextmanager
def name_errors(path: str) -> Iterator[None]:
  """Adds the path, and what to do, to an OSError of the system."""
  try:
    yield
  except OSError as error:
    raise OSError(
      f"{error.filename or path} cannot be read ({error.strerror or error}). "
      "Check that it is there and that you may read it, and repeat the command."
    ) from error
