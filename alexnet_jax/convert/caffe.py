"""Reads .caffemodel, the weights of Caffe with the network they belong to.

Both forms of the format: layers in field 100, with types as text, and the
earlier one in field 2, with types as numbers. The fields are those of
src/caffe/proto/caffe.proto, by number. Caffe has maps before pixels, groups of
one convolution where we have columns, rounds the number of pooling windows up,
and divides alpha of a normalization by the size of the window. It reads
pictures as BGR.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from alexnet_jax.convert import chain, weights, wire
from alexnet_jax.network import wiring

# NetParameter
_INPUT_DIM, _INPUT_SHAPE = 4, 8
_LAYERS = {"new": 100, "old": 2}
# Numbers of the fields of a layer, in the new and in the old form.
_FIELDS = {
  "new": {
    **{"name": 1, "type": 2, "bottom": 3, "top": 4, "blobs": 7},
    **{"transform": 100, "data": 107, "convolution": 106, "dropout": 108},
    **{"inner_product": 117, "lrn": 118, "pooling": 121, "relu": 123},
    **{"input": 143, "flatten": 135, "exclude": 9},
  },
  "old": {
    **{"name": 4, "type": 5, "bottom": 2, "top": 3, "blobs": 6},
    **{"transform": 36, "data": 11, "convolution": 10, "dropout": 12},
    **{"inner_product": 17, "lrn": 18, "pooling": 19, "relu": 30},
    "v0": 1,
  },
}
# V1LayerParameter.LayerType, of those that are read.
_OLD_TYPES = {
  **{1: "Accuracy", 4: "Convolution", 5: "Data", 6: "Dropout", 8: "Flatten"},
  **{9: "HDF5Data", 12: "ImageData", 14: "InnerProduct", 15: "LRN"},
  **{17: "Pooling", 18: "ReLU", 19: "Sigmoid", 20: "Softmax"},
  **{21: "SoftmaxWithLoss", 22: "Split", 23: "TanH", 24: "WindowData"},
  **{29: "MemoryData", 32: "DummyData", 36: "Silence"},
}
_DATA = {
  *("Data", "ImageData", "HDF5Data", "WindowData", "MemoryData", "DummyData"),
  "Input",
}
_SAME = {"Split", "Flatten"}
_AFTER = {"SoftmaxWithLoss", "Softmax", "Accuracy", "Silence"}
_ACTIVATIONS = {"ReLU": "relu", "TanH": "tanh", "Sigmoid": "sigmoid"}
# The size of a crop that bvlc_alexnet and CaffeNet have.
_CROP = 227


@dataclasses.dataclass
class _Layer:
  """A layer of the file."""

  name: str
  kind: str
  message: wire.Message
  numbers: Mapping[str, int]

  def part(self, name: str) -> wire.Message:
    return self.message.message(self.numbers.get(name, 0))

  def texts(self, name: str) -> list[str]:
    return self.message.texts(self.numbers[name])

  def refuse(self, what: str, expected: str) -> ValueError:
    return ValueError(
      f"layer {self.name!r} ({self.kind}) has {what}, expected {expected}"
    )

  def check(self, name: str, value: object, expected: object) -> None:
    if value != expected:
      raise self.refuse(f"{name} {value}", str(expected))


def is_caffe(message: wire.Message) -> bool:
  """Tests whether a message has layers of Caffe, which are messages."""
  return any(
    not isinstance(value, int)
    for number in _LAYERS.values()
    for value in message.fields.get(number, [])
  ) and not isinstance(message.fields.get(1, [b""])[0], int)


def read(net: wire.Message) -> weights.Weights:
  """Reads the network, and its weights.

  Args:
    net: a NetParameter.

  Raises:
    ValueError: it is damaged, or has what has no counterpart here; names the
      layer and the value.
  """
  form = "new" if _LAYERS["new"] in net.fields else "old"
  layers = _find_layers(net, form)
  data = next((one for one in layers if one.kind in _DATA), None)
  side = _find_side(net, data)
  reader = _Reader(side)
  for layer in layers:
    reader.add(layer)
  if not reader.arrays:
    raise ValueError("it has no layer with weights, expected a network")
  first = next(iter(reader.arrays.values()))
  channels = first.kernel.shape[1] if first.kernel.ndim == 4 else 0
  if channels not in (1, 3):
    raise ValueError(
      f"{first.kernel_name} reads {channels} channels, expected 1 or 3 of an "
      "image"
    )
  made = chain.make_chain(
    reader.operations, image_size=side, image_channels=channels
  )
  return weights.make(
    f"Caffe's .caffemodel in the {form} form, network {net.text(1)!r}",
    weights.find_table(made.table),
    {name: reader.arrays[label] for name, label in made.labels.items()},
    image_size=side,
    preprocessing=_find_preprocessing(data, channels, side),
    channels_first=True,
    dropout_rate=made.dropout_rate,
    notes=(*made.notes, *reader.notes),
  )


def _find_layers(net: wire.Message, form: str) -> list[_Layer]:
  numbers, layers = _FIELDS[form], []
  for message in net.messages(_LAYERS[form]):
    if numbers.get("v0") in message.fields:
      raise ValueError(
        "it is of the form before 2014 (V0), expected a later one. Convert it "
        "with Caffe's tools/upgrade_net_proto_binary"
      )
    if form == "new":
      kind = message.text(numbers["type"])
    else:
      code = message.integer(numbers["type"])
      kind = _OLD_TYPES.get(code, f"type {code}")
    layers.append(_Layer(message.text(numbers["name"]), kind, message, numbers))
  return layers


class _Reader:
  """Follows the chain of layers from the image to the logits."""

  def __init__(self, side: int):
    self.operations: list[chain.Operation] = []
    self.arrays: dict[str, weights.Arrays] = {}
    self.notes: list[str] = []
    self._side = side  # of the map, in pixels
    self._blobs: set[str] | None = None  # names of the present one

  def add(self, layer: _Layer) -> None:
    bottoms, tops = layer.texts("bottom"), layer.texts("top")
    if layer.kind in _DATA:
      # Of training and of testing; also with labels.
      self._blobs = {*tops[:1]} if self._blobs is None else self._blobs
      return
    if layer.kind == "Split" and not self._blobs.intersection(bottoms):
      return  # of the labels
    if layer.kind in _AFTER:
      return
    if self._blobs is None:  # the image is an input of the net
      self._blobs = {*bottoms}
    if len(bottoms) != 1 or bottoms[0] not in self._blobs:
      raise layer.refuse(
        f"the inputs {', '.join(bottoms) or 'none'}",
        f"{' or '.join(sorted(self._blobs))}: a chain of layers",
      )
    self._blobs = {*tops} if layer.kind == "Split" else {*tops[:1]}
    if layer.kind in _SAME:
      return
    read = self._readers.get(layer.kind)
    if read is None:
      raise ValueError(
        f"layer {layer.name!r} has the type {layer.kind}, which has no "
        f"counterpart here, expected one of {', '.join(self._readers)}"
      )
    kind, fields = read(self, layer)
    self.operations.append(
      chain.Operation(
        kind=kind, label=layer.name, fields=fields, name=layer.name
      )
    )

  def _read_convolution(self, layer: _Layer) -> tuple[str, dict[str, Any]]:
    part = layer.part("convolution")
    window = _find_side_field(layer, part, "kernel_size", 4, (11, 12), None)
    stride = _find_side_field(layer, part, "stride", 6, (13, 14), 1)
    padding = _find_side_field(layer, part, "pad", 3, (9, 10), 0)
    for dilation in part.integers(18):
      layer.check("dilation", dilation, 1)
    layer.check("axis", part.integer(16, 1), 1)
    groups = part.integer(5, 1)
    self._side = (self._side + 2 * padding - window) // stride + 1
    self._add_arrays(layer, dimensions=4)
    return chain.PRODUCT, {
      "features": part.integer(1),
      "window": window,
      "stride": stride,
      "padding": (padding, padding),
      "groups": groups,
    }

  def _read_inner_product(self, layer: _Layer) -> tuple[str, dict[str, Any]]:
    part = layer.part("inner_product")
    layer.check("axis", part.integer(5, 1), 1)
    layer.check("transpose", part.integer(6), 0)
    self._side = 1
    self._add_arrays(layer, dimensions=2)
    return chain.PRODUCT, {
      "features": part.integer(1),
      "window": 0,
      "groups": 1,
    }

  def _read_activation(self, layer: _Layer) -> tuple[str, dict[str, Any]]:
    if layer.kind == "ReLU":
      slope = layer.part("relu").number(1, 0.0)
      layer.check("negative_slope", slope, 0.0)
    return "activation", {"activation": _ACTIVATIONS[layer.kind]}

  def _read_lrn(self, layer: _Layer) -> tuple[str, dict[str, Any]]:
    part = layer.part("lrn")
    size = part.integer(1, 5)
    is_map = part.integer(4) == 1  # WITHIN_CHANNEL
    return "normalization", {
      "normalize": "map" if is_map else "across",
      "lrn": wiring.Lrn(
        size=size,
        # Within a channel, Caffe has 1 whatever the field says.
        k=1.0 if is_map else part.number(5, 1.0),
        alpha=part.number(2, 1.0) / max(size ** (2 if is_map else 1), 1),
        beta=part.number(3, 0.75),
      ),
    }

  def _read_pooling(self, layer: _Layer) -> tuple[str, dict[str, Any]]:
    part = layer.part("pooling")
    layer.check("global_pooling", part.integer(12), 0)
    window = _find_side_field(layer, part, "kernel_size", 2, (5, 6), None)
    stride = _find_side_field(layer, part, "stride", 3, (7, 8), 1)
    padding = _find_side_field(layer, part, "pad", 4, (9, 10), 0)
    code = part.integer(1)
    if code > 1:
      raise layer.refuse(f"pool {code}", "0 (MAX) or 1 (AVE)")
    if code == 1:
      # Caffe counts the zeros in an average.
      layer.check("pool AVE with pad", padding, 0)
    pads = (padding, padding)
    if part.integer(13) == 0:  # CEIL
      self._side, pads = chain.find_padding_after(
        self._side,
        window=window,
        stride=stride,
        before=padding,
        after=padding,
        label=layer.name,
      )
    else:
      self._side = (self._side + 2 * padding - window) // stride + 1
    return "pooling", {
      "pool": wiring.Pool(
        window=window,
        stride=stride,
        kind=("max", "average")[code],
        padding=pads,
      )
    }

  def _read_dropout(self, layer: _Layer) -> tuple[str, dict[str, Any]]:
    rate = layer.part("dropout").number(1, 0.5)
    return chain.DROPOUT, {"dropout": True, "dropout_rate": rate}

  _readers: dict[str, Callable[[_Reader, _Layer], tuple]] = {
    "Convolution": _read_convolution,
    "InnerProduct": _read_inner_product,
    **dict.fromkeys(_ACTIVATIONS, _read_activation),
    "LRN": _read_lrn,
    "Pooling": _read_pooling,
    "Dropout": _read_dropout,
  }

  def _add_arrays(self, layer: _Layer, *, dimensions: int) -> None:
    """Reads the blobs of a layer: the kernel, and mostly a bias."""
    blobs = layer.message.messages(layer.numbers["blobs"])
    if len(blobs) not in (1, 2):
      raise layer.refuse(f"{len(blobs)} arrays", "a kernel and a bias")
    if layer.name in self.arrays:
      raise layer.refuse("the name of another layer", "a name of its own")
    if len(blobs) == 1:
      self.notes.append(f"layer {layer.name!r} has no bias, which is 0 here")
    kernel, *bias = (
      _read_blob(f"{layer.name}[{index}]", blob, count)
      for index, (blob, count) in enumerate(
        zip(blobs, (dimensions, 1), strict=False)
      )
    )
    self.arrays[layer.name] = weights.Arrays(
      kernel_name=f"{layer.name}[0]",
      kernel=kernel,
      bias_name=f"{layer.name}[1]" if bias else None,
      bias=bias[0] if bias else None,
    )


def _read_blob(name: str, blob: wire.Message, dimensions: int) -> np.ndarray:
  """Reads a BlobProto as an array of so many dimensions.

  The earlier form has four for all arrays, of which the first ones are 1.
  """
  if 7 in blob.fields:
    shape = blob.message(7).integers(1)
  else:
    shape = [blob.integer(number, 1) for number in (1, 2, 3, 4)]
  values = blob.floats(5)
  if 8 in blob.fields:
    values = blob.floats(8, "<f8")
  shape = [1] * (dimensions - len(shape)) + shape
  count = len(shape) - dimensions
  if any(size != 1 for size in shape[:count]):
    raise ValueError(
      f"{name} has the shape {' x '.join(map(str, shape))}, expected "
      f"{dimensions} dimensions"
    )
  shape = shape[count:]
  # Python's integers, which do not overflow.
  expected = 1
  for size in shape:
    expected *= size
  if expected != len(values):
    raise ValueError(
      f"{name} has {len(values):,} values, and the shape "
      f"{' x '.join(map(str, shape))}"
    )
  return values.reshape(shape)


def _find_side_field(
  layer: _Layer,
  part: wire.Message,
  name: str,
  number: int,
  sides: tuple[int, int],
  default: int | None,
) -> int:
  """Reads a size that is the same in both directions of a map.

  Of the two sides, one that is not there is 0 where the other one is.
  """
  values = {*part.integers(number)}
  if any(side in part.fields for side in sides):
    values |= {part.integer(side) for side in sides}
  if not values and default is not None:
    return default
  if len(values) != 1:
    found = " and ".join(map(str, sorted(values))) or "none"
    raise layer.refuse(f"{name} {found}", "one number for both directions")
  (value,) = values
  if value < (name != "pad"):
    raise layer.refuse(f"{name} {value}", "1 or more")
  return value


def _find_side(net: wire.Message, data: _Layer | None) -> int:
  """Finds the side of the image that enters the network, in pixels."""
  shape = [int(one) for one in net.integers(_INPUT_DIM)]
  for message in net.messages(_INPUT_SHAPE):
    shape = message.integers(1)
  if data is not None:
    for message in data.part("input").messages(1):
      shape = message.integers(1)
    crop = data.part("transform").integer(3) or data.part("data").integer(5)
    if crop:
      return crop
  if not shape:
    return _CROP
  if len(shape) < 4 or shape[2] != shape[3]:
    raise ValueError(
      f"its input has the shape {' x '.join(map(str, shape))}, expected images "
      "x channels x a square"
    )
  return shape[2]


def _find_preprocessing(
  data: _Layer | None, channels: int, side: int
) -> weights.Preprocessing:
  """Reads how pictures are prepared, from the layer of the data."""
  mean, factor, source = weights.CAFFE_MEAN, 1.0, ""
  if data is not None:
    transform, old = data.part("transform"), data.part("data")
    # In the order of the channels, BGR.
    values = [float(str(one)) for one in transform.floats(5)]
    factor = transform.number(1, 1.0) * old.number(2, 1.0)
    if len(values) in (1, 3):
      mean, source = tuple((values * 3)[:3][::-1]), "mean values of the file"
    elif values:
      raise data.refuse(f"{len(values)} mean values", "1 or 3")
    elif file := transform.text(4) or old.text(3):
      source = (
        f"the file names a mean image, {file[:200]!r}, which is not in it; the "
        "means of ImageNet's channels take its place"
      )
    elif channels == 1:
      mean, source = (0.0, 0.0, 0.0), "no mean, as in the file"
    if factor <= 0:
      raise data.refuse(f"scale {factor:g}", "a number above 0")
  return dataclasses.replace(
    weights.caffe_preprocessing(
      source or "of ImageNet's channels; the file has none", side=side
    ),
    color_order="bgr" if channels == 3 else "rgb",
    mean=mean,
    scale=1.0 / factor,
  )
