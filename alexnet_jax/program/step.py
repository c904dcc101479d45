"""The training step as a pure function, from an image to the new parameters.

It reads top to bottom: random numbers (drawn for the global batch, so that
every layout draws the same ones), the mapped function that each device runs
(augment, forward, loss), gradients, update. Evaluation is in `eval_step.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from alexnet_jax.network import implementations as implementations_lib
from alexnet_jax.network import model, wiring
from alexnet_jax.partition import exchange as exchange_lib
from alexnet_jax.partition import specs as specs_lib
from alexnet_jax.program import metrics

# The scope of the augmentation in a program.
AUGMENT = "augment"


class TrainState(NamedTuple):
  """Everything that training changes.

  Attributes:
    step: i32[], steps taken.
    is_finite: bool[], False once the loss of a step was not finite. That step
      and all later ones change nothing else, so `step` names it.
    parameters: {layer: {"kernel", "bias"}}, f32, global shapes; also "scale"
      for a layer with batch normalization.
    optimizer: the state of the optax transformation.
    statistics: {layer: {"mean", "variance"}}, f32[out], running, for layers
      with batch normalization; {} if there are none.
  """

  step: jax.Array
  is_finite: jax.Array
  parameters: dict[str, dict[str, jax.Array]]
  optimizer: optax.OptState
  statistics: dict[str, dict[str, jax.Array]]

  @property
  def variables(self) -> dict[str, dict[str, jax.Array]]:
    """Parameters and statistics: all that an evaluation needs."""
    return model.join_variables(self.parameters, self.statistics)


class Augmentation(Protocol):
  """What a step calls of the augmentation; see `data/augment.py`."""

  stored_size: int

  @property
  def num_views(self) -> int: ...

  def draw(
    self, key: jax.Array, n: int, *, spec, step: jax.Array
  ) -> dict[str, jax.Array]: ...

  def apply(self, images: jax.Array, draws) -> jax.Array: ...

  def center(self, images: jax.Array) -> jax.Array: ...

  def view(self, images: jax.Array, index: jax.Array) -> jax.Array: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForwardPass:
  """Everything that training, evaluation and replay compute alike.

  Attributes:
    exchange: moves activations and weights between devices, and sums squares
      of kernels for an optimizer that needs their norms.
    augmentation: turns stored images into network inputs.
    compute_dtype: `float32` or `bfloat16`, for the network; parameters, the
      optimizer, sums of gradients, logits and the loss are then float32. With
      `float64`, everything is, to compare programs without the amplified
      rounding of float32.
    implementations: how each operation is computed.
  """

  network: wiring.Network
  specs: specs_lib.Specs
  exchange: exchange_lib.MeshExchange
  augmentation: Augmentation
  compute_dtype: str
  implementations: implementations_lib.Implementations

  def make_graphdef(self) -> nnx.GraphDef:
    return model.make_graphdef(self.network, self.implementations)

  def run_network(self, alexnet, x, masks=None, uniforms=None) -> jax.Array:
    """Computes logits on one device, resharded as the loss needs them.

    Args:
      alexnet: with the weights gathered for this device.
      x: f32[n, height, width, 3], augmented images.
      masks, uniforms: random numbers, from `specs.draw_random_numbers`.

    Returns:
      f32[n, classes].
    """
    x = x.astype(self.compute_dtype)
    logits = alexnet(x, masks=masks, uniforms=uniforms, exchange=self.exchange)
    with jax.named_scope(exchange_lib.LOSS):
      return self.exchange.reshard_input(exchange_lib.LOSS, logits)

  def sum_metrics(self, logits, labels, *, smoothing=0.0) -> jax.Array:
    """Sums `metrics.totals` over the images of all devices: f32[4]."""
    with jax.named_scope(exchange_lib.LOSS):
      totals = metrics.totals(logits, labels, smoothing=smoothing)
      return self.exchange.sum_over_images(totals)


def init_state(
  forward: ForwardPass,
  optimizer: optax.GradientTransformationExtraArgs,
  key: jax.Array,
) -> TrainState:
  """Makes the state before the first step; run it under `jax.jit`.

  Each parameter is drawn in its global shape and then split, so that its
  initial value does not depend on the layout.
  """
  network, specs = forward.network, forward.specs
  return _make_state(
    optimizer,
    parameters=jax.tree.map(
      jax.reshard, model.init_parameters(network, key), specs.parameters
    ),
    statistics=jax.tree.map(
      jax.reshard, model.init_statistics(network), specs.statistics
    ),
  )


def make_abstract_state(
  network: wiring.Network, optimizer: optax.GradientTransformationExtraArgs
) -> TrainState:
  """Makes the shapes and types of a state, which is on no devices."""
  return jax.eval_shape(
    lambda: _make_state(
      optimizer,
      parameters=model.init_parameters(network, jax.random.key(0)),
      statistics=model.init_statistics(network),
    )
  )


def _make_state(optimizer, *, parameters, statistics) -> TrainState:
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    is_finite=jnp.ones((), jnp.bool),
    parameters=parameters,
    optimizer=optimizer.init(parameters),
    statistics=statistics,
  )


def make_train_step(
  forward: ForwardPass,
  optimizer: optax.GradientTransformationExtraArgs,
  *,
  label_smoothing: float = 0.0,
) -> Callable[..., tuple[TrainState, jax.Array]]:
  """Makes the training step; trace it under the layout's mesh.

  Returns:
    (state, key, images, labels) -> (state, totals), jitted; `state` is
    donated. key: from `jax.random.key`, the same for all steps. images:
    u8[N, side, side, 3]. labels: i32[N]. totals: f32[4], `metrics.NAMES`
    summed over the batch, before the update. If the loss is not finite, the
    state is returned unchanged, see `update`. Frozen layers of the network have
    no gradients, and nothing of theirs changes but running statistics.
  """
  specs = forward.specs
  mapped = jax.shard_map(
    make_on_device(forward, label_smoothing=label_smoothing),
    in_specs=to_in_specs(specs),
    out_specs=(specs.replicated, specs.statistics),
  )

  def train_step(state, key, images, labels):
    n = labels.shape[0]
    draws = specs_lib.draw_random_numbers(
      forward.network, specs, forward.augmentation, key, state.step, n
    )

    def mean_loss(trained):
      totals, statistics = mapped(
        state.parameters | trained, state.statistics, images, labels, *draws
      )
      return totals[0] / n, (totals, statistics)

    # What has no gradient is neither computed backward nor sent.
    trained = {name: state.parameters[name] for name in forward.network.trained}
    gradients, (totals, statistics) = jax.grad(mean_loss, has_aux=True)(trained)
    state = update(
      optimizer, forward.exchange, state, gradients, statistics, totals[0]
    )
    return state, totals

  return jax.jit(train_step, donate_argnames="state")


def make_on_device(
  forward: ForwardPass, *, label_smoothing: float
) -> Callable[..., tuple[jax.Array, dict]]:
  """Makes what one device computes for its part of a training batch.

  The arguments of the function are in the order of `to_in_specs`. It returns
  the totals of the global batch and the new running statistics.
  """
  graphdef = forward.make_graphdef()

  def totals_on_device(
    parameters, statistics, images, labels, augment_draws, layer_draws
  ):
    with jax.named_scope(AUGMENT):
      x = forward.augmentation.apply(images, augment_draws)
    variables = model.join_variables(parameters, statistics)
    alexnet = nnx.merge(graphdef, forward.exchange.gather_weights(variables))
    logits = forward.run_network(alexnet, x, **layer_draws)
    running = nnx.to_pure_dict(nnx.state(alexnet, nnx.BatchStat))
    totals = forward.sum_metrics(logits, labels, smoothing=label_smoothing)
    return totals, running

  return totals_on_device


def to_in_specs(specs: specs_lib.Specs) -> tuple:
  """Returns the specs of the arguments of `make_on_device`'s function."""
  return (
    specs.parameters,
    specs.statistics,
    specs.images,
    specs.labels,
    specs.images,
    specs.layer_random_numbers,
  )


def update(
  optimizer: optax.GradientTransformationExtraArgs,
  exchange: exchange_lib.MeshExchange,
  before: TrainState,
  gradients,
  statistics,
  loss: jax.Array,
) -> TrainState:
  """Updates the state after a step, or not if the loss is not finite.

  Steps that the host starts before it reads that loss change nothing either,
  so the failing step can be replayed. Every device has the loss of the global
  batch, so nothing is sent for this.

  Args:
    gradients: of the layers that are trained. Parameters and optimizer state of
      the other ones are returned as they are.
  """
  trained = {name: before.parameters[name] for name in gradients}
  earlier_state = _take_layers(before.optimizer, before.parameters, gradients)
  updates, optimizer_state = optimizer.update(
    gradients,
    earlier_state,
    trained,
    squared_norms=exchange.squared_norms,
    statistics=statistics,
  )
  is_finite = jnp.isfinite(loss) & before.is_finite

  def keep(new, old):
    return jax.tree.map(lambda x, y: jnp.where(is_finite, x, y), new, old)

  kept_state = keep(optimizer_state, earlier_state)
  # The velocity is part of this state and the update too. The kept one has to
  # serve as both: from the other, XLA on CPU copies all parameters first, and
  # a step of the full width took 1.3 times as long (batch 16, 67 pixels).
  leaves = map(jax.tree.leaves, (optimizer_state, kept_state))
  kept = {id(new): leaf for new, leaf in zip(*leaves, strict=True)}
  updates = jax.tree.map(lambda x: kept.get(id(x), x), updates)
  parameters = optax.apply_updates(trained, updates)
  return TrainState(
    step=keep(before.step + 1, before.step),
    is_finite=is_finite,
    parameters=before.parameters | keep(parameters, trained),
    optimizer=_put_layers(before.optimizer, before.parameters, kept_state),
    statistics=keep(statistics, before.statistics),
  )


def _take_layers(state: optax.OptState, parameters, layers: Iterable[str]):
  """Takes the part of an optimizer's state that belongs to some layers.

  Every tree of the state with the structure of the parameters has all layers: a
  velocity, an average, a sum of gradients.
  """
  return jax.tree.map(
    lambda node: (
      {name: node[name] for name in layers} if isinstance(node, dict) else node
    ),
    state,
    is_leaf=_make_is_like(parameters),
  )


def _put_layers(state: optax.OptState, parameters, part: optax.OptState):
  """Replaces the part of a state that `_take_layers` takes."""
  return jax.tree.map(
    lambda node, new: node | new if isinstance(node, dict) else new,
    state,
    part,
    is_leaf=_make_is_like(parameters),
  )


def _make_is_like(tree) -> Callable[[object], bool]:
  """Makes a test for trees of the same structure, such as a velocity."""
  structure = jax.tree.structure(tree)
  return lambda node: jax.tree.structure(node) == structure
