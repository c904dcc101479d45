"""From the bytes of an image to a square of pixels, u8[side, side, 3].

Input spends nearly all of its time here. A picture of any kind that Pillow
reads becomes RGB: what is transparent is put on white, and gray values of more
than 8 bits are scaled.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import PIL
import simplejpeg
from PIL import Image, ImageOps

# The formats that Pillow reads itself. For others it starts programs:
# Ghostscript for EPS, which runs what the file says.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_JPEG = b"\xff\xd8"
# In the place of a file that is gone from the web.
_WEB_PAGE = (b"<html", b"<!doctype html")
# Values of white in gray pictures of more than 8 bits. Pillow brings PGM files
# to 16 bits in mode I; libraries that write floating point have white at 1.
_WHITE = {"I": 2**16 - 1, "F": 1}
# Of the longer side over the shorter: above it a picture is cropped before it
# is enlarged, which takes little memory, but rounds otherwise.
_LONGEST = 100
# Color spaces that simplejpeg and Pillow convert to the same RGB.
_COLORS = ("YCbCr", "Gray")


class PictureError(ValueError):
  """The reason why a picture cannot be decoded, in words."""


def decode(encoded: bytes, out: np.ndarray) -> None:
  """Decodes a file in any of `FORMATS`.

  simplejpeg decodes a JPEG of the right size: 1.5 times as fast as Pillow, and
  to the same pixels. `to_square` handles the rest; simplejpeg gains nothing
  there.

  `out`, u8[side, side, 3] and contiguous, is filled with RGB.

  Raises:
    PictureError: the reason why it cannot be decoded.
  """
  if encoded.startswith(_JPEG) and _decode_square(encoded, out):
    return
  with describe_errors():
    out[:] = to_square(open_picture(io.BytesIO(encoded)), out.shape[0])


def open_picture(file: BinaryIO) -> Image.Image:
  """Decodes a file in any of `FORMATS`, its first picture if it has several.

  Raises:
    PictureError: the reason why it cannot be decoded.
  """
  most = Image.MAX_IMAGE_PIXELS
  with describe_errors():
    try:
      picture = Image.open(file, formats=FORMATS)
      # Pillow only warns up to twice the limit.
      is_bomb = most is not None and picture.width * picture.height > most
    except PIL.UnidentifiedImageError as error:
      raise PictureError(_describe_unknown(file)) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
      is_bomb = True
    if is_bomb:
      raise PictureError(f"it has more than {most:,} pixels")
    picture.load()
  return picture


def rotate(picture: Image.Image) -> None:
  """Applies a noted rotation; one that cannot be read counts as none."""
  try:
    ImageOps.exif_transpose(picture, in_place=True)
  except MemoryError:
    raise
  except Exception:  # Pillow raises errors of any type
    pass


def is_web_page(start: bytes) -> bool:
  """Tests the start of a file that should be something else."""
  return any(tag in start[:1000].lower() for tag in _WEB_PAGE)


def _describe_unknown(file: BinaryIO) -> str:
  """Says what a file is that is no picture."""
  file.seek(0)
  start = file.read(1000)
  if not start:
    return "it is empty"
  if is_web_page(start):
    return "it is a web page"
  return f"it is none of {', '.join(FORMATS)}, or its header is damaged"


@contextlib.contextmanager
def describe_errors() -> Iterator[None]:
  """Turns errors of Pillow into a PictureError of one line."""
  try:
    yield
  except (MemoryError, PictureError):
    raise
  except Exception as error:  # Pillow's plugins raise errors of any type
    text = " ".join(str(error).split()) or type(error).__name__
    ends_early = "truncated" in text.lower()
    what = "it ends early" if ends_early else "Pillow cannot decode it"
    raise PictureError(f"{what}: {text}") from error


def ignore_warnings() -> None:
  """Keeps Pillow's warnings from the terminal of this process.

  They name no file, and are about metadata that nothing here reads; a picture
  of too many pixels is an error (`open_picture`).
  """
  warnings.filterwarnings("ignore", module=r"PIL\.")


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

  What is transparent is put on white. White is 255 of 8 bits, 65,535 of 16 bits
  and of integers, and 1 of floating point.

  Cubic both ways; downscaling averages over the area of a pixel. The released
  code uses area averages down and cubic up (cuda-convnet2, make-data,
  pyext.cpp). Neither applies a rotation noted in the file.

  Returns:
    `picture` itself if it is such a square already.

  Raises:
    PictureError: gray values are out of range.
  """
  picture = _to_rgb(picture)
  width, height = picture.size
  shorter = min(width, height)
  if shorter < side and max(width, height) > _LONGEST * shorter:
    left, top = (width - shorter) / 2, (height - shorter) / 2
    return picture.resize(
      (side, side),
      Image.Resampling.BICUBIC,
      box=(left, top, left + shorter, top + shorter),
    )
  if shorter != side:
    scale = side / shorter
    width, height = round(width * scale), round(height * scale)
    if width > height:
      # Pillow scales a wide picture across first: the same pixels, in a tenth
      # less time, since what is cropped is not scaled down.
      picture = picture.resize(
        (width, picture.height), Image.Resampling.BICUBIC
      )
      left = (width - side) // 2
      picture = picture.crop((left, 0, left + side, picture.height))
      width = side
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
  if (width, height) != (side, side):
    left, top = (width - side) // 2, (height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
  return picture


def _to_rgb(picture: Image.Image) -> Image.Image:
  if picture.mode[0] in _WHITE:
    picture = _to_8_bits(picture)
  elif picture.has_transparency_data:
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture)
  return picture if picture.mode == "RGB" else picture.convert("RGB")


def _to_8_bits(picture: Image.Image) -> Image.Image:
  """Scales gray values, which Pillow's `convert` would clip to 0..255.

  Raises:
    PictureError: some are below 0, above white, or no numbers: their scale is
      not known.
  """
  white = _WHITE[picture.mode[0]]
  values = np.asarray(picture).astype(np.float32)
  lowest, highest = float(values.min()), float(values.max())
  if not (lowest >= 0 and highest <= white):  # also for nan
    raise PictureError(
      f"its gray values are {lowest:g} to {highest:g}, expected 0 to {white:,}"
    )
  if (transparent := picture.info.get("transparency")) is not None:
    values[values == transparent] = white
  return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))
