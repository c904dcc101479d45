"""What it takes to make `imagenet256` of the official tars, and whether it can.

Checks and estimates; nothing is written here. `completion.py` does it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import PIL
import tensorflow_datasets as tfds

from alexnet_jax.data import ilsvrc, shards, statistics

# What the folder of a set is called until the set is complete.
UNFINISHED = ".unfinished"
# 1,024 shards of the official training tar.
SHARD_IMAGES = 1_252
_SAMPLES = 32
# Of the bytes of a record, measured on that many; and of each file, besides.
_MARGIN = 1.05
_FILE_BYTES = 1 << 17


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What is to be written.

  Attributes:
    builder: of the set.
    parts: the folder of the unfinished set.
    made_from: tars and settings that the shards depend on.
    files: {split: its files, in the order of the records}.
    shards: {split: its shards}.
    image_bytes: of one record, measured on some files.
    image_seconds: of one core for one file, measured on some files.
    free_bytes: of the disk.
  """

  builder: tfds.core.DatasetBuilder
  parts: str
  made_from: Mapping[str, object]
  files: ilsvrc.Files
  shards: Mapping[str, list[shards.Shard]]
  image_bytes: float
  image_seconds: float
  free_bytes: int

  @functools.cached_property
  def waiting(self) -> list[shards.Shard]:
    """Shards that were not written when the plan was made."""
    return [
      shard
      for split in self.shards.values()
      for shard in split
      if not shard.is_done()
    ]

  @property
  def needed_bytes(self) -> int:
    """Of disk, for what is not written yet: records, sums, and a margin."""
    images = sum(len(shard.members) for shard in self.waiting)
    sums = sum(shard.has_sums for shard in self.waiting)
    return math.ceil(
      images * self.image_bytes * _MARGIN
      + sums * shards.SUMS_BYTES
      + len(self.waiting) * _FILE_BYTES
    )


def plan(
  builder: tfds.core.DatasetBuilder,
  *,
  manual_dir: str,
  subset: bool,
  leave_out: bool,
  shard_images: int,
  say: Callable[[str], None],
) -> Plan:
  """Checks all that can be checked before anything is written.

  Args:
    builder: of `imagenet256`.
    manual_dir: the folder of the tars.
    subset: whether the tars may be smaller than the official ones.
    leave_out: whether unreadable files are left out.
    shard_images: in a shard, at most.
    say: told of what takes long.

  Raises:
    OSError: a tar is missing, there is too little disk, or something else
      stands where the set is to be.
    ValueError: a tar is not what it should be, or the folder of the unfinished
      set was begun with others.
  """
  check_place(builder)
  tars = ilsvrc.find_tars(manual_dir, subset=subset)
  parts = find_parts(builder)
  made_from = {
    **{
      ilsvrc.TARS[split]: ilsvrc.fingerprint(path)
      for split, path in tars.items()
    },
    "shard_images": shard_images,
    "pillow": PIL.__version__,
  }
  files = ilsvrc.load(parts, made_from)
  if files is None:
    say("reading the headers of the tars; a minute or more for the whole ones")
    files = ilsvrc.make(tars)
  split_shards = {
    split: _make_shards(
      builder, parts, split, tars[split], listed, leave_out, shard_images
    )
    for split, listed in files.items()
  }
  image_bytes, image_seconds = _sample(tars["train"], files["train"], builder)
  made = Plan(
    builder=builder,
    parts=parts,
    made_from=made_from,
    files=files,
    shards=split_shards,
    image_bytes=image_bytes,
    image_seconds=image_seconds,
    free_bytes=shutil.disk_usage(_existing(parts)).free,
  )
  if made.free_bytes < made.needed_bytes:
    raise OSError(
      f"the disk of {_existing(parts)} has {made.free_bytes / 1e6:,.0f} MB "
      f"free, expected at least {made.needed_bytes / 1e6:,.0f} MB for what is "
      "to be written. Free some, or set --data_dir to another disk."
    )
  return made


def notes_folder(split: str) -> str:
  """Of a split, in the folder of the unfinished set."""
  return f"notes-{split}"


def find_parts(builder: tfds.core.DatasetBuilder) -> str:
  """The folder of the unfinished set, whether it is there or not."""
  return f"{os.fspath(builder.data_dir)}{UNFINISHED}"


def _make_shards(
  builder: tfds.core.DatasetBuilder,
  parts: str,
  split: str,
  tar: str,
  members: list[ilsvrc.Member],
  leave_out: bool,
  shard_images: int,
) -> list[shards.Shard]:
  template = make_template(builder, os.path.join(parts, "set"), split)
  count = -(-len(members) // shard_images)
  made = []
  for index in range(count):
    path = os.fspath(
      template.sharded_filepath(shard_index=index, num_shards=count)
    )
    first = index * len(members) // count
    last = (index + 1) * len(members) // count
    made.append(
      shards.Shard(
        path=path,
        notes=os.path.join(parts, notes_folder(split), f"{index:05d}.npz"),
        tar=tar,
        members=tuple(members[first:last]),
        encoding=builder.builder_config.name,
        leave_out=leave_out,
        has_sums=split == "train",
      )
    )
  return made


def make_template(
  builder: tfds.core.DatasetBuilder, folder: str, split: str
) -> tfds.core.ShardedFileTemplate:
  """The names that TFDS gives to the shards of a split in a folder."""
  return tfds.core.ShardedFileTemplate(
    data_dir=tfds.core.Path(folder),
    dataset_name=builder.name,
    split=split,
    filetype_suffix=builder.info.file_format.file_suffix,
  )


def _sample(
  path: str,
  members: list[ilsvrc.Member],
  builder: tfds.core.DatasetBuilder,
) -> tuple[float, float]:
  """Bytes of a record, and seconds to make it, on some files of a tar."""
  sizes, since = [], time.perf_counter()
  with open(path, "rb") as tar:
    for member in members[:: max(1, len(members) // _SAMPLES)][:_SAMPLES]:
      with contextlib.suppress(ValueError):  # unreadable: told when written
        pixels, _ = shards.read_square(ilsvrc.read(tar, member))
        record, _ = shards.make_record(
          pixels, member, builder.builder_config.name
        )
        sizes.append(len(record))
  if not sizes:
    raise ValueError(
      f"none of {_SAMPLES} files of {path} can be decoded, expected "
      "JPEGs. Fetch it again."
    )
  return float(np.mean(sizes)), (time.perf_counter() - since) / len(sizes)


def check_place(builder: tfds.core.DatasetBuilder) -> None:
  """Refuses a folder that stands where the set is to be.

  Raises:
    FileExistsError: there is one.
  """
  if os.path.exists(builder.data_dir):
    raise FileExistsError(
      f"{builder.data_dir} is there, but not by this preparation, expected no "
      "such folder. Delete it, or set --data_dir."
    )


def _existing(path: str) -> str:
  """The nearest folder above that exists."""
  path = os.path.abspath(path)
  while not os.path.isdir(path):
    path = os.path.dirname(path)
  return path


# `imagenet256` made as planned, in steps that are kept.
#
# Shards are written into a folder beside the set's own, those that are there
# are skipped, and the folder is moved to its place when it is whole: a set that
# stands under its name is complete.


def carry_out(
  made: Plan, *, jobs: int, report: Callable[[int], None]
) -> list[shards.Notes]:
  """Writes the shards that are missing, and finishes the set.

  Args:
    made: from `preparation.plan`.
    jobs: processes that write shards.
    report: called now and then with the files done since the start.

  Returns:
    The notes of all shards.

  Raises:
    ValueError: a file cannot be decoded; finished shards are kept, as after
      every other error and after a kill.
    OSError: the disk is full, or another process prepares this set.
  """
  os.makedirs(made.parts, exist_ok=True)
  with _lock(made.parts, made.builder):
    check_place(made.builder)
    for name in ("set", *map(notes_folder, made.shards)):
      os.makedirs(os.path.join(made.parts, name), exist_ok=True)
    ilsvrc.save(made.parts, made.made_from, made.files)
    shards.write_all(made.waiting, jobs=jobs, report=report)
    notes = _finish(made)
    shutil.rmtree(made.parts)
  return notes


def clear_leftovers(builder: tfds.core.DatasetBuilder) -> None:
  """Removes what a kill after the last step has left beside a whole set."""
  parts = find_parts(builder)
  if os.path.isdir(parts):
    with _lock(parts, builder):
      shutil.rmtree(parts)


def count_odd(notes: list[shards.Notes]) -> dict[str, tuple[int, list[str]]]:
  """{kind: (files, names of some of them)}, over all shards."""
  counts = {}
  for kind in shards.KINDS:
    count = sum(note.odd.get(kind, 0) for note in notes)
    if count:
      names = [name for note in notes for name in note.names.get(kind, [])]
      counts[kind] = count, sorted(names)
  return counts


@contextlib.contextmanager
def _lock(parts: str, builder: tfds.core.DatasetBuilder) -> Iterator[None]:
  with open(os.path.join(parts, "lock"), "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise OSError(
        f"another process prepares {builder.info.full_name} in {parts}, "
        "expected none. Wait for it, or end it."
      ) from None
    yield


def _finish(made: Plan) -> list[shards.Notes]:
  """Writes what TFDS keeps of a set, and moves the set to its place."""
  sums = statistics.Sums(shards.SIDE)
  notes = {split: [] for split in made.shards}
  for split, listed in made.shards.items():
    for shard in listed:
      notes[split].append(shards.read_notes(shard))
      if shard.has_sums:  # one at a time: of a thousand shards they are large
        sums.merge(shards.read_sums(shard))
  everything = [note for listed in notes.values() for note in listed]
  info = made.builder.info
  info.metadata.update(
    statistics=statistics.to_metadata(sums.to_statistics()),
    odd_files={
      kind: {"files": count, "names": names}
      for kind, (count, names) in count_odd(everything).items()
    },
    pillow=PIL.__version__,
  )
  folder = os.path.join(made.parts, "set")
  info.set_splits(
    tfds.core.SplitDict(
      [
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=[note.records for note in listed],
          num_bytes=sum(note.bytes for note in listed),
          filename_template=make_template(made.builder, folder, split),
        )
        for split, listed in notes.items()
      ]
    )
  )
  info.write_to_directory(folder)
  # On the disk before they get their name, and that before the sums go.
  for name in os.listdir(folder):
    _sync(os.path.join(folder, name))
  _sync(folder)
  os.rename(folder, made.builder.data_dir)
  _sync(os.path.dirname(made.builder.data_dir))
  info.read_from_directory(made.builder.data_dir)
  return everything


def _sync(path: str) -> None:
  """Has a file or a folder on the disk, not in memory alone."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
