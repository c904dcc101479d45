"""The square of the paper: the shorter side scaled, the centre cut out."""

from __future__ import annotations

from PIL import Image

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
