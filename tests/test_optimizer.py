import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import optimizer, schedules


def test_update_matches_the_papers_rule_across_a_drop():
  rng = np.random.default_rng(0)

  def draw():  # exact in float32, so that both sides start from the same
    return {
      "kernel": rng.normal(size=(4, 3)).astype(np.float32).astype(np.float64),
      "bias": rng.normal(size=3).astype(np.float32).astype(np.float64),
    }

  weights = draw()
  parameters = jax.tree.map(
    lambda w: jnp.asarray(w, jnp.float32), {"conv1": weights}
  )
  schedule = schedules.make_steps(0.1, drop_steps=[10], drop_factor=0.1)
  bias_schedule = schedules.make_steps(0.2, drop_steps=[], drop_factor=0.1)
  rule = optimizer.make_optimizer(
    schedule, bias_schedule, momentum=0.9, weight_decay=0.05
  )
  state = rule.init(parameters)
  velocity = {"kernel": np.zeros((4, 3)), "bias": np.zeros(3)}
  for step in range(20):
    gradient = draw()
    updates, state = rule.update(
      jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), {"conv1": gradient}),
      state,
      parameters,
    )
    parameters = jax.tree.map(jnp.add, parameters, updates)
    rate = 0.1 if step < 10 else 0.01
    velocity["kernel"] = 0.9 * velocity["kernel"] - rate * (
      0.05 * weights["kernel"] + gradient["kernel"]
    )
    velocity["bias"] = 0.9 * velocity["bias"] - 0.2 * gradient["bias"]
    weights = {name: weights[name] + velocity[name] for name in weights}
    for name, expected in weights.items():
      # float32 against float64 over 20 steps.
      difference = np.linalg.norm(parameters["conv1"][name] - expected)
      assert difference <= 1e-6 * np.linalg.norm(expected), (step, name)


def test_schedule_drops_at_the_step_named():
  schedule = schedules.make_steps(0.5, drop_steps=[2, 4], drop_factor=0.1)
  rates = [float(schedule(step)) for step in range(6)]
  np.testing.assert_allclose(
    rates, [0.5, 0.5, 0.05, 0.05, 0.005, 0.005], rtol=1e-6
  )
