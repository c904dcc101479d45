"""Records and sums of pixels, beside TFDS's serialization and exact sums."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data import origin, shards, statistics


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_record_is_what_tfds_serializes(encoding):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
  member = origin.Member("ä.JPEG", 3, "")
  record, decoded = shards.make_record(
    pixels, member, shards.Format(encoding=encoding, side=16, num_classes=5)
  )
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
  assert (decoded == pixels).all() == (encoding == "raw")


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
