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
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.partition import specs as specs_lib
from alexnet_jax.partition import timing
from alexnet_jax.program import program as program_lib

Block = jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
  """One device's part of a layer. A block is the shape and dtype of an array.

  Attributes:
    trained, input_gradient: see `resharding.LayerRoute`.
    parameters: {"kernel", "bias", ...}, after gathering.
    statistics: {"mean", "variance"} of a batch normalization, else {}.
    x: the input of the layer; for units, a map is one row.
    drawn: {"masks" or "uniforms": {layer: block}}, see `model.AlexNet`.
    y: the output of the layer.
  """

  layer: wiring.Layer
  network: wiring.Network
  implementations: implementations_lib.Implementations
  trained: bool
  input_gradient: bool
  parameters: Mapping[str, Block]
  statistics: Mapping[str, Block]
  x: Block
  drawn: Mapping[str, Mapping[str, Block]]
  y: Block

  def run(self, parameters, statistics, x, drawn) -> jax.Array:
    """The forward pass; returns the output of the layer."""
    exchange = _SliceOfSum(self.parameters["bias"].shape[0])
    return self._run(parameters, statistics, x, drawn, exchange)

  def _run(self, parameters, statistics, x, drawn, exchange) -> jax.Array:
    kernel = parameters["kernel"].shape
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
      exchange=exchange,
      implementations=self.implementations,
    )

  def run_both(self, parameters, statistics, x, drawn, gradient) -> tuple:
    """Forward and backward pass; returns the output and the gradients.

    They are those that a step needs; the backward pass may have none.
    """
    wanted = {}
    if self.trained:
      wanted["parameters"] = parameters
    if self.input_gradient:
      wanted["x"] = x
    given = {"parameters": parameters, "x": x}
    y, pull = jax.vjp(
      lambda wanted: self.run(
        statistics=statistics, drawn=drawn, **given | wanted
      ),
      wanted,
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
    if self.input_gradient:
      products["by input"] = by_input, (x, kernel, y)
    if self.trained:
      products["by kernel"] = by_kernel, (x, kernel, y)
    return products

  def rest(
    self, kept_images: int
  ) -> dict[str, tuple[Callable, tuple[Block, ...]]]:
    """Returns {name: (function, its blocks)} of what follows the product.

    The names are `forward` and `forward and backward`.

    Args:
      kept_images: whose outputs are kept here; see `per_device.DeviceLoad`.
    """
    small = {**self.parameters}
    del small["kernel"]  # of which only the product knows
    product = self.product
    outputs = small["bias"].shape[0]
    shape = (kept_images, *product.shape[1:-1], outputs)
    drawn = _find_drawn(self.layer, (kept_images, *self.y.shape[1:]))

    def forward(small, statistics, product, drawn):
      parameters = small | {"kernel": jnp.zeros((1, outputs))}
      return self._run(parameters, statistics, product, drawn, _Given())

    def both(small, statistics, product, drawn, gradient):
      y, pull = jax.vjp(
        lambda small, product: forward(small, statistics, product, drawn),
        small,
        product,
      )
      return y, pull(gradient)

    blocks = small, self.statistics, Block(shape, product.dtype), drawn
    y = jax.eval_shape(forward, *blocks)
    return {
      "forward": (forward, blocks),
      "forward and backward": (both, (*blocks, y)),
    }


class _Given(exchange_lib.NoExchange):
  """Takes the input of a layer for its product, and computes none."""

  def multiply(self, layer, product, x, kernel) -> jax.Array:
    return x


class _SliceOfSum(exchange_lib.NoExchange):
  """Keeps this device's slice of the outputs of a sum, without the sum."""

  def __init__(self, outputs: int):
    self._outputs = outputs

  def multiply(self, layer, product, x, kernel) -> jax.Array:
    return product(x, kernel)[..., : self._outputs]


def cut_layers(program: program_lib.Program) -> tuple[Piece, ...]:
  """Cuts the step of a program into its layers, first to last."""
  return cut_layout(
    program.network,
    program.layout,
    program.routes,
    compute_dtype=program.compute_dtype,
    implementations=program.implementations,
  )


def cut_layout(
  network: wiring.Network,
  layout: layout_lib.Layout,
  routes: plan_lib.Routes,
  *,
  compute_dtype: str,
  implementations: implementations_lib.Implementations,
) -> tuple[Piece, ...]:
  """Cuts a step into its layers, on devices that need not exist.

  Args:
    layout, routes: of the network, from `plan.choose_routes`.
    compute_dtype, implementations: as in `program.Program`.
  """
  sizes, pieces = network.sizes(), []
  for layer in network.layers:
    name, size = layer.name, sizes[layer.name]
    route, images = routes[name], routes[name].images
    specs = specs_lib.make_layer_specs(network, layer, size, route)

    def to_block(shape, spec) -> Block:
      return Block(specs_lib.shard_shape(shape, spec, layout), jnp.float32)

    parameters = {
      tensor: to_block(shape, specs.parameters[tensor])
      for tensor, shape in size.shapes.items()
    }
    if "kernel" in specs.gathers:
      axes, dimension = specs.gathers["kernel"]
      shape = list(parameters["kernel"].shape)
      shape[dimension] *= layout.size(axes)
      parameters["kernel"] = Block(tuple(shape), jnp.float32)
    statistics = {
      tensor: to_block((layer.features,), spec)
      for tensor, spec in specs.statistics.items()
    }
    channels = size.channels // layout.size(route.input_sharding.features)
    if layer.window:
      side = int(size.positions**0.5)
      shape = (images, side, side, channels)
    elif size.positions > 1:
      shape = (images, size.positions, channels)
    else:
      shape = (images, channels)
    x = Block(shape, compute_dtype)
    # The logits are f32, as of `model.apply_kernel`.
    is_last = layer is network.layers[-1]
    out_dtype = np.promote_types(x.dtype, np.float32) if is_last else x.dtype
    outputs = parameters["bias"].shape[0]
    out_shape = (images, *size.out_shape[:-1], outputs)
    pieces.append(
      Piece(
        layer=layer,
        network=network,
        implementations=implementations,
        trained=route.trained,
        input_gradient=route.input_gradient,
        parameters=parameters,
        statistics=statistics,
        x=x,
        drawn=_find_drawn(layer, out_shape),
        y=Block(out_shape, out_dtype),
      )
    )
  return tuple(pieces)


def _find_drawn(
  layer: wiring.Layer, out_shape: tuple[int, ...]
) -> dict[str, dict[str, Block]]:
  """The random numbers of a layer with outputs of a shape; see `Piece`."""
  drawn = {}
  if layer.dropout:
    drawn["masks"] = {layer.name: Block(out_shape, jnp.bool)}
  if layer.pool and layer.pool.kind == "stochastic":
    drawn["uniforms"] = {layer.name: Block(out_shape, jnp.float32)}
  return drawn


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
