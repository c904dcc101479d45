"""What it takes to make `imagenet256` of the official tars, and whether it can.

Checks and estimates; nothing is written here. `completion.py` does it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping

import numpy as np
import PIL
import tensorflow_datasets as tfds

from alexnet_jax.data import ilsvrc, listing, shards

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
  files: listing.Files
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
  files = listing.load(parts, made_from)
  if files is None:
    say("reading the headers of the tars; a minute or more for the whole ones")
    files = listing.make(tars)
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
