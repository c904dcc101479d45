"""Reads the TensorBoard events of a run, as TensorBoard does."""

import io
import pathlib
import struct

import numpy as np
from PIL import Image
from tensorboardX.proto import event_pb2


def read(folder: pathlib.Path) -> list[event_pb2.Event]:
  """Reads the event files of a folder in the order that TensorBoard does."""
  found = []
  for path in sorted(folder.glob("events.out.tfevents.*")):
    data = path.read_bytes()
    # Of TFRecord: the length, its checksum, the data, their checksum.
    while data:
      (length,) = struct.unpack("<Q", data[:8])
      found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
  return found


def read_scalars(folder: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
  """Returns {tag: steps and values} as TensorBoard shows them.

  A start of a session drops the steps from its own on that come before it.
  """
  curves: dict[str, list] = {}
  for event in read(folder):
    if event.session_log.status == event_pb2.SessionLog.START:
      curves = {
        tag: [point for point in points if point[0] < event.step]
        for tag, points in curves.items()
      }
    for value in event.summary.value:
      if value.WhichOneof("value") == "simple_value":
        points = curves.setdefault(value.tag, [])
        points.append((event.step, value.simple_value))
  return curves


def read_images(
  folder: pathlib.Path,
) -> dict[str, list[tuple[int, np.ndarray]]]:
  """Returns {tag: steps and u8[height, width, channels]}."""
  images: dict[str, list] = {}
  for event in read(folder):
    for value in event.summary.value:
      if value.WhichOneof("value") == "image":
        picture = Image.open(io.BytesIO(value.image.encoded_image_string))
        shown = event.step, np.asarray(picture)
        images.setdefault(value.tag, []).append(shown)
  return images
