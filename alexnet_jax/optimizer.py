"""The update rule of 2012, from optax's parts, and its learning rate."""

from collections.abc import Sequence

import jax
import optax


def check(
  *,
  learning_rate: float,
  drop_epochs: Sequence[float],
  drop_factor: float,
  bias_rate: float,
  bias_drop_epochs: Sequence[float],
  momentum: float,
  weight_decay: float,
) -> None:
  """Refuses values of `config.optimizer` that are out of range.

  Raises:
    ValueError: names the field, its value and what was expected.
  """
  for name, value, good, expected in (
    ("learning_rate", learning_rate, learning_rate >= 0, "0 or more"),
    ("drop_factor", drop_factor, 0 < drop_factor <= 1, "0 < factor <= 1"),
    ("bias_rate", bias_rate, bias_rate >= 0, "0 or more"),
    ("momentum", momentum, 0 <= momentum < 1, "0 <= momentum < 1"),
    ("weight_decay", weight_decay, weight_decay >= 0, "0 or more"),
    *(
      (name, drops, [*drops] == sorted({*drops}), "increasing epochs")
      for name, drops in (
        ("drop_epochs", drop_epochs),
        ("bias_drop_epochs", bias_drop_epochs),
      )
    ),
  ):
    if not good:
      raise ValueError(
        f"optimizer.{name} is {value}, expected {expected}. "
        f"Set config.optimizer.{name}."
      )


def make_schedule(
  learning_rate: float, *, drop_steps: Sequence[int], drop_factor: float
) -> optax.Schedule:
  """A rate that is multiplied by `drop_factor` at each of the given steps.

  Args:
    learning_rate: at step 0.
    drop_steps: the first step at each lower rate, increasing.
    drop_factor: 0.1 in the paper.

  Returns:
    step -> rate.
  """
  rates = [
    learning_rate * drop_factor**drops for drops in range(len(drop_steps) + 1)
  ]
  return optax.join_schedules(
    [optax.constant_schedule(rate) for rate in rates], list(drop_steps)
  )


def make_optimizer(
  schedule: optax.Schedule,
  bias_schedule: optax.Schedule,
  *,
  momentum: float,
  weight_decay: float,
) -> optax.GradientTransformation:
  """SGD with the paper's momentum and weight decay.

  v <- momentum * v - rate * (weight_decay * w + g);  w <- w + v.

  The decay enters with the gradient and is multiplied by the rate, and the
  velocity already contains the rate: after a drop it decays from its old
  size. The more common order, momentum first and rate last, gives the same
  steps only while the rate is constant. Biases have a rate of their own and
  no decay.

  Args:
    schedule: step -> learning rate of the kernels.
    bias_schedule: step -> learning rate of the biases.
    momentum: 0.9 in the paper.
    weight_decay: 0.0005 in the paper.

  Returns:
    For parameters {layer: {"kernel", "bias"}}, and the "scale" of a batch
    normalisation, which has the rate of the kernels and no decay.

  Source: Krizhevsky et al. 2012, section 5; biases as in cuda-convnet,
  layer-params-145.cfg and src/weights.cu.
  """
  return optax.chain(
    optax.add_decayed_weights(
      weight_decay,
      mask=lambda parameters: jax.tree.map(
        lambda name: name == "kernel", _names(parameters)
      ),
    ),
    optax.partition(
      {
        "kernel": optax.scale_by_learning_rate(schedule),
        "bias": optax.scale_by_learning_rate(bias_schedule),
      },
      _rates,
    ),
    optax.trace(decay=momentum),
  )


def _names(parameters):
  """The same tree with each parameter's own name, as `kernel` or `bias`."""
  return jax.tree.map_with_path(lambda path, _: path[-1].key, parameters)


def _rates(parameters):
  """The same tree with the name of what has its rate: `kernel` or `bias`."""
  return jax.tree.map(
    lambda name: "bias" if name == "bias" else "kernel", _names(parameters)
  )
