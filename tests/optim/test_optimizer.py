import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.optim import ema, optimizer, schedules

LAYERS = ("conv1", "fc6")


def draw(rng):
  """{layer: {"kernel", "bias"}}, exact in float32."""
  return {
    layer: {
      name: rng.normal(size=shape).astype(np.float32)
      for name, shape in (("kernel", (4, 3)), ("bias", (3,)))
    }
    for layer in LAYERS
  }


def take_steps(rule, steps, *, seed=0, **extra):
  """Yields (parameters before, gradient, parameters after, state)."""
  rng = np.random.default_rng(seed)
  parameters = draw(rng)
  state = rule.init(jax.tree.map(jnp.asarray, parameters))

  @jax.jit
  def take(gradient, state, parameters):
    updates, state = rule.update(gradient, state, parameters, **extra)
    return optax.apply_updates(parameters, updates), state

  for _ in range(steps):
    gradient = draw(rng)
    after, state = take(gradient, state, parameters)
    yield parameters, gradient, after, state
    parameters = jax.tree.map(np.asarray, after)


def make_rule(*, bias_rate=0.2, **changes):
  """A rule of constant rates, of 0.1 for the kernels."""
  return optimizer.make_optimizer(
    optax.constant_schedule(0.1),
    optax.constant_schedule(bias_rate),
    **{"momentum": 0.9, "weight_decay": 0.05, **changes},
  )


def assert_close(found, expected, **tolerance):
  """Compares two trees of arrays."""
  check = functools.partial(np.testing.assert_allclose, **tolerance)
  jax.tree.map(check, found, expected)


def test_update_matches_the_papers_rule_across_a_drop():
  rule = optimizer.make_optimizer(
    schedules.make_steps(0.1, drop_steps=[10], drop_factor=0.1),
    schedules.make_steps(0.2, drop_steps=[], drop_factor=0.1),
    momentum=0.9,
    weight_decay=0.05,
  )
  weights = velocity = None
  for step, (before, gradient, after, _) in enumerate(take_steps(rule, 20)):
    gradient = gradient["conv1"]
    if weights is None:
      weights = jax.tree.map(np.float64, before["conv1"])
      velocity = jax.tree.map(np.zeros_like, weights)
    rate = 0.1 if step < 10 else 0.01
    velocity["kernel"] = 0.9 * velocity["kernel"] - rate * (
      0.05 * weights["kernel"] + gradient["kernel"]
    )
    velocity["bias"] = 0.9 * velocity["bias"] - 0.2 * gradient["bias"]
    weights = jax.tree.map(np.add, weights, velocity)
    for name, expected in weights.items():
      # float32 against float64 over 20 steps.
      difference = np.linalg.norm(after["conv1"][name] - expected)
      assert difference <= 1e-6 * np.linalg.norm(expected), (step, name)


def test_scale_of_a_normalization_has_the_kernels_rate_and_no_decay():
  rule = make_rule(momentum=0.0)
  parameters = {"conv1": {"scale": jnp.ones(3)}}
  gradient = {"conv1": {"scale": jnp.full(3, 2.0)}}
  updates, _ = rule.update(gradient, rule.init(parameters), parameters)
  np.testing.assert_allclose(updates["conv1"]["scale"], -0.2, rtol=1e-6)


# What differs in conv1, and its rates and weight decay in each of eight steps.
DROPS = tuple(
  schedules.with_constant_rates(
    optax.constant_schedule(rate), [(3, 0.01 * rate), (5, 0.0)]
  )
  for rate in (0.1, 0.2)
)
STEADY = {"kernel": [0.1] * 8, "bias": [0.2] * 8}
DROPPED = {
  name: rate * np.array([1, 1, 1, 0.01, 0.01, 0, 0, 0])
  for name, rate in (("kernel", 0.1), ("bias", 0.2))
}
RULES = [
  ({}, STEADY, 0.05),
  ({"schedules": DROPS}, DROPPED, 0.05),
  ({"schedules": DROPS, "weight_decay": 0.5}, DROPPED, 0.5),
  ({"lr_multiplier": 2.0}, {"kernel": [0.2] * 8, "bias": [0.4] * 8}, 0.05),
  ({"lr_multiplier": 0.0}, {"kernel": [0.0] * 8, "bias": [0.0] * 8}, 0.05),
  ({"weight_decay": 0.0}, STEADY, 0.0),
]


@pytest.mark.parametrize(("fields", "rates", "decay"), RULES)
def test_layer_has_the_rates_and_the_decay_of_its_own(fields, rates, decay):
  rates = {"conv1": rates, "fc6": STEADY}
  decays = {"conv1": decay, "fc6": 0.05}
  rule = make_rule(layers={"conv1": optimizer.LayerRule(**fields)})
  velocity = jax.tree.map(np.zeros_like, draw(np.random.default_rng(0)))
  for step, (before, gradient, after, state) in enumerate(take_steps(rule, 8)):
    trace = optax.tree.get(state, "trace")
    for layer in LAYERS:
      for name, of_step in rates[layer].items():
        v, w = velocity[layer][name], before[layer][name]
        if of_step[step]:
          g = gradient[layer][name]
          if name == "kernel":
            g = g + decays[layer] * w
          velocity[layer][name] = v = 0.9 * v - of_step[step] * g
          w = w + v
        else:  # not even by what is left of the velocity
          np.testing.assert_array_equal(after[layer][name], w)
        # A few roundings in float32 of numbers of about 1.
        np.testing.assert_allclose(after[layer][name], w, atol=1e-6)
        np.testing.assert_allclose(trace[layer][name], v, atol=1e-6)


def test_state_has_the_structure_of_earlier_checkpoints():
  """Rules without schedules add nothing; those of conv1 add what they did."""
  parameters = draw(np.random.default_rng(0))

  def find_paths(**layers):
    rules = {name: optimizer.LayerRule(**one) for name, one in layers.items()}
    state = make_rule(layers=rules).init(parameters)
    return [
      jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state)
    ]

  velocity = [
    f"['{layer}']['{name}']" for layer in LAYERS for name in ("bias", "kernel")
  ]
  counts = "[1].inner_states['{}'].inner_state.count"
  plain = [counts.format(name) for name in ("bias", "kernel")]
  plain += [f"[2].trace{path}" for path in velocity]
  assert find_paths() == plain
  assert find_paths(conv1={"lr_multiplier": 0.5, "weight_decay": 0.1}) == plain
  own = ("bias", "conv1/bias", "conv1/kernel", "kernel")
  assert find_paths(conv1={"schedules": DROPS}) == [
    *map(counts.format, own),
    "[2].count",
    *(f"[2].momentum.trace{path}" for path in velocity),
  ]


def squared_norms(*trees):
  return [
    {layer: jnp.sum(tree[layer]["kernel"] ** 2) for layer in tree}
    for tree in trees
  ]


def test_trust_ratios_match_optax_on_one_device():
  def is_kernel(tree):
    return {layer: {"kernel": True, "bias": False} for layer in tree}

  expected = optax.lars(
    0.1,
    0.05,
    weight_decay_mask=is_kernel,
    trust_ratio_mask=is_kernel,
    trust_coefficient=0.01,
    momentum=0.9,
  )
  found = make_rule(bias_rate=0.1, trust_coefficient=0.01)
  for (_, _, ours, _), (_, _, theirs, _) in zip(
    take_steps(found, 4, squared_norms=squared_norms),
    take_steps(expected, 4),
    strict=True,
  ):
    # The same rule, rounded in another order.
    assert_close(ours, theirs, rtol=2e-6, atol=1e-7)


def test_trust_ratio_of_a_kernel_of_zeros_is_1():
  rule = make_rule(trust_coefficient=0.01, momentum=0.0)
  zeros = {"fc6": {"kernel": jnp.zeros((2, 2))}}
  ones = {"fc6": {"kernel": jnp.ones((2, 2))}}
  updates, _ = rule.update(
    ones, rule.init(zeros), zeros, squared_norms=squared_norms
  )
  np.testing.assert_allclose(updates["fc6"]["kernel"], -0.1, rtol=1e-6)


def test_trust_ratio_of_a_norm_that_overflows_does_not_freeze_the_kernel():
  rule = make_rule(trust_coefficient=0.01, momentum=0.0)
  kernels = {"fc6": {"kernel": jnp.ones((2, 2))}}
  gradients = {"fc6": {"kernel": jnp.full((2, 2), 1e20)}}
  updates, _ = rule.update(
    gradients, rule.init(kernels), kernels, squared_norms=squared_norms
  )
  assert np.isnan(updates["fc6"]["kernel"]).all()


def test_ema_matches_numpy():
  expected = None
  for before, _, after, state in take_steps(make_rule(ema_decay=0.8), 6):
    expected = before if expected is None else expected
    expected = jax.tree.map(
      lambda old, new: 0.8 * old + 0.2 * np.asarray(new), expected, after
    )
    # A few roundings in float32 of numbers of about 1.
    assert_close(ema.find_ema(state).average, expected, atol=1e-6)
  assert ema.find_ema(make_rule().init(before)) is None


def test_statistics_of_a_batch_normalization_are_averaged_with_its_weights():
  rule = make_rule(ema_decay=0.8)
  ones = jnp.ones(2)
  parameters = {"fc6": {"kernel": jnp.ones((2, 2)), "scale": ones}}
  state = rule.init(parameters)
  mean = variance = None
  for step in range(1, 4):
    statistics = {"fc6": {"mean": step * ones, "variance": 2 * step * ones}}
    gradient = jax.tree.map(jnp.zeros_like, parameters)
    _, state = rule.update(gradient, state, parameters, statistics=statistics)
    mean = 0.8 * (mean or 0.0) + 0.2 * step
    variance = 0.8 * (1.0 if variance is None else variance) + 0.2 * 2 * step
  expected = {"fc6": {"mean": mean * ones, "variance": variance * ones}}
  # Roundings in float32 of numbers of about 1.
  assert_close(ema.find_ema(state).statistics, expected, rtol=1e-6)


@pytest.mark.parametrize("rest", [{}, {"ema_decay": 0.5}])
def test_accumulated_gradients_are_one_update_by_their_mean(rest):
  gradients = []
  steps = take_steps(make_rule(accumulate=3, **rest), 6)
  single = make_rule(**rest)
  for step, (before, gradient, after, state) in enumerate(steps):
    if step == 0:
      expected, expected_state = before, single.init(before)
    trace = optax.tree.get(state, "trace")
    gradients.append(gradient)
    if len(gradients) < 3:
      jax.tree.map(np.testing.assert_array_equal, before, after)
      continue
    mean = jax.tree.map(lambda *g: np.mean(g, axis=0), *gradients)
    updates, expected_state = single.update(mean, expected_state, expected)
    expected = optax.apply_updates(expected, updates)
    gradients = []
    # The mean of three in another order, in float32.
    assert_close(after, expected, atol=1e-6)
  assert_close(trace, optax.tree.get(expected_state, "trace"), atol=1e-6)
