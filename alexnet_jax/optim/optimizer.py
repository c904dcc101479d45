"""The update rule of 2012, from optax's parts, and what was added to it since.

In the order in which they act: gradients averaged over several batches, weight
decay, layer-wise trust ratios, the rate, its plateau rule, momentum, a frozen
conv1, an average of the parameters. All but decay, rate and momentum are off
in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from alexnet_jax.optim import ema
from alexnet_jax.optim import schedules as schedules_lib

KERNEL, BIAS = "kernel", "bias"
# The layer whose rates may differ from those of the others.
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
  """SGD with the paper's momentum and weight decay.

  v <- momentum * v - rate * (weight_decay * w + g);  w <- w + v.

  The decay enters with the gradient and is multiplied by the rate, and the
  velocity already contains the rate: after a drop it decays from its old
  size. The more common order, momentum first and rate last, gives the same
  steps only while the rate is constant. Biases have a rate of their own and
  no decay; whatever is neither kernel nor bias, as the scale of a batch
  normalization, has the kernels' rate and no decay.

  Args:
    schedule: update -> learning rate of the kernels.
    bias_schedule: update -> learning rate of the biases.
    momentum: 0.9 in the paper.
    weight_decay: 0.0005 in the paper.
    conv1_schedules: those of conv1 in their place. While a rate of these is 0
      the parameter is left out: neither it nor its velocity changes.
    plateau: what else multiplies the rates; None: nothing.
    trust_coefficient: see `lars.py`; None: every kernel has the rate as it is.
      The update then takes `squared_norms`.
    ema_decay: see `averages.py`; None: no average is kept.
    accumulate: batches whose gradients are averaged into one update; those
      before the last change no parameter.

  Returns:
    For parameters {layer: {"kernel", "bias"}}, and the "scale" of a batch
    normalization, which has the rate of the kernels and no decay.

  Source: Krizhevsky et al. 2012, section 5; biases and the frozen layer as in
  cuda-convnet, layer-params-145.cfg and src/weights.cu.
  """
  schedules = {KERNEL: schedule, BIAS: bias_schedule}
  of_conv1 = {}
  if conv1_schedules is not None:
    of_conv1 = {
      f"{CONV1}/{name}": of_name
      for name, of_name in zip((KERNEL, BIAS), conv1_schedules, strict=True)
    }

  def labels(parameters):
    return jax.tree.map_with_path(
      lambda path, _: _label(path, of_conv1), parameters
    )

  chain = [
    optax.add_decayed_weights(weight_decay, mask=_is_kernel),
  ]
  if trust_coefficient is not None:
    chain.append(scale_kernels_by_trust(trust_coefficient))
  chain.append(
    optax.partition(
      {
        label: optax.scale_by_learning_rate(of_label)
        for label, of_label in (schedules | of_conv1).items()
      },
      labels,
    )
  )
  if plateau is not None:
    chain.append(plateau.scale_by_plateau())
  trace = optax.trace(decay=momentum)
  chain.append(_freeze(trace, of_conv1, labels) if of_conv1 else trace)
  if ema_decay is not None:
    chain.append(ema.average_parameters(ema_decay))
  rule = optax.with_extra_args_support(optax.chain(*chain))
  return rule if accumulate == 1 else _accumulate(rule, accumulate)


def _is_kernel(parameters):
  return jax.tree.map_with_path(
    lambda path, _: path[-1].key == KERNEL, parameters
  )


def _label(path, of_conv1: Mapping[str, optax.Schedule]) -> str:
  """Which schedule a parameter has."""
  name = BIAS if path[-1].key == BIAS else KERNEL
  own = f"{path[0].key}/{name}"
  return own if own in of_conv1 else name


class FreezeState(NamedTuple):
  """Updates so far, and the state of the momentum."""

  count: jax.Array
  momentum: optax.TraceState


def _freeze(
  trace: optax.GradientTransformation,
  schedules: Mapping[str, optax.Schedule],
  labels,
) -> optax.GradientTransformation:
  """Momentum that leaves a parameter out while its rate is 0.

  Args:
    trace: the momentum.
    schedules: label -> rate, of what may be left out.
    labels: parameters -> a tree of labels.
  """

  def init(parameters):
    return FreezeState(
      count=jnp.zeros((), jnp.int32), momentum=trace.init(parameters)
    )

  def update(updates, state, parameters=None):
    moves = {
      label: schedule(state.count) > 0 for label, schedule in schedules.items()
    }

    def choose(label, moved, still):
      return jnp.where(moves[label], moved, still) if label in moves else moved

    of = labels(updates)
    moved, after = trace.update(updates, state.momentum, parameters)
    return (
      jax.tree.map(
        lambda label, x: choose(label, x, jnp.zeros_like(x)), of, moved
      ),
      FreezeState(
        count=optax.safe_increment(state.count),
        momentum=optax.TraceState(
          jax.tree.map(choose, of, after.trace, state.momentum.trace)
        ),
      ),
    )

  return optax.GradientTransformation(init, update)


def _accumulate(
  rule: optax.GradientTransformationExtraArgs, batches: int
) -> optax.GradientTransformationExtraArgs:
  """Averages the gradients of so many batches into one update."""
  several = optax.MultiSteps(rule, batches)

  def update(updates, state, parameters=None, **extra):
    # optax multiplies gradients by flags and divides them by counts.
    with jax.numpy_dtype_promotion("standard"):
      return several.update(updates, state, parameters, **extra)

  return optax.GradientTransformationExtraArgs(several.init, update)


# Layer-wise adaptive rates, for large batches (You et al. 2017).
#
# Each kernel's step is measured in its own size: the decayed gradient is
# multiplied by `coefficient * |kernel| / |decayed gradient|`. A kernel that is
# split over devices has no norm on any of them, so the step hands the norms in:
# see `partition/exchange.py`.

Tree = Mapping[str, Mapping[str, jax.Array]]
# (parameters, updates) -> {layer: f32[]} of each, the sums of the squares of
# its whole kernel.
SquaredNorms = Callable[
  [Tree, Tree], tuple[Mapping[str, jax.Array], Mapping[str, jax.Array]]
]


def scale_kernels_by_trust(
  coefficient: float,
) -> optax.GradientTransformationExtraArgs:
  """Multiplies the update of each kernel by its trust ratio.

  Biases, and the scales of a normalization, stay as they are. `update` takes
  `squared_norms`, a `SquaredNorms`, beside the usual arguments.

  Args:
    coefficient: of the ratio, above 0; 0.001 in the source.

  Source: You, Gitman and Ginsburg 2017, "Large batch training of convolutional
  networks", algorithm 1; the same order as `optax.lars`, which also takes a
  ratio of 1 where a norm is 0.
  """

  def update(updates, state, parameters=None, *, squared_norms, **extra):
    del extra
    of_kernels, of_updates = squared_norms(parameters, updates)

    def scale(path, x):
      if path[-1].key != "kernel":
        return x
      layer = path[0].key
      kernel, step = jnp.sqrt(of_kernels[layer]), jnp.sqrt(of_updates[layer])
      is_zero = (kernel == 0) | (step == 0)
      ratio = coefficient * kernel / jnp.where(is_zero, 1.0, step)
      return x * jnp.where(is_zero, 1.0, ratio)

    return jax.tree.map_with_path(scale, updates), state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
