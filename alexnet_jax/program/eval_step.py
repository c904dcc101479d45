"""One step of an evaluation, as pure functions: no dropout, fixed views.

The totals of a batch, and the answer to each image, come from the same
log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from alexnet_jax.network import implementations as implementations_lib
from alexnet_jax.network import model, wiring
from alexnet_jax.optim import ema
from alexnet_jax.partition import exchange as exchange_lib
from alexnet_jax.partition import specs as specs_lib
from alexnet_jax.program import step as step_lib

EvalStep = Callable[..., jax.Array]
PredictStep = Callable[..., tuple[jax.Array, jax.Array]]


def make_eval_step(
  network: wiring.Network,
  specs: specs_lib.Specs,
  exchange: exchange_lib.MeshExchange,
  augmentation: step_lib.Augmentation,
  *,
  views: int = 1,
  precision: str = "float32",
  implementations: implementations_lib.Implementations = (
    implementations_lib.PLAIN
  ),
) -> EvalStep:
  """Makes the evaluation of one batch, without dropout.

  Args:
    views: 1, the center crop, or as many as the augmentation has; loss and
      errors are then those of the softmax outputs averaged over the views
      (Krizhevsky et al. 2012, section 4.1).
    precision: as of the training step.
    implementations: as of the training step.

  Returns:
    (variables, images, labels) -> totals, jitted; as for the training step.
    variables: of a `TrainState`; without batch normalization, its parameters.
    A negative label marks a row that is no image.
  """
  log_probabilities = _make_log_probabilities(
    network, exchange, augmentation, views, precision, implementations
  )

  def totals_on_device(variables, images, labels):
    return step_lib.add_up(
      exchange, log_probabilities(variables, images), labels
    )

  return jax.jit(
    jax.shard_map(
      totals_on_device,
      in_specs=(specs.variables, specs.images, specs.labels),
      out_specs=specs.whole,
    )
  )


def make_predict_step(
  network: wiring.Network,
  specs: specs_lib.Specs,
  exchange: exchange_lib.MeshExchange,
  augmentation: step_lib.Augmentation,
  *,
  views: int = 1,
  precision: str = "float32",
  implementations: implementations_lib.Implementations = (
    implementations_lib.PLAIN
  ),
) -> PredictStep:
  """Makes the prediction for one batch, without dropout.

  Args:
    views: as for `make_eval_step`, whose totals are those of these
      log-probabilities.
    precision: as of the training step.
    implementations: as of the training step.

  Returns:
    (variables, images, labels) -> (log-probabilities, labels), jitted:
    f32[N, classes] and i32[N], whole on every device, for the host to read in
    any process.
  """
  log_probabilities = _make_log_probabilities(
    network, exchange, augmentation, views, precision, implementations
  )

  def on_device(variables, images):
    found = log_probabilities(variables, images)
    with jax.named_scope(exchange_lib.LOSS):
      return exchange.agree(found)

  mapped = jax.shard_map(
    on_device,
    in_specs=(specs.variables, specs.images),
    out_specs=specs.labels,
  )

  def predict_step(variables, images, labels):
    found = mapped(variables, images)
    return jax.reshard(found, specs.whole), jax.reshard(labels, specs.whole)

  return jax.jit(predict_step)


def _make_log_probabilities(
  network, exchange, augmentation, views, precision, implementations
):
  """(variables, u8[n, ...]) -> f32[n, classes], where the loss is."""
  graphdef = model.make_graphdef(network, implementations)

  def log_probabilities(variables, images):
    alexnet = nnx.merge(graphdef, exchange.weights(variables))

    def of_view(x):
      logits = step_lib.run_network(alexnet, exchange, x.astype(precision))
      return jax.nn.log_softmax(logits)

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
  """What a state is evaluated with.

  Returns:
    Averages of parameters and statistics, joined, where the optimizer keeps
    them; otherwise the state's own.
  """
  found = ema.find_average(state.optimizer)
  if found is None:
    return state.variables
  return model.join(found.average, found.statistics)
