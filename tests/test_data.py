import dataclasses
import io

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn import datasets

from alexnet_jax import metrics
from alexnet_jax.data import digits, pipeline, records, sets
from alexnet_jax.partition import catalog, mesh, specs
from tests import build


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


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA"])
@pytest.mark.parametrize("size", [(64, 48), (48, 64), (40, 40), (17, 90)])
def test_any_picture_becomes_a_square_of_bytes(mode, size):
  picture = Image.fromarray(datasets.load_sample_image("china.jpg"))
  encoded = io.BytesIO()
  kind = "JPEG" if mode in ("RGB", "L", "CMYK") else "PNG"
  picture.resize(size).convert(mode).save(encoded, format=kind)
  square = records.decode(encoded.getvalue(), 32)
  assert square.shape == (32, 32, 3) and square.dtype == np.uint8
  assert square.std() > 10  # not a blank


def test_square_is_the_centre_of_the_picture():
  pixels = np.zeros((8, 24, 3), np.uint8)
  pixels[:, 8:16] = 200
  encoded = io.BytesIO()
  Image.fromarray(pixels).save(encoded, format="PNG")
  assert (records.decode(encoded.getvalue(), 8) == 200).all()


class Numbered(records.Records):
  """Records whose image is their number, in the place of a real set."""

  def __getitem__(self, index):
    image = np.full((2, 2, 3), index // 256, np.uint8)
    image[0, 0, 0] = index % 256
    return image, index


def numbered(count):
  return Numbered(
    name="numbered",
    source=range(count),
    image_key="image",
    label_key="label",
    num_classes=count,
    stored_size=2,
  )


def shardings(layout):
  made = mesh.make_mesh(layout)
  spec = jax.P(tuple(layout.placement("conv1").batch) or None)
  return specs.to_shardings(made, (spec, spec))


def labels_of(layout, *, first_step=0, num_steps, seed=3, count=100):
  batches = pipeline.train_batches(
    numbered(count),
    batch_size=16,
    seed=seed,
    first_step=first_step,
    num_steps=num_steps,
    shardings=shardings(layout),
    threads=2,
    batches_ahead=2,
  )
  found = []
  for images, labels in batches:
    images, labels = np.asarray(images, int), np.asarray(labels)
    assert (images[:, 1, 1, 0] * 256 + images[:, 0, 0, 0] == labels).all()
    found.append(labels)
  return np.array(found)


def test_each_epoch_is_another_permutation():
  order = labels_of(catalog.ONE_DEVICE, num_steps=25).ravel()
  epochs = order.reshape(4, 100)
  assert (np.sort(epochs, axis=1) == np.arange(100)).all()
  assert len({tuple(epoch) for epoch in epochs}) == 4
  other = labels_of(catalog.ONE_DEVICE, num_steps=25, seed=4).ravel()
  assert (order != other).any()


def test_batch_is_a_function_of_seed_and_step_on_every_layout(layout):
  expected = labels_of(catalog.ONE_DEVICE, num_steps=12)
  np.testing.assert_array_equal(labels_of(layout, num_steps=12), expected)
  np.testing.assert_array_equal(
    labels_of(layout, first_step=7, num_steps=12), expected[7:]
  )


@pytest.mark.parametrize("count", [1, 16, 37])
def test_validation_yields_each_image_once(count, layout):
  batches = pipeline.validation_batches(
    numbered(count),
    batch_size=16,
    shardings=shardings(layout),
    threads=2,
    batches_ahead=2,
  )
  labels = np.concatenate([np.asarray(labels) for _, labels in batches])
  assert len(labels) % 16 == 0
  real = labels[labels != metrics.PADDING]
  assert real.tolist() == list(range(count))


def test_catalogue_set_is_read_through_the_same_code(tmp_path):
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
  with pytest.raises(ValueError, match=r"no split .train\[:0\]. "):
    sets.open_splits(builder, ("train[:0]",), stored_size=8)


def test_label_out_of_range_names_the_record(splits):
  narrow = dataclasses.replace(splits[0], num_classes=1)
  with pytest.raises(ValueError, match=r"record \d+ of digits/train has label"):
    [narrow[index] for index in range(50)]


def test_parts_of_a_step_take_what_the_pipeline_gives(
  tiny_network, tiny_augmentation, tiny_batch, layout
):
  parts = build.make_program(
    tiny_network, layout, tiny_augmentation, batch_size=8
  )
  images, labels = build.put(parts, tiny_batch)
  assert images.sharding == specs.to_shardings(parts.mesh, parts.specs.images)
  assert labels.shape == (8,)
