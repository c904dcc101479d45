"""The network as a table: eight layers, K columns, and who reads what.

A `Layer` is one row, a `Wiring` is a named table of them, and a `Network` is a
table in a given size. Standard library only: the model, the layout's checks
and the plan of communication are all computed from here.
"""

from __future__ import annotations

import dataclasses
import math

IMAGE_CHANNELS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
  """One row of the table: a convolution or a fully connected layer.

  Attributes:
    name: `conv1` to `conv5`, `fc6` to `fc8`.
    reads: `image`, its `own` column of the layer before, or `all` columns.
    features: output maps or units, summed over all columns.
    window: side of the square convolution window in pixels; 0 for a fully
      connected layer.
    stride: of the convolution, in pixels.
    padding: zeros (before, after), in both directions of the map.
    relu: whether max(x, 0) follows.
    normalise: whether local response normalisation follows.
    pool: whether 3x3 max pooling with stride 2 follows.
    dropout: whether dropout follows.
    kernel_std: standard deviation of the initial weights; None for He scaling,
      sqrt(2 / fan-in).
    bias: initial bias.
  """

  name: str
  reads: str
  features: int
  window: int = 0
  stride: int = 1
  padding: tuple[int, int] = (0, 0)
  relu: bool = True
  normalise: bool = False
  pool: bool = False
  dropout: bool = False
  kernel_std: float | None = 0.01
  bias: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wiring:
  """The rows of a network, before its width and its image are chosen.

  Attributes:
    name: what users type.
    columns: groups of feature maps, K.
    layers: the rows, first to last.
  """

  name: str
  columns: int
  layers: tuple[Layer, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  """What follows for one layer from the table and the size of the image.

  Attributes:
    positions: places in the map that arrives, height x width; 1 for units.
    channels: maps or units that arrive, over all columns.
    kernel: shape of the kernel, HWIO with I = channels one output reads, or
      (in, out) with in = units one output reads.
    map_side: side of the convolution's own output map, 1 for units.
    out_side: side after pooling, 1 for units.
  """

  positions: int
  channels: int
  kernel: tuple[int, ...]
  map_side: int
  out_side: int

  @property
  def parameters(self) -> int:
    return math.prod(self.kernel) + self.kernel[-1]

  @property
  def multiplications(self) -> int:
    """Multiply-accumulates of one image's forward pass."""
    return self.map_side**2 * math.prod(self.kernel)

  @property
  def outputs(self) -> int:
    """Values that one image has before pooling."""
    return self.map_side**2 * self.kernel[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
  """The table of layers with everything its sizes depend on.

  Attributes:
    name: of the wiring.
    layers: the rows, first to last.
    columns: groups of feature maps, K; 2 in the 2012 network.
    image_size: side of the square image that enters `conv1`, in pixels.
    dropout_rate: probability that a unit is dropped, in [0, 1).
  """

  name: str
  layers: tuple[Layer, ...]
  columns: int
  image_size: int
  dropout_rate: float

  def layer(self, name: str) -> Layer:
    return next(layer for layer in self.layers if layer.name == name)

  def sizes(self) -> dict[str, Sizes]:
    """Sizes of every layer, by name, first to last.

    Raises:
      ValueError: a map is smaller than the window that reads it.
    """
    sizes = {}
    side, channels = self.image_size, IMAGE_CHANNELS
    for layer in self.layers:
      arriving, positions = channels, side * side
      reads = channels // self.columns if layer.reads == "own" else channels
      if layer.window:
        kernel = (layer.window, layer.window, reads, layer.features)
        side = _window_count(
          side + sum(layer.padding), layer.window, layer.stride, self, layer
        )
      else:
        kernel = (positions * reads, layer.features)
        side = 1
      map_side = side
      if layer.pool:
        side = _window_count(side, 3, 2, self, layer)
      channels = layer.features
      sizes[layer.name] = Sizes(
        positions=positions,
        channels=arriving,
        kernel=kernel,
        map_side=map_side,
        out_side=side,
      )
    return sizes


def make_network(
  wiring: Wiring,
  *,
  columns: int | None = None,
  width: float = 1.0,
  image_size: int = 224,
  num_classes: int = 1000,
  dropout_rate: float = 0.5,
  init: str = "source",
) -> Network:
  """Makes a network of a given size from a wiring.

  Args:
    wiring: the rows; the last one's features are replaced by `num_classes`.
    columns: another number of columns than the wiring has. With 1, `own` and
      `all` are the same.
    width: multiplies the features of every layer but the last.
    image_size: side of the image that enters conv1, in pixels.
    num_classes: number of labels.
    dropout_rate: probability that a unit is dropped, in [0, 1).
    init: `source`, the table's standard deviations and biases, made for pixels
      of 0..255; or `he`, sqrt(2 / fan-in) and biases of 0, for inputs of about
      unit scale.

  Returns:
    The network; its sizes have been computed once, so they exist.

  Raises:
    ValueError: a value is out of range, or the columns do not divide a layer.
  """
  table = wiring.layers
  if columns is None:
    columns = wiring.columns
  if columns < 1:
    raise ValueError(
      f"network.columns is {columns}, expected 1 or more. "
      "Set config.network.columns."
    )
  if not 0.0 <= dropout_rate < 1.0:
    raise ValueError(
      f"network.dropout_rate is {dropout_rate}, expected 0 <= rate < 1. "
      "Set config.network.dropout_rate."
    )
  if num_classes < 1:
    raise ValueError(
      f"the number of classes is {num_classes}, expected 1 or more. "
      "Set config.network.num_classes."
    )
  if init not in ("source", "he"):
    raise ValueError(
      f"network.init is {init!r}, expected 'source' or 'he'. "
      "Set config.network.init."
    )
  layers = []
  for layer in table[:-1]:
    features = layer.features * width
    if features < 1 or features != int(features):
      raise ValueError(
        f"network.width {width} makes {features:g} features of the "
        f"{layer.features} of {layer.name}, expected a whole number of 1 or "
        "more. Set config.network.width."
      )
    layers.append(dataclasses.replace(layer, features=int(features)))
  layers.append(dataclasses.replace(table[-1], features=num_classes))
  for before, layer in zip((None, *layers), layers, strict=False):
    read = before.features if before and layer.reads == "own" else columns
    split = layer is not layers[-1]
    if read % columns or (split and layer.features % columns):
      raise ValueError(
        f"{columns} columns do not divide {layer.name}, which has "
        f"{layer.features} features. "
        "Set config.network.columns or config.network.width."
      )
  if init == "he":
    layers = [
      dataclasses.replace(layer, kernel_std=None, bias=0.0) for layer in layers
    ]
  network = Network(
    name=wiring.name,
    layers=tuple(layers),
    columns=columns,
    image_size=image_size,
    dropout_rate=dropout_rate,
  )
  network.sizes()
  return network


def _window_count(
  side: int, window: int, stride: int, network: Network, layer: Layer
) -> int:
  if side < window:
    raise ValueError(
      f"the map that {layer.name} reads or pools is {side} pixels wide, less "
      f"than its window of {window}, for an image of {network.image_size} "
      "pixels. Set config.network.image_size higher."
    )
  return (side - window) // stride + 1
