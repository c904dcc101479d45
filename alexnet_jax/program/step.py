"""One training step, as a pure function; that of an evaluation: `eval_step.py`.

It reads top to bottom: draws (in the global view, so that every layout makes
the same ones), the mapped function that each device runs (augment, forward,
loss), gradients, update.
"""

from __future__ import annotations

from collections.abc import Callable
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


class TrainState(NamedTuple):
  """All that training changes.

  Attributes:
    step: i32[], steps taken; `~steps` once the loss of the next one was not
      finite, and from then on nothing changes any more.
    parameters: {layer: {"kernel", "bias"}}, f32, global shapes; "scale" too
      where a layer has batch normalization.
    optimizer: the state of the optax transformation.
    statistics: {layer: {"mean", "variance"}}, f32[out], running, of layers with
      batch normalization; {} where there is none.
  """

  step: jax.Array
  parameters: dict[str, dict[str, jax.Array]]
  optimizer: optax.OptState
  statistics: dict[str, dict[str, jax.Array]]

  @property
  def variables(self) -> dict[str, dict[str, jax.Array]]:
    """Parameters and statistics: all that an evaluation needs."""
    return model.join(self.parameters, self.statistics)


class Augmentation(Protocol):
  """What a step asks of the augmentation; see `data/augment.py`."""

  stored_size: int

  def draw(
    self, key: jax.Array, n: int, *, spec, step: jax.Array
  ) -> dict[str, jax.Array]: ...

  def apply(self, images: jax.Array, draws) -> jax.Array: ...

  def center(self, images: jax.Array) -> jax.Array: ...

  def view(self, images: jax.Array, index: jax.Array) -> jax.Array: ...


TrainStep = Callable[..., tuple[TrainState, jax.Array]]


def init_state(
  network: wiring.Network,
  specs: specs_lib.Specs,
  optimizer: optax.GradientTransformationExtraArgs,
  key: jax.Array,
) -> TrainState:
  """The state before the first step; to be run under `jax.jit`.

  Each parameter is drawn in the global view and then split, so that a layout
  does not change its initial value.
  """
  parameters = jax.tree.map(
    jax.reshard, model.init_parameters(network, key), specs.parameters
  )
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    parameters=parameters,
    optimizer=optimizer.init(parameters),
    statistics=jax.tree.map(
      jax.reshard, model.init_statistics(network), specs.statistics
    ),
  )


def make_train_step(
  network: wiring.Network,
  specs: specs_lib.Specs,
  exchange: exchange_lib.MeshExchange,
  augmentation: Augmentation,
  optimizer: optax.GradientTransformationExtraArgs,
  *,
  label_smoothing: float = 0.0,
  precision: str = "float32",
  implementations: implementations_lib.Implementations = (
    implementations_lib.PLAIN
  ),
) -> TrainStep:
  """Makes the step; it is to be traced under the layout's mesh.

  Args:
    network: the network.
    specs: of all arrays.
    exchange: moves activations and weights, and adds up squares of kernels
      for an optimizer that asks for it.
    augmentation: of the images.
    optimizer: see `optimizer.py`.
    label_smoothing: see `metrics.totals`.
    precision: type in which the network is computed, `float32` or `bfloat16`.
      Parameters, the optimizer, sums of gradients and the loss are float32.
    implementations: how its operations are computed.

  Returns:
    (state, key, images, labels) -> (state, totals), jitted; `state` is
    donated. key: from `jax.random.key`, the same for all steps. images:
    u8[N, side, side, 3]. labels: i32[N]. totals: f32[4], `metrics.NAMES`
    summed over the batch, before the update. Where the loss is not finite, the
    state stays as it was, see `keep_finite`.
  """
  mapped = jax.shard_map(
    make_on_device(
      network,
      exchange,
      augmentation,
      label_smoothing=label_smoothing,
      precision=precision,
      implementations=implementations,
    ),
    in_specs=to_in_specs(specs),
    out_specs=(specs.whole, specs.statistics),
  )

  def train_step(state, key, images, labels):
    n = labels.shape[0]
    draws = specs_lib.draw_all(network, specs, augmentation, key, state.step, n)

    def mean_loss(parameters):
      totals, statistics = mapped(
        parameters, state.statistics, images, labels, *draws
      )
      return totals[0] / n, (totals, statistics)

    gradients, (totals, statistics) = jax.grad(mean_loss, has_aux=True)(
      state.parameters
    )
    state = update(optimizer, exchange, state, gradients, statistics, totals[0])
    return state, totals

  return jax.jit(train_step, donate_argnames="state")


def update(
  optimizer: optax.GradientTransformationExtraArgs,
  exchange: exchange_lib.MeshExchange,
  state: TrainState,
  gradients,
  statistics,
  loss: jax.Array,
) -> TrainState:
  """The state after a step, in the global view; see `keep_finite`.

  Args:
    optimizer: see `optimizer.py`.
    exchange: adds up squares of kernels for it.
    state: before the step.
    gradients: as its parameters.
    statistics: after the step.
    loss: f32[], of the step.
  """
  updates, optimizer_state = optimizer.update(
    gradients,
    state.optimizer,
    state.parameters,
    squared_norms=exchange.squared_norms,
    statistics=statistics,
  )
  return keep_finite(state, updates, optimizer_state, statistics, loss)


def keep_finite(
  before: TrainState, updates, optimizer_state, statistics, loss: jax.Array
) -> TrainState:
  """The state after a step, or the one before it if the loss is not finite.

  The steps that the host has started before it sees that loss change nothing
  either: what is kept can be examined. Every device has the whole loss, so
  nothing is sent for this.

  Args:
    before: the state that the step was given.
    updates: of its parameters.
    optimizer_state: after the step.
    statistics: after the step.
    loss: f32[], of the step.
  """
  sound = jnp.isfinite(loss) & (before.step >= 0)

  def keep(new, old):
    return jax.tree.map(lambda x, y: jnp.where(sound, x, y), new, old)

  optimizer = keep(optimizer_state, before.optimizer)
  # The velocity is a part of this state and the update too. The kept one has
  # to serve as both: from the other, XLA on CPU copies all parameters first,
  # and a step of the full width took 1.3 times as long (batch 16, 67 pixels).
  leaves = map(jax.tree.leaves, (optimizer_state, optimizer))
  kept = {id(new): leaf for new, leaf in zip(*leaves, strict=True)}
  updates = jax.tree.map(lambda x: kept.get(id(x), x), updates)
  moved = optax.apply_updates(before.parameters, updates)
  frozen = jnp.where(before.step < 0, before.step, ~before.step)
  return TrainState(
    step=jnp.where(sound, before.step + 1, frozen),
    parameters=keep(moved, before.parameters),
    optimizer=optimizer,
    statistics=keep(statistics, before.statistics),
  )


def make_on_device(
  network: wiring.Network,
  exchange: exchange_lib.MeshExchange,
  augmentation: Augmentation,
  *,
  label_smoothing: float,
  precision: str,
  implementations: implementations_lib.Implementations,
) -> Callable[..., tuple[jax.Array, dict]]:
  """What one device makes of its part of a batch in training, to be mapped.

  Returns:
    A function of what `to_in_specs` lists: totals, as those of a step, and new
    running statistics.
  """
  graphdef = model.make_graphdef(network, implementations)

  def totals_on_device(
    parameters, statistics, images, labels, draws, of_layers
  ):
    with jax.named_scope("augment"):
      x = augmentation.apply(images, draws).astype(precision)
    variables = model.join(parameters, statistics)
    alexnet = nnx.merge(graphdef, exchange.weights(variables))
    logits = run_network(alexnet, exchange, x, **of_layers)
    running = nnx.to_pure_dict(nnx.state(alexnet, nnx.BatchStat))
    totals = add_up(exchange, logits, labels, smoothing=label_smoothing)
    return totals, running

  return totals_on_device


def to_in_specs(specs: specs_lib.Specs) -> tuple:
  """The splits of what `make_on_device` takes."""
  return (
    specs.parameters,
    specs.statistics,
    specs.images,
    specs.labels,
    specs.images,
    specs_lib.to_specs(specs),
  )


def run_network(alexnet, exchange, x, masks=None, points=None):
  """What one device makes of its images, brought to where the loss is."""
  logits = alexnet(x, masks=masks, points=points, exchange=exchange)
  with jax.named_scope(exchange_lib.LOSS):
    return exchange.bring(exchange_lib.LOSS, logits).astype(jnp.float32)


def add_up(exchange, logits, labels, *, smoothing=0.0):
  """Sums over the images of all devices."""
  with jax.named_scope(exchange_lib.LOSS):
    return exchange.total(metrics.totals(logits, labels, smoothing=smoothing))
