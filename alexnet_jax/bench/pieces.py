"""One device's part of each layer, cut out of the step.

A piece has the shapes of the arrays that the device holds and receives for a
layer, and functions of such arrays. They communicate nothing. `layers.py` and
`implementations.py` measure them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alexnet_jax.bench import report
from alexnet_jax.network import exchange as exchange_lib
from alexnet_jax.network import implementations as implementations_lib
from alexnet_jax.network import model, wiring
from alexnet_jax.partition import timing
from alexnet_jax.program import program as program_lib

Block = jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
  """One device's part of a layer. A block is the shape and dtype of an array.

  Attributes:
    parameters: {"kernel", "bias", ...}, after gathering.
    statistics: {"mean", "variance"} of a batch normalization, else {}.
    x: the input of the layer; for units, a map is one row.
    drawn: {"masks" or "uniforms": {layer: block}}, see `model.AlexNet`.
    y: the output of the layer.
  """

  layer: wiring.Layer
  network: wiring.Network
  implementations: implementations_lib.Implementations
  parameters: Mapping[str, Block]
  statistics: Mapping[str, Block]
  x: Block
  drawn: Mapping[str, Mapping[str, Block]]
  y: Block

  def run(self, parameters, statistics, x, drawn) -> jax.Array:
    """The forward pass; returns the output of the layer."""
    kernel = self.parameters["kernel"].shape
    abstract = nnx.eval_shape(
      lambda: model.LayerVariables(self.layer, kernel, jnp.zeros(kernel))
    )
    graphdef, _ = nnx.split(abstract)
    return model.run_layer(
      self.network,
      self.layer,
      nnx.merge(graphdef, {**parameters, **statistics}),
      x,
      masks=drawn.get("masks", {}),  # None would mean evaluation
      uniforms=drawn.get("uniforms"),
      exchange=_SliceOfSum(self.parameters["bias"].shape[0]),
      implementations=self.implementations,
    )

  def run_both(self, parameters, statistics, x, drawn, gradient) -> tuple:
    """Forward and backward pass; returns the output and the gradients."""
    # An image needs no gradient.
    inputs = (parameters,) if self.layer.reads == "image" else (parameters, x)
    y, pull = jax.vjp(
      lambda parameters, x=x: self.run(parameters, statistics, x, drawn),
      *inputs,
    )
    return y, pull(gradient)

  @property
  def product(self) -> Block:
    """The output of the convolution or product."""
    return jax.eval_shape(self.multiply, self.x, self.parameters["kernel"])

  def multiply(self, x, kernel) -> jax.Array:
    """The convolution or product alone, for all columns."""
    return model.apply_kernel(
      self.network,
      self.layer,
      x,
      kernel,
      implementations=self.implementations,
    )

  def products(self) -> dict[str, tuple[Callable, tuple[Block, ...]]]:
    """Returns {name: (product, its blocks)}, forward and backward."""
    x, kernel, y = self.x, self.parameters["kernel"], self.product

    def by_input(x, kernel, gradient):
      return jax.vjp(lambda x: self.multiply(x, kernel), x)[1](gradient)

    def by_kernel(x, kernel, gradient):
      return jax.vjp(lambda kernel: self.multiply(x, kernel), kernel)[1](
        gradient
      )

    products = {"forward": (self.multiply, (x, kernel))}
    if self.layer.reads != "image":
      products["by input"] = by_input, (x, kernel, y)
    return products | {"by kernel": (by_kernel, (x, kernel, y))}


class _SliceOfSum(exchange_lib.NoExchange):
  """Keeps this device's slice of the outputs of a sum, without the sum."""

  def __init__(self, outputs: int):
    self._outputs = outputs

  def multiply(self, layer, product, x, kernel) -> jax.Array:
    return product(x, kernel)[..., : self._outputs]


def cut_layers(program: program_lib.Program) -> tuple[Piece, ...]:
  """Cuts the step of a program into its layers, first to last."""
  network = program.network
  state = program.abstract_state
  pieces = []
  for layer in network.layers:
    name, size = layer.name, network.sizes()[layer.name]
    route = program.routes[name]
    images = route.images
    parameters = _to_blocks(state.parameters[name])
    if (name, "kernel") in program.specs.gathers:
      axes, dimension = program.specs.gathers[name, "kernel"]
      shape = list(parameters["kernel"].shape)
      shape[dimension] *= program.layout.size(axes)
      parameters["kernel"] = Block(tuple(shape), jnp.float32)
    statistics = _to_blocks(state.statistics.get(name, {}))
    axes = route.input_sharding.features
    channels = size.channels // program.layout.size(axes)
    if layer.window:
      side = int(size.positions**0.5)
      shape = (images, side, side, channels)
    elif size.positions > 1:
      shape = (images, size.positions, channels)
    else:
      shape = (images, channels)
    x = Block(shape, program.compute_dtype)
    # The logits are f32, as of `model.apply_kernel`.
    is_last = layer is network.layers[-1]
    out_dtype = np.promote_types(x.dtype, np.float32) if is_last else x.dtype
    outputs = parameters["bias"].shape[0]
    out_shape = (images, *size.out_shape[:-1], outputs)
    drawn = {}
    if layer.dropout:
      drawn["masks"] = {name: Block(out_shape, jnp.bool)}
    if layer.pool and layer.pool.kind == "stochastic":
      drawn["uniforms"] = {name: Block(out_shape, jnp.float32)}
    pieces.append(
      Piece(
        layer=layer,
        network=network,
        implementations=program.implementations,
        parameters=parameters,
        statistics=statistics,
        x=x,
        drawn=drawn,
        y=Block(out_shape, out_dtype),
      )
    )
  return tuple(pieces)


def _to_blocks(leaves: Mapping[str, Block]) -> dict[str, Block]:
  """The shards of arrays on one device."""
  return {
    name: Block(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
    for name, leaf in leaves.items()
  }


@dataclasses.dataclass(frozen=True)
class Compiler:
  """Compiles functions of one device into calls on noise."""

  mesh: jax.sharding.Mesh
  options: report.Options

  def make_call(self, function: Callable, *blocks) -> Callable[[], object]:
    """Compiles a function of pytrees of one device's blocks.

    The call starts it on all devices at once; see `timing.on_each_device`.
    """
    arrays = timing.make_noise(self.mesh, blocks)
    traced = jax.jit(timing.on_each_device(self.mesh, function)).trace(*arrays)
    compiled = self.compile(traced)
    return lambda: compiled(*arrays)

  def compile(self, traced: jax.stages.Traced) -> jax.stages.Compiled:
    return traced.lower().compile(compiler_options=dict(self.options))
