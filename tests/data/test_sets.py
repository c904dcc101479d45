import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn import datasets

from alexnet_jax.data import digits, sets
from tests import small_sets


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def splits(data_dir):
  builder = sets.open_builder("digits", data_dir=data_dir)
  sets.check_classes(builder, 10)
  return sets.open_splits(builder, ("train", "validation"), stored_size=8)


def test_digits_are_those_of_scikit_learn_each_once(splits):
  train, validation = splits
  assert (len(train), len(validation)) == (1498, 299)
  original = datasets.load_digits()
  expected = {
    (np.round(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
    for image, label in zip(original.images, original.target, strict=True)
  }
  found = set()
  for split in splits:
    for index in range(len(split)):
      image, label = split[index]
      assert image.shape == (8, 8, 3) and image.dtype == np.uint8
      assert (image[..., 0] == image[..., 2]).all()
      found.add((image[..., 0].tobytes(), label))
  assert found == expected


def test_every_sixth_digit_is_for_validation(splits):
  original = datasets.load_digits().target
  last = digits.VALIDATION_STRIDE - 1
  labels = [splits[1][index][1] for index in range(299)]
  np.testing.assert_array_equal(
    np.bincount(labels), np.bincount(original[last :: last + 1])
  )


def test_catalog_set_is_read_through_the_same_code(tmp_path):
  with pytest.raises(FileNotFoundError, match="'cifar10' is not prepared"):
    sets.open_builder("cifar10", data_dir=str(tmp_path))
  official = tfds.builder_cls("cifar10")
  picture = datasets.load_sample_image("flower.jpg")

  # The files of a small cifar10, written without the download. (TFDS's own
  # mock_data asks for TensorFlow where records are to stay encoded.)
  with tfds.core.registered.skip_registration():

    class Cifar10(tfds.core.GeneratorBasedBuilder):
      VERSION = official.VERSION
      pkg_dir_path = None

      def _info(self):
        return tfds.core.DatasetInfo(
          builder=self,
          features=tfds.features.FeaturesDict(
            {
              "id": tfds.features.Text(),
              "image": tfds.features.Image(shape=(32, 32, 3)),
              "label": tfds.features.ClassLabel(num_classes=10),
            }
          ),
          supervised_keys=("image", "label"),
        )

      def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

      def _generate_examples(self):
        for number in range(6):
          encoded = io.BytesIO()
          tile = picture[:32, 32 * number : 32 * number + 32]
          Image.fromarray(tile).save(encoded, format="PNG")
          encoded.seek(0)
          example = {"id": str(number), "image": encoded, "label": number}
          yield number, example

  Cifar10(data_dir=tmp_path, file_format="array_record").download_and_prepare()
  builder = sets.open_builder("cifar10", data_dir=str(tmp_path))
  assert isinstance(builder, official)
  sets.check_classes(builder, 10)
  (split,) = sets.open_splits(builder, ("train",), stored_size=32)
  assert len(split) == 6
  for index in range(6):
    image, label = split[index]
    tile = picture[:32, 32 * label : 32 * label + 32]
    np.testing.assert_array_equal(image, tile)


class Pictures(tfds.core.GeneratorBasedBuilder):
  """A set as TFDS has many: JPEGs of any size, under its own class names."""

  VERSION = tfds.core.Version("2.3.4")
  pkg_dir_path = None

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(encoding_format="jpeg"),
          "file_name": tfds.features.Text(),
          "label": tfds.features.ClassLabel(names=["china", "flower"]),
        }
      ),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for number, name in enumerate(("china", "flower")):
      pixels = datasets.load_sample_image(f"{name}.jpg")
      for width in (300, 427):
        encoded = io.BytesIO()
        Image.fromarray(pixels[:, :width]).save(encoded, format="JPEG")
        encoded.seek(0)
        yield (
          f"{name}{width}",
          {"image": encoded, "file_name": name, "label": number},
        )


def test_pictures_of_any_size_come_out_as_squares(tmp_path):
  Pictures(data_dir=tmp_path, file_format="array_record").download_and_prepare()
  builder = sets.open_builder("pictures", data_dir=str(tmp_path))
  with pytest.raises(ValueError, match="10 classes, but .* has 2"):
    sets.check_classes(builder, 10)
  sets.check_classes(builder, 2)
  (split,) = sets.open_splits(builder, ("train",), stored_size=96)
  assert sorted(split[index][1] for index in range(4)) == [0, 0, 1, 1]
  assert all(split[index][0].shape == (96, 96, 3) for index in range(4))


def test_unknown_set_and_split_are_named(data_dir):
  with pytest.raises(ValueError, match="unknown dataset 'digit'"):
    sets.open_builder("digit", data_dir=data_dir)
  builder = sets.open_builder("digits", data_dir=data_dir)
  with pytest.raises(ValueError, match="no split 'test' .*expected one of"):
    sets.open_splits(builder, ("test",), stored_size=8)


@pytest.mark.parametrize("part", ["train[:0]", "train[9:3]"])
def test_split_without_records_is_refused(data_dir, part):
  builder = sets.open_builder("digits", data_dir=data_dir)
  with pytest.raises(ValueError) as caught:
    sets.open_splits(builder, (part,), stored_size=8)
  assert str(caught.value) == (
    f"digits/{part} has no records, expected some. Set config.data.train_split "
    "or config.data.validation_split."
  )


class Plain(tfds.core.GeneratorBasedBuilder):
  """A set of pixels that are not encoded, as `imagenet256/raw`."""

  VERSION = tfds.core.Version("1.0.0")
  pkg_dir_path = None

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Tensor(
            shape=(32, 32, 3), dtype=np.uint8, encoding="bytes"
          ),
          "label": tfds.features.ClassLabel(num_classes=5),
        }
      ),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for number, tile in enumerate(small_sets.tiles(5)):
      yield number, {"image": tile, "label": number}


@pytest.mark.parametrize("side", [32, 24])
def test_set_of_pixels_is_read_as_one_of_pictures(tmp_path, side):
  Plain(data_dir=tmp_path, file_format="array_record").download_and_prepare()
  builder = sets.open_builder("plain", data_dir=str(tmp_path))
  sets.check_classes(builder, 5)
  (split,) = sets.open_splits(builder, ("train",), stored_size=side)
  images, labels, _ = split.read(range(5))
  assert sorted(labels) == list(range(5))
  for image, label in zip(images, labels, strict=True):
    tile = Image.fromarray(small_sets.tiles(5)[label])
    expected = tile.resize((side, side), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(image, np.asarray(expected))


@pytest.mark.parametrize("name", ["cifar10", "imagenet256/raw"])
def test_set_in_another_version_is_told(name, tmp_path):
  (tmp_path / name / "0.9.0").mkdir(parents=True)
  with pytest.raises(
    FileNotFoundError,
    match=rf"'{name}' is in .* in version 0.9.0, expected \d.* --data_dir=/",
  ):
    sets.open_builder(name, data_dir=str(tmp_path))
