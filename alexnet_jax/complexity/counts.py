"""Counts parameters and multiplications by the table, in the program, by XLA.

The three counts are independent: the arithmetic of `wiring.Sizes`; the arrays
that the module makes, and the convolutions and products of its traced forward
pass; and XLA's cost analysis of each of these. All are for one image and one
forward pass. A multiply-accumulate (MAC) is two floating-point operations
(FLOP). Nothing is computed.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core as jex_core

from alexnet_jax.network import model, wiring

# Fields of `LayerCount` that make the sums of a network.
SUMMED = ("parameters", "multiplications", "outputs")
# Relative error of XLA's figures above 2^24, which are float32.
_XLA_ROUNDING = 2.0**-24


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCount:
  """One layer, counted by the table, in the program, and by XLA.

  Attributes:
    layer: its name.
    kernel: the shape.
    multiplications: MAC.
    multiplications_of_padding: those of them with a zero that pads the map.
    outputs: values before pooling.
    program_parameters: elements of the arrays that the module makes.
    program_multiplications: MAC of the traced convolutions and products.
    xla_flops: FLOP of each of these alone.
  """

  layer: str
  kernel: tuple[int, ...]
  parameters: int
  multiplications: int
  multiplications_of_padding: int
  outputs: int
  program_parameters: int
  program_multiplications: int
  xla_flops: int

  @property
  def disagreements(self) -> list[str]:
    """A line for each count that the table does not explain."""
    lines = [
      f"{self.layer} has {found:,} {unit} in the program, {expected:,} by the "
      "table"
      for unit, found, expected in (
        ("parameters", self.program_parameters, self.parameters),
        ("MAC", self.program_multiplications, self.multiplications),
      )
      if found != expected
    ]
    flops = 2 * (self.multiplications - self.multiplications_of_padding)
    if abs(self.xla_flops - flops) > _XLA_ROUNDING * flops:
      lines.append(
        f"{self.layer} has {self.xla_flops:,} FLOP by XLA, {flops:,} by the "
        "table without padding"
      )
    return lines


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkCount:
  """All layers of a network, first to last.

  Attributes:
    outside: MAC of the program that are in no layer's named scope.
    forward_flops: FLOP of the forward pass by XLA, with biases, activations,
      normalization and pooling.
  """

  network: wiring.Network
  layers: tuple[LayerCount, ...]
  outside: int
  forward_flops: int

  def total(self, field: str, *, convolutions: bool = False) -> int:
    """Sums a field of `LayerCount` over all layers, or the convolutions."""
    return sum(
      getattr(count, field)
      for count in self.layers
      if not convolutions or self.network.layer(count.layer).window
    )

  @property
  def disagreements(self) -> list[str]:
    """A line for each count that the table does not explain."""
    lines = [line for count in self.layers for line in count.disagreements]
    if self.outside:
      lines.append(f"the program has {self.outside:,} MAC in no layer")
    return lines

  @property
  def columns_of_2012(self) -> list[tuple[int, int]]:
    """(parameters, MAC) of each column's device, placed as in 2012.

    Each device has the outputs of its column; the first one has all of the last
    layer (layers-145.cfg: fc1000 is on GPU 0).
    """
    *columned, last = self.layers
    parameters, multiplications = (
      sum(getattr(count, field) for count in columned) // self.network.columns
      for field in ("parameters", "multiplications")
    )
    devices = [(parameters, multiplications)] * self.network.columns
    devices[0] = (
      parameters + last.parameters,
      multiplications + last.multiplications,
    )
    return devices

  def to_json(self) -> dict[str, Any]:
    """The content of the tables as data."""
    return {
      "wiring": self.network.name,
      "image_size": self.network.image_size,
      "columns": self.network.columns,
      "layers": [dataclasses.asdict(count) for count in self.layers],
      **{field: self.total(field) for field in SUMMED},
      "forward_xla_flops": self.forward_flops,
      "disagreements": self.disagreements,
    }


def make_published(table: wiring.Wiring) -> wiring.Network:
  """Makes a network in the size it was published in."""
  size, classes = table.published_size, table.published_classes
  return wiring.make_network(table, image_size=size, num_classes=classes)


def count(network: wiring.Network) -> NetworkCount:
  """Counts a network three times; traces and lowers, but runs nothing."""
  parameters = jax.eval_shape(
    lambda: model.init_parameters(network, jax.random.key(0))
  )
  traced = _trace_forward(network)
  multiplications, flops = collections.Counter(), collections.Counter()
  names = {layer.name for layer in network.layers}
  for scope, equation in _find_products(traced.jaxpr.jaxpr, ""):
    layer = next((part for part in scope.split("/") if part in names), "")
    multiplications[layer] += _multiplications(equation)
    flops[layer] += _xla_flops(equation)
  return NetworkCount(
    network=network,
    layers=tuple(
      LayerCount(
        layer=name,
        kernel=sizes.kernel,
        parameters=sizes.parameters,
        multiplications=sizes.multiplications,
        multiplications_of_padding=sizes.multiplications
        - _count_inside(network.layer(name), sizes),
        outputs=sizes.outputs,
        program_parameters=sum(
          math.prod(array.shape) for array in jax.tree.leaves(parameters[name])
        ),
        program_multiplications=multiplications[name],
        xla_flops=flops[name],
      )
      for name, sizes in network.sizes().items()
    ),
    outside=multiplications.total()
    - sum(multiplications[name] for name in names),
    forward_flops=int(traced.lower().cost_analysis()["flops"]),
  )


def _count_inside(layer: wiring.Layer, sizes: wiring.Sizes) -> int:
  """MAC of a layer with values of the map, without the padding's zeros."""
  if not layer.window:
    return sizes.multiplications
  side = math.isqrt(sizes.positions)
  starts = layer.stride * np.arange(sizes.map_side) - layer.padding[0]
  pixels = starts[:, None] + np.arange(layer.window)[None]
  taps = int(np.sum((pixels >= 0) & (pixels < side)))
  return taps**2 * math.prod(sizes.kernel[2:])


def _trace_forward(network: wiring.Network) -> jax.stages.Traced:
  """Traces the forward pass of one image, in float32, without dropout."""
  module = nnx.eval_shape(
    lambda: model.AlexNet(network, rngs=nnx.Rngs(params=0))
  )
  shape = (1, network.image_size, network.image_size, network.image_channels)
  image = jax.ShapeDtypeStruct(shape, jnp.float32)
  graphdef, arrays = nnx.split(module)
  forward = jax.jit(lambda arrays, image: nnx.merge(graphdef, arrays)(image))
  return forward.trace(arrays, image)


def _find_products(
  jaxpr: jex_core.Jaxpr, outer: str
) -> Iterator[tuple[str, jex_core.JaxprEqn]]:
  """Yields (named scope, equation) of each convolution and each product."""
  for equation in jaxpr.eqns:
    scope = f"{outer}/{equation.source_info.name_stack}"
    if equation.primitive.name in ("conv_general_dilated", "dot_general"):
      yield scope, equation
    for inner in jex_core.jaxprs_in_params(equation.params):
      yield from _find_products(inner, scope)


def _multiplications(equation: jex_core.JaxprEqn) -> int:
  """MAC of an equation: its outputs, times the products that each sums."""
  left, right = (variable.aval.shape for variable in equation.invars)
  outputs = math.prod(equation.outvars[0].aval.shape)
  numbers = equation.params["dimension_numbers"]
  if equation.primitive.name == "dot_general":
    (contracted, _), _ = numbers
    return outputs * math.prod(left[axis] for axis in contracted)
  return outputs * math.prod(right) // right[numbers.rhs_spec[0]]


def _xla_flops(equation: jex_core.JaxprEqn) -> int:
  """FLOP of an equation alone, by XLA's cost analysis."""
  operands = [
    jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype)
    for variable in equation.invars
  ]
  operation = functools.partial(equation.primitive.bind, **equation.params)
  return int(jax.jit(operation).lower(*operands).cost_analysis()["flops"])
