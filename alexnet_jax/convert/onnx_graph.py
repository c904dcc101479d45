"""A network as an ONNX model: the operators of its rows, by their own names.

Written with the package `onnx` alone. jax2onnx, which traces a function, needs
another version of Orbax than ours, and makes of a maximum over windows a
MaxPool over four dimensions, which ONNX Runtime does not have (jax2onnx 0.17.1,
onnxruntime 1.32).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from alexnet_jax.convert import operations as operations_lib
from alexnet_jax.network import wiring

INPUT, OUTPUT = "images", "logits"
# Of the operators, read by ONNX Runtime 1.12 of 2022 and later.
_OPSET, _IR_VERSION = 17, 8
_ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}
# The smallest normal number, for windows whose values are all 0.
_TINY = float(np.finfo(np.float32).tiny)


def make_model(
  network: wiring.Network,
  variables: Mapping[str, Mapping[str, np.ndarray]],
) -> onnx.ModelProto:
  """Makes the model: images f32[n, 3, side, side] -> logits f32[n, classes].

  Args: as of `operations.make_operations`.
  """
  graph = _Graph()
  value = INPUT
  for operation in operations_lib.make_operations(network, variables):
    value = _add(graph, operation, value)
  graph.nodes[-1].output[0] = OUTPUT
  side, classes = network.image_size, network.layers[-1].features
  model = helper.make_model(
    helper.make_graph(
      graph.nodes,
      network.name,
      [_make_info(INPUT, ("n", 3, side, side))],
      [_make_info(OUTPUT, ("n", classes))],
      graph.constants,
    ),
    producer_name="alexnet_jax",
    opset_imports=[helper.make_opsetid("", _OPSET)],
    ir_version=_IR_VERSION,
  )
  onnx.checker.check_model(model)
  return model


def _make_info(name: str, shape: tuple[str | int, ...]) -> onnx.ValueInfoProto:
  return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


@dataclasses.dataclass(frozen=True)
class _Graph:
  """Nodes and constants so far; names are those of layers and operators."""

  nodes: list[onnx.NodeProto] = dataclasses.field(default_factory=list)
  constants: list[onnx.TensorProto] = dataclasses.field(default_factory=list)

  def add(self, operator: str, layer: str, *inputs: str, **options: Any) -> str:
    """Adds a node; returns the name of its output."""
    name = f"{layer}.{operator}.{len(self.nodes)}"
    node = helper.make_node(operator, inputs, [name], name=name, **options)
    self.nodes.append(node)
    return name

  def add_constant(self, name: str, array: np.ndarray) -> str:
    self.constants.append(numpy_helper.from_array(array, name))
    return name

  def add_number(self, layer: str, value: float) -> str:
    name = f"{layer}.constant.{len(self.constants)}"
    return self.add_constant(name, np.array(value, np.float32))


def _add(graph: _Graph, operation: operations_lib.Operation, value: str) -> str:
  """Adds the nodes of an operation; returns the name of their result."""
  layer, options = operation.layer, operation.options
  arrays = {
    name: graph.add_constant(
      f"{layer}.{'weight' if name == 'kernel' else name}", array
    )
    for name, array in operation.arrays.items()
  }
  match operation.kind:
    case "flatten":
      return graph.add("Flatten", layer, value)
    case "dropout":  # in evaluation
      return value
    case "activation":
      return graph.add(_ACTIVATIONS[options["name"]], layer, value)
    case "conv":
      return graph.add(
        *("Conv", layer, value, *arrays.values()),
        kernel_shape=operation.arrays["kernel"].shape[2:],
        strides=[options["stride"]] * 2,
        pads=_to_pads(options["padding"]),
        group=options["groups"],
      )
    case "dense":
      return graph.add("Gemm", layer, value, *arrays.values(), transB=1)
    case "batch_norm":
      names = ("scale", "bias", "mean", "variance")
      return graph.add(
        *("BatchNormalization", layer, value, *(arrays[n] for n in names)),
        epsilon=options["epsilon"],
      )
    case "lrn":
      return _add_normalization(graph, layer, options, value)
    case "map_lrn":
      return _add_map_normalization(graph, layer, options, value)
    case "pool":
      return _add_pooling(graph, layer, options, value)
  raise ValueError(f"{operation.kind!r} is no known operation.")


def _to_pads(padding: tuple[int, int]) -> list[int]:
  """(before, after) -> top, left, bottom, right."""
  return [padding[0]] * 2 + [padding[1]] * 2


def _add_normalization(
  graph: _Graph, layer: str, options: Mapping[str, Any], value: str
) -> str:
  """Normalizes over maps, each column by itself."""
  constants = {
    "size": options["size"],
    "alpha": options["alpha"] * options["size"],  # ONNX divides by the size
    "beta": options["beta"],
    "bias": options["k"],
  }
  if options["groups"] == 1:
    return graph.add("LRN", layer, value, **constants)
  columns = [f"{layer}.column.{index}" for index in range(options["groups"])]
  split = helper.make_node(
    *("Split", [value], columns), name=f"{layer}.Split", axis=1
  )
  graph.nodes.append(split)
  columns = [graph.add("LRN", layer, one, **constants) for one in columns]
  return graph.add("Concat", layer, *columns, axis=1)


def _add_map_normalization(
  graph: _Graph, layer: str, options: Mapping[str, Any], value: str
) -> str:
  """x / (k + alpha * sum of x^2 over the neighbors in a map) ^ beta."""
  size = options["size"]
  averages = graph.add(
    *("AveragePool", layer, graph.add("Mul", layer, value, value)),
    kernel_shape=[size] * 2,
    pads=[size // 2] * 4,
    count_include_pad=1,
  )
  alpha, k, beta = (
    graph.add_number(layer, number)
    for number in (options["alpha"] * size**2, options["k"], options["beta"])
  )
  energy = graph.add("Mul", layer, averages, alpha)
  power = graph.add("Pow", layer, graph.add("Add", layer, energy, k), beta)
  return graph.add("Div", layer, value, power)


def _add_pooling(
  graph: _Graph, layer: str, options: Mapping[str, Any], value: str
) -> str:
  """Pools a map; the padding is not counted."""
  windows = {
    "kernel_shape": [options["window"]] * 2,
    "strides": [options["stride"]] * 2,
    "pads": _to_pads(options["padding"]),
  }
  if options["kind"] == "max":
    return graph.add("MaxPool", layer, value, **windows)
  if options["kind"] == "average":
    return graph.add("AveragePool", layer, value, **windows)
  # Stochastic, in evaluation: the average weighted by the values.
  squares = graph.add("Mul", layer, value, value)
  squares, values = (
    graph.add("AveragePool", layer, one, **windows) for one in (squares, value)
  )
  values = graph.add("Max", layer, values, graph.add_number(layer, _TINY))
  return graph.add("Div", layer, squares, values)
