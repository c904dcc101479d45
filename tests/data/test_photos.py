import pathlib

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data import photos, sets

SIDE = photos.SIDE


def read_pictures():
  """Class name -> u8[h, w, 3]."""
  return {
    pathlib.Path(path).stem: np.asarray(Image.open(path).convert("RGB"))
    for path in photos.find_pictures()
  }


def find_crops(picture, number):
  """Places of the first crops for training, and of those for validation."""
  height, width, _ = picture.shape
  parts = photos.split(width, height)
  return [list(photos.place_crops(part, number)) for part in parts]


# The smallest picture, a square, one that is higher than wide, and 2/3.
@pytest.mark.parametrize(
  "size", [(384, 191), (512, 512), (550, 660), (600, 400)]
)
def test_training_and_validation_crops_share_no_pixel(size):
  width, height = size
  covered = []
  for part, number in zip(
    photos.split(width, height),
    (photos.TRAINING_CROPS, photos.VALIDATION_CROPS),
    strict=True,
  ):
    mask = np.zeros((height, width), bool)
    crops = list(photos.place_crops(part, number))
    for left, top in crops:
      assert 0 <= left <= width - SIDE and 0 <= top <= height - SIDE
      mask[top : top + SIDE, left : left + SIDE] = True
    assert len(set(crops)) > 0.9 * number  # the rest are equal by chance
    covered.append(mask)
  training, validation = covered
  assert not (training & validation).any()
  # All but a narrow margin, which few of the possible crops reach.
  assert (training | validation).mean() > 0.9


def test_records_are_crops_of_the_pictures_that_label_them(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(photos, "TRAINING_CROPS", 2)
  monkeypatch.setattr(photos, "VALIDATION_CROPS", 1)
  builder = sets.open_builder("photos", data_dir=str(tmp_path))
  splits = sets.open_splits(builder, ("train", "validation"), stored_size=SIDE)
  pictures = read_pictures()
  names = sets.find_class_names(builder)
  assert names == tuple(pictures) and len(set(names)) == 20
  for which, (records, number) in enumerate(zip(splits, (2, 1), strict=True)):
    assert len(records) == 20 * number
    found = set()
    places = {
      name: find_crops(picture, number)[which]
      for name, picture in pictures.items()
    }
    for index in range(len(records)):
      crop, label = records[index]
      picture = pictures[names[label]]
      errors = {
        (left, top): np.abs(
          picture[top : top + SIDE, left : left + SIDE] - 1.0 * crop
        )
        .mean()
        .item()
        for left, top in places[names[label]]
      }
      place = min(errors, key=errors.get)
      # JPEG of quality 95 changes the finest picture, grass, by 3 gray levels
      # on average; another place differs by 10 and more.
      assert errors[place] < 5, names[label]
      found.add((label, place))
    assert len(found) == 20 * number


def test_missing_package_is_named_before_anything_is_written(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(
    FileNotFoundError, match="needs astronaut.png of scikit-image, but it is"
  ):
    sets.open_builder("photos", data_dir=str(tmp_path))
  assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_config_has_the_mean_and_the_spread_of_the_training_crops(tmp_path):
  from configs import photos as config_lib

  config = config_lib.get_config()
  builder = sets.open_builder("photos", data_dir=str(tmp_path))
  (records,) = sets.open_splits(builder, ("train",), stored_size=SIDE)
  means, squares = np.zeros(3), 0.0
  for index in range(len(records)):
    pixels = records[index][0].astype(np.float64)
    means += pixels.mean(axis=(0, 1)) / len(records)
    squares += (pixels**2).mean() / len(records)
  # The config has one decimal, and a round number.
  np.testing.assert_allclose(config.augment.mean, means, atol=0.1)
  spread = np.sqrt(squares - means.mean() ** 2)
  np.testing.assert_allclose(config.augment.scale, spread, atol=1)
