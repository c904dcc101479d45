"""From the bytes of an image to a square of pixels, u8[side, side, 3].

Nearly all of the time that input takes is spent here.
"""

from __future__ import annotations

import io

import numpy as np
import PIL
import simplejpeg
from PIL import Image

_JPEG = b"\xff\xd8"
# Colors that simplejpeg turns into the RGB that Pillow makes of them.
_COLORS = ("YCbCr", "Gray")


def decode(encoded: bytes, out: np.ndarray) -> None:
  """Decodes a file in any format of `decode.FORMATS`.

  A JPEG that is such a square already is decoded by simplejpeg, which is half
  as fast again as Pillow and gives the same pixels. All else is brought to the
  square by `decode.cut`; there simplejpeg gains nothing.

  Args:
    encoded: the file.
    out: u8[side, side, 3], contiguous; filled with RGB.

  Raises:
    ValueError: says why it cannot be decoded.
  """
  if encoded.startswith(_JPEG) and _decode_square(encoded, out):
    return
  try:
    picture = Image.open(io.BytesIO(encoded), formats=FORMATS)
    out[:] = cut(picture, out.shape[0])
  except PIL.UnidentifiedImageError as error:
    raise ValueError(f"it is none of {', '.join(FORMATS)}") from error
  except MemoryError:
    raise
  except Exception as error:  # Pillow's plugins raise what they like
    raise ValueError(describe(error)) from error


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
    image = np.asarray(cut(Image.fromarray(rgb), out.shape[0]))
  out[:] = image


def _decode_square(encoded: bytes, out: np.ndarray) -> bool:
  """Decodes a JPEG of just this size; whether it was one, and faultless."""
  try:
    height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
    if (height, width) != out.shape[:2] or colors not in _COLORS:
      return False
    simplejpeg.decode_jpeg(encoded, "RGB", buffer=out)
  except ValueError:
    # Pillow decides: it reads over small faults, of which ImageNet has some,
    # and says what is wrong with large ones.
    return False
  return True


# That Pillow reads itself. For others it starts programs: Ghostscript for EPS,
# which runs what the file says.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def cut(picture: Image.Image, side: int) -> Image.Image:
  """Brings a picture of any size and mode to an RGB square.

  Scaling down averages over the area that a pixel stands for, scaling up
  interpolates; cubic in both cases, where the released code has area averages
  down and cubic up (cuda-convnet2, make-data, pyext.cpp). A rotation noted in
  the file is not applied there, nor here.

  Args:
    picture: opened by Pillow.
    side: of the square, pixels.

  Returns:
    `picture` itself where it is such a square already.
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


def describe(error: Exception) -> str:
  """Why Pillow could not decode, in one line."""
  return " ".join(str(error).split()) or type(error).__name__
