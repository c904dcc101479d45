"""From the bytes of an image to a square of pixels, u8[side, side, 3].

Input spends nearly all of its time here.
"""

from __future__ import annotations

import io

import numpy as np
import PIL
import simplejpeg
from PIL import Image

# The formats that Pillow reads itself. For others it starts programs:
# Ghostscript for EPS, which runs what the file says.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_JPEG = b"\xff\xd8"
# Color spaces that simplejpeg and Pillow convert to the same RGB.
_COLORS = ("YCbCr", "Gray")


def decode(encoded: bytes, out: np.ndarray) -> None:
  """Decodes a file in any of `FORMATS`.

  simplejpeg decodes a JPEG of the right size: 1.5 times as fast as Pillow, and
  to the same pixels. `to_square` handles the rest; simplejpeg gains nothing
  there.

  `out`, u8[side, side, 3] and contiguous, is filled with RGB.

  Raises:
    ValueError: the reason why it cannot be decoded.
  """
  if encoded.startswith(_JPEG) and _decode_square(encoded, out):
    return
  try:
    picture = Image.open(io.BytesIO(encoded), formats=FORMATS)
    out[:] = to_square(picture, out.shape[0])
  except PIL.UnidentifiedImageError as error:
    raise ValueError(f"it is none of {', '.join(FORMATS)}") from error
  except MemoryError:
    raise
  except Exception as error:  # Pillow's plugins raise errors of any type
    raise ValueError(describe_error(error)) from error


def _decode_square(encoded: bytes, out: np.ndarray) -> bool:
  """Decodes a faultless JPEG of just this size; False for any other."""
  try:
    height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
    if (height, width) != out.shape[:2] or colors not in _COLORS:
      return False
    simplejpeg.decode_jpeg(encoded, "RGB", buffer=out)
  except ValueError:
    # Pillow decides: it tolerates small faults, which some files of ImageNet
    # have, and describes large ones.
    return False
  return True


def copy_pixels(
  pixels: bytes, shape: tuple[int, int, int], out: np.ndarray
) -> None:
  """Copies pixels that are stored unencoded, scaled if the size differs.

  Args:
    pixels: row by row, R G B R G B.
    shape: height, width, and 3 or 1 channels.
    out: as for `decode`.

  Raises:
    ValueError: the number of bytes does not fit the shape.
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
    image = np.asarray(to_square(Image.fromarray(rgb), out.shape[0]))
  out[:] = image


def to_square(picture: Image.Image, side: int) -> Image.Image:
  """Scales the shorter side to `side` pixels and crops the center, as RGB.

  Cubic both ways; downscaling averages over the area of a pixel. The released
  code uses area averages down and cubic up (cuda-convnet2, make-data,
  pyext.cpp). Neither applies a rotation noted in the file.

  Returns:
    `picture` itself if it is such a square already.
  """
  if picture.mode != "RGB":
    picture = picture.convert("RGB")
  width, height = picture.size
  if min(width, height) != side:
    scale = side / min(width, height)
    width, height = round(width * scale), round(height * scale)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
  if (width, height) != (side, side):
    left, top = (width - side) // 2, (height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
  return picture


def describe_error(error: Exception) -> str:
  """Formats an error of Pillow in one line."""
  return " ".join(str(error).split()) or type(error).__name__
