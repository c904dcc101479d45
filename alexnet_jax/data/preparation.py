"""Prepares a set from any origin: `make_plan`, then `execute`.

A plan checks and estimates; it writes nothing. `execute` writes the shards into
a folder beside the set's own, skips those that are there, and renames the
folder at the end: a set under its final name is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import PIL
import tensorflow_datasets as tfds

from alexnet_jax.data import (
  atomic,
  decode,
  ilsvrc,
  origin,
  recognition,
  shards,
  statistics,
)

# Ends the name of a set's folder until the set is complete.
UNFINISHED = ".unfinished"
# In the folder of a set: the files that were left out, and why.
LEFT_OUT = "left_out.txt"
# 1,024 shards of the official training tar.
SHARD_IMAGES = 1_252
# Files that the estimates are measured on.
_SAMPLES = 32
# Factor on the measured bytes of a record, and bytes to add for each shard.
_MARGIN = 1.05
_SHARD_BYTES = 1 << 17


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What is to be written.

  Attributes:
    origin: of the pictures.
    folder: of the unfinished set.
    made_from: files and settings that the shards depend on.
    listing: of the files, in the order of the records.
    shards: {split: its shards}.
    image_bytes: of a record, measured on some files.
    image_seconds: of one core per file, measured on some files.
    free_bytes: of the disk.
  """

  builder: tfds.core.DatasetBuilder
  origin: origin.Origin
  folder: str
  made_from: Mapping[str, object]
  listing: origin.Listing
  shards: Mapping[str, list[shards.Shard]]
  image_bytes: float
  image_seconds: float
  free_bytes: int

  @functools.cached_property
  def remaining(self) -> list[shards.Shard]:
    """The shards that were not written when this was first asked."""
    shards_of_splits = itertools.chain(*self.shards.values())
    return [shard for shard in shards_of_splits if not shard.is_done()]

  @property
  def needed_bytes(self) -> int:
    """Disk for the remaining shards: records, sums, and a margin."""
    if not self.remaining:
      return 0
    images = sum(len(shard.members) for shard in self.remaining)
    sums = sum(
      shard.format.sums_bytes for shard in self.remaining if shard.has_sums
    )
    return math.ceil(
      images * self.image_bytes * _MARGIN
      + sums
      + len(self.remaining) * _SHARD_BYTES
      + self.unpacked_bytes
    )

  @property
  def unpacked_bytes(self) -> int:
    """Disk for what the origin unpacks, until the set is complete."""
    if not self.remaining:
      return 0
    return self.origin.count_unpacked_bytes(_scratch(self.folder))


def make_plan(
  builder: tfds.core.DatasetBuilder,
  found: origin.Origin,
  *,
  subset: bool,
  leave_out: bool,
  shard_images: int,
  log: Callable[[str], None],
) -> Plan:
  """Checks all that can be checked before anything is written.

  Args:
    builder: of the set, with features of `shards.make_features`.
    found: where the pictures are.
    subset: accept ILSVRC with fewer pictures than it has.
    leave_out: leave unreadable files out.
    shard_images: images in a shard, at most.
    log: called with a line for the user.

  Raises:
    OSError: a file cannot be read, the disk is too small, or something else is
      in the place of the set.
    ValueError: files are not as expected, or an unfinished set was started with
      other inputs.
  """
  _check_destination(builder)
  _check_apart(builder, found)
  folder = _find_unfinished(builder)
  format = shards.find_format(builder.info.features)
  made_from = found.fingerprint() | {
    "encoding": format.encoding,
    "size": format.side,
    "shard_images": shard_images,
    "pillow": PIL.__version__,
  }
  listing = origin.load_listing(folder, made_from)
  if listing is None:
    log("listing the files; a million of them take a minute or more")
    listing = recognition.list_files(
      found,
      builder.info.features["label"].names,
      is_imagenet=builder.name == ilsvrc.SET,
      subset=subset,
    )
  elif modified := found.find_modified(listing, origin.find_saved_time(folder)):
    more = f" and {len(modified) - 1:,} more" if len(modified) > 1 else ""
    log(
      f"{modified[0]}{more} was modified after this preparation started; if "
      f"pictures changed, delete {folder}, since finished shards have the "
      "earlier ones"
    )
  if listing.skipped:
    log(
      "skipped what is hidden, of a system, or in no class (._*, .DS_Store, "
      f"Thumbs.db, ...): {listing.skipped:,}"
    )
  split_shards = {
    split: _make_shards(
      builder, found, folder, split, members, leave_out, shard_images
    )
    for split, members in listing.files.items()
  }
  image_bytes, image_seconds = _measure(split_shards["train"])
  disk = os.path.abspath(folder)
  while not os.path.isdir(disk):
    disk = os.path.dirname(disk)
  plan = Plan(
    builder=builder,
    origin=found,
    folder=folder,
    made_from=made_from,
    listing=listing,
    shards=split_shards,
    image_bytes=image_bytes,
    image_seconds=image_seconds,
    free_bytes=shutil.disk_usage(disk).free,
  )
  if plan.free_bytes < plan.needed_bytes:
    raise OSError(
      f"the disk of {disk} has {plan.free_bytes / 1e6:,.0f} MB free, expected "
      f"at least {plan.needed_bytes / 1e6:,.0f} MB for the remaining shards. "
      "Free some, or set --data_dir to another disk."
    )
  return plan


def execute(
  plan: Plan, *, jobs: int, report: Callable[[int], None]
) -> list[shards.Notes]:
  """Writes the remaining shards, completes the set, returns all notes.

  Finished shards are kept after errors, Ctrl-C and kills.

  Raises:
    ValueError, OSError: as `shards.write_all`, which has the arguments; or
      another process prepares this set.
  """
  os.makedirs(plan.folder, exist_ok=True)
  with _lock(plan.folder, plan.builder):
    _check_destination(plan.builder)
    for name in ("set", *map(_notes_folder, plan.shards)):
      os.makedirs(os.path.join(plan.folder, name), exist_ok=True)
    origin.save_listing(plan.folder, plan.made_from, plan.listing)
    if plan.remaining:
      plan.origin.unpack(_scratch(plan.folder))
    shards.write_all(plan.remaining, jobs=jobs, report=report)
    notes = _finish(plan)
    shutil.rmtree(plan.folder)
  return notes


def remove_leftovers(builder: tfds.core.DatasetBuilder) -> None:
  """Removes what a kill after the last step has left beside a complete set."""
  folder = _find_unfinished(builder)
  if os.path.isdir(folder):
    with _lock(folder, builder):
      shutil.rmtree(folder)


def count_odd(notes: list[shards.Notes]) -> dict[str, tuple[int, list[str]]]:
  """Returns {oddity: (files, names of some of them)} over all shards."""
  counts = {}
  for kind in shards.ODDITIES:
    count = sum(note.odd.get(kind, 0) for note in notes)
    if count:
      names = [name for note in notes for name in note.names.get(kind, [])]
      counts[kind] = count, sorted(names)
  return counts


def _check_destination(builder: tfds.core.DatasetBuilder) -> None:
  if os.path.exists(builder.data_dir):
    raise FileExistsError(
      f"{builder.data_dir} exists, but not from this preparation, expected no "
      "such folder. Delete it, or set --data_dir."
    )


def _check_apart(
  builder: tfds.core.DatasetBuilder, found: origin.Origin
) -> None:
  """Refuses to write a set among the pictures that it is made of."""
  written = os.path.realpath(builder.data_dir)
  for folder in map(os.path.realpath, found.listed):
    if os.path.commonpath([folder, written]) == folder:
      raise ValueError(
        f"the set would be written to {written}, among the pictures in "
        f"{folder}, expected another folder. Set --data_dir."
      )


def _find_unfinished(builder: tfds.core.DatasetBuilder) -> str:
  """Returns the folder of the unfinished set, which need not exist."""
  return f"{os.fspath(builder.data_dir)}{UNFINISHED}"


def _notes_folder(split: str) -> str:
  return f"notes-{split}"


def _scratch(folder: str) -> str:
  """Returns the folder that an origin unpacks to."""
  return os.path.join(folder, "unpacked")


def _make_shards(
  builder: tfds.core.DatasetBuilder,
  found: origin.Origin,
  folder: str,
  split: str,
  members: list[origin.Member],
  leave_out: bool,
  shard_images: int,
) -> list[shards.Shard]:
  template = _make_template(builder, os.path.join(folder, "set"), split)
  count = -(-len(members) // shard_images)
  made = []
  for index in range(count):
    path = template.sharded_filepath(shard_index=index, num_shards=count)
    first = index * len(members) // count
    last = (index + 1) * len(members) // count
    made.append(
      shards.Shard(
        path=os.fspath(path),
        notes=os.path.join(folder, _notes_folder(split), f"{index:05d}.npz"),
        origin=found,
        scratch=_scratch(folder),
        members=tuple(members[first:last]),
        format=shards.find_format(builder.info.features),
        rotate=_is_rotated(builder),
        leave_out=leave_out,
        has_sums=split == "train",
      )
    )
  return made


def _make_template(
  builder: tfds.core.DatasetBuilder, folder: str, split: str
) -> tfds.core.ShardedFileTemplate:
  """Makes TFDS's names for the shards of a split in a folder."""
  return tfds.core.ShardedFileTemplate(
    data_dir=tfds.core.Path(folder),
    dataset_name=builder.name,
    split=split,
    filetype_suffix=builder.info.file_format.file_suffix,
  )


def _is_rotated(builder: tfds.core.DatasetBuilder) -> bool:
  """Tests for a set whose pictures are rotated as a camera has noted.

  Not in ImageNet: published numbers are those of the pictures as stored.
  """
  return builder.name != ilsvrc.SET


def _measure(train: list[shards.Shard]) -> tuple[float, float]:
  """Measures bytes per record, and seconds to make one, on some files."""
  decode.ignore_warnings()
  shard, found = train[0], train[0].origin
  members = [member for one in train for member in one.members]
  sampled = members[:: max(1, len(members) // _SAMPLES)][:_SAMPLES]
  sums = statistics.PixelSums.zeros(shard.format.side)
  images: list[bytes] = []
  sizes, since, problem = [], time.perf_counter(), ""
  with found.open(shard.scratch) as read:
    for member in sampled:
      try:
        square, _ = shards.read_square(
          read(member),
          shard.format.side,
          name=member.name,
          rotate=shard.rotate,
        )
      except ValueError as error:  # reported when written
        problem = f"{found.locate(member)}: {error}"
        continue
      record, stored = shards.make_record(square, member, shard.format)
      images.append(stored)
      sizes.append(len(record))
  if not sizes:
    raise ValueError(
      f"none of {len(sampled)} files can be decoded, expected pictures; the "
      f"last one is {problem}. Set --from."
    )
  shards.add_pixels(sums, images, shard.format)
  return float(np.mean(sizes)), (time.perf_counter() - since) / len(sizes)


@contextlib.contextmanager
def _lock(folder: str, builder: tfds.core.DatasetBuilder) -> Iterator[None]:
  with open(os.path.join(folder, "lock"), "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise OSError(
        f"another process prepares {builder.info.full_name} in {folder}. Wait "
        "for it, or end it."
      ) from None
    yield


def _finish(plan: Plan) -> list[shards.Notes]:
  """Writes TFDS's metadata of the set, and renames the set's folder."""
  format = shards.find_format(plan.builder.info.features)
  sums = statistics.PixelSums.zeros(format.side)
  notes = {split: [] for split in plan.shards}
  for split, split_shards in plan.shards.items():
    for shard in split_shards:
      notes[split].append(shard.read_notes())
      if shard.has_sums:  # one at a time: those of a thousand shards are large
        sums.merge(shard.read_sums())
  all_notes = [note for split_notes in notes.values() for note in split_notes]
  info = plan.builder.info
  info.metadata.update(
    statistics=statistics.to_metadata(sums.to_statistics()),
    odd_files={
      kind: {"files": count, "names": names}
      for kind, (count, names) in count_odd(all_notes).items()
    },
    pillow=PIL.__version__,
  )
  folder = os.path.join(plan.folder, "set")
  info.set_splits(
    tfds.core.SplitDict(
      [
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=[note.records for note in split_notes],
          num_bytes=sum(note.bytes for note in split_notes),
          filename_template=_make_template(plan.builder, folder, split),
        )
        for split, split_notes in notes.items()
      ]
    )
  )
  info.write_to_directory(folder)
  _write_left_out(os.path.join(folder, LEFT_OUT), all_notes)
  # Synced before the rename, and the rename before the notes are deleted.
  for name in os.listdir(folder):
    atomic.sync(os.path.join(folder, name))
  atomic.sync(folder)
  os.rename(folder, plan.builder.data_dir)
  atomic.sync(os.path.dirname(plan.builder.data_dir))
  info.read_from_directory(plan.builder.data_dir)
  return all_notes


def _write_left_out(path: str, notes: list[shards.Notes]) -> None:
  """Writes a line for each file that was left out; no file if there is none."""
  lines = [
    f"{place}: {reason}".replace("\n", "\\n") + "\n"
    for note in notes
    for place, reason in note.left_out
  ]
  if lines:
    # Names of files may be no text.
    with open(path, "w", errors="surrogateescape") as file:
      file.writelines(sorted(lines))
  elif os.path.exists(path):  # of an earlier, interrupted attempt
    os.remove(path)
