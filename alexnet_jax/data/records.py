"""A TFDS image-classification set, record by record: uint8 image, int label.

Read with `tfds.data_source` from ArrayRecord files; TensorFlow is not used.
"""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records:
  """One split of a set; `records[i]` is u8[side, side, 3] and its label.

  Attributes:
    name: of the set and the split, for messages.
    source: random access to the stored records.
    image_key: of the encoded image in a record.
    label_key: of the label in a record.
    num_classes: labels are 0..num_classes-1.
    stored_size: side of the images returned, in pixels.
  """

  name: str
  source: Any
  image_key: str
  label_key: str
  num_classes: int
  stored_size: int

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
    """Reads and decodes one record.

    Raises:
      ValueError: the label is out of range.
    """
    record = self.source[index]
    label = int(record[self.label_key])
    if not 0 <= label < self.num_classes:
      raise ValueError(
        f"record {index} of {self.name} has label {label}, expected "
        f"0..{self.num_classes - 1}. Prepare the set again."
      )
    return decode(record[self.image_key], self.stored_size), label


def decode(encoded: bytes, stored_size: int) -> np.ndarray:
  """Decodes an image and brings it to a square as the paper did.

  Args:
    encoded: a file in any format that Pillow reads.
    stored_size: the shorter side is scaled to it, and the centre cut out.

  Returns:
    u8[stored_size, stored_size, 3], RGB.
  """
  image = Image.open(io.BytesIO(encoded)).convert("RGB")
  width, height = image.size
  if min(width, height) != stored_size:
    scale = stored_size / min(width, height)
    width, height = round(width * scale), round(height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
  left, top = (width - stored_size) // 2, (height - stored_size) // 2
  if (width, height) != (stored_size, stored_size):
    image = image.crop((left, top, left + stored_size, top + stored_size))
  return np.asarray(image)
