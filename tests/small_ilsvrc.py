"""A small ILSVRC 2012 in the official layout, from real pictures."""

import io
import pathlib
import tarfile

import numpy as np
from PIL import Image
from sklearn import datasets

from alexnet_jax.data import ilsvrc

CLASSES = ("n01440764", "n02105855", "n03062245", "n13037406")
TRAINING = 60  # of each class
VALIDATION = 40
CMYK = "n03062245_4620.JPEG"
PNG = "n02105855_2933.JPEG"
GRAY = "n13037406_7.JPEG"
TRUNCATED = "n01440764_3.JPEG"


def write(folder: pathlib.Path, *, truncated: bool = True) -> None:
  """Writes both tars.

  Args:
    folder: of the tars.
    truncated: whether one of the files is cut in the middle.
  """
  rng = np.random.default_rng(0)
  photos = [
    datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")
  ]

  def cut(photo: int) -> Image.Image:
    height, width = rng.integers(140, 420, 2)
    top = rng.integers(0, 427 - height + 1)
    left = rng.integers(0, 640 - width + 1)
    window = photos[photo][top : top + height, left : left + width]
    return Image.fromarray(window)

  with tarfile.open(folder / ilsvrc.TARS["train"], "w") as outer:
    for position, name in enumerate(CLASSES):
      inner = io.BytesIO()
      with tarfile.open(fileobj=inner, mode="w") as tar:
        for file, picture, options in _training(name, position % 2, cut):
          encoded = _encode(picture, **options)
          if truncated and file == TRUNCATED:
            encoded = encoded[: len(encoded) // 2]
          _add(tar, file, encoded)
      _add(outer, f"{name}.tar", inner.getvalue())
  labels = ilsvrc.validation_labels()
  numbers = [
    number for number, label in enumerate(labels, 1) if label in CLASSES
  ]
  with tarfile.open(folder / ilsvrc.TARS["validation"], "w") as tar:
    for number in numbers[:VALIDATION]:
      position = CLASSES.index(labels[number - 1])
      _add(
        tar,
        f"ILSVRC2012_val_{number:08d}.JPEG",
        _encode(cut(position % 2), format="JPEG"),
      )


def read(folder: pathlib.Path) -> dict[str, bytes]:
  """The files of the training tar, by Python's own tarfile."""
  files = {}
  with tarfile.open(folder / ilsvrc.TARS["train"]) as outer:
    for header in outer:
      with tarfile.open(fileobj=outer.extractfile(header)) as tar:
        for inner in tar:
          files[inner.name] = tar.extractfile(inner).read()
  return files


def _training(name, photo, cut):
  jpeg = {"format": "JPEG", "quality": 96}
  special = {
    CMYK: lambda: (cut(photo).convert("CMYK"), jpeg),
    PNG: lambda: (cut(photo), {"format": "PNG"}),
    GRAY: lambda: (cut(photo).convert("L"), jpeg),
  }
  files = [f"{name}_{number}.JPEG" for number in range(TRAINING)]
  files += [file for file in special if file.startswith(name)]
  for file in dict.fromkeys(files):
    make = special.get(file, lambda: (cut(photo), jpeg))
    yield file, *make()


def _encode(picture: Image.Image, **options) -> bytes:
  encoded = io.BytesIO()
  picture.save(encoded, **options)
  return encoded.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
  header = tarfile.TarInfo(name)
  header.size = len(content)
  tar.addfile(header, io.BytesIO(content))
