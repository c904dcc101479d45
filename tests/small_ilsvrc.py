"""A small ILSVRC 2012 in the official layout, from real pictures."""

import io
import pathlib
import tarfile

import numpy as np
from sklearn import datasets

from alexnet_jax.data import ilsvrc
from tests import small_sets

CLASSES = ("n01440764", "n02105855", "n03062245", "n13037406")
TRAINING = 30  # of each class
VALIDATION = 40
CMYK = "n03062245_4620.JPEG"
PNG = "n02105855_2933.JPEG"
GRAY = "n13037406_7.JPEG"
TRUNCATED = "n01440764_3.JPEG"


def write(folder: pathlib.Path, *, truncated: bool = True) -> None:
  """Writes both tars; `truncated` cuts one of the files in the middle."""
  rng = np.random.default_rng(0)
  photos = [
    datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")
  ]

  def cut(photo: int) -> np.ndarray:
    height, width = rng.integers(140, 420, 2)
    top = rng.integers(0, 427 - height + 1)
    left = rng.integers(0, 640 - width + 1)
    return photos[photo][top : top + height, left : left + width]

  with tarfile.open(folder / ilsvrc.TARS["train"], "w") as outer:
    for position, name in enumerate(CLASSES):
      inner = io.BytesIO()
      with tarfile.open(fileobj=inner, mode="w") as tar:
        for file, encoded in _training(name, position % 2, cut):
          if truncated and file == TRUNCATED:
            encoded = encoded[: len(encoded) // 2]
          _add(tar, file, encoded)
      _add(outer, f"{name}.tar", inner.getvalue())
  labels = ilsvrc.validation_labels()
  numbers = [n for n, label in enumerate(labels, 1) if label in CLASSES]
  with tarfile.open(folder / ilsvrc.TARS["validation"], "w") as tar:
    for number in numbers[:VALIDATION]:
      picture = cut(CLASSES.index(labels[number - 1]) % 2)
      encoded = small_sets.encode(picture, "JPEG")
      _add(tar, f"ILSVRC2012_val_{number:08d}.JPEG", encoded)


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
  """Yields the name and the content of each file of a class."""
  jpeg = {"kind": "JPEG", "quality": 96}
  special = {CMYK: jpeg | {"mode": "CMYK"}, PNG: {}, GRAY: jpeg | {"mode": "L"}}
  files = [f"{name}_{number}.JPEG" for number in range(TRAINING)]
  files += [file for file in special if file.startswith(name)]
  for file in dict.fromkeys(files):
    yield file, small_sets.encode(cut(photo), **special.get(file, jpeg))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
  header = tarfile.TarInfo(name)
  header.size = len(content)
  tar.addfile(header, io.BytesIO(content))
