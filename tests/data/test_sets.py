import io
import json
import pathlib
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils.epath import backend
from PIL import Image
from sklearn import datasets

from alexnet_jax.data import digits, sets
from tests import bucket as bucket_lib
from tests import processes, small_sets


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


def test_name_of_a_set_may_begin_with_a_capital_as_in_tfds(tmp_path):
  sets_of_names = []
  for number, name in enumerate(("digits", "Digits")):
    builder = sets.open_builder(name, data_dir=str(tmp_path / str(number)))
    (split,) = sets.open_splits(builder, ("validation",), stored_size=8)
    sets_of_names.append(split.read(range(20)))
  for one, other in zip(*sets_of_names, strict=True):
    np.testing.assert_array_equal(one, other)


def test_every_sixth_digit_is_for_validation(splits):
  stride = digits.VALIDATION_STRIDE
  expected = datasets.load_digits().target[stride - 1 :: stride]
  labels = [splits[1][index][1] for index in range(299)]
  np.testing.assert_array_equal(np.bincount(labels), np.bincount(expected))


def make_builder(
  its_name, version, features, make_examples, keys=("image", "label")
):
  """Returns a class that writes a set as TFDS does."""

  class Builder(tfds.core.GeneratorBasedBuilder):
    name = its_name
    VERSION = tfds.core.Version(version)
    pkg_dir_path = None

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=keys,
      )

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      yield from enumerate(make_examples())

  return Builder


def test_catalog_set_is_read_through_the_same_code(tmp_path):
  with pytest.raises(FileNotFoundError, match="'cifar10' is not prepared"):
    sets.open_builder("cifar10", data_dir=str(tmp_path))
  official = tfds.builder_cls("cifar10")
  picture = datasets.load_sample_image("flower.jpg")

  def make_examples():
    for number in range(6):
      tile = picture[:32, 32 * number : 32 * number + 32]
      encoded = io.BytesIO(small_sets.encode(tile))
      yield {"id": str(number), "image": encoded, "label": number}

  # The files of a small cifar10, written without the download. (TFDS's own
  # mock_data asks for TensorFlow where records are to stay encoded.)
  with tfds.core.registered.skip_registration():
    Cifar10 = make_builder(
      "cifar10",
      str(official.VERSION),
      {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(32, 32, 3)),
        "label": tfds.features.ClassLabel(num_classes=10),
      },
      make_examples,
    )
  Cifar10(data_dir=tmp_path, file_format="array_record").download_and_prepare()
  builder = sets.open_builder("cifar10", data_dir=str(tmp_path))
  assert isinstance(builder, official)
  sets.check_classes(builder, 10)
  (split,) = sets.open_splits(builder, ("train",), stored_size=32)
  assert len(split) == 6
  for image, label in (split[index] for index in range(6)):
    tile = picture[:32, 32 * label : 32 * label + 32]
    np.testing.assert_array_equal(image, tile)


def make_pictures():
  for number, name in enumerate(("china", "flower")):
    pixels = datasets.load_sample_image(f"{name}.jpg")
    for width in (300, 427):
      encoded = io.BytesIO(small_sets.encode(pixels[:, :width], "JPEG"))
      yield {"image": encoded, "file_name": name, "label": number}


# As TFDS has many: JPEGs of any size, under its own class names.
Pictures = make_builder(
  "pictures",
  "2.3.4",
  {
    "image": tfds.features.Image(encoding_format="jpeg"),
    "file_name": tfds.features.Text(),
    "label": tfds.features.ClassLabel(names=["china", "flower"]),
  },
  make_pictures,
)


def test_pictures_of_any_size_come_out_as_squares(tmp_path):
  Pictures(data_dir=tmp_path, file_format="array_record").download_and_prepare()
  builder = sets.open_builder("pictures", data_dir=str(tmp_path))
  with pytest.raises(
    ValueError, match=r"10 classes, but .* has 2\. Set .*num_classes=2, or None"
  ):
    sets.check_classes(builder, 10)
  assert sets.count_classes(builder) == 2
  (split,) = sets.open_splits(builder, ("train",), stored_size=96)
  images, labels, _ = split.read(range(4))
  assert sorted(labels) == [0, 0, 1, 1] and images.shape == (4, 96, 96, 3)


def add_set(folder: pathlib.Path, place: str) -> None:
  (folder / place).mkdir(parents=True)
  (folder / place / "dataset_info.json").write_text("{}")


@pytest.mark.parametrize(
  ("place", "name", "expected"),
  [
    ("typo", "birds", "is not in TOP/typo, which does not exist; and TFDS has"),
    ("file", "birds", "is not in TOP/file, which is no folder; and"),
    ("empty", "birds", "is not in TOP/empty, which has no prepared set; and"),
    (
      *("data", "bird"),
      "not in TOP/data, which has birds:1.0.0, fish/large:2.0.0; and",
    ),
    ("data", "birds:3.0.0", "which has birds:1.0.0, fish/large:2.0.0; and"),
    ("data", "fish/small", "which has birds:1.0.0, fish/large:2.0.0; and"),
    (
      *("data", "ants"),
      r"large:2.0.0 \(ants/ has no VERSION/dataset_info.json\); and",
    ),
    ("data/birds", "birds", "this name. Set --data_dir=TOP/data, or config"),
    ("data/birds/1.0.0", "birds", "Set --data_dir=TOP/data, or config.data"),
    ("many", "birds", "which has s0:1.0.0, .*, s7:1.0.0 and 2 others; and"),
    # Of TFDS's catalog.
    ("typo", "cifar10", "not prepared: .* exist, nor does the folder TOP/typo"),
    (
      "data/cifar10",
      "cifar10",
      r"does not exist\. Set --data_dir=TOP/data, or",
    ),
  ],
)
def test_folders_that_were_searched_are_named(place, name, expected, tmp_path):
  add_set(tmp_path, "data/birds/1.0.0")
  add_set(tmp_path, "data/fish/large/2.0.0")
  for folder in ("data/ants/1.0.0", "data/cifar10", "empty"):
    (tmp_path / folder).mkdir(parents=True)
  for number in range(10):
    add_set(tmp_path, f"many/s{number}/1.0.0")
  (tmp_path / "file").touch()
  expected = expected.replace("TOP", re.escape(str(tmp_path)))
  with pytest.raises((ValueError, FileNotFoundError), match=expected) as caught:
    sets.open_builder(name, data_dir=str(tmp_path / place))
  message = str(caught.value)
  assert "--data_dir" in message and "\n" not in message


def test_set_of_the_page_is_built_and_read(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  page = (processes.ROOT / "docs" / "data.md").read_text()
  (text,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  tiles = small_sets.tiles(4)
  for number, tile in enumerate(tiles):
    for split in ("train", "validation"):
      folder = tmp_path / "pictures" / split / ("blåmes", "owl")[number % 2]
      folder.mkdir(parents=True, exist_ok=True)
      (folder / f"{number}.jpg").write_bytes(small_sets.encode(tile, "JPEG"))
  with tfds.core.registered.skip_registration():
    exec(text, {"__name__": "__main__"})
  # It has no supervised keys.
  builder = sets.open_builder("birds", data_dir="DATA")
  assert sets.find_class_names(builder) == ("blåmes", "owl")
  for split in sets.open_splits(
    builder, ("train", "validation"), stored_size=32
  ):
    assert sorted(split.read(range(4)).labels) == [0, 0, 1, 1]


IMAGE = tfds.features.Image()
CLASSES = tfds.features.ClassLabel(num_classes=5)


def to_pixels(*shape, encoding="bytes"):
  return tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding=encoding)


@pytest.mark.parametrize(
  ("features", "keys", "expected"),
  [
    ({"image": IMAGE, "label": CLASSES}, None, None),
    ({"image": to_pixels(9, 8, 1), "label": CLASSES}, None, None),
    ({"picture": IMAGE, "label": CLASSES}, None, "None and its features pict"),
    (
      {"image": IMAGE, "label": CLASSES},
      ("image", "label", "label"),
      r"keys are \('image', 'label', 'label'\)",
    ),
    (
      {"image": to_pixels(8, 8, 3, encoding="none"), "label": CLASSES},
      None,
      r"shape \(8, 8, 3\) with encoding='none', expected .*tfds.features.Im",
    ),
    (
      {"image": to_pixels(8, 8, 3, encoding="zlib"), "label": CLASSES},
      None,
      "encoding='zlib', expected",
    ),
    (
      {"image": to_pixels(8, 8, 4), "label": CLASSES},
      None,
      r"shape \(8, 8, 4\) .*expected \(height, width, 3\) or",
    ),
    (
      {"image": to_pixels(None, 8, 3), "label": CLASSES},
      None,
      r"shape \(None, 8, 3\) .*the same for all",
    ),
    (
      {
        "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.float32),
        "label": CLASSES,
      },
      None,
      "images of float32, expected uint8 or uint16",
    ),
    (
      {"image": IMAGE, "label": tfds.features.ClassLabel()},
      None,
      "does not say how many classes",
    ),
  ],
)
def test_features_that_cannot_be_read_are_refused(
  features, keys, expected, tmp_path
):
  with tfds.core.registered.skip_registration():
    Builder = make_builder("kinds", "1.0.0", features, list, keys)
  builder = Builder(data_dir=tmp_path)
  if expected is None:
    assert sets.find_keys(builder) == ("image", "label")
    sets.check_classes(builder, 5)
    return
  with pytest.raises(
    ValueError, match=f"^dataset 'kinds' .*{expected}"
  ) as caught:
    sets.check_classes(builder, 5)
  assert re.search(r"[sS]et config\.data\.name\.$", str(caught.value))


def test_unknown_split_is_named(data_dir):
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


# Pixels that are not encoded, as in `imagenet256/raw`.
Plain = make_builder(
  "plain",
  "1.0.0",
  {
    "image": tfds.features.Tensor(
      shape=(32, 32, 3), dtype=np.uint8, encoding="bytes"
    ),
    "label": tfds.features.ClassLabel(num_classes=5),
  },
  lambda: (
    {"image": tile, "label": number}
    for number, tile in enumerate(small_sets.tiles(5))
  ),
)


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
def test_set_of_another_version_is_reported(name, tmp_path):
  (tmp_path / name / "0.9.0").mkdir(parents=True)
  with pytest.raises(
    FileNotFoundError,
    match=rf"'{name}' is in .* in version 0.9.0, expected \d.* --data_dir=/",
  ):
    sets.open_builder(name, data_dir=str(tmp_path))


@pytest.fixture
def bucket(data_dir, monkeypatch):
  """The address of `data_dir` in a bucket."""
  folder = pathlib.Path(data_dir)
  with bucket_lib.serve(folder.parent, monkeypatch):
    yield f"gs://{folder.name}"


def test_prepared_set_is_read_from_a_bucket(splits, bucket):
  builder = sets.open_builder("digits", data_dir=bucket)
  sets.check_classes(builder, 10)
  for here, there in zip(
    splits,
    sets.open_splits(builder, ("train", "validation"), stored_size=8),
    strict=True,
  ):
    assert len(there) == len(here)
    for index in range(0, len(here), 40):
      assert there.source[index] == here.source[index]


def test_set_that_is_not_in_a_bucket_is_not_made_there(bucket, data_dir):
  with pytest.raises(FileNotFoundError, match="'digits' is not in gs://.*/no/"):
    sets.open_builder("digits", data_dir=f"{bucket}/no")
  assert not (pathlib.Path(data_dir) / "no").exists()


def test_files_that_a_bucket_lacks_are_named(tmp_path, splits, monkeypatch):
  source = pathlib.Path(splits[0].source._shards[0][0]).parent
  folder = tmp_path / "bucket" / "digits" / source.name
  folder.mkdir(parents=True)
  for name in ("dataset_info.json", "features.json"):
    (folder / name).write_bytes((source / name).read_bytes())
  with bucket_lib.serve(tmp_path, monkeypatch):
    builder = sets.open_builder("digits", data_dir="gs://bucket")
    with pytest.raises(FileNotFoundError, match="lacks 1 of its 1 files"):
      sets.open_splits(builder, ("train",), stored_size=8)
    feature = {"pythonClassName": "mine.Feature"}
    (folder / "features.json").write_text(json.dumps(feature))
    with pytest.raises(ValueError, match="'mine.Feature' as the class of a"):
      sets.open_builder("digits", data_dir="gs://bucket")


@pytest.mark.parametrize(
  ("error", "expected"),
  [
    (ImportError("Install gcsfs"), "Install gcsfs. Install that package"),
    (PermissionError("no access"), r"\(PermissionError: no access\). Check"),
    (RuntimeError("no token"), r"\(RuntimeError: no token\). Check its name"),
  ],
)
def test_bucket_that_cannot_be_read_is_named(error, expected, monkeypatch):
  def fail(path):
    raise error

  monkeypatch.setattr(backend.fsspec_backend, "fs", fail)
  with pytest.raises(OSError, match=f"^gs://b/digits .*{expected}"):
    sets.open_builder("digits", data_dir="gs://b")
