"""The network as a table: its layers, K columns, and who reads what.

A `Layer` is one row, a `Wiring` is a named table of them, and a `Network` is a
table in a given size. The model, the layout's checks and the plan of
communication are all computed from here. Standard library only.

`check` refuses a table that is no network; `settings/fields.py` checks the
fields of a config.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import keyword
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_LONGEST_VALUE = 80
READS = ("image", "own", "all")
ACTIVATIONS = ("relu", "tanh", "sigmoid")
NORMALIZATIONS = ("none", "column", "across", "map", "batch")
# Normalizations over maps, which a second one in the same map may follow.
OVER_MAPS = ("column", "across")
POOLINGS = ("max", "average", "stochastic")
DROPOUT_SCALINGS = ("test", "train")
# What follows the product of a layer, in the order of Krizhevsky et al. 2012,
# section 3.5.
ORDER = ("activation", "normalization", "pooling")
# Names that no layer may have: those of the plan, of a config's layout, of the
# attributes of a Flax module, and of the scopes that JAX puts around a step, in
# which the audit looks for the layer of a collective. A config has others too.
RESERVED_NAMES = frozenset(
  (
    *("loss", "update", "kernel", "bias", "scale", "edges", "statistics"),
    *("norm", "name", "axes", "mesh", "conv", "fc", "allow_unplanned"),
    *("network", "implementations", "train", "eval", "sow", "perturb"),
    *("set_attributes", "iter_modules", "iter_children"),
    *("jit", "jvp", "transpose", "shard_map", "train_step", "on_member"),
  )
)
# What each initialization changes in every row of the table.
INIT_CHANGES = {
  "source": {},
  "paper": {"kernel_std": 0.01},
  "he": {"kernel_std": None, "bias": 0.0},
}
INITS = tuple(INIT_CHANGES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
  """Pooling of a map; windows overlap where they are wider than the stride.

  Attributes:
    window: side of the square window, in pixels.
    stride: distance between windows, in pixels.
    kind: `max`, `average`, or `stochastic`: training samples one value of each
      window in proportion to the values, evaluation takes their average with
      these weights (Zeiler and Fergus 2013).
    padding: pixels (before, after), in both directions of the map, that no
      window counts: a maximum, an average or a sample is of real pixels only.
  """

  window: int = 3
  stride: int = 2
  kind: str = "max"
  padding: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lrn:
  """Constants of local response normalization, x / (k + alpha * sum)^beta.

  Those of the network of 2012 (Krizhevsky et al. 2012, section 3.3, and
  cuda-convnet, layer-params-145.cfg).

  Attributes:
    size: maps in the window, or its side in pixels, odd.
    k: constant that is added to the energy.
    alpha: factor of the plain sum of squares. The 1e-4 of the paper was divided
      by the size of the window in the released code, and is in Caffe.
    beta: the power.
  """

  size: int = 5
  k: float = 2.0
  alpha: float = 2e-5
  beta: float = 0.75


# Parts of a row, which are groups of fields in a config: as they start where a
# row has none and a config sets a field of one.
PARTS = {"pool": Pool(), "lrn": Lrn(), "map_lrn": Lrn()}
# The field by which a config says that a row has no such part.
NO_PART = {"pool": {"kind": "none"}, "lrn": None, "map_lrn": {"size": 0}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
  """One row of the table: a convolution or a fully connected layer.

  Activation, normalization and pooling follow the product in the order of the
  row. Batch normalization takes the place of the bias, and so comes first in
  any order. Dropout comes last.

  Attributes:
    name: a Python identifier that begins with a letter; not one of
      `RESERVED_NAMES`.
    reads: `image`, its `own` column of the layer before, or `all` columns.
    features: output maps or units, summed over all columns.
    window: side of the square convolution window in pixels; 0 for a fully
      connected layer.
    stride: of the convolution, in pixels.
    padding: zeros (before, after), in both directions of the map.
    activation: one of `ACTIVATIONS`, or `linear`, the identity.
    normalize: `none`; `column` or `across`: local response normalization over
      maps of a column or of all columns; `map`: over the neighbors in the same
      map; `batch`: batch normalization.
    lrn: constants of the local response normalization.
    map_lrn: constants of a second one, over the neighbors in the same map,
      right after that over maps; None for none.
    pool: None for no pooling.
    order: of what follows the product, a permutation of `ORDER`.
    dropout: whether dropout follows.
    dropout_rate: probability that a value is dropped; None for the network's,
      and without dropout.
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
  lrn: Lrn = Lrn()
  map_lrn: Lrn | None = None
  pool: Pool | None = None
  order: tuple[str, ...] = ORDER
  dropout: bool = False
  dropout_rate: float | None = None
  kernel_std: float | None = 0.01
  bias: float = 0.0

  @property
  def kind(self) -> str:
    """`conv` or `fc`."""
    return "conv" if self.window else "fc"

  @property
  def halo(self) -> int:
    """Maps on each side that the normalization reads, also of other devices.

    Within a column, only if devices split it.
    """
    return self.lrn.size // 2 if self.normalize in OVER_MAPS else 0

  def split_order(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns what its order has before pooling, and what after it.

    Without pooling everything is before it. Batch normalization follows the
    product in any order.
    """
    if self.pool is None:
      return tuple(part for part in self.order if part != "pooling"), ()
    index = self.order.index("pooling")
    return self.order[:index], self.order[index + 1 :]


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
    norm_side: side of the map that a normalization of the row reads: before
      or after pooling, 1 for units.
    scales: number of batch normalization's scales, one per output; else 0.
  """

  positions: int
  channels: int
  kernel: tuple[int, ...]
  map_side: int
  out_side: int
  norm_side: int
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
    image_size: side of the square image that enters the first layer, in pixels.
    dropout_rate: probability that a value is dropped, in [0, 1).
    dropout_scaling: when dropout scales by the probability to keep a value:
      `test` multiplies in evaluation, `train` divides in training.
    image_channels: 3, or 1, the mean of the three.
    batch_norm_momentum: decay of the running statistics per step, in [0, 1).
    frozen: names of the layers that training leaves as they are, without
      gradients of their parameters; all others are trained.
  """

  name: str
  layers: tuple[Layer, ...]
  columns: int
  image_size: int
  dropout_rate: float
  dropout_scaling: str = "test"
  image_channels: int = 3
  batch_norm_momentum: float = 0.9
  frozen: tuple[str, ...] = ()

  @functools.cached_property
  def trained(self) -> tuple[str, ...]:
    """Names of the layers that are not frozen, first to last."""
    return tuple(
      layer.name for layer in self.layers if layer.name not in self.frozen
    )

  def needs_input_gradient(self, name: str) -> bool:
    """Whether the input of a layer depends on parameters that are trained."""
    below = itertools.takewhile(lambda layer: layer.name != name, self.layers)
    return any(layer.name in self.trained for layer in below)

  def needs_backward(self, name: str) -> bool:
    """Whether the backward pass reaches a layer."""
    return name in self.trained or self.needs_input_gradient(name)

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
        side = self._count_windows(layer.name, layer, side)
      else:
        kernel = (reads, layer.features)
        if positions > 1:
          kernel = (positions, *kernel)
        side = 1
      map_side = side
      if layer.pool:
        side = self._count_windows(f"{layer.name}.pool", layer.pool, side)
      pools_first = layer.order.index("pooling") < layer.order.index(
        "normalization"
      )
      sizes[layer.name] = Sizes(
        positions=positions,
        channels=channels,
        kernel=kernel,
        map_side=map_side,
        out_side=side,
        norm_side=side if pools_first else map_side,
        scales=layer.features if layer.normalize == "batch" else 0,
      )
      channels = layer.features
    return sizes

  def _count_windows(self, name: str, windows: Layer | Pool, side: int) -> int:
    """Returns the windows along a side of the map that a part of a row reads.

    Args:
      name: of the part, in `config.network.layers`.
    """
    side += sum(windows.padding)
    if side < windows.window:
      raise ValueError(
        f"{name} has a window of {windows.window}, and reads a map that is "
        f"{side} pixels wide with its padding, for an image of "
        f"{self.image_size} pixels. Set config.network.image_size higher, or "
        f"config.network.layers.{name}.window smaller."
      )
    return (side - windows.window) // windows.stride + 1


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
  lrn_k: float | None = None,
  lrn_alpha: float | None = None,
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
    lrn_k, lrn_alpha: replace the table's in every `Layer.lrn`; None keeps them.
    pooling: (window, stride) in pixels, replaces the table's; None keeps it.

  Raises:
    ValueError: a value is none of the known ones, a row is wrong, the columns
      do not divide a layer, or the width or the image makes a layer impossible.
  """
  check(wiring)
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
  constants = {"k": lrn_k, "alpha": lrn_alpha}
  constants = {k: v for k, v in constants.items() if v is not None}
  layers = [
    _override(
      _widen(layer, width), activation, normalization, constants, pooling
    )
    for layer in hidden
  ]
  layers.append(dataclasses.replace(last, features=num_classes))
  layers = [
    dataclasses.replace(layer, **INIT_CHANGES[init]) for layer in layers
  ]
  check(dataclasses.replace(wiring, layers=tuple(layers)))
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
      "Set config.network.width or "
      f"config.network.layers.{layer.name}.features."
    )
  return dataclasses.replace(layer, features=int(features))


def _override(
  layer: Layer,
  activation: str | None,
  normalization: str | None,
  constants: Mapping[str, float],
  pooling: tuple[int, int] | None,
) -> Layer:
  """Replaces parts of a row by what a config sets."""
  normalizes = layer.normalize != "none" or normalization == "batch"
  normalize = (normalizes and normalization) or layer.normalize
  pool = layer.pool
  if pooling is not None and pool:
    pool = dataclasses.replace(pool, window=pooling[0], stride=pooling[1])
  return dataclasses.replace(
    layer,
    activation=activation or layer.activation,
    normalize=normalize,
    lrn=dataclasses.replace(layer.lrn, **constants),
    map_lrn=layer.map_lrn if normalize in OVER_MAPS else None,
    pool=pool,
  )


def _check_columns(layers: list[Layer], columns: int) -> None:
  for before, layer in zip((None, *layers), layers, strict=False):
    read = before.features if before and layer.reads == "own" else columns
    is_last = layer is layers[-1]
    if read % columns or (not is_last and layer.features % columns):
      raise ValueError(
        f"{columns} columns do not divide {layer.name}, which has "
        f"{layer.features} features. Set config.network.columns, "
        f"config.network.width or config.network.layers.{layer.name}.features."
      )


@dataclasses.dataclass(frozen=True)
class _Rule:
  """What a value of a row may be, in code, in words, and an example."""

  accepts: Callable[[Any], bool]
  expected: str
  example: str


def _is_integer(value: Any, least: int) -> bool:
  is_integer = isinstance(value, int) and not isinstance(value, bool)
  return is_integer and value >= least


def _is_number(value: Any) -> bool:
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return is_number and math.isfinite(value)


def _is_padding(value: Any) -> bool:
  is_pair = isinstance(value, tuple) and len(value) == 2
  return is_pair and all(_is_integer(side, 0) for side in value)


def _integer(least: int, example: int) -> _Rule:
  return _Rule(
    lambda value: _is_integer(value, least),
    f"an integer of {least} or more",
    str(example),
  )


def _one_of(words: Sequence[str], example: str) -> _Rule:
  return _Rule(
    lambda value: isinstance(value, str) and value in words,
    f"one of {', '.join(words)}",
    repr(example),
  )


_PADDING = _Rule(
  _is_padding, "two integers of 0 or more, (before, after)", "(1, 1)"
)
_POOL_RULES = {
  "window": _integer(1, 3),
  "stride": _integer(1, 2),
  "kind": dataclasses.replace(
    _one_of(POOLINGS, "max"), example="'max', or pool=None for none"
  ),
  "padding": _PADDING,
}
_LRN_RULES = {
  "size": _Rule(
    lambda value: _is_integer(value, 1) and value % 2 == 1,
    "an odd integer of 1 or more",
    "5",
  ),
  **{
    name: _Rule(
      lambda value: _is_number(value) and value > 0, "a number above 0", example
    )
    for name, example in (("k", "2.0"), ("alpha", "2e-5"), ("beta", "0.75"))
  },
}
_LAYER_RULES = {
  "reads": _one_of(READS, "all"),
  "features": _integer(1, 64),
  "window": _integer(0, 3),
  "stride": _integer(1, 1),
  "padding": _PADDING,
  "activation": _one_of((*ACTIVATIONS, "linear"), "relu"),
  "normalize": _one_of(NORMALIZATIONS, "none"),
  "lrn": _Rule(lambda value: isinstance(value, Lrn), "an Lrn", "Lrn()"),
  "map_lrn": _Rule(
    lambda value: value is None or isinstance(value, Lrn),
    "None or an Lrn",
    "None",
  ),
  "pool": _Rule(
    lambda value: value is None or isinstance(value, Pool),
    "None or a Pool",
    "Pool(window=3, stride=2)",
  ),
  "order": _Rule(
    lambda value: (
      isinstance(value, tuple)
      and all(isinstance(word, str) for word in value)
      and sorted(value) == sorted(ORDER)
    ),
    f"the words {', '.join(ORDER)}, each once",
    str(ORDER),
  ),
  "dropout": _Rule(
    lambda value: isinstance(value, bool), "True or False", "True"
  ),
  "dropout_rate": _Rule(
    lambda value: value is None or (_is_number(value) and 0 <= value < 1),
    "None or a number from 0 to below 1",
    "0.5",
  ),
  "kernel_std": _Rule(
    lambda value: value is None or (_is_number(value) and value >= 0),
    "None or a number of 0 or more",
    "0.01",
  ),
  "bias": _Rule(_is_number, "a finite number", "0.0"),
}
_WIRING_RULES = {
  "name": _Rule(
    lambda value: isinstance(value, str) and value != "", "a word", "'mine'"
  ),
  "columns": _integer(1, 1),
  "image_channels": _Rule(
    lambda value: _is_integer(value, 1) and value in (1, 3), "1 or 3", "3"
  ),
  "published_size": _integer(1, 224),
  "published_classes": _integer(1, 1000),
  "layers": _Rule(
    lambda value: (
      isinstance(value, tuple)
      and len(value) > 0
      and all(isinstance(layer, Layer) for layer in value)
    ),
    "a tuple of one Layer or more",
    "(Layer(...), Layer(...))",
  ),
}
# Fields that a fully connected layer leaves as they are; it has no map.
_OF_MAPS = ("stride", "padding", "pool", "map_lrn")


def check(wiring: Wiring) -> None:
  """Refuses a table that is no network, in whatever size.

  Raises:
    ValueError: names the wiring, the layer, the field and what to write.
  """
  label = f"wiring {wiring.name!r}"
  _check_fields(f"{label}: ", wiring, _WIRING_RULES)
  names = set()
  for before, layer in zip((None, *wiring.layers), wiring.layers, strict=False):
    _check_name(label, layer.name, names)
    names.add(layer.name)
    _check_layer(f"{label}: {layer.name}", layer)
    reads_image = layer.reads == "image"
    if reads_image is not (before is None):
      _refuse(
        f"{label}: {layer.name}.reads is {layer.reads!r}, and it is "
        + ("the first layer" if before is None else f"after {before.name}"),
        "'image' of the first layer and of no other",
        "reads='image'" if before is None else "reads='all'",
      )
    if before and before.kind == "fc" and layer.kind == "conv":
      _refuse(
        f"{label}: {layer.name}.window is {layer.window}, and it reads "
        f"{before.name}, which has units and no maps",
        "a fully connected layer",
        "window=0, or a window of the layers before",
      )
  _check_last(f"{label}: {wiring.layers[-1].name}", wiring.layers[-1])


def _refuse(found: str, expected: str, example: str) -> None:
  raise ValueError(f"{found}, expected {expected}. Write {example}.")


def shorten(value: Any) -> str:
  """Returns the text of a value, for an error in one line."""
  short = reprlib.Repr()
  short.maxstring = short.maxother = short.maxlong = _LONGEST_VALUE
  return short.repr(value)


def _check_fields(label: str, row: Any, rules: Mapping[str, _Rule]) -> None:
  for name, rule in rules.items():
    value = getattr(row, name)
    if not rule.accepts(value):
      _refuse(
        f"{label}{name} is {shorten(value)}",
        rule.expected,
        f"{name}={rule.example}",
      )


def _check_name(label: str, name: Any, others: set[str]) -> None:
  is_name = isinstance(name, str) and name.isascii() and name.isidentifier()
  if not is_name or not name[0].isalpha() or keyword.iskeyword(name):
    reason = "a Python identifier that begins with a letter"
  elif name in RESERVED_NAMES:
    reason = "a name that is not reserved"
  elif name in others:
    reason = "a name that no layer before has"
  else:
    return
  _refuse(
    f"{label}: the name of a layer is {shorten(name)}", reason, "name='conv9'"
  )


def _check_layer(label: str, layer: Layer) -> None:
  """Refuses wrong values of a row, and those that contradict each other."""
  _check_fields(f"{label}.", layer, _LAYER_RULES)
  for name, rules in (
    ("lrn", _LRN_RULES),
    ("map_lrn", _LRN_RULES),
    ("pool", _POOL_RULES),
  ):
    if getattr(layer, name) is not None:
      _check_fields(f"{label}.{name}.", getattr(layer, name), rules)
  defaults = {field.name: field.default for field in dataclasses.fields(Layer)}
  if layer.kind == "fc":
    for name in _OF_MAPS:
      value = getattr(layer, name)
      if value != defaults[name]:
        _refuse(
          f"{label}.{name} is {value!r}, but its window is 0, so that it is "
          "fully connected and has no map",
          f"{defaults[name]!r}",
          f"{name}={defaults[name]!r}, or the window of a convolution",
        )
    if layer.normalize not in ("none", "batch"):
      _refuse(
        f"{label}.normalize is {layer.normalize!r}, but its window is 0, so "
        "that it is fully connected and has no map",
        "none or batch",
        "normalize='none', or the window of a convolution",
      )
  # XLA's gradient of such a convolution is wrong on CPUs (jaxlib 0.10.2), and a
  # window of zeros alone has no use.
  if layer.window and max(layer.padding) >= layer.window:
    _refuse(
      f"{label}.padding is {layer.padding} with a window of {layer.window}, so "
      "that a window might have no pixel of the map",
      f"less than {layer.window} on each side",
      "padding=(0, 0), or a larger window",
    )
  if layer.dropout_rate is not None and not layer.dropout:
    _refuse(
      f"{label}.dropout_rate is {layer.dropout_rate}, but its dropout is False",
      "None",
      "dropout=True, or dropout_rate=None",
    )
  if layer.map_lrn is not None and layer.normalize not in OVER_MAPS:
    _refuse(
      f"{label}.map_lrn follows a normalization over maps, but normalize is "
      f"{layer.normalize!r}",
      f"{' or '.join(OVER_MAPS)}",
      "map_lrn=None, or normalize='map' with its constants in lrn",
    )
  pool = layer.pool
  if pool is None:
    return
  if max(pool.padding) >= pool.window:
    _refuse(
      f"{label}.pool.padding is {pool.padding} with a window of {pool.window}, "
      "so that a window might have no pixel of the map",
      f"less than {pool.window} on each side",
      "padding=(0, 0), or a larger window",
    )
  if pool.kind == "stochastic":
    if layer.activation not in ("relu", "sigmoid"):
      raise ValueError(
        f"{label} has stochastic pooling, which needs values of 0 or more, but "
        f"its activation is {layer.activation}, expected relu or sigmoid. Set "
        "config.network.activation or the activation of the row."
      )
    if layer.order.index("activation") > layer.order.index("pooling"):
      _refuse(
        f"{label}.order is {layer.order}, but stochastic pooling needs the "
        "values of 0 or more that the activation makes",
        "the activation before the pooling",
        f"order={ORDER}",
      )


def _check_last(label: str, last: Layer) -> None:
  """Refuses a last layer that does not give logits."""
  for name, expected in (
    ("window", 0),
    ("activation", "linear"),
    ("normalize", "none"),
    ("dropout", False),
  ):
    value = getattr(last, name)
    if value != expected:
      _refuse(
        f"{label}.{name} is {value!r}, but it is the last layer, which gives "
        "the logits",
        f"{expected!r}",
        f"{name}={expected!r}, or another layer after it",
      )
  if last.reads == "own":
    _refuse(
      f"{label}.reads is 'own', but it is the last layer, whose logits are of "
      "all columns",
      "'all'",
      "reads='all'",
    )
