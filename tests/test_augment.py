import jax
import numpy as np

from alexnet_jax.data import augment


def test_augmentation_matches_numpy(tiny_augmentation, tiny_batch, key):
  images, _ = tiny_batch
  draws = tiny_augmentation.draw(key, 8, spec=None)
  found = tiny_augmentation.apply(images, draws)
  directions = np.array(
    [
      [-0.56351, -0.57618, -0.59200],
      [-0.71258, -0.02354, 0.70120],
      [0.41796, -0.81698, 0.39731],
    ]
  )
  stds = np.array([121.780, 37.094, 19.721])
  for row in range(8):
    top, left = np.asarray(draws["offset"][row])
    crop = images[row, top : top + 67, left : left + 67].astype(np.float64)
    if draws["flip"][row]:
      crop = crop[:, ::-1]
    noise = (np.asarray(draws["colour"][row]) * stds) @ directions
    expected = (crop + noise - [127.0, 120.0, 105.0]) / 64.0
    # float32; pixels of about 1 after the division.
    np.testing.assert_allclose(found[row], expected, atol=2e-6)


def test_draws_are_spread_as_specified(key):
  full = augment.Augment(
    stored_size=256,
    image_size=224,
    flip=True,
    colour_noise=0.1,
    mean=(0.0, 0.0, 0.0),
  )
  draws = jax.tree.map(np.asarray, full.draw(key, 20_000, spec=None))
  counts = np.bincount(draws["offset"][:, 0], minlength=33)
  assert len(counts) == 33  # offsets 0..32
  # 606 expected at each; five standard deviations.
  assert np.abs(counts - 20_000 / 33).max() < 5 * np.sqrt(606)
  assert abs(draws["flip"].mean() - 0.5) < 0.018
  np.testing.assert_allclose(draws["colour"].std(axis=0), 0.1, rtol=0.03)


def test_center_crop_takes_the_middle(tiny_augmentation, tiny_batch):
  images, _ = tiny_batch
  found = tiny_augmentation.center(images)
  expected = (images[:, 2:69, 2:69] - np.array([127.0, 120.0, 105.0])) / 64.0
  np.testing.assert_allclose(found, expected, atol=2e-6)
