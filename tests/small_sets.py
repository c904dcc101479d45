"""Splits of a few real pictures, written as TFDS writes them; and damage."""

import io
import pathlib
import types

import numpy as np
from array_record.python import array_record_module
from PIL import Image
from sklearn import datasets
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data import records, source


def tiles(count: int, side: int = 32) -> np.ndarray:
  """Cuts of a photograph, no two the same: u8[count, side, side, 3]."""
  photo = datasets.load_sample_image("china.jpg")
  corners = [divmod(8 * number, 320) for number in range(count)]
  return np.stack(
    [photo[8 * y : 8 * y + side, x : x + side] for y, x in corners]
  )


def encode(
  pixels: np.ndarray, kind: str = "PNG", *, mode: str | None = None, **options
) -> bytes:
  encoded = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(encoded, format=kind, **options)
  return encoded.getvalue()


def to_example(image: bytes, label: int) -> bytes:
  example = tf_example_pb2.Example()
  example.features.feature["image"].bytes_list.value.append(image)
  example.features.feature["label"].int64_list.value.append(label)
  return example.SerializeToString()


def write_shard(path: pathlib.Path, stored: list[bytes]) -> None:
  """Not compressed, so that a test finds the records in the file."""
  writer = array_record_module.ArrayRecordWriter(
    str(path), "group_size:1,uncompressed"
  )
  for record in stored:
    writer.write(record)
  writer.close()


def make_records(
  folder: pathlib.Path,
  images: list[bytes],
  *,
  labels=None,
  shards: int = 2,
  **fields,
) -> records.Records:
  """A split of these images; labels are the numbers of the records."""
  labels = range(len(images)) if labels is None else labels
  stored = list(map(to_example, images, labels))
  ends = [len(stored) * part // shards for part in range(shards + 1)]
  instructions = []
  for shard, (first, last) in enumerate(zip(ends, ends[1:], strict=False)):
    path = folder / f"small-train.array_record-{shard:05d}-of-{shards:05d}"
    write_shard(path, stored[first:last])
    instructions.append(
      types.SimpleNamespace(filename=str(path), skip=0, take=last - first)
    )
  options = {"num_classes": len(images), "stored_size": 32} | fields
  return records.Records(
    source=source.Source("small/train", instructions),
    image_key="image",
    label_key="label",
    **options,
  )


def flip(path: pathlib.Path, part: bytes) -> None:
  """Flips the bits of some bytes within a part of a file."""
  content = bytearray(path.read_bytes())
  at = content.index(part) + len(part) // 2
  content[at : at + 4] = bytes(255 - byte for byte in content[at : at + 4])
  path.write_bytes(content)
