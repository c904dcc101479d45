"""`digits`: 1,797 real handwritten digits that ship inside scikit-learn.

8x8 pixels, 17 gray levels, ten classes; from the test set of UCI's optical
recognition of handwritten digits. Nothing is downloaded.
"""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

# Every sixth image is for validation: the set is ordered by writer, so both
# splits hold digits of every hand.
VALIDATION_STRIDE = 6


class Digits(tfds.core.GeneratorBasedBuilder):
  """TFDS builder: 1,498 images to train on, 299 to validate."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description=__doc__,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
          "label": tfds.features.ClassLabel(num_classes=10),
        }
      ),
      supervised_keys=("image", "label"),
      homepage="https://archive.ics.uci.edu/dataset/80",
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # Nothing to download.
    return {
      "train": self._generate_examples(validation=False),
      "validation": self._generate_examples(validation=True),
    }

  def _generate_examples(self, validation: bool):
    # A second to import, and needed once in the life of a data_dir.
    from sklearn import datasets

    digits = datasets.load_digits()
    last = VALIDATION_STRIDE - 1
    for number, (levels, label) in enumerate(
      zip(digits.images, digits.target, strict=True)
    ):
      if (number % VALIDATION_STRIDE == last) == validation:
        pixels = np.round(levels * (255 / 16)).astype(np.uint8)
        # Encoded here: TFDS would ask TensorFlow to encode an array.
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, format="PNG")
        encoded.seek(0)
        yield number, {"image": encoded, "label": int(label)}
