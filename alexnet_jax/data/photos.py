"""`photos`: crops of the pictures that ship inside scikit-image, scikit-learn.

20 photographs and scans, half of them gray; the label of a crop is its
picture. Training crops and validation crops are cut from two parts of each
picture that have no pixel in common. Nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import os
from collections.abc import Iterator

import tensorflow_datasets as tfds
from PIL import Image

from alexnet_jax.data import shards

# Side of the crops, pixels.
SIDE = 128
# Crops of each picture.
TRAINING_CROPS = 400
VALIDATION_CROPS = 50
# Of the longer side, at its right or lower end, for validation: 3/8 leaves room
# for more than one crop in each part of the smallest picture, 384 x 191.
_VALIDATION_PART = 3 / 8
# Package -> its folder of pictures, and these, in the order of their labels.
_PICTURES = {
  "skimage": (
    "data",
    (
      *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png"),
      *("clock_motion.png", "coffee.png", "coins.png", "grass.png"),
      *("gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png"),
      *("motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg"),
      "text.png",
    ),
  ),
  "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
}
_REQUIREMENTS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
# Steps along both sides that fill a rectangle evenly, however many are taken:
# powers of 1/g, where g^3 = g + 1. Source: Roberts 2018, "The unreasonable
# effectiveness of quasirandom sequences".
_STEPS = (0.7548776662466927, 0.5698402909980532)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """A rectangle of a picture, in pixels; `right` and `bottom` are exclusive."""

  left: int
  top: int
  right: int
  bottom: int


class Photos(tfds.core.GeneratorBasedBuilder):
  """TFDS builder: 8,000 crops to train on, 1,000 to validate."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}

  def _info(self) -> tfds.core.DatasetInfo:
    names = [
      os.path.splitext(file)[0]
      for _, files in _PICTURES.values()
      for file in files
    ]
    return self.dataset_info_from_configs(
      description=__doc__,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(
            shape=(SIDE, SIDE, 3), encoding_format="jpeg"
          ),
          "label": tfds.features.ClassLabel(names=names),
        }
      ),
      supervised_keys=("image", "label"),
      homepage="https://scikit-image.org/docs/stable/api/skimage.data.html",
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # Nothing to download.
    paths = find_pictures()
    return {
      "train": self._generate_examples(paths, validation=False),
      "validation": self._generate_examples(paths, validation=True),
    }

  def _generate_examples(self, paths: tuple[str, ...], validation: bool):
    crops = VALIDATION_CROPS if validation else TRAINING_CROPS
    for label, path in enumerate(paths):
      with Image.open(path) as file:
        picture = file.convert("RGB")
      part = split(*picture.size)[validation]
      for number, (left, top) in enumerate(place_crops(part, crops)):
        crop = picture.crop((left, top, left + SIDE, top + SIDE))
        # Encoded here: TFDS would ask TensorFlow to encode an array.
        encoded = io.BytesIO()
        crop.save(encoded, "JPEG", quality=shards.QUALITY, subsampling="4:2:0")
        encoded.seek(0)
        yield label * crops + number, {"image": encoded, "label": label}


def find_pictures() -> tuple[str, ...]:
  """Finds the files, in the order of their labels.

  The packages are found but not imported, which would take a second.

  Raises:
    FileNotFoundError: a package is not installed, or is of a release that
      has no such picture.
  """
  paths = []
  for package, (folder, files) in _PICTURES.items():
    found = importlib.util.find_spec(package)
    for file in files:
      path = found and os.path.join(os.path.dirname(found.origin), folder, file)
      if not path or not os.path.exists(path):
        reason = f"{path} does not exist" if path else "it is not installed"
        raise FileNotFoundError(
          f"dataset 'photos' needs {file} of {_REQUIREMENTS[package]}, but "
          f"{reason}. Install the package as in requirements.txt."
        )
      paths.append(path)
  return tuple(paths)


def split(width: int, height: int) -> tuple[Part, Part]:
  """Divides a picture across its longer side.

  Args:
    width, height: of the picture, pixels.

  Returns:
    The part for training and the part for validation, without common pixels.
  """
  if width >= height:
    border = width - round(width * _VALIDATION_PART)
    return (
      Part(left=0, top=0, right=border, bottom=height),
      Part(left=border, top=0, right=width, bottom=height),
    )
  border = height - round(height * _VALIDATION_PART)
  return (
    Part(left=0, top=0, right=width, bottom=border),
    Part(left=0, top=border, right=width, bottom=height),
  )


def place_crops(part: Part, crops: int) -> Iterator[tuple[int, int]]:
  """Spreads crops evenly over a part of a picture; they may overlap.

  Args:
    part: at least `SIDE` pixels wide and high.
    crops: number of crops.

  Yields:
    The left and the upper end of each crop in the picture, pixels.
  """
  columns = part.right - part.left - SIDE + 1
  rows = part.bottom - part.top - SIDE + 1
  across, down = _STEPS
  for number in range(crops):
    left = part.left + int((0.5 + number * across) % 1 * columns)
    top = part.top + int((0.5 + number * down) % 1 * rows)
    yield left, top
