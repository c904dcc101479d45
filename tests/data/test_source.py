"""Every way in which a file of records can be damaged, with a real one."""

import os
import resource
import types

import pytest

from alexnet_jax.data import sets, source
from tests import small_sets

SHARD = "small-train.array_record-00001-of-00002"


@pytest.fixture
def images():
  return [small_sets.encode(tile) for tile in small_sets.tiles(10)]


@pytest.fixture
def split(tmp_path, images):
  """Ten records in two shards; not opened yet."""
  return small_sets.make_records(tmp_path, images).source


def message(split, index, kind):
  """Returns the line of the error, of this very kind, that a record raises."""
  with pytest.raises(kind) as caught:
    split[index]
  (line,) = str(caught.value).splitlines()
  assert line.startswith(f"record {index} of small/train (number ")
  assert caught.type is kind
  return line


def test_records_of_all_shards_and_of_parts_are_found(tmp_path, images):
  whole = small_sets.make_records(tmp_path, images, shards=3).source
  assert len(whole) == 10
  stored = [small_sets.to_example(image, n) for n, image in enumerate(images)]
  assert [whole[index] for index in range(10)] == stored
  paths = [path for path, *_ in whole._shards]
  part = source.Source(
    "small/train[2:8]",
    [
      types.SimpleNamespace(filename=path, skip=skip, take=take)
      for path, skip, take in zip(paths, (2, 0, 0), (1, 3, 2), strict=True)
    ],
  )
  assert [part[index] for index in range(6)] == stored[2:8]
  assert part.describe(5) == (
    f"record 5 of small/train[2:8] (number 1 in {paths[2]})"
  )


def test_flipped_bytes_cost_one_record(split, tmp_path, images):
  small_sets.flip(tmp_path / SHARD, images[7])
  line = message(split, 7, source.UnreadableError)
  assert f"(number 2 in {tmp_path / SHARD}) cannot be read (Corrupted" in line
  assert "Copy that file here again, or set config.data.unreadable" in line
  assert split[6] and split[8]


def test_file_that_is_not_there_is_named(split, tmp_path):
  (tmp_path / SHARD).unlink()
  assert split[4]
  line = message(split, 5, source.RecordError)  # all records: never replaced
  assert f"{SHARD}) cannot be read: the file cannot be opened (" in line
  assert "No such file or directory" in line
  assert "prepare the set again." in line


@pytest.mark.parametrize("size", [0, 1_000, 70_000, -1, -65_536])
def test_file_cut_short_before_it_is_opened_is_named(split, tmp_path, size):
  path = tmp_path / SHARD
  os.truncate(path, size % path.stat().st_size)
  line = message(split, 9, source.RecordError)
  assert f"{SHARD}) cannot be read: the file cannot be opened (" in line


def test_file_cut_short_after_it_was_opened_is_named(split, tmp_path, images):
  path = tmp_path / SHARD
  assert split[9]
  os.truncate(path, path.read_bytes().index(images[7]))
  line = message(split, 9, source.UnreadableError)
  assert "the file ends before it: it has been truncated" in line
  assert split[6]


def test_file_of_fewer_records_than_noted_is_named(split, tmp_path):
  small_sets.write_shard(tmp_path / SHARD, [b"one", b"two"])
  line = message(split, 6, source.RecordError)
  assert "the file has 2 records, expected 5 or more" in line


def test_split_without_a_file_is_refused_before_anything_is_read(tmp_path):
  builder = sets.open_builder("digits", data_dir=str(tmp_path))
  sets.open_splits(builder, ("train",), stored_size=8)
  (path,) = tmp_path.rglob("*train.array_record*")
  path.unlink()
  builder = sets.open_builder("digits", data_dir=str(tmp_path))
  with pytest.raises(FileNotFoundError) as caught:
    sets.open_splits(builder, ("train",), stored_size=8)
  assert str(caught.value) == (
    f"digits/train lacks 1 of its 1 files; the first is {path}. Copy them here "
    "again, or prepare the set again."
  )


def test_limit_of_open_files_is_raised_as_far_as_the_split_needs():
  before = resource.getrlimit(resource.RLIMIT_NOFILE)
  try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1_024, before[1]))
    source._allow_open_files("small/train", 10)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1_024
    source._allow_open_files("small/train", 1_064)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1_064 + 100
    if before[1] != resource.RLIM_INFINITY:
      with pytest.raises(ValueError, match="files, which .* stay open"):
        source._allow_open_files("small/train", before[1])
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
