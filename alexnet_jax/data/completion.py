"""`imagenet256` made as planned, in steps that are kept.

Shards are written into a folder beside the set's own, those that are there are
skipped, and the folder is moved to its place when it is whole: a set that
stands under its name is complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator

import PIL
import tensorflow_datasets as tfds

from alexnet_jax.data import (
  listing,
  preparation,
  shards,
  statistics,
  workers,
)


def carry_out(
  made: preparation.Plan, *, jobs: int, report: Callable[[int], None]
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
    preparation.check_place(made.builder)
    for name in ("set", *map(preparation.notes_folder, made.shards)):
      os.makedirs(os.path.join(made.parts, name), exist_ok=True)
    listing.save(made.parts, made.made_from, made.files)
    workers.write(made.waiting, jobs=jobs, report=report)
    notes = _finish(made)
    shutil.rmtree(made.parts)
  return notes


def clear_leftovers(builder: tfds.core.DatasetBuilder) -> None:
  """Removes what a kill after the last step has left beside a whole set."""
  parts = preparation.find_parts(builder)
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


def _finish(made: preparation.Plan) -> list[shards.Notes]:
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
          filename_template=preparation.make_template(
            made.builder, folder, split
          ),
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
