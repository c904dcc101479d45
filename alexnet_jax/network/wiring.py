"""The network as a table: its layers, K columns, and who reads what.

A `Layer` is one row, a `Wiring` is a named table of them, and a `Network` is a
table in a given size. Standard library only: the model, the layout's checks
and the plan of communication are all computed from here.
"""

from __future__ import annotations

import dataclasses
import math

ACTIVATIONS = ("relu", "tanh", "sigmoid")
NORMALIZATIONS = ("none", "column", "across", "batch")
INITS = ("source", "paper", "he")
DROPOUT_SCALINGS = ("test", "train")

# Maps in the window of local response normalization, n of Krizhevsky et al.
# 2012, section 3.3.
LRN_SIZE = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
  """Pooling of a map; windows overlap where they are wider than the stride.

  Attributes:
    window: side of the square window, in pixels.
    stride: distance between windows, in pixels.
    kind: `max`, `average`, or `stochastic`: in training one value of a window,
      drawn with probabilities in proportion to the values, and in evaluation
      their average with these weights (Zeiler and Fergus 2013).
  """

  window: int = 3
  stride: int = 2
  kind: str = "max"


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
    activation: what follows: `relu`, `tanh`, `sigmoid` or `linear`, which is
      nothing.
    normalize: `none`; `column` or `across`: local response normalization over
      maps of a column or of all columns follows the activation; `batch`: batch
      normalization comes before it.
    pool: what follows then; None for nothing.
    dropout: whether dropout follows.
    dropout_rate: probability that a value is dropped; None as the network has
      it.
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
  activation: str = "relu"
  normalize: str = "none"
  pool: Pool | None = None
  dropout: bool = False
  dropout_rate: float | None = None
  kernel_std: float | None = 0.01
  bias: float = 0.0

  @property
  def reach(self) -> int:
    """Maps on each side of a device's own that the layer normalizes with."""
    return LRN_SIZE // 2 if self.normalize == "across" else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wiring:
  """The rows of a network, before its width and its image are chosen.

  Attributes:
    name: what users type.
    columns: groups of feature maps, K.
    layers: the rows, first to last.
    image_channels: of the image: 3, or 1, the mean of the three.
    published_size: side of the image that it was published with, in pixels.
    published_classes: labels that it was published with.
  """

  name: str
  columns: int
  layers: tuple[Layer, ...]
  image_channels: int = 3
  published_size: int = 224
  published_classes: int = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  """What follows for one layer from the table and the size of the image.

  Attributes:
    positions: places in the map that arrives, height x width; 1 for units.
    channels: maps or units that arrive, over all columns.
    kernel: shape of the kernel, HWIO with I = channels one output reads, or
      (in, out) with in = units one output reads; (positions, I, out) where a
      fully connected layer reads a map.
    map_side: side of the convolution's own output map, 1 for units.
    out_side: side after pooling, 1 for units.
    scales: of a batch normalization, one for each output; 0 without.
  """

  positions: int
  channels: int
  kernel: tuple[int, ...]
  map_side: int
  out_side: int
  scales: int = 0

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Of each parameter."""
    shapes = {"kernel": self.kernel, "bias": self.kernel[-1:]}
    return shapes | ({"scale": (self.scales,)} if self.scales else {})

  @property
  def parameters(self) -> int:
    return sum(map(math.prod, self.shapes.values()))

  @property
  def multiplications(self) -> int:
    """Multiply-accumulates of one image's forward pass."""
    return self.map_side**2 * math.prod(self.kernel)

  @property
  def outputs(self) -> int:
    """Values that one image has before pooling."""
    return self.map_side**2 * self.kernel[-1]

  @property
  def out_shape(self) -> tuple[int, ...]:
    """Of what one image leaves: (out_side, out_side, maps) or (units,)."""
    is_map = len(self.kernel) == 4
    sides = (self.out_side, self.out_side) if is_map else ()
    return *sides, self.kernel[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
  """The table of layers with everything its sizes depend on.

  Attributes:
    name: of the wiring.
    layers: the rows, first to last.
    columns: groups of feature maps, K; 2 in the 2012 network.
    image_size: side of the square image that enters `conv1`, in pixels.
    dropout_rate: probability that a unit is dropped, in [0, 1).
    dropout_scaling: where the units that dropout leaves are made up for:
      `test`, outputs times the share kept, or `train`, divided by it.
    lrn_k: what local response normalization adds to the energy.
    lrn_alpha: what it multiplies the sum of squares by.
    image_channels: of the image: 3, or 1, the mean of the three.
    batch_norm_momentum: share of the running statistics of a batch
      normalization that a step keeps, in [0, 1).
  """

  name: str
  layers: tuple[Layer, ...]
  columns: int
  image_size: int
  dropout_rate: float
  dropout_scaling: str = "test"
  lrn_k: float = 2.0
  lrn_alpha: float = 2e-5
  image_channels: int = 3
  batch_norm_momentum: float = 0.9

  def layer(self, name: str) -> Layer:
    return next(layer for layer in self.layers if layer.name == name)

  def keep_rate(self, name: str) -> float:
    """Probability that dropout after a layer leaves a value, in (0, 1]."""
    rate = self.layer(name).dropout_rate
    return 1.0 - (self.dropout_rate if rate is None else rate)

  def sizes(self) -> dict[str, Sizes]:
    """Sizes of every layer, by name, first to last.

    Raises:
      ValueError: a map is smaller than the window that reads it.
    """
    sizes = {}
    side, channels = self.image_size, self.image_channels
    for layer in self.layers:
      arriving, positions = channels, side * side
      reads = channels // self.columns if layer.reads == "own" else channels
      if layer.window:
        kernel = (layer.window, layer.window, reads, layer.features)
        side = _window_count(
          side + sum(layer.padding), layer.window, layer.stride, self, layer
        )
      else:
        places = (positions,) if positions > 1 else ()
        kernel = (*places, reads, layer.features)
        side = 1
      map_side = side
      if layer.pool:
        side = _window_count(
          side, layer.pool.window, layer.pool.stride, self, layer
        )
      channels = layer.features
      sizes[layer.name] = Sizes(
        positions=positions,
        channels=arriving,
        kernel=kernel,
        map_side=map_side,
        out_side=side,
        scales=layer.features if layer.normalize == "batch" else 0,
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
  dropout_scaling: str = "test",
  init: str = "source",
  activation: str | None = None,
  normalization: str | None = None,
  lrn_k: float = 2.0,
  lrn_alpha: float = 2e-5,
  batch_norm_momentum: float = 0.9,
  pooling: tuple[int, int] | None = None,
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
      of 0..255; `paper`, the same biases and .01 in every layer; or `he`,
      sqrt(2 / fan-in) and biases of 0, for inputs of about unit scale.
    dropout_scaling: see `Network`.
    activation: in the place of the table's; None keeps. The last layer has
      none.
    normalization: in the place of the table's where it normalizes, see
      `Layer`, but `batch` in every layer but the last; None keeps.
    lrn_k: see `Network`.
    lrn_alpha: see `Network`.
    batch_norm_momentum: see `Network`.
    pooling: (window, stride) in the place of the table's; None keeps.

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
  if not 0.0 <= batch_norm_momentum < 1.0:
    raise ValueError(
      f"network.batch_norm_momentum is {batch_norm_momentum}, expected "
      "0 <= momentum < 1. Set config.network.batch_norm_momentum."
    )
  if init not in INITS:
    raise ValueError(
      f"network.init is {init!r}, expected one of {', '.join(INITS)}. "
      "Set config.network.init."
    )
  _check_choices(activation, normalization, dropout_scaling, pooling)
  _check_positive(lrn_k=lrn_k, lrn_alpha=lrn_alpha)
  layers = []
  for layer in table[:-1]:
    features = layer.features * width
    if features < 1 or features != int(features):
      raise ValueError(
        f"network.width {width} makes {features:g} features of the "
        f"{layer.features} of {layer.name}, expected a whole number of 1 or "
        "more. Set config.network.width."
      )
    layer = _choose(layer, activation, normalization, pooling)
    if layer.pool and layer.pool.kind == "stochastic":
      _check_not_negative(layer)
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
  if init == "paper":
    layers = [dataclasses.replace(layer, kernel_std=0.01) for layer in layers]
  if init == "he":
    layers = [
      dataclasses.replace(layer, kernel_std=None, bias=0.0) for layer in layers
    ]
  if columns == 1:
    # One column is all columns, and those a layout may split.
    layers = [
      dataclasses.replace(layer, normalize="across")
      if layer.normalize == "column"
      else layer
      for layer in layers
    ]
  network = Network(
    name=wiring.name,
    layers=tuple(layers),
    columns=columns,
    image_size=image_size,
    dropout_rate=dropout_rate,
    dropout_scaling=dropout_scaling,
    lrn_k=lrn_k,
    lrn_alpha=lrn_alpha,
    image_channels=wiring.image_channels,
    batch_norm_momentum=batch_norm_momentum,
  )
  network.sizes()
  return network


def _choose(
  layer: Layer,
  activation: str | None,
  normalization: str | None,
  pooling: tuple[int, int] | None,
) -> Layer:
  """A row with what a config has in the place of the table's."""
  if activation is not None:
    layer = dataclasses.replace(layer, activation=activation)
  normalizes = layer.normalize != "none" or normalization == "batch"
  if normalization is not None and normalizes:
    layer = dataclasses.replace(layer, normalize=normalization)
  if pooling is not None and layer.pool:
    window, stride = pooling
    pool = dataclasses.replace(layer.pool, window=window, stride=stride)
    layer = dataclasses.replace(layer, pool=pool)
  return layer


def _check_choices(
  activation: str | None,
  normalization: str | None,
  dropout_scaling: str,
  pooling: tuple[int, int] | None,
) -> None:
  for name, value, known in (
    ("activation", activation, ACTIVATIONS),
    ("normalization", normalization, NORMALIZATIONS),
    ("dropout_scaling", dropout_scaling, DROPOUT_SCALINGS),
  ):
    if value is not None and value not in known:
      raise ValueError(
        f"network.{name} is {value!r}, expected one of {', '.join(known)}. "
        f"Set config.network.{name}."
      )
  if pooling is not None and (
    len(pooling) != 2
    or not all(isinstance(size, int) and size > 0 for size in pooling)
  ):
    raise ValueError(
      f"network.pooling is {pooling}, expected (window, stride) in pixels, as "
      "(3, 2). Set config.network.pooling."
    )


def _check_positive(**fields: float) -> None:
  for name, value in fields.items():
    if not 0 < value < math.inf:
      raise ValueError(
        f"network.{name} is {value}, expected a finite number above 0. "
        f"Set config.network.{name}."
      )


def _check_not_negative(layer: Layer) -> None:
  if layer.activation not in ("relu", "sigmoid"):
    raise ValueError(
      f"{layer.name} draws a value of each window in proportion to it, and "
      f"{layer.activation} has values below 0; expected relu or sigmoid. "
      "Set config.network.activation or config.network.wiring."
    )


def _window_count(
  side: int, window: int, stride: int, network: Network, layer: Layer
) -> int:
  if side < window:
    raise ValueError(
      f"the map that {layer.name} reads or pools is {side} pixels wide, less "
      f"than its window of {window}, for an image of {network.image_size} "
      "pixels. Set config.network.image_size higher, or "
      "config.network.pooling smaller."
    )
  return (side - window) // stride + 1
