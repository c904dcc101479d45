"""The optimizer: SGD as in the paper, with later additions, built from optax.

In order: gradients averaged over several batches, weight decay, layer-wise
trust ratios (LARS), learning rate, plateau rule, momentum, conv1 frozen at a
rate of 0, EMA of the parameters. The paper has only weight decay, learning rate
and momentum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from alexnet_jax.optim import ema
from alexnet_jax.optim import schedules as schedules_lib

_KERNEL, _BIAS = "kernel", "bias"
# The layer that may have learning rates of its own.
CONV1 = "conv1"


def make_optimizer(
  schedule: optax.Schedule,
  bias_schedule: optax.Schedule,
  *,
  momentum: float,
  weight_decay: float,
  conv1_schedules: tuple[optax.Schedule, optax.Schedule] | None = None,
  plateau: schedules_lib.Plateau | None = None,
  trust_coefficient: float | None = None,
  ema_decay: float | None = None,
  accumulate: int = 1,
) -> optax.GradientTransformationExtraArgs:
  """Makes SGD with the paper's momentum and weight decay.

  v <- momentum * v - rate * (weight_decay * w + g);  w <- w + v.

  The rate multiplies the gradient before it enters the velocity, so that after
  a drop the velocity decays from its old size. The more common order, momentum
  first and rate last, takes the same steps only while the rate is constant.

  Parameters are {layer: {"kernel", "bias"}}, and "scale" for batch
  normalization. Only kernels have weight decay. Biases have a rate of their
  own; scales have that of the kernels.

  Args:
    schedule: update -> learning rate of the kernels.
    bias_schedule: update -> learning rate of the biases.
    momentum: 0.9 in the paper.
    weight_decay: 0.0005 in the paper.
    conv1_schedules: replace these two schedules for conv1. While such a rate is
      0 the parameter is frozen: neither it nor its velocity changes.
    plateau: multiplies the rates too; None: nothing does.
    trust_coefficient: see `scale_kernels_by_trust`; `update` then takes
      `squared_norms`. None: no trust ratios.
    ema_decay: see `ema.py`; None: no EMA.
    accumulate: batches whose gradients are averaged into one update; the
      parameters change with the last of them.

  Source: Krizhevsky et al. 2012, section 5; biases and the frozen layer as in
  cuda-convnet, layer-params-145.cfg and src/weights.cu.
  """
  schedules = {_KERNEL: schedule, _BIAS: bias_schedule}
  conv1 = {}
  if conv1_schedules is not None:
    labels = (f"{CONV1}/{_KERNEL}", f"{CONV1}/{_BIAS}")
    conv1 = dict(zip(labels, conv1_schedules, strict=True))

  def to_labels(parameters):
    """Maps parameters to the names of their schedules."""
    return jax.tree.map_with_path(
      lambda path, _: _label(path, conv1), parameters
    )

  chain = [optax.add_decayed_weights(weight_decay, mask=_is_kernel)]
  if trust_coefficient is not None:
    chain.append(scale_kernels_by_trust(trust_coefficient))
  chain.append(
    optax.partition(
      {
        label: optax.scale_by_learning_rate(rate)
        for label, rate in (schedules | conv1).items()
      },
      to_labels,
    )
  )
  if plateau is not None:
    chain.append(plateau.scale_by_plateau())
  trace = optax.trace(decay=momentum)
  chain.append(_freeze(trace, conv1, to_labels) if conv1 else trace)
  if ema_decay is not None:
    chain.append(ema.track_ema(ema_decay))
  rule = optax.with_extra_args_support(optax.chain(*chain))
  return rule if accumulate == 1 else _accumulate(rule, accumulate)


def _is_kernel(parameters):
  return jax.tree.map_with_path(
    lambda path, _: path[-1].key == _KERNEL, parameters
  )


def _label(path, conv1: Mapping[str, optax.Schedule]) -> str:
  """Names the schedule of a parameter."""
  name = _BIAS if path[-1].key == _BIAS else _KERNEL
  label = f"{path[0].key}/{name}"
  return label if label in conv1 else name


class FreezeState(NamedTuple):
  """Number of updates so far, and the state of the momentum."""

  count: jax.Array
  momentum: optax.TraceState


def _freeze(
  trace: optax.GradientTransformation,
  schedules: Mapping[str, optax.Schedule],
  to_labels,
) -> optax.GradientTransformation:
  """Freezes parameters, and their momentum, while their rate is 0.

  `to_labels` maps parameters to a tree of labels; those with `schedules` may be
  frozen.
  """

  def init(parameters):
    return FreezeState(
      count=jnp.zeros((), jnp.int32), momentum=trace.init(parameters)
    )

  def update(updates, state, parameters=None):
    active = {
      label: schedule(state.count) > 0 for label, schedule in schedules.items()
    }

    def choose(label, new, frozen):
      return jnp.where(active[label], new, frozen) if label in active else new

    labels = to_labels(updates)
    updates, after = trace.update(updates, state.momentum, parameters)
    return (
      jax.tree.map(
        lambda label, x: choose(label, x, jnp.zeros_like(x)), labels, updates
      ),
      FreezeState(
        count=optax.safe_increment(state.count),
        momentum=optax.TraceState(
          jax.tree.map(choose, labels, after.trace, state.momentum.trace)
        ),
      ),
    )

  return optax.GradientTransformation(init, update)


def _accumulate(
  rule: optax.GradientTransformationExtraArgs, batches: int
) -> optax.GradientTransformationExtraArgs:
  """Averages the gradients of several batches into one update."""
  # None: JAX's default float, which is the type of the parameters; optax's own
  # default is float32.
  multi_steps = optax.MultiSteps(rule, batches, accumulator_dtype=None)

  def update(updates, state, parameters=None, **extra):
    # optax multiplies gradients by flags and divides them by counts.
    with jax.numpy_dtype_promotion("standard"):
      return multi_steps.update(updates, state, parameters, **extra)

  return optax.GradientTransformationExtraArgs(multi_steps.init, update)


def scale_kernels_by_trust(
  coefficient: float,
) -> optax.GradientTransformationExtraArgs:
  """Multiplies the update of each kernel by its trust ratio (LARS).

  The ratio is `coefficient * |kernel| / |update|`, where the update is the
  gradient with weight decay. No device of a split kernel has its norm, so
  `update` takes a function `squared_norms`: (parameters, updates) -> {layer:
  f32[]} of each; see `partition/exchange.py`.

  Args:
    coefficient: above 0; 0.001 in the source.

  Source: You, Gitman and Ginsburg 2017, "Large batch training of convolutional
  networks", algorithm 1; the same order as `optax.lars`, which also takes a
  ratio of 1 where a norm is 0.
  """

  def update(updates, state, parameters=None, *, squared_norms, **extra):
    del extra
    kernels, steps = squared_norms(parameters, updates)

    def scale(path, x):
      if path[-1].key != _KERNEL:
        return x
      layer = path[0].key
      kernel, step = jnp.sqrt(kernels[layer]), jnp.sqrt(steps[layer])
      is_zero = (kernel == 0) | (step == 0)
      # A division by a norm that overflows would freeze the kernel unseen.
      step = jnp.where(step < jnp.inf, step, jnp.nan)
      ratio = coefficient * kernel / jnp.where(is_zero, 1.0, step)
      return x * jnp.where(is_zero, 1.0, ratio)

    return jax.tree.map_with_path(scale, updates), state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
