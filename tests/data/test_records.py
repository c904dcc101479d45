import dataclasses

import numpy as np
import pytest

from alexnet_jax.data import decode, records, source
from tests import small_sets

TILES = small_sets.tiles(12)


def encoded():
  return [small_sets.encode(tile) for tile in TILES]


def test_rows_are_the_records_that_were_asked_for(tmp_path):
  split = small_sets.make_records(tmp_path, encoded())
  indices = [7, 0, 11, 7]
  images, labels, replaced = split.read(indices)
  np.testing.assert_array_equal(images, TILES[indices])
  assert images.dtype == np.uint8 and labels.dtype == np.int32
  assert labels.tolist() == indices
  assert replaced == []
  image, label = split[5]
  np.testing.assert_array_equal(image, TILES[5])
  assert label == 5


@pytest.mark.parametrize("side", [32, 20])
def test_pixels_that_are_not_encoded_come_out_the_same(tmp_path, side):
  raw = small_sets.make_records(
    tmp_path,
    [tile.tobytes() for tile in TILES],
    raw_shape=(32, 32, 3),
    stored_size=side,
  )
  (tmp_path / "png").mkdir()
  png = small_sets.make_records(tmp_path / "png", encoded(), stored_size=side)
  indices = list(range(12))
  np.testing.assert_array_equal(raw.read(indices)[0], png.read(indices)[0])


def test_label_out_of_range_always_stops(tmp_path):
  for unreadable in ("stop", "replace"):
    split = small_sets.make_records(
      tmp_path, encoded(), num_classes=7, unreadable=unreadable
    )
    split.read(range(7))
    with pytest.raises(
      source.RecordError,
      match=r"record 7 of small/train \(number 1 in .*-00001-of-00002\) has "
      r"label 7, expected 0\.\.6\. Prepare the set again\.",
    ):
      split.read([3, 7])


def test_record_without_a_label_is_read_only_where_it_is_allowed(tmp_path):
  split = small_sets.make_records(
    tmp_path, encoded(), labels=[3] * 11 + [-1], num_classes=4
  )
  expected = (
    r"record 11 of small/train .* has no label \(-1\)\. Set config.data"
  )
  # A run reads the fingerprints of its splits before anything compiles.
  for read in (lambda: split.read([11]), split.fingerprint):
    with pytest.raises(source.RecordError, match=expected):
      read()
  allowing = dataclasses.replace(split, allow_unlabeled=True)
  assert allowing.read([10, 11]).labels.tolist() == [3, -1]
  few = dataclasses.replace(allowing, num_classes=3)
  with pytest.raises(source.RecordError, match=r"has label 3, expected 0\.\.2"):
    few.read([10])


class FakeSource(list):
  def describe(self, index):
    return f"record {index}"


def test_unreadable_record_does_not_hide_a_missing_label():
  stored = [
    small_sets.to_example(b"image", -(number == 9)) for number in range(10)
  ]
  stored[1] = b"damaged"  # read by the same thread
  split = records.Records(
    source=FakeSource(stored),
    **{"image_key": "image", "label_key": "label"},
    **{"num_classes": 10, "stored_size": 8},
  )
  with pytest.raises(source.RecordError, match="record 9 has no label"):
    split.fingerprint()
  allowing = dataclasses.replace(split, allow_unlabeled=True)
  assert allowing.fingerprint() is None


def test_record_of_another_kind_is_refused(tmp_path):
  split = small_sets.make_records(tmp_path, encoded())
  with pytest.raises(source.RecordError, match="0 images as bytes under 'pix'"):
    dataclasses.replace(split, image_key="pix").read([0])


def test_image_that_cannot_be_decoded_is_named(tmp_path):
  images = encoded()
  images[8] = small_sets.encode(TILES[8], "JPEG", quality=95)[:-50]
  split = small_sets.make_records(tmp_path, images)
  with pytest.raises(source.UnreadableError) as caught:
    split.read([2, 8])
  assert str(caught.value).startswith(
    "record 8 of small/train (number 2 in "
    f"{tmp_path}/small-train.array_record-00001-of-00002) has an image that "
    "cannot be decoded (it ends early: image file is truncated"
  )
  assert "set config.data.unreadable=replace" in str(caught.value)


def test_unreadable_records_are_replaced_by_the_next_and_counted(tmp_path):
  images = encoded()
  images[4] = images[4][:60]
  images[10] = images[11] = b"no image"
  split = small_sets.make_records(tmp_path, images, unreadable="replace")
  shard = tmp_path / "small-train.array_record-00000-of-00002"
  small_sets.flip(shard, images[5])
  got, labels, replaced = split.read([3, 4, 5, 9, 10, 11, 4])
  assert labels.tolist() == [3, 6, 6, 9, 0, 0, 6]
  np.testing.assert_array_equal(got, TILES[labels])
  assert replaced == [1, 2, 4, 5, 6]


def test_a_split_of_unreadable_records_stops_all_the_same(tmp_path):
  split = small_sets.make_records(
    tmp_path, [b"no image"] * 80, unreadable="replace"
  )
  with pytest.raises(
    source.RecordError, match="None of the 64 records after it can be read"
  ):
    split.read([1])


def test_record_of_other_bytes_is_named_or_replaced(tmp_path):
  split = small_sets.make_records(tmp_path, encoded())
  stored = list(map(small_sets.to_example, encoded(), range(12)))
  stored[4] = b"no example at all"
  shard, _ = sorted(tmp_path.glob("*array_record*"))
  small_sets.write_shard(shard, stored[:6])  # not opened so far
  with pytest.raises(
    source.UnreadableError, match=r"record 4 of small/train .* is no tf.train"
  ):
    split.read([3, 4])
  replacing = dataclasses.replace(split, unreadable="replace")
  assert replacing.read([4]).labels.tolist() == [5]


def test_lack_of_memory_is_not_taken_for_a_bad_image(tmp_path, monkeypatch):
  def fail(*_):
    raise MemoryError

  monkeypatch.setattr(decode, "to_square", fail)
  split = small_sets.make_records(tmp_path, encoded(), unreadable="replace")
  with pytest.raises(MemoryError):
    split.read([0])


def test_fingerprint_of_a_large_split_is_that_of_evenly_spaced_records(
  monkeypatch,
):
  stored = [(b"image %d" % number, number) for number in range(10)]

  def find(changes):
    """Changes: record -> the record that takes its place."""
    changed = [changes.get(index, one) for index, one in enumerate(stored)]
    return records.Records(
      source=[small_sets.to_example(*one) for one in changed],
      **{"image_key": "image", "label_key": "label"},
      **{"num_classes": 10, "stored_size": 8},
    ).fingerprint()

  def is_noticed(changes):
    return find(changes) != find({})

  relabeled = {
    index: (image, 9 - index) for index, (image, _) in enumerate(stored)
  }
  assert all(is_noticed({index: relabeled[index]}) for index in relabeled)
  monkeypatch.setattr(records, "_SMALL", 9)
  monkeypatch.setattr(records, "_SAMPLED", 5)
  noticed = [
    index for index in relabeled if is_noticed({index: relabeled[index]})
  ]
  assert noticed == [0, 2, 4, 6, 8]
  assert is_noticed({2: stored[6], 6: stored[2]})
