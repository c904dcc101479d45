"""Trained, random and shuffled networks, and the statistics by hand."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from alexnet_jax.convert import proof
from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import model, wiring
from configs import default, lenet5
from tests import build, runs

NAMES = [layer.name for layer in build.SHORT_NETWORK.layers]


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def init(network, seed=0):
  return jax.device_get(model.init_parameters(network, jax.random.key(seed)))


def with_order(parameters, network, rng):
  """Adds what training makes: smooth kernels, groups of units that agree."""
  ordered, before = {}, None
  for layer in network.layers:
    kernel = parameters[layer.name]["kernel"]
    *window, inputs, units = kernel.shape
    groups = rng.integers(4, size=units)
    if before is None:
      before = np.arange(inputs)
    # What a unit of one group reads from a unit of another.
    weights = rng.standard_normal((len(set(before)), 4))
    columns = network.columns if layer.reads == "own" else 1
    added = np.concatenate(
      [
        weights[np.ix_(read, reading)]
        for read, reading in zip(
          np.split(before, columns), np.split(groups, columns), strict=True
        )
      ],
      axis=1,
    )
    if len(window) == 2:
      wave = np.cos(np.linspace(0.0, np.pi, window[0]))
      added = np.outer(wave, wave)[:, :, None, None] * added
    added = np.broadcast_to(added, kernel.shape)
    ordered[layer.name] = {
      **parameters[layer.name],
      "kernel": (kernel + 2.0 * kernel.std() * added).astype(np.float32),
    }
    before = groups
  return ordered


def shuffle(rng, kernel):
  return rng.permutation(kernel.ravel()).reshape(kernel.shape)


def shuffle_units(rng, kernel):
  """The values of each unit, or of each kernel of a convolution."""
  return rng.permuted(kernel.reshape(-1, kernel.shape[-1]), axis=0).reshape(
    kernel.shape
  )


def shuffle_pixels(rng, kernel):
  """The pixels of each channel of each kernel."""
  pixels = kernel.reshape(-1, *kernel.shape[2:])
  return rng.permuted(pixels, axis=0).reshape(kernel.shape)


def change(parameters, function, rng, names):
  """Changes the kernels of some layers."""
  return {
    name: arrays
    | ({"kernel": function(rng, arrays["kernel"])} if name in names else {})
    for name, arrays in parameters.items()
  }


def convolutions(network):
  return [layer.name for layer in network.layers if layer.window]


def test_smoothness_is_what_a_mean_of_nine_pixels_keeps(rng):
  kernel = rng.standard_normal((4, 4, 2, 3)).astype(np.float32)
  means, squares = [], []
  for i, j in itertools.product(range(2), range(3)):
    channel = kernel[:, :, i, j].astype(np.float64)
    channel = channel - channel.mean()
    for y, x in itertools.product(range(4), range(4)):
      squares.append(channel[y, x] ** 2)
      near = [
        channel[b, a]
        for b, a in itertools.product(range(4), range(4))
        if abs(b - y) <= 1 and abs(a - x) <= 1
      ]
      means.append((sum(near) / 9) ** 2)
  # float32 sums of a hundred squares.
  np.testing.assert_allclose(
    proof.find_smoothness(kernel),
    np.mean(means) / np.mean(squares),
    rtol=1e-4,
  )
  ramp = np.broadcast_to(np.arange(11.0)[:, None, None], (11, 11, 1))
  assert 0.5 < proof.find_smoothness(ramp) < 1.0
  assert proof.find_smoothness(np.ones((3, 3, 5), np.float32)) == 0.0


@pytest.mark.parametrize("shape", [(2, 9, 6), (1, 5, 12)])
def test_singular_value_is_that_of_each_column(rng, shape):
  matrices = rng.standard_normal(shape).astype(np.float32)
  largest = [np.linalg.svd(matrix, compute_uv=False)[0] for matrix in matrices]
  scale = np.sqrt(np.mean(matrices**2)) * sum(np.sqrt(shape[1:]))
  # The root of a float32 eigenvalue.
  np.testing.assert_allclose(
    proof.find_singular_value(matrices),
    np.sqrt(np.mean(np.square(largest))) / scale,
    rtol=1e-4,
  )


def test_link_score_is_the_distance_from_all_orders(rng):
  writes = rng.standard_normal((2, 5, 4)).astype(np.float32)
  reads = (writes[:, :, :3] + 0.3 * rng.standard_normal((2, 5, 3))).astype(
    np.float32
  )
  expected = []
  for order in itertools.permutations(range(5)):
    total = 0.0
    for column, i, j in itertools.product(range(2), range(5), range(5)):
      if i != j:
        kernels = np.corrcoef(writes[column, i], writes[column, j])[0, 1]
        weights = np.corrcoef(reads[column, order[i]], reads[column, order[j]])[
          0, 1
        ]
        total += kernels * weights
    expected.append(total)
  exact = (expected[0] - np.mean(expected)) / np.std(expected)
  # The moments of 199 random orders: 5 % of a standard deviation, .1 of a mean.
  assert proof.score_link(writes, reads, rng) == pytest.approx(
    exact, rel=0.2, abs=0.3
  )


def test_column_is_linked_with_what_reads_it(rng):
  network = build.SHORT_NETWORK
  before, layer = network.layers[:2]
  assert layer.reads == "own" and network.columns == 2
  kernel = rng.standard_normal((11, 11, 3, 12))
  after = rng.standard_normal((5, 5, 6, 32))
  writes = proof._take_units(proof._list_writes(kernel), 2)
  reads = proof._take_units(proof._list_reads(after, 2), 2)
  assert writes.shape == (2, 6, 363) and reads.shape == (2, 6, 25 * 16)
  # Unit 2 of the second column is map 8; it is read as input 2 of that column.
  np.testing.assert_array_equal(writes[1, 2], kernel[..., 8].ravel())
  np.testing.assert_array_equal(reads[1, 2], after[:, :, 2, 16:].ravel())
  assert before.features == 12


def test_effects_are_those_of_a_linear_network(rng):
  network = build.make_network(width=1 / 16)
  kernels = {
    name: rng.standard_normal(size.kernel)
    for name, size in network.sizes().items()
  }
  effects = proof._find_effects(kernels, network)
  assert list(effects) == [
    "fc7",
    "fc6",
    "conv5",
    "conv4",
    "conv3",
    "conv2",
    "conv1",
  ]
  fc7 = kernels["fc7"] @ kernels["fc8"]
  conv5 = kernels["fc6"].reshape(-1, 16, 256).sum(0) @ fc7
  conv5_kernel = kernels["conv5"].sum((0, 1))  # f64[12, 16]: 3 x 3 summed
  np.testing.assert_allclose(effects["fc6"], fc7, rtol=1e-9)
  np.testing.assert_allclose(effects["conv5"], conv5, rtol=1e-9)
  # Each column of conv4 is read by its own half of conv5.
  for column in range(2):
    units, outputs = (slice(column * n, (column + 1) * n) for n in (12, 8))
    np.testing.assert_allclose(
      effects["conv4"][units],
      conv5_kernel[:, outputs] @ conv5[outputs],
      rtol=1e-9,
    )


def test_pictures_are_smooth_and_the_same_each_time():
  pictures = proof.make_pictures(3, 32)
  assert pictures.shape == (3, 32, 32, 3) and pictures.dtype == np.float32
  np.testing.assert_array_equal(pictures, proof.make_pictures(3, 32))
  # float32 sums of 3,000 values.
  np.testing.assert_allclose(pictures.mean((1, 2, 3)), 0.0, atol=1e-5)
  np.testing.assert_allclose(pictures.std((1, 2, 3)), 1.0, atol=1e-5)
  power = np.abs(np.fft.fft2(pictures, axes=(1, 2))) ** 2
  cycles = np.hypot(*np.meshgrid(*2 * [32 * np.fft.fftfreq(32)]))
  low, high = (
    np.mean(power[:, (cycles > few) & (cycles < 2 * few)]) for few in (3, 6)
  )
  # Twice the frequency, a quarter of the power; means of hundreds of waves.
  assert low / high == pytest.approx(4.0, rel=0.3)


def test_random_ordered_and_shuffled_kernels_are_told_apart(rng):
  network = build.SHORT_NETWORK
  random = init(network)
  ordered = with_order(random, network, rng)
  dead = {**ordered, "conv1": {**ordered["conv1"]}}
  dead["conv1"]["bias"] = np.where(np.arange(12) < 3, -1e9, 0.0)

  found = proof.examine(random, network)
  assert found.verdict == proof.RANDOM
  assert list(found.random_layers) == NAMES
  assert "looks random" in proof.explain(found)[0]

  found = proof.examine(dead, network)
  assert found.verdict == proof.TRAINED and found.random_layers == ()
  assert found.layers[0].found.dead == 3 / 12
  assert found.layers[0].untrained.dead == 0.0
  assert found.layers[0].found.bias_std == pytest.approx(
    np.std(dead["conv1"]["bias"])
  )
  assert proof.make_table(found).row_count == 3

  for function in (shuffle, shuffle_units):
    shuffled = change(ordered, function, rng, NAMES)
    assert proof.examine(shuffled, network).verdict == proof.RANDOM
  for function in (shuffle, shuffle_units, shuffle_pixels):
    shuffled = change(ordered, function, rng, ["conv1"])
    found = proof.examine(shuffled, network)
    assert found.verdict == proof.MIXED
    assert found.random_layers == ("conv1",)
    assert "conv1 looks random" in proof.explain(found)[0]
  assert proof.examine(shuffled, network) == found


def test_constant_kernels_look_random():
  network = build.SHORT_NETWORK
  for value in (0.0, 0.1):
    constant = jax.tree.map(
      lambda array, value=value: np.full_like(array, value), init(network)
    )
    found = proof.examine(constant, network)
    assert found.verdict == proof.RANDOM
    assert {max(layer.scores.values()) for layer in found.layers} == {0.0}


@pytest.mark.parametrize(
  ("array", "message"),
  [
    (None, "no kernel of conv2, expected one of shape"),
    (np.zeros((5, 5, 6, 31)), r"kernel of conv2 has the shape \(5, 5, 6, 31\)"),
    (np.full((5, 5, 6, 32), np.nan), "4,800 values that are not finite"),
  ],
)
def test_wrong_parameters_are_refused(array, message):
  parameters = init(build.SHORT_NETWORK)
  parameters["conv2"].pop("kernel")
  if array is not None:
    parameters["conv2"]["kernel"] = array
  with pytest.raises(ValueError, match=message):
    proof.examine(parameters, build.SHORT_NETWORK)


def test_rows_in_another_order_are_pointed_out(rng):
  """The rows of a layer that reads a map, channel by channel."""
  first, middle, last = (wirings.ALEXNET_D2L.layers[i] for i in (0, 6, 7))
  layers = (
    dataclasses.replace(first, features=48),
    dataclasses.replace(middle, features=64),
    last,
  )
  network = build.make_network(
    dataclasses.replace(wirings.ALEXNET_D2L, layers=layers),
    width=1.0,
    image_size=35,
  )
  ordered = with_order(init(network), network, rng)
  assert len(proof.explain(proof.examine(ordered, network))) == 1
  kernel = ordered["fc7"]["kernel"]
  positions, channels, units = kernel.shape
  assert positions > 1
  ordered["fc7"]["kernel"] = kernel.reshape(
    channels, positions, units
  ).transpose(1, 0, 2)
  found = proof.examine(ordered, network)
  assert found.verdict == proof.TRAINED
  assert "fc7 does not fit conv1" in proof.explain(found)[1]


# Networks as they are trained here, in ten random initializations.
NETWORKS = {
  "full_size": (wirings.ALEXNET_2012, {"width": 1.0, "image_size": 224}),
  "tower": (wirings.MERGED_TOWER, {"width": 0.25}),
  "two_columns": (wirings.ALEXNET_2012, {"width": 0.25}),
  "lenet5": (wirings.LENET5, {"width": 1.0, "image_size": 28}),
}


@pytest.mark.slow
@pytest.mark.parametrize("init_name", wiring.INITS)
@pytest.mark.parametrize("name", ["tower", "two_columns", "lenet5"])
def test_random_initializations_look_random(name, init_name):
  check_random(name, init_name, 1)


@pytest.mark.slow
def test_random_network_of_2012_looks_random():
  check_random("full_size", "source", 2)


def check_random(name, init_name, seed):
  table, options = NETWORKS[name]
  network = build.make_network(table, **options | {"init": init_name})
  found = proof.examine(init(network, seed), network)
  assert found.verdict == proof.RANDOM


@pytest.mark.slow
def test_short_run_looks_trained_until_shuffled(rng, tmp_path, data_dir):
  config = lenet5.get_config()
  # A third of the run as it is; the longer, the more order there is.
  default.shorten(config, 8.0)
  trained = runs.train(config, tmp_path / "run", data_dir)
  network = trained.run.program.network
  parameters = jax.device_get(trained.state.parameters)
  names = [layer.name for layer in network.layers]
  found = proof.examine(parameters, network)
  assert found.verdict == proof.TRAINED, proof.explain(found)
  for function in (shuffle, shuffle_units):
    shuffled = change(parameters, function, rng, names)
    assert proof.examine(shuffled, network).verdict == proof.RANDOM
  for function in (shuffle, shuffle_units, shuffle_pixels):
    shuffled = change(parameters, function, rng, names[:1])
    found = proof.examine(shuffled, network)
    assert found.verdict == proof.MIXED
    assert found.random_layers == ("conv1",)
  shuffled = change(parameters, shuffle_pixels, rng, convolutions(network))
  found = proof.examine(shuffled, network)
  assert found.verdict == proof.MIXED and found.random_layers[0] == "conv1"
  shuffled = change(parameters, shuffle, rng, names[-1:])
  found = proof.examine(shuffled, network)
  assert found.verdict == proof.MIXED and names[-1] in found.random_layers
