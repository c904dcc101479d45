import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import ops, pooling, wiring
from tests import reference

# In one program: an operation at a time takes longer to compile.
local_response_norm = jax.jit(
  ops.local_response_norm,
  static_argnames=("groups", "size", "k", "alpha", "beta"),
)
pool = jax.jit(pooling.pool, static_argnums=1, static_argnames="implementation")
stochastic_pool = jax.jit(
  pooling.stochastic_pool, static_argnames=("size", "stride")
)


@pytest.mark.parametrize("groups", [1, 2])
def test_local_response_norm_matches_loop_in_each_column(key, groups):
  x = np.array(60 * jax.random.normal(key, (2, 4, 5, 16)))
  y = local_response_norm(x, groups=groups)
  # float32 against float64.
  np.testing.assert_allclose(y, normalize_columns(x, groups), rtol=2e-6)


def normalize_columns(x, groups):
  columns = np.split(x, groups, -1)
  return np.concatenate([*map(reference.local_response_norm, columns)], -1)


def test_local_response_norm_takes_any_power(key):
  x = np.array(60 * jax.random.normal(key, (1, 2, 2, 8)))
  y = local_response_norm(x, groups=1, size=3, k=1.0, alpha=1e-3, beta=0.6)
  expected = reference.local_response_norm(x, 3, 1.0, 1e-3, 0.6)
  np.testing.assert_allclose(y, expected, rtol=2e-6)


def test_gradient_of_local_response_norm_is_that_of_its_formula(key):
  x = np.array(60 * jax.random.normal(key, (2, 3, 2, 16)))
  gradient = np.array(jax.random.normal(key, x.shape))
  _, pull = jax.vjp(lambda x: local_response_norm(x, groups=2), x)
  # Central differences of the loops, in float64.
  expected = np.zeros(x.shape)
  for at in np.ndindex(*x.shape):
    sides = []
    for step in (1e-3, -1e-3):
      moved = x.astype(np.float64)
      moved[at] += step
      sides.append((normalize_columns(moved, 2) * gradient).sum())
    expected[at] = (sides[0] - sides[1]) / 2e-3
  np.testing.assert_allclose(pull(gradient)[0], expected, rtol=1e-4, atol=1e-6)


def normalize_in_map(x, size, k, alpha, beta):
  """Loop over pixels; x: np [n, h, w, c]."""
  y, half = np.zeros(x.shape), size // 2
  for i, j in np.ndindex(*x.shape[1:3]):
    near = x[
      :, max(0, i - half) : i + half + 1, max(0, j - half) : j + half + 1
    ]
    energy = (near.astype(np.float64) ** 2).sum(axis=(1, 2))
    y[:, i, j] = x[:, i, j] / (k + alpha * energy) ** beta
  return y


@pytest.mark.parametrize(
  "constants", [(5, 1.0, 4e-5, 0.75), (3, 2.0, 1e-4, 0.6), (7, 1.0, 1e-5, 0.75)]
)
def test_normalization_in_a_map_and_its_gradient_are_those_of_a_loop(
  key, constants
):
  x = np.array(60 * jax.random.normal(key, (1, 6, 4, 2)))
  gradient = np.random.default_rng(0).standard_normal(x.shape, np.float32)
  named = dict(zip(("size", "k", "alpha", "beta"), constants, strict=True))

  @jax.jit
  def run(x):
    y, pull = jax.vjp(lambda x: ops.same_map_norm(x, **named), x)
    return y, pull(gradient)[0]

  y, found = run(x)
  # float32 against float64.
  np.testing.assert_allclose(y, normalize_in_map(x, *constants), rtol=2e-6)
  # Central differences of the loop, in float64.
  expected = np.zeros(x.shape)
  for at in np.ndindex(*x.shape):
    sides = []
    for step in (1e-3, -1e-3):
      moved = x.astype(np.float64)
      moved[at] += step
      sides.append((normalize_in_map(moved, *constants) * gradient).sum())
    expected[at] = (sides[0] - sides[1]) / 2e-3
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_normalization_in_a_map_hides_neither_overflow_nor_nan():
  for value in (np.nan, 1e19, 3e38):
    x = np.ones((1, 3, 3, 1), np.float32)
    x[0, 1, 1] = value
    y = ops.same_map_norm(x, size=5, k=1.0, alpha=4e-5, beta=0.75)
    assert np.isnan(y).all(), (value, y)


def test_normalization_in_a_map_sums_in_float32(key):
  x = (60 * jax.random.normal(key, (1, 6, 6, 2))).astype(jnp.bfloat16)
  y = ops.same_map_norm(x, size=5, k=1.0, alpha=4e-5, beta=0.75)
  assert y.dtype == jnp.bfloat16
  wide = np.asarray(x.astype(jnp.float32))
  expected = normalize_in_map(wide, 5, 1.0, 4e-5, 0.75)
  # One rounding to eight bits.
  np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=2**-8)


PADDED = [
  wiring.Pool(window=3, stride=2, padding=(1, 1)),
  wiring.Pool(window=3, stride=2, padding=(0, 1)),
  wiring.Pool(window=2, stride=1, padding=(1, 0)),
  wiring.Pool(window=3, stride=1, padding=(2, 2)),
  wiring.Pool(window=2, stride=3, padding=(1, 1)),
]


def find_windows(x, row):
  """Yields (i, j, [(row, column)]): the pixels of the map in each window."""
  before, after = row.padding
  counts = [
    (side + before + after - row.window) // row.stride + 1
    for side in x.shape[1:3]
  ]
  for i, j in np.ndindex(*counts):
    yield (
      *(i, j),
      [
        (top, left)
        for top in range(x.shape[1])
        for left in range(x.shape[2])
        if 0 <= top + before - i * row.stride < row.window
        and 0 <= left + before - j * row.stride < row.window
      ],
    )


@pytest.mark.parametrize("row", PADDED, ids=str)
@pytest.mark.parametrize("kind", ["window", "slices", "average"])
def test_pooling_counts_no_pixel_of_its_padding(row, kind):
  rng = np.random.default_rng(0)
  # Below 0, where a zero would win; few values, so that many are equal.
  x = rng.integers(-5, -1, (2, 7, 6, 2)).astype(np.float32)
  windows = list(find_windows(x, row))
  shape = (2, windows[-1][0] + 1, windows[-1][1] + 1, 2)
  gradient = rng.integers(0, 9, shape).astype(np.float32)
  y, x_gradient = np.zeros(shape), np.zeros(x.shape)
  for i, j, pixels in windows:
    values = np.stack([x[:, top, left] for top, left in pixels])
    if kind == "average":
      y[:, i, j] = values.mean(axis=0)
      for top, left in pixels:
        x_gradient[:, top, left] += gradient[:, i, j] / len(pixels)
      continue
    y[:, i, j] = values.max(axis=0)
    first = values.argmax(axis=0)
    for n, c in np.ndindex(2, 2):
      top, left = pixels[first[n, c]]
      x_gradient[n, top, left, c] += gradient[n, i, j, c]
  if kind == "average":
    row = dataclasses.replace(row, kind=kind)

  @jax.jit
  def run(x):
    y, pull = jax.vjp(
      lambda x: pooling.pool(
        x, row, implementation="slices" if kind == "slices" else "window"
      ),
      x,
    )
    return y, pull(gradient)[0]

  # Integers are exact; an average is rounded once, its gradient in a sum.
  tolerance = 1e-6 if kind == "average" else 0
  for found, expected in zip(run(x), (y, x_gradient), strict=True):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("row", PADDED[:3], ids=str)
def test_stochastic_pooling_never_draws_from_its_padding(row):
  rng = np.random.default_rng(0)
  row = dataclasses.replace(row, kind="stochastic")
  x = rng.integers(0, 9, (2, 7, 6, 2)).astype(np.float32)
  windows = list(find_windows(x, row))
  shape = (2, windows[-1][0] + 1, windows[-1][1] + 1, 2)
  uniforms = (rng.integers(0, 997, shape) / 997).astype(np.float32)
  sampled, average = np.zeros(shape), np.zeros(shape)
  for i, j, pixels in windows:
    values = np.stack([x[:, top, left] for top, left in pixels])
    total = values.sum(axis=0)
    average[:, i, j] = (values**2).sum(axis=0) / np.maximum(total, 1)
    for n, c in np.ndindex(2, 2):
      above = values[:, n, c].cumsum() > uniforms[n, i, j, c] * total[n, c]
      if above.any():  # else all are 0
        sampled[n, i, j, c] = values[above.argmax(), n, c]
  np.testing.assert_array_equal(pool(x, row, uniforms), sampled)
  np.testing.assert_allclose(pool(x, row), average, rtol=1e-6)


def test_pooling_with_padding_hides_no_nan():
  x = np.zeros((1, 4, 4, 1), np.float32)
  x[0, 0, 0] = np.nan
  for kind in wiring.POOLINGS:
    row = wiring.Pool(kind=kind, padding=(1, 1))
    for implementation in ("window", "slices"):
      y = pool(x, row, implementation=implementation)
      assert np.isnan(y[0, 0, 0, 0]) and np.isfinite(y).sum() == 3


def has_no_zero(y) -> bool:
  return bool(np.all(np.isnan(y) | (np.abs(y) > 0)))


@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_overflow_in_local_response_norm_is_not_hidden(beta):
  for magnitude in (1e8, 1e14, 1e15, 1e16, 1e19, 1e25, 3e38):
    x = np.full((1, 1, 1, 8), magnitude, np.float32)
    for halo in (None, np.full((1, 1, 1, 12), magnitude, np.float32)):
      y = local_response_norm(x, groups=1, beta=beta, with_halo=halo)
      assert has_no_zero(y), (magnitude, y)
      if magnitude < 1e15:  # float32 against float64
        windows = x if halo is None else halo
        expected = reference.local_response_norm(windows, beta=beta)
        expected = expected[..., 2:-2] if halo is not None else expected
        np.testing.assert_allclose(y, expected, rtol=2e-6)


def test_overflow_in_batch_norm_is_not_hidden():
  x = np.array([[3e19], [-3e19]], np.float32)
  mean, variance = ops.moments(x, center=jnp.zeros(1), average=jnp.asarray)
  y = ops.batch_norm(
    x, mean=mean, variance=variance, scale=jnp.ones(1), bias=jnp.ones(1)
  )
  assert np.isnan(y).all()


def test_stochastic_pooling_hides_neither_overflow_nor_nan():
  for value in (np.nan, np.inf, 3e38):
    x = np.ones((1, 2, 2, 1), np.float32)
    x[0, 1] = value  # two of four: their sum overflows
    for uniforms in (np.zeros((1, 1, 1, 1), np.float32), None):
      y = stochastic_pool(x, uniforms, size=2, stride=2)
      assert not np.isfinite(y).any(), (value, uniforms, y)


def test_neighbors_do_not_cross_a_column(key):
  x = np.array(60 * jax.random.normal(key, (1, 1, 1, 96)))
  together, split = (local_response_norm(x, groups=n) for n in (1, 2))
  # Reference: only channels 46 to 49 of conv1 see across the boundary.
  changed = np.flatnonzero(np.any(split != together, axis=(0, 1, 2)))
  assert changed.tolist() == [46, 47, 48, 49]


def test_local_response_norm_refuses_bad_sizes():
  with pytest.raises(ValueError, match="size is 4"):
    local_response_norm(np.ones((1, 1, 1, 4), np.float32), groups=1, size=4)
  with pytest.raises(ValueError, match="3 groups do not divide 4"):
    local_response_norm(np.ones((1, 1, 1, 4), np.float32), groups=3)


@pytest.mark.parametrize("side", [13, 15, 16])
def test_max_pool_matches_loop(key, side):
  x = np.array(jax.random.normal(key, (2, side, side + 1, 3)))
  np.testing.assert_array_equal(pooling.max_pool(x), reference.max_pool(x))


def test_max_pool_gradient_goes_to_the_largest(key):
  x = np.array(jax.random.normal(key, (1, 7, 7, 2)))
  gradient = jax.grad(lambda x: pooling.max_pool(x).sum())(x)
  expected = np.zeros_like(x)
  for i, j, c in np.ndindex(3, 3, 2):
    window = x[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c]
    row, column = np.unravel_index(window.argmax(), (3, 3))
    expected[0, 2 * i + row, 2 * j + column, c] += 1
  np.testing.assert_array_equal(gradient, expected)


def test_both_scalings_of_dropout_keep_the_expectation(key):
  x = np.array(jax.random.normal(key, (1, 2, 2, 3)))
  masks = np.random.default_rng(0).random((20_000, *x.shape)) < 0.8
  halved, inverted = (
    {
      name: np.asarray(ops.dropout(x, mask, keep=0.8, scaling=scaling))
      for name, mask in (("training", masks), ("evaluation", None))
    }
    for scaling in ("test", "train")
  )
  np.testing.assert_array_equal(halved["training"], x * masks)
  np.testing.assert_allclose(halved["evaluation"], 0.8 * x, rtol=1e-6)
  np.testing.assert_allclose(inverted["training"], x * masks / 0.8, rtol=1e-6)
  np.testing.assert_array_equal(inverted["evaluation"], x)
  for found in (halved, inverted):
    # The mean of 20,000 masks, within five standard deviations.
    error = abs(found["training"].mean(axis=0) - found["evaluation"])
    assert (error <= 5 * abs(x) / 0.8 * (0.16 / 20_000) ** 0.5).all()


def test_keep_rate_is_that_of_the_layer_or_the_network():
  network = wiring.make_network(wirings.DROPOUT_AFTER_CONV4)
  kept = [network.keep_rate(name) for name in ("conv4", "fc6", "fc7")]
  assert kept == [0.8, 0.5, 0.5]


def test_stochastic_pooling_samples_in_proportion_and_averages_by_weight(key):
  x = np.array(jax.nn.relu(jax.random.normal(key, (1, 5, 5, 2))))
  x[0, :3, :3, 1] = 0.0  # a window of zeros
  copies = np.broadcast_to(x, (4_000, *x.shape[1:]))
  uniforms = np.random.default_rng(0).random((4_000, 2, 2, 2), np.float32)

  def pool(copies):
    sampled = pooling.stochastic_pool(copies, uniforms, size=3, stride=2)
    average = pooling.stochastic_pool(copies[:1], None, size=3, stride=2)
    return sampled.sum(), (sampled, average)

  (sampled, average), gradient = jax.tree.map(
    np.asarray, jax.jit(jax.grad(pool, has_aux=True))(copies)[::-1]
  )
  for i, j, c in np.ndindex(2, 2, 2):
    window = x[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c].ravel()
    weights = window / max(window.sum(), 1e-30)
    expected = (weights * window).sum()
    assert average[0, i, j, c] == pytest.approx(expected, rel=1e-6)  # float32
    assert set(sampled[:, i, j, c]) <= {*window, 0.0}
    # The mean of 4,000 samples, within five standard deviations.
    deviation = (weights * (window - expected) ** 2).sum() ** 0.5
    error = abs(sampled[:, i, j, c].mean() - expected)
    assert error <= 5 * deviation / 4_000**0.5 + 1e-6
  # One value of each window receives its gradient.
  assert (gradient.sum(axis=(1, 2, 3)) == 8).all()
