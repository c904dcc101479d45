"""Reads ONNX models that are a chain of layers, with the package `onnx`.

Operators and their attributes: https://onnx.ai/onnx/operators. A file does not
say how pictures are prepared.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from alexnet_jax.convert import chain, weights
from alexnet_jax.network import wiring

_ACTIVATIONS = {"Relu": "relu", "Tanh": "tanh", "Sigmoid": "sigmoid"}
# Without effect on values; shapes are checked by those of the arrays.
_SKIPPED = {"Identity", "Flatten", "Reshape"}
# Names of kernels that name a layer, as conv1_w_0; not features.0.weight.
_KERNEL = re.compile(r"([A-Za-z][A-Za-z0-9]*)[._](w|weight|kernel)(_0)?")
# At the end, after the logits.
_LAST = {"Softmax", "LogSoftmax"}


def read(contents: bytes) -> weights.Weights:
  """Reads the network, and its weights.

  Raises:
    ImportError: `onnx` is not installed.
    ValueError: it is damaged, or has what has no counterpart here; names the
      node and the value.
  """
  if importlib.util.find_spec("onnx") is None:
    raise ImportError(
      "it is ONNX, and the package onnx, which reads it, is not installed. "
      "Run: python -m pip install onnx"
    )
  import onnx  # an option, which takes a while to import

  try:
    model = onnx.load_model_from_string(contents)
  except Exception as error:  # of the library's own kinds
    raise ValueError(f"it is no ONNX model ({error})") from error
  try:
    reader = _Reader(model.graph, onnx)
    for node in model.graph.node:
      reader.add(node)
  # A damaged one has bytes for text, and attributes of other types.
  except (TypeError, AttributeError, LookupError) as error:
    raise ValueError(f"it is ONNX, and damaged ({error})") from error
  unused = sorted(reader.initializers.keys() - reader.used)
  if unused:
    raise ValueError(
      f"it has arrays that no layer uses: {', '.join(unused[:6])}"
    )
  made = chain.make_chain(
    reader.operations, image_size=reader.image_size, image_channels=3
  )
  table = weights.find_table(made.table)
  has_lrn = any(row.normalize != "none" for row in table.layers)
  source = "the file has none; these are "
  notes = list(made.notes)
  if not any(row.dropout for row in made.table.layers):
    notes.append(
      "the file has no dropout"
      + (
        f"; that of {table.name} is taken for training"
        if any(row.dropout for row in table.layers)
        else ""
      )
    )
  return weights.make(
    f"ONNX, written by {model.producer_name or 'an unnamed program'}",
    table,
    {name: reader.arrays[label] for name, label in made.labels.items()},
    image_size=reader.image_size,
    preprocessing=(
      weights.caffe_preprocessing(
        f"{source}Caffe's, as it normalizes", side=reader.image_size
      )
      if has_lrn
      else weights.torchvision_preprocessing(
        f"{source}torchvision's", side=reader.image_size
      )
    ),
    channels_first=True,
    dropout_rate=made.dropout_rate,
    notes=notes,
  )


class _Reader:
  """Follows the chain of nodes from the image to the logits."""

  def __init__(self, graph: Any, onnx: Any):
    self._onnx = onnx
    self.initializers = {one.name: one for one in graph.initializer}
    self.used: set[str] = set()
    self.operations: list[chain.Operation] = []
    self.arrays: dict[str, weights.Arrays] = {}
    inputs = [one for one in graph.input if one.name not in self.initializers]
    if len(inputs) != 1:
      raise ValueError(f"it has {len(inputs)} inputs, expected one, the images")
    self._value = inputs[0].name
    sizes = [one.dim_value for one in inputs[0].type.tensor_type.shape.dim]
    if len(sizes) != 4 or sizes[1] != 3 or sizes[2] != sizes[3] or not sizes[3]:
      raise ValueError(
        f"its input has the shape {sizes}, expected [images, 3, side, side] "
        "with numbers"
      )
    self.image_size = self._side = sizes[3]

  def add(self, node: Any) -> None:
    kind, label = node.op_type, node.name or (node.output or ["?"])[0]
    if kind == "Constant":  # such as the shape of a Reshape
      for attribute in node.attribute:
        if attribute.name == "value":
          attribute.t.name = node.output[0]
          self.initializers[node.output[0]] = attribute.t
      return
    if not node.input or node.input[0] != self._value:
      raise ValueError(
        f"node {label!r} ({kind}) reads {', '.join(node.input) or 'nothing'}, "
        f"expected {self._value!r}: a chain of layers"
      )
    self._value = node.output[0]
    if kind in _LAST:
      self._value = "nothing after the probabilities"
      return
    values = {
      one.name: self._onnx.helper.get_attribute_value(one)
      for one in node.attribute
    }
    if kind in _SKIPPED:
      self.used.update(node.input[1:])
      return
    read = self._readers.get(kind)
    if read is None:
      raise ValueError(
        f"node {label!r} is {kind}, which has no counterpart here, expected "
        f"one of {', '.join(self._readers)}"
      )
    made = read(self, label, node, values)
    if made is not None:
      self.operations.append(
        chain.Operation(
          kind=made[0],
          label=label,
          fields=made[1],
          name=self._find_name(label),
        )
      )

  def _find_name(self, label: str) -> str | None:
    """Returns the name of a layer that the name of its kernel has."""
    if label not in self.arrays:
      return None
    found = _KERNEL.fullmatch(self.arrays[label].kernel_name)
    return found[1] if found else None

  def _find_array(self, label: str, name: str) -> np.ndarray:
    tensor = self.initializers.get(name)
    if tensor is None:
      raise ValueError(
        f"node {label!r} reads {name!r}, which is no array of it"
      )
    if tensor.data_location == tensor.EXTERNAL:
      raise ValueError(
        f"array {name!r} is in another file, expected one file. Save it with "
        "onnx.save_model(model, file, save_as_external_data=False)"
      )
    self.used.add(name)
    try:
      return self._onnx.numpy_helper.to_array(tensor)
    except Exception as error:  # a size that does not fit its bytes
      raise ValueError(f"array {name!r} is damaged ({error})") from error

  def _read_conv(self, label, node, values) -> tuple[str, dict[str, Any]]:
    kernel = self._find_array(label, node.input[1])
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3]:
      raise ValueError(
        f"node {label!r} has a kernel of {kernel.shape}, expected a square"
      )
    window = kernel.shape[2]
    stride, padding = _find_windows(label, values)
    self._side = (self._side + sum(padding) - window) // stride + 1
    self._add_arrays(label, node, kernel)
    return chain.PRODUCT, {
      "features": kernel.shape[0],
      "window": window,
      "stride": stride,
      "padding": padding,
      "groups": int(values.get("group", 1)),
    }

  def _read_gemm(self, label, node, values) -> tuple[str, dict[str, Any]]:
    for name, default in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)):
      _check(label, name, values.get(name, default), default)
    kernel = self._find_array(label, node.input[1])
    if kernel.ndim != 2:
      raise ValueError(f"node {label!r} has a kernel of {kernel.shape}")
    if not values.get("transB", 0):
      kernel = kernel.T
    self._side = 1
    self._add_arrays(label, node, kernel)
    return chain.PRODUCT, {
      "features": kernel.shape[0],
      "window": 0,
      "groups": 1,
    }

  def _read_activation(self, label, node, values) -> tuple[str, dict[str, Any]]:
    return "activation", {"activation": _ACTIVATIONS[node.op_type]}

  def _read_lrn(self, label, node, values) -> tuple[str, dict[str, Any]]:
    size = int(values.get("size", 0))
    return "normalization", {
      "normalize": "across",
      "lrn": wiring.Lrn(
        size=size,
        k=_to_decimal(values.get("bias", 1.0)),
        alpha=_to_decimal(values.get("alpha", 1e-4)) / max(size, 1),
        beta=_to_decimal(values.get("beta", 0.75)),
      ),
    }

  def _read_pool(
    self, label, node, values
  ) -> tuple[str, dict[str, Any]] | None:
    window, other = values.get("kernel_shape", [0, 0])
    _check(label, "kernel_shape", other, window)
    stride, padding = _find_windows(label, values)
    is_average = node.op_type == "AveragePool"
    if is_average and values.get("count_include_pad", 0):
      _check(label, "pads", padding, (0, 0))
    if values.get("ceil_mode", 0):
      self._side, padding = chain.find_padding_after(
        self._side,
        window=window,
        stride=stride,
        before=padding[0],
        after=padding[1],
        label=label,
      )
    else:
      self._side = (self._side + sum(padding) - window) // stride + 1
    # PyTorch writes its adaptive pooling of 6 x 6 maps to 6 x 6 so.
    if (window, stride, padding) == (1, 1, (0, 0)):
      return None
    return "pooling", {
      "pool": wiring.Pool(
        window=window,
        stride=stride,
        kind="average" if is_average else "max",
        padding=padding,
      )
    }

  def _read_dropout(self, label, node, values) -> tuple[str, dict[str, Any]]:
    rate = values.get("ratio", 0.5)
    if len(node.input) > 1 and node.input[1]:
      rate = float(self._find_array(label, node.input[1]))
    self.used.update(node.input[1:])
    return chain.DROPOUT, {"dropout": True, "dropout_rate": _to_decimal(rate)}

  _readers: Mapping[str, Callable[..., tuple[str, dict[str, Any]] | None]] = {
    "Conv": _read_conv,
    "Gemm": _read_gemm,
    **dict.fromkeys(_ACTIVATIONS, _read_activation),
    "LRN": _read_lrn,
    **dict.fromkeys(("MaxPool", "AveragePool"), _read_pool),
    "Dropout": _read_dropout,
  }

  def _add_arrays(self, label: str, node: Any, kernel: np.ndarray) -> None:
    has_bias = len(node.input) > 2 and node.input[2] != ""
    self.arrays[label] = weights.Arrays(
      kernel_name=node.input[1],
      kernel=kernel,
      bias_name=node.input[2] if has_bias else None,
      bias=self._find_array(label, node.input[2]) if has_bias else None,
    )


def _check(label: str, name: str, value: object, expected: object) -> None:
  if value != expected:
    raise ValueError(f"node {label!r} has {name} {value}, expected {expected}")


def _to_decimal(value: float) -> float:
  """The shortest decimal that rounds to a float32."""
  return float(str(np.float32(value)))


def _find_windows(
  label: str, values: Mapping[str, Any]
) -> tuple[int, tuple[int, int]]:
  """Returns stride and padding, which are the same in both directions."""
  stride, other = values.get("strides", [1, 1])
  _check(label, "strides", other, stride)
  top, left, bottom, right = values.get("pads", [0, 0, 0, 0])
  _check(label, "pads", [left, right], [top, bottom])
  if min(stride, top + 1, bottom + 1) < 1:
    raise ValueError(f"node {label!r} has strides or pads below 1 or 0")
  for dilation in values.get("dilations", []):
    _check(label, "dilations", dilation, 1)
  auto_pad = values.get("auto_pad", b"NOTSET")
  if auto_pad not in (b"NOTSET", b"VALID"):
    _check(label, "auto_pad", auto_pad, b"NOTSET")
  return stride, (top, bottom)
