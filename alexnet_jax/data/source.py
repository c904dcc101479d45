"""The records of a split as bytes, by number; faults by file and place.

Read straight from the ArrayRecord files that TFDS names, one record a call.
TFDS's own data source does the same with a third more time for each record: it
asks by a list of places, for which the reader goes through all of a file's.
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

from alexnet_jax.data import metadata_check

# Of random access; read ahead, a record would be read with its neighbors.
_READER_OPTIONS = "readahead_buffer_size:0"
# What one read asks of a file, bytes: about a record.
_BUFFER_BYTES = 1 << 15
# Open files besides those of the split.
_OTHER_FILES = 512
_REMEDY = (
  "Copy that file here again, or set config.data.unreadable=replace to train "
  "without what is lost."
)


class RecordError(ValueError):
  """A record is not what it should be; the message says which, and where."""


class UnreadableError(RecordError):
  """The bytes or the image of a single record are lost; the rest is there."""


class Source:
  """Random access to one split. Threads may share it.

  Args:
    name: of the set and the split, for messages.
    instructions: TFDS's, which part of which file; at least one record.
  """

  def __init__(self, name: str, instructions: Sequence[Any]):
    self.name = name
    self._shards = [
      (os.fspath(shard.filename), shard.skip, shard.take)
      for shard in instructions
    ]
    # Numbers of the records behind the last of each shard.
    self._ends = list(itertools.accumulate(take for *_, take in self._shards))
    self._readers: list[Any] = [None] * len(self._shards)
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> bytes:
    """Reads a record, never empty.

    Raises:
      RecordError: its file cannot be opened, or has fewer records than TFDS
        has noted.
      UnreadableError: the file can be opened, but the record not be read.
    """
    shard, place = self._find(index)
    reader = self._readers[shard] or self._open(shard, index)
    try:
      (record,) = reader.read(place, place + 1)
    except RuntimeError as error:
      raise UnreadableError(
        f"{self.describe(index)} cannot be read ({error}). {_REMEDY}"
      ) from error
    # From a place behind the end of its file, the reader brings nothing.
    if not record:
      raise UnreadableError(
        f"{self.describe(index)} cannot be read (nothing is there: the file "
        f"has been cut short). {_REMEDY}"
      )
    return record

  def describe(self, index: int) -> str:
    """The place of a record, for messages."""
    shard, place = self._find(index)
    path = self._shards[shard][0]
    return f"record {index} of {self.name} (number {place} in {path})"

  def _find(self, index: int) -> tuple[int, int]:
    """The shard of a record, and its number there."""
    shard = bisect.bisect_right(self._ends, index)
    _, skip, take = self._shards[shard]
    return shard, index - self._ends[shard] + take + skip

  def _open(self, shard: int, index: int) -> Any:
    with self._lock:
      if self._readers[shard] is None:
        self._readers[shard] = self._open_file(shard, index)
      return self._readers[shard]

  def _open_file(self, shard: int, index: int) -> Any:
    path, skip, take = self._shards[shard]
    reader = array_record_module.ArrayRecordReader(
      path, options=_READER_OPTIONS, file_reader_buffer_size=_BUFFER_BYTES
    )
    if not reader.ok():
      try:
        reader.close()
      except RuntimeError as error:  # says why it could not be opened
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
  """Opens a split of a set that has been prepared.

  Args:
    builder: of the set.
    split: in TFDS's notation, `train` or `train[:90%]`.

  Raises:
    ValueError: there is no such split, it has no records, it cannot be read at
      random, or it has more files than may be open.
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
  missing = [path for path in paths if not os.path.exists(path)]
  if missing:
    raise FileNotFoundError(
      f"{name} lacks {len(missing)} of its {len(instructions)} files; the "
      f"first is {missing[0]}. Copy them here again, or prepare the set again."
    )
  _allow_open_files(name, len(instructions))
  return Source(name, instructions)


def _allow_open_files(name: str, count: int) -> None:
  """Every file of a split stays open; most systems start with 1,024."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  needed = count + _OTHER_FILES
  if soft == resource.RLIM_INFINITY or needed <= soft:
    return
  if hard != resource.RLIM_INFINITY and needed > hard:
    raise ValueError(
      f"{name} has {count:,} files, which are read at random and stay open, "
      f"but the system allows this process {hard:,} open files, expected "
      f"{needed:,}. Raise the hard limit (`ulimit -Hn`)."
    )
  resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
