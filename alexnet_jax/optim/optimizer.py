"""The optimizer: SGD as in the paper, with later additions, built from optax.

In order: gradients averaged over several batches, weight decay, layer-wise
trust ratios (LARS), learning rate, plateau rule, momentum, layers frozen at a
rate of 0, EMA of the parameters. The paper has only weight decay, learning rate
and momentum.

The parameters of an update may lack layers, as long as its gradients and state
lack them, too: those that are frozen for the whole run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from alexnet_jax.optim import ema
from alexnet_jax.optim import schedules as schedules_lib

_KERNEL, _BIAS = "kernel", "bias"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRule:
  """How the updates of one layer differ from those of the others.

  Attributes:
    lr_multiplier: multiplies the learning rates of all its parameters, >= 0.
    schedules: of its kernel (and scale) and of its bias, in place of those of
      the other layers. While such a rate is 0 the parameter is frozen: neither
      it nor its velocity changes.
    weight_decay: of its kernel; None: that of the other layers.
  """

  lr_multiplier: float = 1.0
  schedules: tuple[optax.Schedule, optax.Schedule] | None = None
  weight_decay: float | None = None


def make_optimizer(
  schedule: optax.Schedule,
  bias_schedule: optax.Schedule,
  *,
  momentum: float,
  weight_decay: float,
  layers: Mapping[str, LayerRule] | None = None,
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
    layers: {layer: what differs there}; None: nothing does. Only `schedules`
      change the structure of the optimizer's state.
    plateau: multiplies the rates too; None: nothing does.
    trust_coefficient: see `scale_kernels_by_trust`; `update` then takes
      `squared_norms`. None: no trust ratios.
    ema_decay: see `ema.py`; None: no EMA.
    accumulate: batches whose gradients are averaged into one update; the
      parameters change with the last of them.

  Source: Krizhevsky et al. 2012, section 5; biases and frozen layers as in
  cuda-convnet, layer-params-145.cfg and src/weights.cu.
  """
  layers = layers or {}
  schedules = {_KERNEL: schedule, _BIAS: bias_schedule}
  own = {
    f"{layer}/{name}": one
    for layer, rule in layers.items()
    for name, one in zip(schedules, rule.schedules or (), strict=False)
  }

  def to_labels(parameters):
    """Maps parameters to the names of their schedules."""
    return jax.tree.map_with_path(lambda path, _: _label(path, own), parameters)

  chain = [_decay_kernels(weight_decay, layers)]
  if trust_coefficient is not None:
    chain.append(scale_kernels_by_trust(trust_coefficient))
  rates = optax.partition(
    {
      label: optax.scale_by_learning_rate(rate)
      for label, rate in (schedules | own).items()
    },
    to_labels,
  )
  chain.append(_multiply_rates(rates, layers))
  if plateau is not None:
    chain.append(plateau.scale_by_plateau())
  trace = optax.trace(decay=momentum)
  chain.append(_freeze(trace, own, to_labels) if own else trace)
  if ema_decay is not None:
    chain.append(ema.track_ema(ema_decay))
  rule = optax.with_extra_args_support(optax.chain(*chain))
  return rule if accumulate == 1 else _accumulate(rule, accumulate)


def _is_kernel(parameters):
  return jax.tree.map_with_path(
    lambda path, _: path[-1].key == _KERNEL, parameters
  )


def _label(path, own: Mapping[str, optax.Schedule]) -> str:
  """Names the schedule of a parameter.

  Args:
    own: the schedules of single layers, by their names.
  """
  name = _BIAS if path[-1].key == _BIAS else _KERNEL
  label = f"{path[0].key}/{name}"
  return label if label in own else name


def _decay_kernels(
  weight_decay: float, layers: Mapping[str, LayerRule]
) -> optax.GradientTransformation:
  """Adds weight decay to the gradients of the kernels, by layer."""
  own = {
    layer: rule.weight_decay
    for layer, rule in layers.items()
    if rule.weight_decay is not None
  }

  def decay(path, gradient, kernel):
    rate = own.get(path[0].key, weight_decay)
    return gradient + rate * kernel if rate else gradient

  def update(updates, state, parameters):
    return jax.tree.map_with_path(decay, updates, parameters), state

  # Its state is that of `optax.add_decayed_weights`, which has one rate.
  return optax.masked(
    optax.GradientTransformation(optax.init_empty_state, update), _is_kernel
  )


def _multiply_rates(
  rule: optax.GradientTransformationExtraArgs, layers: Mapping[str, LayerRule]
) -> optax.GradientTransformationExtraArgs:
  """Multiplies the updates of a rule, layer by layer."""

  def multiply(path, x):
    layer = layers.get(path[0].key)
    if layer is None or layer.lr_multiplier == 1:
      return x
    return layer.lr_multiplier * x

  def update(updates, state, parameters=None, **extra):
    updates, state = rule.update(updates, state, parameters, **extra)
    return jax.tree.map_with_path(multiply, updates), state

  return optax.GradientTransformationExtraArgs(rule.init, update)


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
