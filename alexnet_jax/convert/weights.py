"""Arrays of a file that become the parameters of a network.

A reader of a format (`caffe`, `onnx_model`, `weight_files`) finds the arrays by
layer and the table of the network that they belong to. What all of them check,
and how their axes become ours, is here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from alexnet_jax.network import catalog, wiring

# Means of ImageNet's channels (R, G, B) as users of Caffe's files subtract
# them: models/bvlc_alexnet/train_val.prototxt names a mean image, and
# models/bvlc_googlenet/train_val.prototxt has these.
CAFFE_MEAN = (123.0, 117.0, 104.0)
# torchvision/transforms/_presets.py, for pixels of 0..1.
TORCHVISION_MEAN = (0.485, 0.456, 0.406)
TORCHVISION_DEVIATION = (0.229, 0.224, 0.225)
# Side to which both resize pictures; a larger crop does not fit in that.
_STORED_SIZE = 256
# Types that are read: all values of the first two are float32 too.
_EXACT, _ROUNDED = (np.float32, np.float16, jnp.bfloat16), (np.float64,)
# Fields of a row that a file does not have, besides its number of features.
_INITIAL = {"features": 1, "kernel_std": None, "bias": 0.0}
_NO_DROPOUT = {"dropout": False, "dropout_rate": None}
# Names listed in an error.
_LISTED = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
  """What makes the input of a network from a picture.

  Attributes:
    stored_size: side to which pictures are resized before the center crop, in
      pixels.
    color_order: of the network's input, "rgb" or "bgr".
    mean: of R, G, B, 0..255.
    channel_scale: divides R, G, B after the mean is subtracted; None: 1.
    scale: divides all channels.
    source: where these numbers come from, in words.
  """

  stored_size: int
  color_order: str
  mean: tuple[float, float, float]
  source: str
  channel_scale: tuple[float, float, float] | None = None
  scale: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
  """The parameters of a network, the network, and its preprocessing.

  Attributes:
    kind: of the file, in words.
    parameters: {layer: {"kernel", "bias", ...}}, f32, in our axes.
    network: what they are of.
    num_arrays: that were read, all of which are used.
    notes: lines on what was converted, and on what was left out.
  """

  kind: str
  parameters: dict[str, dict[str, np.ndarray]]
  network: Published | Exported
  num_arrays: int
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
  """The network and the preprocessing that a file implies or describes."""

  table: wiring.Wiring
  image_size: int
  dropout_rate: float
  preprocessing: Preprocessing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
  """The files of a run of ours, as their text; see `export.py`.

  Attributes:
    config: of config.json.
    data: of data.json; None if there is none.
    mean_image: f32[side, side, 3]; None if there is none.
    statistics: running ones of batch normalization, {layer: {"mean",
      "variance"}}; {} if there are none.
  """

  config: str
  data: str | None
  mean_image: np.ndarray | None
  statistics: dict[str, dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrays:
  """The arrays of one layer, as a file has them.

  Attributes:
    kernel_name: in the file, for errors.
    kernel: of `axes`.
    bias_name: in the file; None: it has no bias, which is 0.
    bias: [features]; not read without a name.
  """

  kernel_name: str
  kernel: np.ndarray
  bias_name: str | None
  bias: np.ndarray | None


def caffe_preprocessing(source: str, *, side: int) -> Preprocessing:
  """BGR minus the means, for inputs of `side` pixels."""
  return Preprocessing(
    stored_size=max(_STORED_SIZE, side),
    color_order="bgr",
    mean=CAFFE_MEAN,
    source=source,
  )


def torchvision_preprocessing(source: str, *, side: int) -> Preprocessing:
  """(x / 255 - mean) / deviation, of pixels of 0..255; see above."""
  return Preprocessing(
    stored_size=max(_STORED_SIZE, side),
    color_order="rgb",
    mean=tuple(round(255 * one, 6) for one in TORCHVISION_MEAN),
    channel_scale=tuple(round(255 * one, 6) for one in TORCHVISION_DEVIATION),
    source=source,
  )


def check_names(found: Sequence[str], expected: Sequence[str]) -> None:
  """Refuses a file that lacks arrays, or has others.

  Raises:
    ValueError: lists them.
  """
  missing = [name for name in expected if name not in found]
  extra = [name for name in found if name not in expected]
  parts = [
    f"{what} {_list(names)}"
    for what, names in (("it lacks", missing), ("it also has", extra))
    if names
  ]
  if parts:
    raise ValueError(
      f"{' and '.join(parts)}; expected {_list(expected)}, and no others"
    )


def _list(names: Sequence[str]) -> str:
  more = len(names) - _LISTED
  shown = ", ".join(str(name)[:80] for name in names[:_LISTED])
  return f"{shown} and {more} more" if more > 0 else shown


def to_float32(name: str, array: Any) -> np.ndarray:
  """Converts an array of numbers to float32.

  Raises:
    ValueError: it is none, or has integers, or values that are not finite.
  """
  if not isinstance(array, np.ndarray):
    raise ValueError(f"{name} is {type(array).__name__}, expected an array")
  if array.dtype not in (*_EXACT, *_ROUNDED):
    raise ValueError(
      f"{name} has the type {array.dtype.name}, expected float32, float16, "
      "bfloat16 or float64"
    )
  with np.errstate(over="ignore"):
    made = np.array(array, np.float32)  # also of the machine's byte order
  if not np.isfinite(made).all():
    raise ValueError(f"{name} has values that are not finite in float32")
  return made


def describe_types(arrays: Sequence[Any]) -> str:
  """Returns the types of arrays in words, such as "float16"."""
  return ", ".join(
    sorted({one.dtype.name for one in arrays if isinstance(one, np.ndarray)})
  )


def make(
  kind: str,
  table: wiring.Wiring,
  arrays: Mapping[str, Arrays],
  *,
  image_size: int,
  preprocessing: Preprocessing,
  channels_first: bool,
  dropout_rate: float = 0.5,
  notes: Sequence[str] = (),
) -> Weights:
  """Makes the weights of a network from the arrays of its layers.

  Args:
    table: of the network; the features of its rows are replaced by those of
      the arrays.
    arrays: of each layer.
    channels_first: kernels are [out, in, height, width] and [out, in], and what
      reads a map has it channel by channel. Else they are [height, width, in,
      out] and [in, out], position by position.

  Raises:
    ValueError: an array has another shape or type; names it.
  """
  rows, taken = [], []
  for row in table.layers:
    kernel = arrays[row.name].kernel
    if not isinstance(kernel, np.ndarray) or kernel.ndim != (
      4 if row.window else 2
    ):
      raise ValueError(
        f"{arrays[row.name].kernel_name} has the shape "
        f"{_shape(kernel)}, expected {4 if row.window else 2} dimensions"
      )
    features = kernel.shape[0 if channels_first else -1]
    rows.append(dataclasses.replace(row, features=features))
  table = dataclasses.replace(table, layers=tuple(rows))
  network = wiring.make_network(
    table, image_size=image_size, num_classes=rows[-1].features
  )
  parameters = {}
  for name, size in network.sizes().items():
    one = arrays[name]
    taken += [one.kernel] + ([] if one.bias_name is None else [one.bias])
    parameters[name] = {
      "kernel": _to_kernel(one, size.kernel, channels_first),
      "bias": _to_bias(one, size.kernel[-1]),
    }
  types = describe_types(taken)
  if types != "float32":
    notes = (*notes, f"arrays of {types} are stored as float32")
  return Weights(
    kind=kind,
    parameters=parameters,
    network=Published(
      table=table,
      image_size=image_size,
      dropout_rate=dropout_rate,
      preprocessing=preprocessing,
    ),
    num_arrays=len(taken),
    notes=tuple(notes),
  )


def _shape(array: Any) -> str:
  return " x ".join(map(str, getattr(array, "shape", ()))) or "()"


def _to_kernel(
  one: Arrays, shape: tuple[int, ...], channels_first: bool
) -> np.ndarray:
  """Converts the axes of a kernel to ours, see `wiring.Sizes.kernel`."""
  is_map = len(shape) == 4
  *inside, read, out = shape
  inputs = int(np.prod(inside)) * read
  expected = (out, read, *inside) if is_map else (out, inputs)
  if not channels_first:
    expected = shape if is_map else (inputs, out)
  if one.kernel.shape != expected:
    raise ValueError(
      f"{one.kernel_name} has the shape {_shape(one.kernel)}, expected "
      f"{' x '.join(map(str, expected))}"
    )
  kernel = to_float32(one.kernel_name, one.kernel)
  if channels_first:
    if is_map:
      kernel = kernel.transpose(2, 3, 1, 0)
    else:
      kernel = kernel.reshape(out, read, -1).transpose(2, 1, 0)
  return np.ascontiguousarray(kernel.reshape(shape))


def _to_bias(one: Arrays, features: int) -> np.ndarray:
  if one.bias_name is None:
    return np.zeros(features, np.float32)
  bias = to_float32(one.bias_name, one.bias)
  if bias.shape != (features,):
    raise ValueError(
      f"{one.bias_name} has the shape {_shape(bias)}, expected {features}"
    )
  return bias


def find_table(table: wiring.Wiring) -> wiring.Wiring:
  """Finds the wiring of the catalog that computes what a table computes.

  It has initial values for training, which no file has; and dropout, where the
  file, as one that is made to predict, has none at all.

  Returns:
    That one with the features of the table; or the table itself.
  """
  has_dropout = any(row.dropout for row in table.layers)
  ignored = _INITIAL if has_dropout else _INITIAL | _NO_DROPOUT

  def describe(one: wiring.Wiring) -> tuple:
    rows = tuple(dataclasses.replace(row, **ignored) for row in one.layers)
    return one.columns, one.image_channels, rows

  for known in catalog.WIRINGS:
    if describe(known) == describe(table):
      rows = [
        dataclasses.replace(row, features=of_file.features)
        for row, of_file in zip(known.layers, table.layers, strict=True)
      ]
      return dataclasses.replace(known, layers=tuple(rows))
  return table
