"""What one device computes of each layer, cut out of the step.

For each layer the blocks that one device holds and is brought, and functions of
them; nothing is exchanged. `layers.py` and `implementations.py` measure these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from alexnet_jax.network import exchange as exchange_lib
from alexnet_jax.network import implementations as implementations_lib
from alexnet_jax.network import model, wiring
from alexnet_jax.partition import resharding, timing
from alexnet_jax.program import compiler_options
from alexnet_jax.program import program as program_lib

Block = jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
  """One device's share of a layer.

  Attributes:
    layer: the row of the table.
    network: of the layer.
    implementations: how its operations are computed.
    parameters: {"kernel", "bias", ...}, as they are used: gathered.
    statistics: {"mean", "variance"} of a batch normalization, else {}.
    x: what is brought to the layer; a map that units read is one row.
    drawn: {"masks" or "points": {layer: block}}, see `model.AlexNet`.
    y: what the layer leaves.
  """

  layer: wiring.Layer
  network: wiring.Network
  implementations: implementations_lib.Implementations
  parameters: Mapping[str, Block]
  statistics: Mapping[str, Block]
  x: Block
  drawn: Mapping[str, Mapping[str, Block]]
  y: Block

  @property
  def columns(self) -> int:
    """Columns of the input that are convolved or multiplied one by one."""
    inputs = self.x.shape[-1]
    return inputs // self.parameters["kernel"].shape[-2]

  def run(self, parameters, statistics, x, drawn) -> jax.Array:
    """What the layer leaves: forward."""
    kernel = self.parameters["kernel"].shape
    abstract = nnx.eval_shape(
      lambda: model.Weights(self.layer, kernel, jnp.zeros(kernel))
    )
    graphdef, _ = nnx.split(abstract)
    return model.run_layer(
      self.network,
      self.layer,
      nnx.merge(graphdef, {**parameters, **statistics}),
      x,
      masks=drawn.get("masks", {}),  # not None: it trains
      points=drawn.get("points"),
      exchange=_Alone(self.parameters["bias"].shape[0]),
      implementations=self.implementations,
    )

  def run_both(self, parameters, statistics, x, drawn, gradient) -> tuple:
    """Forward and backward: what is left, and the gradients.

    Args:
      gradient: of what is left.
    """
    if self.layer.reads == "image":  # which needs no gradient
      y, pull = jax.vjp(
        lambda parameters: self.run(parameters, statistics, x, drawn),
        parameters,
      )
    else:
      y, pull = jax.vjp(
        lambda parameters, x: self.run(parameters, statistics, x, drawn),
        parameters,
        x,
      )
    return y, pull(gradient)

  @property
  def product(self) -> Block:
    """What the convolution or product makes of its input."""
    return jax.eval_shape(self.multiply, self.x, self.parameters["kernel"])

  def multiply(self, x, kernel) -> jax.Array:
    """The convolution or product alone, of all columns."""
    return model.by_column(
      self.layer, x, kernel, implementations=self.implementations
    )

  def products(self) -> dict[str, tuple[Callable, tuple[Block, ...]]]:
    """The layer's products, forward and backward, each with its blocks."""
    x, kernel, y = self.x, self.parameters["kernel"], self.product

    def by_input(x, kernel, gradient):
      return jax.vjp(lambda x: self.multiply(x, kernel), x)[1](gradient)

    def by_kernel(x, kernel, gradient):
      return jax.vjp(lambda kernel: self.multiply(x, kernel), kernel)[1](
        gradient
      )

    found = {"forward": (self.multiply, (x, kernel))}
    if self.layer.reads != "image":
      found["by input"] = by_input, (x, kernel, y)
    return found | {"by kernel": (by_kernel, (x, kernel, y))}


class _Alone(exchange_lib.NoExchange):
  """Leaves a device its share of a sum's outputs, and adds nothing to it."""

  def __init__(self, outputs: int):
    self._outputs = outputs

  def multiply(self, layer, product, x, kernel) -> jax.Array:
    return product(x, kernel)[..., : self._outputs]


def cut(program: program_lib.Program) -> tuple[Piece, ...]:
  """Cuts the step of a program into its layers, first to last."""
  network, implementations = program.network, program.implementations
  routes = resharding.find_routes(
    network, program.layout, batch_size=program.batch_size
  )
  state = program.abstract_state
  pieces = []
  for layer in network.layers:
    name, size = layer.name, network.sizes()[layer.name]
    route, images = routes[name], program.shares[name].images
    parameters = _hold(state.parameters[name])
    if (name, "kernel") in program.specs.gathers:
      axes, dimension = program.specs.gathers[name, "kernel"]
      shape = list(parameters["kernel"].shape)
      shape[dimension] *= program.layout.size(axes)
      parameters["kernel"] = Block(tuple(shape), jnp.float32)
    statistics = _hold(state.statistics.get(name, {}))
    channels = size.channels // program.layout.size(route.arrived.features)
    if layer.window:
      side = int(size.positions**0.5)
      shape = (images, side, side, channels)
    elif size.positions > 1:
      shape = (images, size.positions, channels)
    else:
      shape = (images, channels)
    x = Block(shape, program.compute_dtype)
    outputs = parameters["bias"].shape[0]
    left = (images, *size.out_shape[:-1], outputs)
    drawn = {}
    if layer.dropout:
      drawn["masks"] = {name: Block(left, jnp.bool)}
    if layer.pool and layer.pool.kind == "stochastic":
      drawn["points"] = {name: Block(left, jnp.float32)}
    pieces.append(
      Piece(
        layer=layer,
        network=network,
        implementations=implementations,
        parameters=parameters,
        statistics=statistics,
        x=x,
        drawn=drawn,
        y=Block(left, x.dtype),
      )
    )
  return tuple(pieces)


def _hold(leaves: Mapping[str, Block]) -> dict[str, Block]:
  """What one device holds of arrays."""
  return {
    name: Block(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
    for name, leaf in leaves.items()
  }


class Maker:
  """Makes what is measured callable.

  Args:
    program: of the step.
    options: for the compiler.
  """

  def __init__(
    self,
    program: program_lib.Program,
    options: Mapping[str, compiler_options.Value],
  ):
    self.program, self._options = program, dict(options)

  def call(self, function: Callable, *blocks) -> Callable[[], object]:
    """One device's work, on all devices at once; see `timing.on_each`."""
    mesh = self.program.mesh
    arrays = timing.fill(mesh, blocks)
    traced = jax.jit(timing.on_each(mesh, function)).trace(*arrays)
    compiled = self.compile(traced)
    return lambda: compiled(*arrays)

  def compile(self, traced: jax.stages.Traced) -> jax.stages.Compiled:
    return traced.lower().compile(compiler_options=self._options)
