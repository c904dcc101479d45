"""Activations are summarized and drawn by column, against loops."""

import numpy as np
import pytest

from alexnet_jax.figures import activations


def make_layers(columns):
  """A layer with maps, one with values below 0, and units."""
  rng = np.random.default_rng(0)
  maps = np.maximum(rng.normal(size=(9, 9, 16 * columns)), 0)
  maps *= rng.uniform(0, 2, size=16 * columns)  # of different strength
  signed = rng.normal(size=(5, 5, 2 * columns))
  units = np.maximum(rng.normal(size=50 * columns), 0)
  return [
    activations.Activations(
      layer=name, values=values.astype(np.float32), columns=columns
    )
    for name, values in (("a", maps), ("b", signed), ("c", units))
  ]


@pytest.mark.parametrize("columns", [1, 2, 4])
def test_summary_is_that_of_a_loop(columns):
  layers = make_layers(columns)
  found = iter(activations.summarize(layers))
  for one in layers:
    each = one.values.shape[-1] // columns
    for column in range(columns):
      means, zeros = {}, []
      for index in range(column * each, (column + 1) * each):
        values = one.values[..., index].ravel().tolist()
        means[index] = sum(values) / len(values)
        zeros += [value == 0 for value in values]
      summary = next(found)
      assert (summary.layer, summary.column) == (one.layer, column)
      assert summary.shape == (*one.values.shape[:-1], each)
      # Sums in float64, in another order.
      assert summary.mean == pytest.approx(sum(means.values()) / each, 1e-9)
      assert summary.zeros == pytest.approx(sum(zeros) / len(zeros), 1e-9)
      strongest = sorted(means, key=means.get, reverse=True)[:3]
      assert list(summary.strongest) == strongest
  assert next(found, None) is None


def find_images(figure):
  return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


def test_strongest_maps_of_each_column_are_drawn_in_order():
  layers = make_layers(2)
  picture = np.random.default_rng(1).integers(0, 256, (20, 20, 3), np.uint8)
  drawn = activations.to_figure(picture, layers)
  assert drawn.get_facecolor()[3] == 0
  # As those of kernels and of layouts.
  labels = [one.get_text() for one in drawn.texts]
  assert [one for one in labels if one.startswith("column")] == 3 * [
    *("column 0", "column 1")
  ]
  shown, *blocks = find_images(drawn)
  np.testing.assert_array_equal(shown, picture)
  assert len(blocks) == 6
  maps = layers[0].values
  chosen = []
  for column in (0, 1):
    of_column = range(16 * column, 16 * (column + 1))
    chosen.append(
      sorted(of_column, key=lambda index: -maps[..., index].mean())[:12]
    )
  white = np.percentile(maps[..., sum(chosen, [])], 99.5)
  for block, indices in zip(blocks[:2], chosen, strict=True):
    side = (block.shape[1] + 4) // 12 - 4  # 4 pixels between two maps
    factor = side // 9
    for place, index in enumerate(indices):
      left = place * (side + 4)
      centers = slice(factor // 2, side, factor)
      gray = block[centers, left : left + side][:, centers, 0]
      expected = 255 * np.clip(maps[..., index] / white, 0, 1)
      # Rounded to bytes.
      np.testing.assert_allclose(gray, expected, atol=0.51)
      assert (block[:side, left : left + side, 3] == 255).all()
      assert not block[:, left + side : left + side + 4, 3].any()


def test_zero_is_gray_where_values_are_negative_and_black_elsewhere():
  values = np.zeros((3, 3, 2), np.float32)
  flat = activations.Activations(layer="a", values=values, columns=1)
  signed = values.copy()
  signed[0, 0, 0], signed[2, 2, 1] = -2, 1
  signed = activations.Activations(layer="b", values=signed, columns=1)
  picture = np.zeros((4, 4, 3), np.uint8)
  _, black, gray = find_images(activations.to_figure(picture, [flat, signed]))
  middle = black.shape[0] // 2
  assert black[middle, middle, 0] == 0
  assert gray[middle, middle, 0] in (127, 128)
  # The map with the larger mean is first; 4 pixels are between the two.
  width = (gray.shape[1] + 4) // 12
  assert gray[5, width + 5, 0] == 0


@pytest.mark.parametrize("units", [1, 10, 41, 97, 1024, 4096])
def test_all_units_are_drawn_in_order(units):
  values = np.linspace(0, 1, units, dtype=np.float32)
  one = activations.Activations(layer="a", values=values, columns=1)
  _, block = find_images(
    activations.to_figure(np.zeros((4, 4, 3), np.uint8), [one])
  )
  pixels = block.reshape(-1, 4)
  assert (pixels[:units, 3] == 255).all() and not pixels[units:, 3].any()
  assert (np.diff(pixels[:units, 0].astype(int)) >= 0).all()
  assert block.shape[1] >= block.shape[0]
