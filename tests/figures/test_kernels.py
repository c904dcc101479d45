import itertools

import numpy as np
import pytest
from scipy import stats

from alexnet_jax.figures import kernel_charts, kernels


def make_grating(degrees, frequency, color=(1, 1, 1), *, window=11, phase=0.7):
  """Makes bars under a round window, point by point; y counts upwards."""
  kernel = np.zeros((window, window, 3))
  middle = (window - 1) / 2
  across = np.radians(degrees + 90)  # the direction in which the bars change
  for row, column in itertools.product(range(window), repeat=2):
    x, y = column - middle, middle - row
    place = x * np.cos(across) + y * np.sin(across)
    envelope = np.exp(-(x**2 + y**2) / (2 * (window / 4) ** 2))
    value = envelope * np.cos(2 * np.pi * frequency * place + phase)
    kernel[row, column] = value * np.array(color)
  return kernel


def stack(*kernels_of_maps):
  return np.stack(kernels_of_maps, axis=-1)


def measure(*kernels_of_maps):
  return kernels.measure(stack(*kernels_of_maps))


@pytest.mark.parametrize("degrees", [0, 20, 45, 90, 135, 160])
@pytest.mark.parametrize("frequency", [0.15, 0.25, 0.35])
def test_gratings_are_measured(degrees, frequency):
  found = measure(make_grating(degrees, frequency))
  # Of the round window, and of the points of the spectrum, 1/64 apart.
  turned = (found.orientation[0] - degrees + 90) % 180 - 90
  assert abs(turned) < 2
  assert abs(found.frequency[0] - frequency) < 0.02
  assert found.selectivity[0] > 0.8
  assert found.color[0] < 1e-12
  # The power of a Gaussian of s pixels is one of 1 / (2 pi sqrt(2) s) cycles
  # per pixel, 2.355 of which are its width; the window cuts the Gaussian off.
  width = 2.355 / (2 * np.pi * np.sqrt(2) * 11 / 4)
  assert abs(found.bandwidth[0] - width) < 0.2 * width
  assert found.is_learned[0]


def test_spots_prefer_no_orientation_and_low_frequencies():
  spot, uniform = make_grating(0, 0.0, phase=0.0), np.ones((11, 11, 3))
  found = measure(spot, uniform)
  assert (found.selectivity < 1e-6).all()
  assert (found.frequency == 0).all()
  assert found.smoothness[1] == pytest.approx(1.0)
  # A uniform window has half the power of its middle at .443 / side, as a
  # sinc^2 has; the ray has steps of 1/512.
  assert abs(found.bandwidth[1] - 0.443 / 11) < 2 / 512


def test_share_of_color_is_that_of_the_energy():
  # (2, 0, 0) is (2/3, 2/3, 2/3) and (4/3, -2/3, -2/3): 12/9 and 24/9 of 4.
  colors = [(1, 1, 1), (2, 0, 0), (1, -1, 0), (1, 1, -2)]
  found = measure(*(make_grating(30, 0.2, color) for color in colors))
  np.testing.assert_allclose(found.color, [0, 2 / 3, 1, 1], atol=1e-12)
  # Color does not change the other measures, of the same pattern.
  for name in ("selectivity", "orientation", "frequency", "bandwidth"):
    values = getattr(found, name)
    np.testing.assert_allclose(values, values[0], rtol=1e-9)


def test_pattern_is_that_of_the_stronger_color():
  gray = 0.3 * make_grating(0, 0.3)
  found = measure(gray + make_grating(90, 0.15, (1, -1, 0)))
  assert found.orientation[0] == pytest.approx(90, abs=2)
  assert found.frequency[0] == pytest.approx(0.15, abs=0.02)


def test_noise_is_not_learned():
  noise = np.random.default_rng(0).normal(size=(11, 11, 3, 200))
  found = kernels.measure(noise)
  assert not found.is_learned.any()
  # Two of three directions in the space of colors are no gray.
  assert found.color.mean() == pytest.approx(2 / 3, abs=0.02)
  assert 0.1 < found.selectivity.mean() < 0.2
  # Half of the energy of a grating and half noise is at the limit.
  grating = make_grating(30, 0.1)[..., None]
  grating /= np.sqrt((grating**2).sum())
  noise /= np.sqrt((noise**2).sum((0, 1, 2)))
  for share, low, high in ((0.25, 0, 0.05), (0.8, 0.95, 1)):
    mixed = np.sqrt(share) * grating + np.sqrt(1 - share) * noise
    assert low <= kernels.measure(mixed).is_learned.mean() <= high


def test_smoothness_equals_a_loop():
  kernel = np.random.default_rng(1).normal(size=(4, 4, 3))
  best = -1.0
  for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
    product = one = two = 0.0
    for y, x in itertools.product(range(4), repeat=2):
      if y + down < 4 and 0 <= x + right < 4:
        a, b = kernel[y, x], kernel[y + down, x + right]
        product, one, two = product + a @ b, one + a @ a, two + b @ b
    best = max(best, product / np.sqrt(one * two))
  assert measure(kernel).smoothness[0] == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 3, 4), (5, 5, 1, 4), (2, 2, 3, 4)])
def test_what_cannot_be_said_is_nan(shape):
  kernel = np.random.default_rng(0).normal(size=shape)
  kernel[..., 0] = 0
  found = kernels.measure(kernel)
  assert found.energy[0] == 0 and np.isnan(found.frequency[0])
  assert np.isnan(found.color).all() == (shape[2] == 1)
  assert np.isnan(found.frequency).all() == (shape[0] == 1)
  assert not found.is_learned[0]
  found.smoothness[:] = 1.0
  compared = {one.name for one in kernels.compare(found, 2)}
  assert ("color" in compared) == (shape[2] == 3)
  assert ("frequency" in compared) == (shape[0] > 1)


def test_kernels_of_gray_pictures_have_one_channel():
  kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4))
  seen = kernels.find_seen(kernel, color_stds=(100.0, 0.0, 0.0))
  np.testing.assert_allclose(seen[:, :, 0], kernel.mean(2))
  assert kernels.find_seen(kernel, color_stds=(90.0, 20.0, 9.0)) is kernel
  bgr = kernels.find_seen(kernel, color_order="bgr")
  np.testing.assert_array_equal(bgr[:, :, 0], kernel[:, :, 2])


def make_measures(**values) -> kernels.Measures:
  """Makes measures of kernels that are all learned."""
  count = len(next(iter(values.values())))
  names = ("color", "selectivity", "orientation", "frequency", "bandwidth")
  return kernels.Measures(
    energy=np.ones(count),
    smoothness=np.ones(count),
    **dict.fromkeys(names, np.full(count, np.nan)) | values,
  )


def find_p(measures, columns, name):
  (found,) = (
    one for one in kernels.compare(measures, columns) if one.name == name
  )
  return found.p


@pytest.mark.parametrize("columns", [2, 3])
def test_p_of_few_kernels_is_exact(columns):
  values = np.random.default_rng(3).uniform(size=6)
  size = 6 // columns

  def find_spread(order):
    groups = [order[k * size : k * size + size] for k in range(columns)]
    return sum(
      size * (np.mean([values[i] for i in one]) - values.mean()) ** 2
      for one in groups
    )

  spreads = [find_spread(o) for o in itertools.permutations(range(6))]
  expected = np.mean(np.array(spreads) >= find_spread(range(6)) - 1e-12)
  found = find_p(make_measures(color=values), columns, "color")
  assert found == pytest.approx(expected)


def test_p_equals_a_loop_over_permutations():
  rng = np.random.default_rng(4)
  selectivity, orientation = rng.uniform(size=40), rng.uniform(0, 180, 40)
  arrows = selectivity * np.exp(2j * np.radians(orientation))
  arrows[:20] += 0.25

  def find_difference(values):
    return abs(values[:20].mean() - values[20:].mean())

  differences = [find_difference(rng.permutation(arrows)) for _ in range(4000)]
  expected = np.mean(np.array(differences) >= find_difference(arrows))
  measures = make_measures(
    selectivity=np.abs(arrows),
    orientation=np.degrees(np.angle(arrows)) / 2 % 180,
  )
  found = find_p(measures, 2, "direction")
  # Four standard deviations of both estimates, of 4,000 and 9,999.
  tolerance = 4 * np.sqrt(expected * (1 - expected) * (1 / 4000 + 1 / 9999))
  assert 0.001 < expected < 0.5
  assert abs(found - expected) < tolerance


def test_p_is_uniform_if_columns_do_not_differ(monkeypatch):
  monkeypatch.setattr(kernels, "PERMUTATIONS", 99)
  rng = np.random.default_rng(5)
  found = [
    find_p(make_measures(color=rng.beta(0.5, 0.7, 24)), 2, "color")
    for _ in range(200)
  ]
  # A twentieth, by less than 3 standard deviations of 200 values; and all of
  # the distribution, in steps of .01.
  assert abs(np.mean(np.array(found) <= 0.05) - 0.05) < 0.046
  assert stats.kstest(found, "uniform").pvalue > 0.01


def test_columns_that_differ_are_found():
  rng = np.random.default_rng(6)
  gray = [make_grating(rng.uniform(0, 180), 0.25) for _ in range(12)]
  color = [
    make_grating(rng.uniform(0, 180), 0.1, rng.permutation([1, -1, 0]))
    for _ in range(12)
  ]
  noise = 0.1 * rng.normal(size=(11, 11, 3, 24))
  measures = kernels.measure(stack(*gray, *color) + noise)
  found = {one.name: one for one in kernels.compare(measures, 2)}
  assert found["color"].p == found["frequency"].p == pytest.approx(1e-4)
  assert found["color"].means[0] < 0.2 < 0.8 < found["color"].means[1]
  assert found["direction"].p > 0.01
  # Four times the least p, by Holm's method, and never less than it.
  assert found["color"].adjusted_p == pytest.approx(4e-4)
  assert all(one.adjusted_p >= one.p for one in found.values())
  # The same kernels in turns.
  turns = np.arange(24).reshape(2, 12).T.ravel()
  mixed = kernels.measure((stack(*gray, *color) + noise)[..., turns])
  assert all(one.adjusted_p > 0.05 for one in kernels.compare(mixed, 2))


def test_column_without_learned_kernels_is_not_compared():
  measures = make_measures(color=np.arange(6.0))
  measures.smoothness[:2] = 0.1
  (found,) = kernels.compare(measures, 2)
  assert found.p is None and found.adjusted_p is None
  assert found.means == (2.0, 4.0)


def test_tiles_are_the_kernels(monkeypatch):
  monkeypatch.setattr(kernels, "_PER_ROW", 3)
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(3, 3, 3, 10))
  kernel[..., 3] = 0
  tiles = kernels.tile(kernel, 2, scale=2)
  assert [one.shape for one in tiles] == [(2 * 7, 2 * 11, 4)] * 2
  for column, number in itertools.product(range(2), range(5)):
    one = kernel[..., column * 5 + number]
    down, across = number // 3 * 4, number % 3 * 4
    for y, x in itertools.product(range(3), repeat=2):
      value = 127.5 + 127.5 * one[y, x] / (np.abs(one).max() or 1)
      for row, place in itertools.product(range(2), repeat=2):
        shown = tiles[column][2 * (down + y) + row, 2 * (across + x) + place]
        np.testing.assert_allclose(shown[:3], value, atol=0.5)
        assert shown[3] == 255
  # The sixth place is empty, as are the lines between.
  assert not tiles[0][8:, 16:].any() and not tiles[0][:, 6:8].any()


def test_kernels_are_sorted_from_gray_to_color_and_noise_comes_last():
  measures = make_measures(color=np.array([0.5, 0.1, 0.9, 0.3, 0.2, 0.0]))
  measures.smoothness[1] = 0.0
  orders = kernels.sort(measures, 2)
  assert [one.tolist() for one in orders] == [[0, 2, 1], [2, 1, 0]]


def test_charts_show_the_kernels_and_their_measures():
  rng = np.random.default_rng(0)
  kernel = stack(*(make_grating(20 * k, 0.2) for k in range(8)))
  kernel += 0.05 * rng.normal(size=kernel.shape)
  measures = kernels.measure(kernel)
  drawn = kernel_charts.draw_kernels(kernel, 2, order=None)
  (first,) = drawn.axes[0].images
  expected = kernels.tile(kernel, 2, scale=4)[0]
  np.testing.assert_array_equal(first.get_array(), expected)
  drawn = kernel_charts.draw_measures(measures, 2)
  assert [panel.get_xlabel() for panel in drawn.axes] == [
    *("share of color", "cycles per pixel", "orientation selectivity")
  ]
  for panel, name in zip(
    drawn.axes, ("color", "frequency", "selectivity"), strict=True
  ):
    shown = [dots.get_offsets()[:, 0] for dots in panel.collections]
    np.testing.assert_array_equal(
      np.concatenate(shown), getattr(measures, name)
    )
  assert (
    kernel_charts.draw_measures(make_measures(color=np.full(2, np.nan)), 1)
    is None
  )
