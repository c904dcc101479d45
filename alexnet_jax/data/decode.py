"""From the bytes of an image to a square of pixels, u8[side, side, 3].

Nearly all of the time that input takes is spent here.
"""

from __future__ import annotations

import io

import numpy as np
import PIL
import simplejpeg
from PIL import Image

from alexnet_jax.data import square

_JPEG = b"\xff\xd8"
# Colours that simplejpeg turns into the RGB that Pillow makes of them.
_COLOURS = ("YCbCr", "Gray")


def decode(encoded: bytes, out: np.ndarray) -> None:
  """Decodes a file in any format of `square.FORMATS`.

  A JPEG that is such a square already is decoded by simplejpeg, which is half
  as fast again as Pillow and gives the same pixels. All else is brought to the
  square by `square.cut`; there simplejpeg gains nothing.

  Args:
    encoded: the file.
    out: u8[side, side, 3], contiguous; filled with RGB.

  Raises:
    ValueError: says why it cannot be decoded.
  """
  if encoded.startswith(_JPEG) and _decode_square(encoded, out):
    return
  try:
    picture = Image.open(io.BytesIO(encoded), formats=square.FORMATS)
    out[:] = square.cut(picture, out.shape[0])
  except PIL.UnidentifiedImageError as error:
    raise ValueError(f"it is none of {', '.join(square.FORMATS)}") from error
  except MemoryError:
    raise
  except Exception as error:  # Pillow's plugins raise what they like
    raise ValueError(square.describe(error)) from error


def copy(pixels: bytes, shape: tuple[int, int, int], out: np.ndarray) -> None:
  """Takes pixels that are not encoded.

  Args:
    pixels: row by row, R G B R G B.
    shape: height, width, and 3 or 1 channels.
    out: as for `decode`.

  Raises:
    ValueError: they are not as many as the shape says.
  """
  height, width, channels = shape
  if len(pixels) != height * width * channels:
    raise ValueError(
      f"there are {len(pixels):,} bytes of pixels, expected "
      f"{height * width * channels:,}: {height} x {width} x {channels}"
    )
  image = np.frombuffer(pixels, np.uint8).reshape(shape)
  if (height, width) != out.shape[:2]:
    rgb = np.broadcast_to(image, (height, width, 3))
    image = np.asarray(square.cut(Image.fromarray(rgb), out.shape[0]))
  out[:] = image


def _decode_square(encoded: bytes, out: np.ndarray) -> bool:
  """Decodes a JPEG of just this size; whether it was one, and faultless."""
  try:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    if (height, width) != out.shape[:2] or colours not in _COLOURS:
      return False
    simplejpeg.decode_jpeg(encoded, "RGB", buffer=out)
  except ValueError:
    # Pillow decides: it reads over small faults, of which ImageNet has some,
    # and says what is wrong with large ones.
    return False
  return True
