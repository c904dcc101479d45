"""The network as a table: its layers, K columns, and who reads what.

A `Layer` is one row, a `Wiring` is a named table of them, and a `Network` is a
table in a given size. The model, the layout's checks and the plan of
communication are all computed from here. Standard library only.

`settings/fields.py` checks the range of each value; here are the checks of how
they go together.
"""

from __future__ import annotations

import dataclasses
import math

ACTIVATIONS = ("relu", "tanh", "sigmoid")
NORMALIZATIONS = ("none", "column", "across", "batch")
DROPOUT_SCALINGS = ("test", "train")
# What each initialization changes in every row of the table.
_INIT_CHANGES = {
  "source": {},
  "paper": {"kernel_std": 0.01},
  "he": {"kernel_std": None, "bias": 0.0},
}
INITS = tuple(_INIT_CHANGES)

# Maps in the window of local response normalization, n of Krizhevsky et al.
# 2012, section 3.3.
LRN_SIZE = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
  """Pooling of a map; windows overlap where they are wider than the stride.

  Attributes:
    window: side of the square window, in pixels.
    stride: distance between windows, in pixels.
    kind: `max`, `average`, or `stochastic`: training samples one value of each
      window in proportion to the values, evaluation takes their average with
      these weights (Zeiler and Fergus 2013).
  """

  window: int = 3
  stride: int = 2
  kind: str = "max"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
  """One row of the table: a convolution or a fully connected layer.

  Activation, normalization, pooling and dropout follow in this order; batch
  normalization comes before the activation.

  Attributes:
    name: `conv1` to `conv5`, `fc6` to `fc8`.
    reads: `image`, its `own` column of the layer before, or `all` columns.
    features: output maps or units, summed over all columns.
    window: side of the square convolution window in pixels; 0 for a fully
      connected layer.
    stride: of the convolution, in pixels.
    padding: zeros (before, after), in both directions of the map.
    activation: one of `ACTIVATIONS`, or `linear`, the identity.
    normalize: `none`; `column` or `across`: local response normalization over
      maps of a column or of all columns; `batch`: batch normalization.
    pool: None for no pooling.
    dropout: whether dropout follows.
    dropout_rate: probability that a value is dropped; None for the network's.
    kernel_std: standard deviation of the initial kernel; None for He scaling,
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
  def halo(self) -> int:
    """Maps of other devices, on each side, that the normalization reads."""
    return LRN_SIZE // 2 if self.normalize == "across" else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wiring:
  """The rows of a network, before its width and its image are chosen.

  Attributes:
    name: what users type.
    columns: groups of feature maps, K.
    image_channels: 3, or 1, the mean of the three.
    published_size: side of the image that it was published with, in pixels.
    published_classes: number of labels that it was published with.
  """

  name: str
  columns: int
  layers: tuple[Layer, ...]
  image_channels: int = 3
  published_size: int = 224
  published_classes: int = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  """Sizes of one layer, which follow from the table and the image.

  Attributes:
    positions: height x width of the input map; 1 for units.
    channels: input maps or units, over all columns.
    kernel: shape of the kernel, HWIO with I = channels one output reads, or
      (in, out) with in = units one output reads; (positions, I, out) where a
      fully connected layer reads a map: position by position, channels last.
    map_side: side of the convolution's own output map, 1 for units.
    out_side: side after pooling, 1 for units.
    scales: number of batch normalization's scales, one per output; else 0.
  """

  positions: int
  channels: int
  kernel: tuple[int, ...]
  map_side: int
  out_side: int
  scales: int = 0

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """{parameter: shape}."""
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
    """Values per image before pooling."""
    return self.map_side**2 * self.kernel[-1]

  @property
  def out_shape(self) -> tuple[int, ...]:
    """Shape per image after pooling: (out_side, out_side, maps) or (units,)."""
    is_map = len(self.kernel) == 4
    sides = (self.out_side, self.out_side) if is_map else ()
    return *sides, self.kernel[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
  """The table of layers with everything its sizes depend on.

  Attributes:
    name: of the wiring.
    columns: groups of feature maps, K; 2 in the 2012 network.
    image_size: side of the square image that enters `conv1`, in pixels.
    dropout_rate: probability that a value is dropped, in [0, 1).
    dropout_scaling: when dropout scales by the probability to keep a value:
      `test` multiplies in evaluation, `train` divides in training.
    lrn_k: constant of local response normalization, added to the energy.
    lrn_alpha: its factor of the sum of squares.
    image_channels: 3, or 1, the mean of the three.
    batch_norm_momentum: decay of the running statistics per step, in [0, 1).
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
    """Probability that dropout after a layer keeps a value, in (0, 1]."""
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
      positions = side * side
      reads = channels // self.columns if layer.reads == "own" else channels
      if layer.window:
        kernel = (layer.window, layer.window, reads, layer.features)
        side = self._count_windows(
          layer, side + sum(layer.padding), layer.window, layer.stride
        )
      else:
        kernel = (reads, layer.features)
        if positions > 1:
          kernel = (positions, *kernel)
        side = 1
      map_side = side
      if layer.pool:
        side = self._count_windows(
          layer, side, layer.pool.window, layer.pool.stride
        )
      sizes[layer.name] = Sizes(
        positions=positions,
        channels=channels,
        kernel=kernel,
        map_side=map_side,
        out_side=side,
        scales=layer.features if layer.normalize == "batch" else 0,
      )
      channels = layer.features
    return sizes

  def _count_windows(
    self, layer: Layer, side: int, window: int, stride: int
  ) -> int:
    if side < window:
      raise ValueError(
        f"the map that {layer.name} reads or pools is {side} pixels wide, less "
        f"than its window of {window}, for an image of {self.image_size} "
        "pixels. Set config.network.image_size higher, or "
        "config.network.pooling smaller."
      )
    return (side - window) // stride + 1


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

  Args: those of `Network`, and
    wiring: the rows; the last one's features are replaced by `num_classes`.
    columns: another number of columns than the wiring has. With 1, `own` and
      `all` are the same.
    width: multiplies the features of every layer but the last.
    init: `source`, the table's standard deviations and biases, made for pixels
      of 0..255; `paper`, the same biases and .01 in every layer; or `he`,
      sqrt(2 / fan-in) and biases of 0, for inputs of about unit scale.
    activation: replaces the table's, except in the last layer, which has none;
      None keeps it.
    normalization: replaces the table's in layers that normalize, see `Layer`;
      `batch` in every layer but the last. None keeps it.
    pooling: (window, stride) in pixels, replaces the table's; None keeps it.

  Raises:
    ValueError: a value is none of the known ones, the columns do not divide a
      layer, or the width or the image makes a layer impossible.
  """
  for name, value, known in (
    ("init", init, INITS),
    ("activation", activation, ACTIVATIONS),
    ("normalization", normalization, NORMALIZATIONS),
    ("dropout_scaling", dropout_scaling, DROPOUT_SCALINGS),
  ):
    if value is not None and value not in known:
      raise ValueError(
        f"network.{name} is {value!r}, expected one of {', '.join(known)}. "
        f"Set config.network.{name}."
      )
  columns = wiring.columns if columns is None else columns
  *hidden, last = wiring.layers
  layers = [
    _override(_widen(layer, width), activation, normalization, pooling)
    for layer in hidden
  ]
  layers.append(dataclasses.replace(last, features=num_classes))
  layers = [
    dataclasses.replace(layer, **_INIT_CHANGES[init]) for layer in layers
  ]
  _check_columns(layers, columns)
  if columns == 1:
    # The only column is all columns, and a layout may split it.
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
  network.sizes()  # raises where the image is too small
  return network


def _widen(layer: Layer, width: float) -> Layer:
  features = layer.features * width
  if features < 1 or features != int(features):
    raise ValueError(
      f"network.width {width} makes {features:g} features of the "
      f"{layer.features} of {layer.name}, expected an integer of 1 or more. "
      "Set config.network.width."
    )
  return dataclasses.replace(layer, features=int(features))


def _override(
  layer: Layer,
  activation: str | None,
  normalization: str | None,
  pooling: tuple[int, int] | None,
) -> Layer:
  """Replaces parts of a row by what a config sets."""
  normalizes = layer.normalize != "none" or normalization == "batch"
  pool = layer.pool
  if pooling is not None and pool:
    pool = Pool(window=pooling[0], stride=pooling[1], kind=pool.kind)
  layer = dataclasses.replace(
    layer,
    activation=activation or layer.activation,
    normalize=(normalizes and normalization) or layer.normalize,
    pool=pool,
  )
  is_stochastic = pool is not None and pool.kind == "stochastic"
  if is_stochastic and layer.activation not in ("relu", "sigmoid"):
    raise ValueError(
      f"{layer.name} has stochastic pooling, which needs values of 0 or more, "
      f"but its activation is {layer.activation}, expected relu or sigmoid. "
      "Set config.network.activation or config.network.wiring."
    )
  return layer


def _check_columns(layers: list[Layer], columns: int) -> None:
  for before, layer in zip((None, *layers), layers, strict=False):
    read = before.features if before and layer.reads == "own" else columns
    is_last = layer is layers[-1]
    if read % columns or (not is_last and layer.features % columns):
      raise ValueError(
        f"{columns} columns do not divide {layer.name}, which has "
        f"{layer.features} features. "
        "Set config.network.columns or config.network.width."
      )
