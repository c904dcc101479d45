"""Evaluation and prediction steps as pure functions: no dropout, fixed views.

Both come from the same log-probabilities: `make_eval_step` sums metrics over a
batch and finds the first class of each image, `make_predict_step` returns the
log-probabilities of each image.
`make_activations_step` returns what layers compute on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from alexnet_jax.network import model
from alexnet_jax.optim import ema
from alexnet_jax.partition import exchange as exchange_lib
from alexnet_jax.partition import specs as specs_lib
from alexnet_jax.program import step as step_lib


class Evaluated(NamedTuple):
  """What an evaluation has of a batch.

  Attributes:
    totals: f32[4], `metrics.NAMES` summed over the batch.
    predicted: the most probable class of each image, the lower one of a tie:
      i32[copies, N], sharded as the logits are, so that nothing is sent.
  """

  totals: jax.Array
  predicted: jax.Array


def make_eval_step(
  forward: step_lib.ForwardPass, *, views: int = 1
) -> Callable[..., Evaluated]:
  """Makes the evaluation of one batch.

  Args:
    views: 1, the center crop, or `num_views` of the augmentation; loss and
      errors are then those of the softmax outputs averaged over the views
      (Krizhevsky et al. 2012, section 4.1).

  Returns:
    (variables, images, labels) -> evaluated, jitted; as for the training step.
    variables: of a `TrainState`; without batch normalization, its parameters.
    A negative label marks a row that is no image.
  """
  specs = forward.specs
  log_probabilities = _make_log_probabilities(forward, views)

  def on_device(variables, images, labels):
    result = log_probabilities(variables, images)
    predicted = jnp.argmax(result, axis=1).astype(jnp.int32)
    return Evaluated(forward.sum_metrics(result, labels), predicted[None])

  return jax.jit(
    jax.shard_map(
      on_device,
      in_specs=(specs.variables, specs.images, specs.labels),
      out_specs=to_eval_specs(specs),
    )
  )


def to_eval_specs(specs: specs_lib.Specs) -> Evaluated:
  """Returns the specs of what `make_eval_step`'s function returns."""
  return Evaluated(specs.replicated, specs.predicted)


def make_predict_step(
  forward: step_lib.ForwardPass, *, views: int = 1
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Makes the prediction for one batch; arguments as for `make_eval_step`.

  Returns:
    (variables, images, labels) -> (log-probabilities, labels), jitted:
    f32[N, classes] and i32[N], replicated, so that every process can read
    them.
  """
  specs = forward.specs
  log_probabilities = _make_log_probabilities(forward, views)

  def on_device(variables, images):
    result = log_probabilities(variables, images)
    with jax.named_scope(exchange_lib.LOSS):
      return forward.exchange.replicate(result)

  mapped = jax.shard_map(
    on_device,
    in_specs=(specs.variables, specs.images),
    out_specs=specs.labels,
  )

  def predict_step(variables, images, labels):
    result = mapped(variables, images)
    return jax.reshard(result, specs.replicated), jax.reshard(
      labels, specs.replicated
    )

  return jax.jit(predict_step)


def make_activations_step(
  forward: step_lib.ForwardPass, *, layers: Sequence[str], pooled: bool
) -> Callable[..., dict[str, jax.Array]]:
  """Makes the forward pass of the center crops up to some layers.

  It sends what the layers up to the last of them send, and nothing else.

  Args:
    layers: whose outputs are wanted.
    pooled: whether these are taken after their pooling and what follows that.

  Returns:
    (variables, images) -> {layer: outputs}, jitted: f32[copies, N, units] or
    f32[copies, N, h, w, maps], see `specs.Specs.activations`; if pooled, what
    the next layer reads, and so with the scaling of dropout in evaluation.
  """
  specs, graphdef = forward.specs, forward.make_graphdef()
  network = forward.network
  # Without pooling both are the same.
  wanted = {name: pooled or not network.layer(name).pool for name in layers}
  names = [row.name for row in network.layers]
  until = names[: max(map(names.index, wanted)) + 1]

  def on_device(variables, images):
    used = {name: variables[name] for name in until}
    weights = variables | forward.exchange.gather_weights(used)
    x = forward.augmentation.center(images).astype(forward.compute_dtype)
    alexnet, found = nnx.merge(graphdef, weights), {}
    for name, is_pooled, output in alexnet.iterate_outputs(
      x, exchange=forward.exchange
    ):
      if wanted.get(name) == is_pooled:
        found[name] = output[None].astype(float)
      if len(found) == len(wanted):  # the rest would be traced, and send
        break
    return found

  return jax.jit(
    jax.shard_map(
      on_device,
      in_specs=(specs.variables, specs.images),
      out_specs={name: specs.activations[name] for name in wanted},
    )
  )


def _make_log_probabilities(forward: step_lib.ForwardPass, views: int):
  """(variables, u8[n, ...]) -> f32[n, classes], sharded as the loss is."""
  augmentation, graphdef = forward.augmentation, forward.make_graphdef()

  def log_probabilities(variables, images):
    alexnet = nnx.merge(graphdef, forward.exchange.gather_weights(variables))

    def of_view(x):
      return jax.nn.log_softmax(forward.run_network(alexnet, x))

    if views == 1:
      return of_view(augmentation.center(images))
    # A loop, so that the program stays as small as that of one view.
    of_views = lax.map(
      lambda index: of_view(augmentation.view(images, index)),
      jnp.arange(views),
    )
    # Logarithms of the averages: f32[n, classes], finite where these are 0.
    return jax.nn.logsumexp(of_views, axis=0) - jnp.log(float(views))

  return log_probabilities


def find_variables(state: step_lib.TrainState) -> dict:
  """Returns a state's variables to evaluate, averaged if it has averages.

  These are exponential moving averages, see `optim/ema.py`.
  """
  averages = ema.find_ema(state.optimizer)
  if averages is None:
    return state.variables
  return model.join_variables(averages.average, averages.statistics)
