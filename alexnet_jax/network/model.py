"""AlexNet as one device runs it.

The module is ordinary Flax NNX: built on one device it is the whole network.
Inside a partitioned step the same code sees the block of each kernel that its
device holds, and every size below is read off the arrays themselves. What has
to come from other devices is brought by the `exchange` that the caller hands
in; on one device there is nothing to bring.

Shapes in comments are for the device that runs this: n images, and of h x w
maps or units those that the device holds. Images of bfloat16 are computed in
bfloat16: kernels are rounded where they are used, and what is a sum over many
values, a normalization or the gradient of a bias, stays float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from alexnet_jax.network import blocks, ops, winograd, wiring
from alexnet_jax.network import exchange as exchange_lib
from alexnet_jax.network import implementations as implementations_lib


class Weights(nnx.Module):
  """Kernel and bias of one layer, and what its batch normalization has.

  Attributes:
    kernel: f32[window, window, in, out] with `in` the channels one output
      reads, f32[positions, in, out] where units read a map, or f32[in, out].
    bias: f32[out], constant; 0 before a batch normalization's first step.
    scale: f32[out], 1; of a batch normalization only, as are the next two.
    mean: f32[out], the running mean of what is normalized.
    variance: f32[out], its running variance.
  """

  def __init__(
    self, layer: wiring.Layer, shape: tuple[int, ...], normal: jax.Array
  ):
    std = layer.kernel_std
    if std is None:
      std = math.sqrt(2.0 / math.prod(shape[:-1]))
    self.kernel = nnx.Param(std * normal.reshape(shape))
    outputs, is_batch = shape[-1:], layer.normalize == "batch"
    bias = 0.0 if is_batch else layer.bias
    self.bias = nnx.Param(jnp.full(outputs, bias, jnp.float32))
    if is_batch:
      self.scale = nnx.Param(jnp.ones(outputs))
      self.mean = nnx.BatchStat(jnp.zeros(outputs))
      self.variance = nnx.BatchStat(jnp.ones(outputs))


class AlexNet(nnx.Module):
  """The network of a table: one attribute per layer, named as the layer is.

  Args:
    network: the table.
    rngs: with a stream `params`, for the initial weights.
    implementations: how its operations are computed.
  """

  def __init__(
    self,
    network: wiring.Network,
    *,
    rngs: nnx.Rngs,
    implementations: implementations_lib.Implementations = (
      implementations_lib.PLAIN
    ),
  ):
    self.network, self.implementations = network, implementations
    shapes = {name: size.kernel for name, size in network.sizes().items()}
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    # One draw, cut in pieces: a draw per kernel takes five times as long to
    # compile.
    normals = jnp.split(jax.random.normal(rngs.params(), ends[-1:]), ends[:-1])
    for (name, shape), normal in zip(shapes.items(), normals, strict=True):
      setattr(self, name, Weights(network.layer(name), shape, normal))

  def __call__(
    self,
    images: jax.Array,
    *,
    masks: Mapping[str, jax.Array] | None = None,
    points: Mapping[str, jax.Array] | None = None,
    exchange: exchange_lib.Exchange | None = None,
  ) -> jax.Array:
    """Runs the network on a batch.

    Args:
      images: f32[n, image_size, image_size, 3], mean removed; or bf16.
      masks: for training: per layer with dropout, bool[n, units] or bool[n, h,
        w, maps] after pooling, False where a value is dropped. None:
        evaluation; see `ops.drop`. In training, a batch normalization uses the
        statistics of the batch, and the module keeps new running ones.
      points: for training: per layer with stochastic pooling, f32[n, h, w,
        maps] after it, uniform in [0, 1); see `ops.stochastic_pool`.
      exchange: brings what other devices hold. Default: one device.

    Returns:
      f32[n, classes], the logits; in the type of the images.
    """
    exchange = exchange_lib.NoExchange() if exchange is None else exchange
    network, x = self.network, images
    if network.image_channels == 1:
      x = x.mean(axis=-1, keepdims=True)  # f32[n, image_size, image_size, 1]
    for layer in network.layers:
      with jax.named_scope(layer.name):
        x = run_layer(
          network,
          layer,
          getattr(self, layer.name),
          x,
          masks=masks,
          points=points,
          exchange=exchange,
          implementations=self.implementations,
        )  # f32[n, h, w, maps] or [n, units]
    return x


def run_layer(
  network: wiring.Network,
  layer: wiring.Layer,
  weights: Weights,
  x: jax.Array,
  *,
  masks: Mapping[str, jax.Array] | None,
  points: Mapping[str, jax.Array] | None,
  exchange: exchange_lib.Exchange,
  implementations: implementations_lib.Implementations,
) -> jax.Array:
  """What one layer makes of what the layer before has left.

  Args:
    network: the table.
    layer: the row of it.
    weights: of the layer.
    x: f32[n, h, w, channels], or f32[n, ..., channels] before units.
    masks: see `AlexNet.__call__`, as for all that follow.
    points: of all layers, as the masks.
    exchange: brings what the layer and its normalization read of others.
    implementations: how operations are computed.

  Returns:
    f32[n, h', w', maps] or f32[n, units].
  """
  product = functools.partial(by_column, layer, implementations=implementations)
  x = exchange.multiply(layer.name, product, x, weights.kernel[...])
  if layer.normalize == "batch":
    trains, momentum = masks is not None, network.batch_norm_momentum
    x = ops.by_batch(
      layer, weights, x, exchange, trains=trains, momentum=momentum
    )
  else:
    x = ops.shift(x, weights.bias[...], form=implementations.bias)
  x = ops.activate(x, layer.activation)
  x = ops.by_neighbors(network, layer, x, exchange, form=implementations.norm)
  if layer.pool:
    drawn = None if points is None else points.get(layer.name)
    x = ops.pool(
      x, layer.pool, drawn, form=implementations.pool
    )  # f32[n, h', w', maps]
  if layer.dropout:
    x = ops.drop(
      x,
      None if masks is None else masks[layer.name],
      keep=network.keep_rate(layer.name),
      scaling=network.dropout_scaling,
    )
  return x


def by_column(
  layer: wiring.Layer,
  x: jax.Array,
  kernel: jax.Array,
  *,
  implementations: implementations_lib.Implementations,
) -> jax.Array:
  """One dense operation for each column that this device holds.

  A grouped convolution says the same. On CPU its backward pass is 4 to 25 times
  slower, and under plain `jit` the compiler gathers a whole batch to compute it
  (openxla/xla issue 47945).

  Args:
    layer: the row of the table.
    x: f32[n, h, w, channels], or f32[n, ..., channels] before units.
    kernel: f32[window, window, channels / columns here, maps], or
      f32[positions, channels / columns here, units]; used in the type of x.
    implementations: how it is computed.

  Returns:
    f32[n, h', w', maps] or f32[n, units].
  """
  kernel = kernel.astype(x.dtype)
  columns_here = x.shape[-1] // kernel.shape[-2]
  if layer.window and implementations.columns == "grouped":
    return _convolve(layer, x, kernel, implementations, groups=columns_here)
  operation = _convolve if layer.window else _multiply
  outputs = [
    operation(layer, own, own_kernel, implementations)
    for own, own_kernel in zip(
      jnp.split(x, columns_here, axis=-1),
      jnp.split(kernel, columns_here, axis=-1),
      strict=True,
    )
  ]
  return jnp.concatenate(outputs, axis=-1)


def _convolve(
  layer: wiring.Layer,
  x: jax.Array,
  kernel: jax.Array,
  implementations: implementations_lib.Implementations,
  groups: int = 1,
) -> jax.Array:
  if layer.stride > 1 and groups == 1 and implementations.conv1 == "blocks":
    return blocks.convolve(
      x, kernel, stride=layer.stride, padding=layer.padding
    )
  if (
    layer.stride == 1
    and groups == 1
    and layer.window == winograd.WINDOW
    and x.dtype == jnp.float32
    and implementations.conv3x3 == "winograd"
  ):
    return winograd.convolve(x, kernel, layer.padding)
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(layer.stride, layer.stride),
    padding=(layer.padding, layer.padding),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


def _multiply(
  layer: wiring.Layer,
  x: jax.Array,
  kernel: jax.Array,
  implementations: implementations_lib.Implementations,
) -> jax.Array:
  del layer, implementations
  # Position by position, channels last, as the kernel has them.
  return x.reshape(x.shape[0], -1) @ kernel.reshape(-1, kernel.shape[-1])


def make_graphdef(
  network: wiring.Network,
  implementations: implementations_lib.Implementations = (
    implementations_lib.PLAIN
  ),
) -> nnx.GraphDef:
  """The module without its parameters, to be merged with them in a step."""
  abstract = nnx.eval_shape(
    lambda: AlexNet(network, rngs=nnx.Rngs(0), implementations=implementations)
  )
  graphdef, _ = nnx.split(abstract)
  return graphdef


def join(
  parameters: Mapping[str, Mapping[str, jax.Array]],
  statistics: Mapping[str, Mapping[str, jax.Array]],
) -> dict[str, dict[str, jax.Array]]:
  """All that the module holds: {layer: {"kernel", ..., "mean", "variance"}}."""
  return {
    name: {**blocks, **statistics.get(name, {})}
    for name, blocks in parameters.items()
  }


def init_statistics(
  network: wiring.Network,
) -> dict[str, dict[str, jax.Array]]:
  """Initial running statistics of the layers with batch normalization.

  Returns:
    {layer: {"mean": f32[out], "variance": f32[out]}}, of global shapes.
  """
  return {
    layer.name: {
      "mean": jnp.zeros(layer.features),
      "variance": jnp.ones(layer.features),
    }
    for layer in network.layers
    if layer.normalize == "batch"
  }


def init_parameters(
  network: wiring.Network, key: jax.Array
) -> dict[str, dict[str, jax.Array]]:
  """Initial parameters.

  Args:
    network: the table.
    key: from `jax.random.key`.

  Returns:
    {layer: {"kernel": f32[...], "bias": f32[out]}}, and "scale": f32[out] where
    the layer has batch normalization; global shapes: HWIO with I the channels
    one output reads, or (in, out); (positions, in, out) where a fully connected
    layer reads a map: position by position, channels last.
  """
  alexnet = AlexNet(network, rngs=nnx.Rngs(params=key))
  return nnx.to_pure_dict(nnx.state(alexnet, nnx.Param))
