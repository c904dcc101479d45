"""Random access to the stored bytes of a split's records.

Reads the ArrayRecord files that TFDS names, one record per call. TFDS's own
data source takes a third more time per record: it asks for a list of positions,
for which the reader walks through all positions of a file.
"""

from __future__ import annotations

import bisect
import itertools
import os
import resource
import threading
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath

from alexnet_jax.data import metadata_check

# No read-ahead: it would read the neighbors of each record.
_READER_OPTIONS = "readahead_buffer_size:0"
# Bytes of one read from a file: about a record.
_BUFFER_BYTES = 1 << 15
# Files that the process may have open besides those of the split.
_OTHER_FILES = 512
_REMEDY = (
  "Copy that file here again, or set config.data.unreadable=replace to train "
  "without what is lost."
)


class RecordError(ValueError):
  """A record is not as expected; the message names it and its file."""


class UnreadableError(RecordError):
  """A single record cannot be read or decoded; the others can."""


class Source:
  """The records of one split; thread-safe.

  Args:
    name: set and split, for messages.
    instructions: TFDS's `FileInstruction`s, at least one record in all.
  """

  def __init__(self, name: str, instructions: Sequence[Any]):
    self.name = name
    self._shards = [
      (os.fspath(shard.filename), shard.skip, shard.take)
      for shard in instructions
    ]
    # Index of the first record after each shard.
    self._ends = list(itertools.accumulate(take for *_, take in self._shards))
    self._readers: list[Any] = [None] * len(self._shards)
    self._locks = [threading.Lock() for _ in self._shards]

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> bytes:
    """Reads a record; it is never empty.

    Raises:
      RecordError: its file cannot be opened, or has fewer records than the
        metadata say.
      UnreadableError: the file can be opened, but the record cannot be read.
    """
    shard, position = self._locate(index)
    reader = self._readers[shard] or self._open(shard, index)
    try:
      (record,) = reader.read(position, position + 1)
    except RuntimeError as error:
      raise UnreadableError(
        f"{self.describe(index)} cannot be read ({error}). {_REMEDY}"
      ) from error
    # Past the end of its file, the reader returns nothing.
    if not record:
      raise UnreadableError(
        f"{self.describe(index)} cannot be read (the file ends before it: "
        f"it has been truncated). {_REMEDY}"
      )
    return record

  def describe(self, index: int) -> str:
    """Names a record and its file, for messages."""
    shard, position = self._locate(index)
    path = self._shards[shard][0]
    return f"record {index} of {self.name} (number {position} in {path})"

  def _locate(self, index: int) -> tuple[int, int]:
    """Returns the shard of a record and the record's position in it."""
    shard = bisect.bisect_right(self._ends, index)
    _, skip, take = self._shards[shard]
    return shard, index - self._ends[shard] + take + skip

  def _open(self, shard: int, index: int) -> Any:
    """Opens the file of a shard at its first use; `index` is for messages."""
    with self._locks[shard]:
      if self._readers[shard] is None:
        self._readers[shard] = self._open_file(*self._shards[shard], index)
      return self._readers[shard]

  def _open_file(self, path: str, skip: int, take: int, index: int) -> Any:
    reader = array_record_module.ArrayRecordReader(
      path, options=_READER_OPTIONS, file_reader_buffer_size=_BUFFER_BYTES
    )
    if not reader.ok():
      try:
        reader.close()
      except RuntimeError as error:  # has the reason why it cannot be opened
        raise RecordError(
          f"{self.describe(index)} cannot be read: the file cannot be opened "
          f"({error}). Copy that file here again, or prepare the set again."
        ) from error
    if reader.num_records() < skip + take:
      raise RecordError(
        f"{self.describe(index)} cannot be read: the file has "
        f"{reader.num_records():,} records, expected {skip + take:,} or more. "
        "Copy that file here again, or prepare the set again."
      )
    return reader


def open_source(builder: tfds.core.DatasetBuilder, split: str) -> Source:
  """Opens a split, `train` or `train[:90%]`, of a prepared set.

  Raises:
    ValueError: the split does not exist, has no records, has no random access,
      or has more files than the process may open.
    FileNotFoundError: files of it are missing.
  """
  set_split = "Set config.data.train_split or config.data.validation_split."
  name = f"{builder.name}/{split}"
  if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise ValueError(
      f"dataset {builder.name!r} is stored as "
      f"{builder.info.file_format.value}, which has no random access, expected "
      "array_record. Prepare it again with --file_format=array_record."
    )
  try:
    instructions = builder.info.splits[split].file_instructions
  except (ValueError, KeyError) as error:
    reason = str(error).partition("\n")[0].rstrip(".")
    raise ValueError(
      f"dataset {builder.name!r} has no split {split!r} ({reason}), expected "
      f"one of {', '.join(builder.info.splits)} or a part of one, as "
      f"'train[:90%]'. {set_split}"
    ) from None
  if sum(shard.take for shard in instructions) <= 0:
    raise ValueError(f"{name} has no records, expected some. {set_split}")
  paths = [os.fspath(shard.filename) for shard in instructions]
  metadata_check.check_inside(paths, os.fspath(builder.data_dir), what=name)
  found = {
    os.path.join(folder, name)
    for folder in {*map(os.path.dirname, paths)}
    for name in _list_names(folder)
  }
  missing = [path for path in paths if path not in found]
  if missing:
    raise FileNotFoundError(
      f"{name} lacks {len(missing)} of its {len(instructions)} files; the "
      f"first is {missing[0]}. Copy them here again, or prepare the set again."
    )
  _allow_open_files(name, len(instructions))
  return Source(name, instructions)


def _list_names(folder: str) -> list[str]:
  """Lists a folder, which may be in a bucket, with one request."""
  place = epath.Path(folder)
  return [path.name for path in place.iterdir()] if place.is_dir() else []


def _allow_open_files(name: str, count: int) -> None:
  """Raises the limit of open files: most systems start with 1,024."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  needed = count + _OTHER_FILES
  if soft == resource.RLIM_INFINITY or needed <= soft:
    return
  if hard != resource.RLIM_INFINITY and needed > hard:
    raise ValueError(
      f"{name} has {count:,} files, which all stay open, but the system "
      f"allows this process {hard:,} open files, expected {needed:,}. "
      "Raise the hard limit (`ulimit -Hn`)."
    )
  resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
