"""AlexNet as one device runs it.

The module is ordinary Flax NNX: built on one device it is the complete network.
Inside a partitioned step the same code sees the shard of each kernel that its
device holds, and reads every size below off the arrays themselves. The
`exchange` of the caller brings what other devices hold; on one device there is
nothing to bring.

Shapes in comments are per device: n images, and the h x w maps or units that
the device holds. bfloat16 images are computed in bfloat16: kernels are rounded
where they are used. Sums over many values (normalization, gradients of biases)
and the logits stay in float32; an exchange may still round what it sends.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from alexnet_jax.network import exchange as exchange_lib
from alexnet_jax.network import implementations as implementations_lib
from alexnet_jax.network import ops, pooling, winograd, wiring


class LayerVariables(nnx.Module):
  """Parameters of one layer, and its batch normalization's statistics.

  Attributes:
    kernel: f32[window, window, in, out] with `in` the channels one output
      reads, f32[positions, in, out] where units read a map, or f32[in, out].
    bias: f32[out], constant; initially 0 with batch normalization.
    scale: f32[out], initially 1; like the next two, with batch normalization
      only.
    mean: f32[out], the running mean of the batch normalization's input.
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
    self.bias = nnx.Param(jnp.full(outputs, bias, float))
    if is_batch:
      self.scale = nnx.Param(jnp.ones(outputs))
      self.mean = nnx.BatchStat(jnp.zeros(outputs))
      self.variance = nnx.BatchStat(jnp.ones(outputs))


class AlexNet(nnx.Module):
  """The network of a table, with one attribute per layer, named as the layer.

  The initial parameters come from the stream `params` of `rngs`.
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
    # One random array, split into pieces: one for each kernel takes five times
    # as long to compile.
    # In float32, so that a network in float64 starts with the same.
    normal = jax.random.normal(rngs.params(), ends[-1:], np.float32)
    normals = jnp.split(normal.astype(float), ends[:-1])
    for (name, shape), normal in zip(shapes.items(), normals, strict=True):
      setattr(self, name, LayerVariables(network.layer(name), shape, normal))

  def __call__(
    self,
    images: jax.Array,
    *,
    masks: Mapping[str, jax.Array] | None = None,
    uniforms: Mapping[str, jax.Array] | None = None,
    exchange: exchange_lib.Exchange | None = None,
  ) -> jax.Array:
    """Runs the network on a batch.

    Args:
      images: f32[n, image_size, image_size, 3], mean removed; or bf16.
      masks: in training: {layer with dropout: mask}, bool[n, units] or bool[n,
        h, w, maps] after pooling, False where a value is dropped. With masks, a
        batch normalization uses the statistics of the batch, and updates the
        running ones of the module. None: evaluation.
      uniforms: in training: {layer with stochastic pooling: random numbers},
        f32[n, h, w, maps] after pooling, in [0, 1).
      exchange: brings what other devices hold. Default: one device.

    Returns:
      f32[n, classes], the logits.
    """
    outputs = self.iterate_outputs(
      images, masks=masks, uniforms=uniforms, exchange=exchange
    )
    *_, logits = collections.deque(outputs, maxlen=1).pop()
    return logits

  def iterate_outputs(
    self,
    images: jax.Array,
    *,
    masks: Mapping[str, jax.Array] | None = None,
    uniforms: Mapping[str, jax.Array] | None = None,
    exchange: exchange_lib.Exchange | None = None,
  ) -> Iterator[tuple[str, bool, jax.Array]]:
    """Runs the network layer by layer, as far as the caller reads.

    Args: those of `__call__`.

    Yields:
      (layer, False, its output before pooling), then (layer, True, what the
      next layer reads); without pooling these differ by dropout alone. Outputs
      are f32[n, h, w, maps] or f32[n, units]; the last one is the logits.
    """
    exchange = exchange_lib.NoExchange() if exchange is None else exchange
    network, x = self.network, images
    if network.image_channels == 1:
      x = x.mean(axis=-1, keepdims=True)  # f32[n, image_size, image_size, 1]
    for layer in network.layers:
      with jax.named_scope(layer.name):
        x = run_until_pooling(
          network,
          layer,
          getattr(self, layer.name),
          x,
          training=masks is not None,
          exchange=exchange,
          implementations=self.implementations,
        )  # f32[n, h, w, maps] or [n, units]
      yield layer.name, False, x
      with jax.named_scope(layer.name):
        x = run_from_pooling(
          network,
          layer,
          x,
          masks=masks,
          uniforms=uniforms,
          exchange=exchange,
          implementations=self.implementations,
        )  # f32[n, h', w', maps] or [n, units]
      yield layer.name, True, x


def run_layer(
  network: wiring.Network,
  layer: wiring.Layer,
  variables: LayerVariables,
  x: jax.Array,
  *,
  masks: Mapping[str, jax.Array] | None,
  uniforms: Mapping[str, jax.Array] | None,
  exchange: exchange_lib.Exchange,
  implementations: implementations_lib.Implementations,
) -> jax.Array:
  """Runs one layer: its product, what follows in its order, and dropout.

  Args are those of `AlexNet.__call__`, and x: f32[n, h, w, channels], or f32[n,
  ..., channels] before units.

  Returns:
    f32[n, h', w', maps] or f32[n, units].
  """
  x = run_until_pooling(
    network,
    layer,
    variables,
    x,
    training=masks is not None,
    exchange=exchange,
    implementations=implementations,
  )
  return run_from_pooling(
    network,
    layer,
    x,
    masks=masks,
    uniforms=uniforms,
    exchange=exchange,
    implementations=implementations,
  )


def run_until_pooling(
  network: wiring.Network,
  layer: wiring.Layer,
  variables: LayerVariables,
  x: jax.Array,
  *,
  training: bool,
  exchange: exchange_lib.Exchange,
  implementations: implementations_lib.Implementations,
) -> jax.Array:
  """Runs one layer up to its pooling; without one, up to its dropout.

  Args: those of `run_layer`; training: whether there are masks.

  Returns:
    f32[n, h, w, maps] or f32[n, units].
  """
  product = functools.partial(
    apply_kernel, network, layer, implementations=implementations
  )
  x = exchange.multiply(layer.name, product, x, variables.kernel[...])
  if layer.normalize == "batch":
    x = apply_batch_norm(
      layer,
      variables,
      x,
      exchange,
      training=training,
      momentum=network.batch_norm_momentum,
    )
  else:
    x = ops.add_bias(
      x, variables.bias[...], implementation=implementations.bias
    )
  before, _ = layer.split_order()
  return _apply_parts(network, layer, before, x, exchange)


def run_from_pooling(
  network: wiring.Network,
  layer: wiring.Layer,
  x: jax.Array,
  *,
  masks: Mapping[str, jax.Array] | None,
  uniforms: Mapping[str, jax.Array] | None,
  exchange: exchange_lib.Exchange,
  implementations: implementations_lib.Implementations,
) -> jax.Array:
  """Runs the rest of a layer after `run_until_pooling`.

  Args: those of `run_layer`; x: what `run_until_pooling` returned.

  Returns:
    f32[n, h', w', maps] or f32[n, units].
  """
  if layer.pool:
    x = pooling.pool(
      x,
      layer.pool,
      None if uniforms is None else uniforms.get(layer.name),
      implementation=implementations.pool,
    )  # f32[n, h', w', maps]
  _, after = layer.split_order()
  x = _apply_parts(network, layer, after, x, exchange)
  if layer.dropout:
    x = ops.dropout(
      x,
      None if masks is None else masks[layer.name],
      keep=network.keep_rate(layer.name),
      scaling=network.dropout_scaling,
    )
  return x


def _apply_parts(
  network: wiring.Network,
  layer: wiring.Layer,
  parts: Sequence[str],
  x: jax.Array,
  exchange: exchange_lib.Exchange,
) -> jax.Array:
  """Applies activation and normalization, in the order of `parts`."""
  for part in parts:
    if part == "activation":
      x = ops.activate(x, layer.activation)
    else:
      x = apply_local_response_norm(network, layer, x, exchange)
  return x


def apply_kernel(
  network: wiring.Network,
  layer: wiring.Layer,
  x: jax.Array,
  kernel: jax.Array,
  *,
  implementations: implementations_lib.Implementations,
) -> jax.Array:
  """Runs one dense convolution or product for each column on this device.

  A grouped convolution would say the same. On CPU its backward pass is 4 to 25
  times slower, and under plain `jit` the compiler gathers a whole batch to
  compute it (openxla/xla issue 47945).

  Args:
    x: f32[n, h, w, channels], or f32[n, ..., channels] before units.
    kernel: f32[window, window, channels / columns here, maps], or
      f32[positions, channels / columns here, units]; used in the type of x.

  Returns:
    f32[n, h', w', maps] or f32[n, units], in the type of x; the logits in
    float32 at least: in bfloat16, many of those of an image would be equal.
  """
  kernel = kernel.astype(x.dtype)
  out_dtype = ops.widen(x).dtype if layer is network.layers[-1] else x.dtype
  columns_here = x.shape[-1] // kernel.shape[-2]
  outputs = [
    _convolve(layer, column, column_kernel, implementations)
    if layer.window
    else _multiply(column, column_kernel, out_dtype)
    for column, column_kernel in zip(
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
) -> jax.Array:
  if implementations.uses_winograd(layer, x.dtype.name):
    return winograd.convolve(x, kernel, layer.padding)
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(layer.stride, layer.stride),
    padding=(layer.padding, layer.padding),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _multiply(
  x: jax.Array, kernel: jax.Array, out_dtype: jax.typing.DTypeLike
) -> jax.Array:
  # Position by position, channels last, as the kernel has them.
  return jnp.matmul(
    x.reshape(x.shape[0], -1),
    kernel.reshape(-1, kernel.shape[-1]),
    preferred_element_type=out_dtype,
  )


def apply_local_response_norm(
  network: wiring.Network,
  layer: wiring.Layer,
  x: jax.Array,
  exchange: exchange_lib.Exchange,
) -> jax.Array:
  """Normalizes as the row says, or not: f32[n, h, w, maps].

  Over maps, within columns or across all of them; over neighbors in a map; or
  one after the other.
  """
  constants = dataclasses.asdict(layer.lrn)
  if layer.normalize == "map":
    x = ops.same_map_norm(x, **constants)
  elif layer.normalize in wiring.OVER_MAPS:
    groups, with_halo = x.shape[-1] * network.columns // layer.features, None
    if layer.normalize == "across" or not groups:  # or a part of one column
      groups, with_halo = 1, exchange.add_halo(layer.name, x, layer.halo)
    x = ops.local_response_norm(
      x, groups=groups, with_halo=with_halo, **constants
    )
  if layer.map_lrn is not None:
    x = ops.same_map_norm(x, **dataclasses.asdict(layer.map_lrn))
  return x


def apply_batch_norm(
  layer: wiring.Layer,
  variables: LayerVariables,
  x: jax.Array,
  exchange: exchange_lib.Exchange,
  *,
  training: bool,
  momentum: float,
) -> jax.Array:
  """Normalizes with the statistics of the global batch: [n, ..., maps].

  In training it also updates the running statistics, which evaluation uses.
  Forward, two averages are exchanged: the mean, then the squared distance from
  it. Backward, the gradients of scale and bias are summed over the devices, and
  the gradient of x needs no other sum.
  """
  mean, variance, vary = variables.mean[...], variables.variance[...], None
  if training:
    batch = mean, variance = ops.moments(
      x,
      center=mean,
      average=functools.partial(exchange.average, layer.name),
    )
    vary = functools.partial(exchange.vary, layer.name)
    for running, new in zip(
      (variables.mean, variables.variance), batch, strict=True
    ):
      running[...] = momentum * running[...] + (1.0 - momentum) * new
  return ops.batch_norm(
    x,
    mean=mean,
    variance=variance,
    scale=variables.scale[...],
    bias=variables.bias[...],
    vary=vary,
  )


def make_graphdef(
  network: wiring.Network,
  implementations: implementations_lib.Implementations = (
    implementations_lib.PLAIN
  ),
) -> nnx.GraphDef:
  """Makes the module without its arrays, to be merged with them in a step."""
  abstract = nnx.eval_shape(
    lambda: AlexNet(network, rngs=nnx.Rngs(0), implementations=implementations)
  )
  graphdef, _ = nnx.split(abstract)
  return graphdef


def join_variables(
  parameters: Mapping[str, Mapping[str, jax.Array]],
  statistics: Mapping[str, Mapping[str, jax.Array]],
) -> dict[str, dict[str, jax.Array]]:
  """Returns {layer: {"kernel", ..., "mean", "variance"}}."""
  return {
    name: {**of_layer, **statistics.get(name, {})}
    for name, of_layer in parameters.items()
  }


def init_parameters(
  network: wiring.Network, key: jax.Array
) -> dict[str, dict[str, jax.Array]]:
  """Initializes the parameters, of global shapes.

  Returns:
    {layer: {"kernel": f32[...], "bias": f32[out]}}, and "scale": f32[out] with
    batch normalization. For the shapes of kernels, see `wiring.Sizes`.
  """
  alexnet = AlexNet(network, rngs=nnx.Rngs(params=key))
  return nnx.to_pure_dict(nnx.state(alexnet, nnx.Param))


def init_statistics(
  network: wiring.Network,
) -> dict[str, dict[str, jax.Array]]:
  """Initializes the running statistics of layers with batch normalization."""
  return {
    layer.name: {
      "mean": jnp.zeros(layer.features),
      "variance": jnp.ones(layer.features),
    }
    for layer in network.layers
    if layer.normalize == "batch"
  }
