"""A folder of one's own pictures, with names as people give them."""

import os
import pathlib

import numpy as np
from PIL import ExifTags, Image
from sklearn import datasets

CLASSES = ("#Zahl 1", "Zwei Wörter", "straße [v1]", "Äpfel & Birnen", "ñandú")
# Its pictures are to be turned, where their format can say so.
ROTATED = "straße [v1]"
# Files that are skipped.
SKIPPED = (
  *("Thumbs.db", "desktop.ini", ".DS_Store", "lies mich.txt"),
  *("ñandú/._bild", "ñandú/.ipynb_checkpoints/bild 1.jpg", "__MACOSX/ñ/._x"),
)
# Files that are no pictures -> what is said of each.
DAMAGED = {
  "ñandú/seite.jpg": "it is a web page",
  "ñandú/leer [2].jpg": "it is empty",
  "ñandú/tief er/text.txt": "it is none of BMP, GIF",
  "straße [v1]/weg.jpg": "it is a link to nothing",
  "straße [v1]/rohr.png": "it is no file",
  "straße [v1]/kreis.png": "it is a link to itself",
}
_ENDINGS = ("jpg", "png", "bmp", "webp", "tif", "gif", "JPEG")


def write(
  folder: pathlib.Path, *, count: int = 12, damaged: bool = False
) -> None:
  """Writes `count` pictures of each class, some of them in folders inside.

  Args:
    damaged: write files that are no pictures, too.
  """
  photos = [
    datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")
  ]
  rng = np.random.default_rng(0)
  for label, name in enumerate(CLASSES):
    for number in range(count):
      height, width = rng.integers(60, 140, 2)
      top, left = rng.integers(0, 280), rng.integers(0, 500)
      pixels = photos[label % 2][top : top + height, left : left + width]
      inner = ("", "tief er", "tief er/[1] #2")[number % 3]
      ending = _ENDINGS[(label + number) % len(_ENDINGS)]
      path = folder / name / inner / f"bild {number} ü [{label}].{ending}"
      path.parent.mkdir(parents=True, exist_ok=True)
      picture = Image.fromarray(pixels)
      exif = picture.getexif()
      if name == ROTATED:
        exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise
      picture.save(path, exif=exif)
  for name in SKIPPED:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
  if damaged:
    for name, content in (
      ("ñandú/seite.jpg", "\n<!DOCTYPE html><html>please log in"),
      ("ñandú/leer [2].jpg", ""),
      ("ñandú/tief er/text.txt", "a list of pictures"),
    ):
      (folder / name).write_text(content)
    (folder / "straße [v1]" / "weg.jpg").symlink_to("nirgends.jpg")
    (folder / "straße [v1]" / "kreis.png").symlink_to("kreis.png")
    os.mkfifo(folder / "straße [v1]" / "rohr.png")
