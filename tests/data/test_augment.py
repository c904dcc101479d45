import dataclasses
import math

import jax
import numpy as np
import pytest
from flax import nnx

from alexnet_jax.data import augment, host_batches, statistics
from alexnet_jax.network import model
from alexnet_jax.partition import catalog, mesh, plan, specs
from alexnet_jax.program import compiled_step
from tests import build

# Of ImageNet, ordered by the standard deviation along each direction.
DIRECTIONS = np.array(
  [
    [-0.56351, -0.57618, -0.59200],
    [-0.71258, -0.02354, 0.70120],
    [0.41796, -0.81698, 0.39731],
  ]
)
STDS = np.array([121.780, 37.094, 19.721])
MEAN_IMAGE = np.random.default_rng(1).uniform(0, 255, (72, 72, 3))
# float32; pixels of about 1 after the division by 64.
ATOL = 2e-6
FULL_SIZE = build.FULL_AUGMENTATION

on_one_device_and_four = pytest.mark.parametrize(
  "layout",
  [catalog.ONE_DEVICE, catalog.TWO_COLUMN_DATA],
  ids=lambda layout: layout.name,
)


@pytest.fixture(params=augment.MEANS)
def augmentation(request, tiny_augmentation):
  """Crops of 67 from 72, divided by 64, with each of the means."""
  return dataclasses.replace(
    tiny_augmentation,
    statistics=dataclasses.replace(
      tiny_augmentation.statistics, mean_image=MEAN_IMAGE.astype(np.float32)
    ),
    mean_from=request.param,
  )


def crop_in_numpy(image, top, left, mirrored, mean_from):
  """f64[67, 67, 3] of u8[72, 72, 3], the mean removed as the sources say."""
  image = image.astype(np.float64)
  if mean_from == "image":  # first of all, as in the paper
    image = image - MEAN_IMAGE
  if mean_from == "channel":
    image = image - [127.0, 120.0, 105.0]
  crop = image[top : top + 67, left : left + 67]
  if mirrored:
    crop = np.flip(crop, axis=1)
  if mean_from == "image_center":  # last, as in convdata.py
    crop = crop - MEAN_IMAGE[2:69, 2:69]
  return crop


@pytest.mark.parametrize("divisor", [1.0, 1.1])
def test_augmentation_matches_numpy(augmentation, divisor, tiny_batch, key):
  images, _ = tiny_batch
  augmentation = dataclasses.replace(augmentation, color_divisor=divisor)
  draws = jax.tree.map(np.asarray, augmentation.draw(key, 8, spec=None))
  assert 0 < draws["flip"].sum() < 8  # both kinds are there
  found = jax.jit(augmentation.apply)(images, draws)
  assert found.dtype == np.float32
  for row in range(8):
    crop = crop_in_numpy(
      images[row],
      *draws["offset"][row],
      draws["flip"][row],
      augmentation.mean_from,
    )
    noise = (draws["color"][row] * STDS) @ DIRECTIONS
    expected = (crop + noise) / divisor / 64.0
    np.testing.assert_allclose(found[row], expected, atol=ATOL)


def test_channels_are_scaled_and_ordered_as_by_a_loop(
  augmentation, tiny_batch, key
):
  images, _ = tiny_batch
  scales = (58.395, 57.12, 57.375)
  augmentation = dataclasses.replace(
    augmentation,
    scale=0.5,
    channel_scale=scales,
    color_divisor=1.1,
    color_order="bgr",
  )
  draws = jax.tree.map(np.asarray, augmentation.draw(key, 8, spec=None))
  trained = jax.jit(augmentation.apply)(images, draws)
  evaluated = jax.jit(augmentation.view)(images, 6)
  mean_from = augmentation.mean_from
  for row in range(8):
    places = *draws["offset"][row], draws["flip"][row]
    crop = crop_in_numpy(images[row], *places, mean_from)
    crop = crop + (draws["color"][row] * STDS) @ DIRECTIONS
    view = crop_in_numpy(images[row], 0, 5, True, mean_from)
    for place, channel in enumerate((2, 1, 0)):  # blue, green, red
      divisor = 0.5 * scales[channel]
      for found, expected in (
        (trained, crop[..., channel] / divisor / 1.1),
        (evaluated, view[..., channel] / divisor),
      ):
        assert found.dtype == np.float32
        # As ATOL: pixels are twice as large here.
        np.testing.assert_allclose(
          found[row, ..., place], expected, atol=2 * ATOL
        )


def test_ten_views_are_corners_center_and_mirrored(augmentation, tiny_batch):
  images, _ = tiny_batch
  augmentation = dataclasses.replace(augmentation, color_divisor=1.1)
  view = jax.jit(augmentation.view)
  corners = [(0, 0), (0, 5), (2, 2), (5, 0), (5, 5)]
  for index in range(augment.VIEWS):
    options = *corners[index % 5], index >= 5, augmentation.mean_from
    expected = [crop_in_numpy(image, *options) for image in images]
    found = view(images, index)
    np.testing.assert_allclose(found, np.array(expected) / 64.0, atol=ATOL)
    if index == 2:
      np.testing.assert_array_equal(jax.jit(augmentation.center)(images), found)


def test_places_flips_and_colors_are_spread_as_specified(key):
  n = 20_000
  draws = jax.tree.map(np.asarray, FULL_SIZE.draw(key, n, spec=None))
  counts = np.zeros((33, 33))  # offsets 0..32; any other is an IndexError
  np.add.at(counts, tuple(draws["offset"].T), 1)
  assert counts.min() > 0
  # Chi-square of 33 x 33 equal cells: 1088 +- sqrt(2 x 1088). Five of those.
  chi_square = np.sum((counts - n / 1089) ** 2) / (n / 1089)
  assert abs(chi_square - 1088) < 5 * math.sqrt(2 * 1088)
  # 606 expected at each place of an axis; five standard deviations.
  for axis in (0, 1):
    assert np.abs(counts.sum(axis=axis) - n / 33).max() < 5 * math.sqrt(606)
  # Five standard deviations of the share of a fair coin.
  assert abs(draws["flip"].mean() - 0.5) < 5 * 0.5 / math.sqrt(n)
  # The largest distance of the distribution from N(0, 0.1^2), below the value
  # that chance exceeds once in a million (Kolmogorov and Smirnov).
  for component in draws["color"].T:
    z = np.sort(component) / 0.1
    normal = np.array([0.5 + 0.5 * math.erf(v / math.sqrt(2)) for v in z])
    assert np.abs(normal - np.arange(n) / n).max() < 2.7 / math.sqrt(n)
  # No draw tells of another: correlations of independent columns.
  columns = [draws["offset"], draws["flip"][:, None], draws["color"]]
  correlations = np.corrcoef(np.concatenate(columns, axis=1).T)
  assert np.abs(correlations - np.eye(6)).max() < 5 / math.sqrt(n)


def test_without_flip_and_noise_only_places_are_random(key):
  plain = dataclasses.replace(FULL_SIZE, flip=False, color_noise=0.0)
  draws = plain.draw(key, 20_000, spec=None)
  assert not draws["flip"].any() and not draws["color"].any()
  assert len(np.unique(draws["offset"])) == 33


def test_colors_vary_as_the_statistics_say():
  rng = np.random.default_rng(0)
  draws = {
    "offset": np.zeros((4096, 2), np.int32),
    "flip": np.zeros(4096, bool),
    "color": 0.1 * rng.standard_normal((4096, 3), np.float32),
  }
  gray = np.full((4096, 8, 8, 3), 100, np.uint8)
  small = dataclasses.replace(FULL_SIZE, stored_size=8, image_size=8)
  found = np.asarray(small.apply(gray, draws)) + [127.30, 119.72, 104.91]
  # One shift for all pixels of an image; float32, on a scale of 0..255.
  shift = found[:, :1, :1] - 100
  np.testing.assert_allclose(
    found - 100, np.broadcast_to(shift, found.shape), atol=1e-4
  )
  # 12.2 gray levels along the first direction. Of 4096 draws, the standard
  # deviation is known to 1.1 %; five of those.
  along = shift[:, 0, 0] @ DIRECTIONS.T
  np.testing.assert_allclose(along.std(axis=0), 0.1 * STDS, rtol=0.055)


@on_one_device_and_four
def test_every_layout_draws_the_same_bits(layout, tiny_network, key):
  routes = plan.choose_routes(tiny_network, layout, batch_size=64)
  spec = specs.make_specs(tiny_network, routes).images

  def draw(layout, spec):
    with jax.set_mesh(mesh.make_mesh(layout)):
      draws = jax.jit(lambda: FULL_SIZE.draw(key, 64, spec=spec))()
    return jax.tree.map(np.asarray, draws)

  expected, split = draw(catalog.ONE_DEVICE, None), draw(layout, spec)
  for name in ("offset", "flip"):
    np.testing.assert_array_equal(split[name], expected[name])
  # The same bits are drawn; jax 0.12 makes a normal number of some that is
  # rounded otherwise where the axes of a mesh split the array in four.
  np.testing.assert_array_max_ulp(split["color"], expected["color"], maxulp=1)


def totals_in_numpy(logits, labels):
  """`metrics.totals` of the softmax averaged over f32[views, n, classes]."""
  exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
  softmax = exponentials / exponentials.sum(axis=-1, keepdims=True)
  sums = np.zeros(4)
  for probabilities, label in zip(softmax.mean(axis=0), labels, strict=True):
    if label != host_batches.PADDING:
      rank = np.sum(probabilities > probabilities[label])
      loss = -np.log(probabilities[label])
      sums += [loss, rank >= 1, rank >= 5, 1]
  return sums


@pytest.fixture(scope="module")
def evaluation(tiny_network, tiny_augmentation, tiny_batch):
  """Parameters, a batch, and the logits of ten views on one device.

  Logits of some units, so that views differ in what they rank first.
  """
  init = build.make_program(catalog.ONE_DEVICE).init
  parameters = jax.device_get(init(jax.random.key(0)).parameters)
  parameters["fc8"]["kernel"] = 10 * parameters["fc8"]["kernel"]
  images, labels = tiny_batch
  graphdef = model.make_graphdef(tiny_network)
  forward = jax.jit(lambda weights, x: nnx.merge(graphdef, weights)(x))
  view = jax.jit(tiny_augmentation.view)
  logits = [
    forward(parameters, view(images, index)) for index in range(augment.VIEWS)
  ]
  labels = np.where(np.arange(8) < 6, labels, host_batches.PADDING)
  batch = images, labels.astype(np.int32)
  return parameters, batch, np.array(logits, np.float64)


def evaluate(layout, views, parameters, batch):
  parts = dataclasses.replace(build.make_program(layout), views=views)
  parameters = build.put_parameters(parts, parameters)
  return np.asarray(parts.evaluate(parameters, *build.put(parts, batch)).totals)


@on_one_device_and_four
def test_ten_view_evaluation_averages_the_softmax(layout, evaluation):
  parameters, (images, labels), logits = evaluation
  found = evaluate(layout, 10, parameters, (images, labels))
  expected = totals_in_numpy(logits, labels)
  # Sums in float32, in another order.
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert found[3] == 6
  # Not that of one view, and not the average of the logits.
  for other in (logits[2:3], logits.mean(axis=0, keepdims=True)):
    assert abs(totals_in_numpy(other, labels)[0] / expected[0] - 1) > 1e-3


def test_one_view_is_the_center_crop(evaluation):
  parameters, (images, labels), logits = evaluation
  found = evaluate(catalog.TWO_COLUMN, 1, parameters, (images, labels))
  expected = totals_in_numpy(logits[2:3], labels)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_mean_image_adds_no_communication(augmentation):
  parts = build.make_program(catalog.TWO_COLUMN_DATA, augmentation=augmentation)
  _, found = compiled_step.compile_step(parts)
  assert found.agrees and sorted(found.compiled) == sorted(found.plan)


SMALL_MEAN = dataclasses.replace(
  statistics.PUBLISHED, mean_image=np.zeros((224, 224, 3), np.float32)
)


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({"image_size": 257}, "at most config.data.stored_size"),
    ({"mean_from": "image"}, "'image', but the statistics have no mean image"),
    (
      {"mean_from": "image_center", "statistics": SMALL_MEAN},
      "224 x 224 x 3, expected 256 x 256 x 3",
    ),
  ],
)
def test_values_that_do_not_fit_are_refused(changes, expected):
  with pytest.raises(ValueError, match=expected):
    dataclasses.replace(FULL_SIZE, **changes)


def test_color_noise_ends_and_other_draws_continue(tiny_augmentation, key):
  ends = dataclasses.replace(tiny_augmentation, color_noise_steps=3)
  plain = tiny_augmentation.draw(key, 8, spec=None)
  for step in (2, 3):
    found = ends.draw(key, 8, spec=None, step=np.int32(step))
    noise = plain["color"] if step < 3 else np.zeros((8, 3))
    np.testing.assert_array_equal(found["color"], noise)
    for name in ("offset", "flip"):
      np.testing.assert_array_equal(found[name], plain[name])
