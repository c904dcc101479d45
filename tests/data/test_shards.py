"""Records and sums of pixels, beside TFDS's serialization and exact sums."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data import origin, shards, statistics


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_record_is_what_tfds_serializes(encoding):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
  member = origin.Member("ä.JPEG", 3, "")
  format = shards.Format(encoding=encoding, side=16, num_classes=5)
  record, image = shards.make_record(Image.fromarray(pixels), member, format)
  features = shards.make_features(
    encoding, side=16, label=tfds.features.ClassLabel(num_classes=5)
  )
  example = tf_example_pb2.Example.FromString(record)
  (stored,) = example.features.feature["image"].bytes_list.value
  serialized = features.serialize_example(
    {
      "image": io.BytesIO(stored) if encoding == "jpeg" else pixels,
      "label": 3,
      "file_name": member.name,
    }
  )
  expected = tf_example_pb2.Example.FromString(serialized)
  assert expected == example
  assert image == stored
  sums = statistics.PixelSums.zeros(16)
  shards.add_pixels(sums, [image, image], format)
  if encoding == "jpeg":
    decoded = np.asarray(Image.open(io.BytesIO(stored)))
    assert (decoded != pixels).any()
    pixels = decoded
  np.testing.assert_array_equal(sums.values, 2 * pixels.astype(int))


def test_comment_in_a_file_is_not_stored():
  pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
  member = origin.Member("a.jpg", 0, "")
  format = shards.Format(encoding="jpeg", side=16, num_classes=1)
  records = []
  for comment in (b"", b"taken by hand"):
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", comment=comment)
    square, _ = shards.read_square(
      encoded.getvalue(), 16, name="a.jpg", rotate=False
    )
    records.append(shards.make_record(square, member, format)[0])
  assert comment in encoded.getvalue() and comment not in records[1]
  assert records[0] == records[1]


def test_sums_of_more_images_than_16_bits_hold_are_exact():
  sums = statistics.PixelSums.zeros(2)
  rng = np.random.default_rng(0)
  images = rng.integers(250, 256, (600, 2, 2, 3)).astype(np.uint8)
  for image in images:
    sums.add(image)
  assert sums.images == 600
  np.testing.assert_array_equal(sums.values, images.sum(0, dtype=np.int64))


def test_sums_of_white_pixels_are_exact():
  side = 300  # more pixels than 32 bits hold the products of
  sums = statistics.PixelSums.zeros(side)
  white = np.full((side, side, 3), 255, np.uint8)
  white[0, 0] = 1, 2, 3
  for _ in range(2):
    sums.add(white)
  rest = side * side - 1
  for one in range(3):
    for two in range(3):
      product = rest * 255**2 + (one + 1) * (two + 1)
      assert sums.products[one, two] == 2 * product
  assert sums.values.sum() == 2 * (3 * rest * 255 + 6)
