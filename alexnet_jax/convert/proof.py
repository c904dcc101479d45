"""Examines whether a network looks trained, or like random initial values.

Arrays of noise load as well as trained ones: the names and the shapes are
right, and the network works, at chance level. Initial values are independent of
each other, so that any order of them is as likely as any other. Training brings
order: neighboring pixels agree, units share directions, and each layer fits the
next. A test computes one statistic of such an order, and again after the values
were put into random orders. This needs no assumption about the distribution or
the scale of initial values, and shuffled values look random, too. A score is
the distance from the mean of the random orders in their standard deviations.

  pixels       smoothness of the kernels of a convolution; the pixels of each
               channel of each kernel in random orders
  spectrum     largest singular value of the kernel as a matrix; the values of
               each unit in random orders
  link before  agreement with the layer before: units with similar kernels are
               read with similar weights; these units in random orders
  link after   the same with the layer after
  logits       units with similar kernels have similar effects on the logits,
               through the kernels of all later layers; as above

A network looks random if all scores are below `NETWORK_SCORE`. Otherwise a
layer looks random if all of its scores are below `LAYER_SCORE`. For a first
layer that is a convolution, only the pixels count: pictures are smooth, and so
are kernels that learned from them. If some layers look random, the network is
mixed.

No test can tell whether the values come from the right training, whether all
arrays were reordered alike, and whether pictures arrive as they did in
training. Pixels in random orders are found in the first layer only. A layer
that training changed very little looks random.

Measured: 190 networks of independent values of four kinds have scores of 4.0 at
most; nine runs of a minute on the digits 25 at least, and each layer 3.1. One
of 100 layers of noise has a score of 3 or more.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping

import jax
import numpy as np
import rich.table
from flax import nnx

from alexnet_jax.network import block_diagonal, model, wiring
from alexnet_jax.program import summary

TRAINED, MIXED, RANDOM = "looks trained", "mixed", "looks random"
# Of normally distributed scores 1 in 700 is 3 or more, and 1 in 3 million 5: a
# network has dozens, of which none may be the first sign of training by chance.
LAYER_SCORE = 3.0
NETWORK_SCORE = 5.0
# Random orders for each test. A score from fewer has longer tails.
_PIXEL_ORDERS, _SPECTRUM_ORDERS, _LINK_ORDERS = 99, 39, 199
# At most so many values are looked at, for the network of 2012 in seconds:
# channels of kernels; sides of a matrix; units between two layers; logits.
_MAX_CHANNELS = 8192
_MAX_LONG_SIDE, _MAX_SHORT_SIDE = 2048, 256
_MAX_UNITS, _MAX_LOGITS = 512, 64
_PICTURES = 16
_SEED = 0

Parameters = Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
  """Statistics of one layer.

  Attributes:
    smoothness: see `find_smoothness`; None for a layer without a window.
    singular_value: see `find_singular_value`.
    dead: fraction of the units whose output is the same for all probe pictures;
      None for the last layer.
    bias_std: standard deviation of the biases.
  """

  smoothness: float | None
  singular_value: float
  dead: float | None
  bias_std: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerExamination:
  """The result for one layer.

  Attributes:
    name: of the layer.
    found: its statistics.
    untrained: those of the same layer with initial values.
    scores: {test: score}.
    decisive: the tests that count.
    reads_map: whether it is a fully connected layer that reads a map of several
      pixels; programs differ in the order of its rows.
  """

  name: str
  found: Statistics
  untrained: Statistics
  scores: Mapping[str, float]
  decisive: tuple[str, ...]
  reads_map: bool

  @property
  def strongest(self) -> str:
    """The decisive test with the highest score."""
    return max(self.decisive, key=self.scores.__getitem__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examination:
  """The result for a network.

  Attributes:
    layers: from first to last.
  """

  layers: tuple[LayerExamination, ...]

  @property
  def random_layers(self) -> tuple[str, ...]:
    """Names of the layers that look random."""
    highest = max(max(layer.scores.values()) for layer in self.layers)
    return tuple(
      layer.name
      for layer in self.layers
      if highest < NETWORK_SCORE or layer.scores[layer.strongest] < LAYER_SCORE
    )

  @property
  def verdict(self) -> str:
    """`TRAINED`, `MIXED` or `RANDOM`."""
    if not self.random_layers:
      return TRAINED
    return MIXED if len(self.random_layers) < len(self.layers) else RANDOM


def examine(
  parameters: Parameters, network: wiring.Network, *, pixel_std: float = 1.0
) -> Examination:
  """Examines the parameters of a network; the same ones give the same result.

  Args:
    parameters: {layer: {"kernel", "bias"}} as `model.init_parameters` makes
      them; with batch normalization also "scale", "mean" and "variance", the
      latter two 0 and 1 where they are missing.
    pixel_std: standard deviation of the pixels of the probe pictures, which
      decides how many units are dead and nothing else. That of natural pictures
      as the network reads them: about 58 for pixels of 0..255.

  Raises:
    ValueError: a layer or an array is missing, or has values of another shape
      or that are not finite; names it.
  """
  parameters = {
    name: {key: np.asarray(value, np.float32) for key, value in arrays.items()}
    for name, arrays in parameters.items()
  }
  _check(parameters, network)
  pictures = pixel_std * make_pictures(_PICTURES, network.image_size)
  untrained = model.init_parameters(network, jax.random.key(_SEED))
  untrained = jax.device_get(untrained)
  found, usual = (
    _find_statistics(values, network, pictures)
    for values in (parameters, untrained)
  )
  scores = _find_scores(parameters, network)
  first = network.layers[0]
  return Examination(
    layers=tuple(
      LayerExamination(
        name=name,
        found=found[name],
        untrained=usual[name],
        scores=of_layer,
        decisive=(
          ("pixels",)
          if name == first.name and "pixels" in of_layer
          else tuple(of_layer)
        ),
        reads_map=parameters[name]["kernel"].ndim == 3,
      )
      for name, of_layer in scores.items()
    )
  )


def _check(parameters: Parameters, network: wiring.Network) -> None:
  for name, size in network.sizes().items():
    for key, shape in size.shapes.items():
      array = parameters.get(name, {}).get(key)
      if array is None:
        raise ValueError(
          f"the parameters have no {key} of {name}, expected one of shape "
          f"{shape}. Add it, or examine the network that they belong to."
        )
      if array.shape != shape:
        raise ValueError(
          f"the {key} of {name} has the shape {array.shape}, expected {shape}. "
          "Examine the network that it belongs to."
        )
      if not np.isfinite(array).all():
        count = array.size - np.isfinite(array).sum()
        raise ValueError(
          f"the {key} of {name} has {count:,} values that are not finite, "
          "expected none. Read the weights from an intact file."
        )


def make_pictures(count: int, side: int) -> np.ndarray:
  """Makes smooth noise, whose amplitudes fall with the frequency as 1 / f.

  The spectrum is that of natural pictures (Field 1987, "Relations between the
  statistics of natural images and the response properties of cortical cells").
  Half of the variance is common to the three channels of a picture.

  Returns:
    f32[count, side, side, 3]; each picture has a mean of 0 and a standard
    deviation of 1. The same in every call.
  """
  rng = np.random.default_rng(_SEED)
  noise = rng.standard_normal((count, side, side, 4))
  frequency = np.hypot(*np.meshgrid(*2 * [np.fft.fftfreq(side)]))
  frequency[0, 0] = np.inf
  waves = np.fft.fft2(noise, axes=(1, 2)) / frequency[..., None]
  smooth = np.fft.ifft2(waves, axes=(1, 2)).real
  pictures = smooth[..., :3] + smooth[..., 3:]
  pictures -= pictures.mean((1, 2, 3), keepdims=True)
  pictures /= pictures.std((1, 2, 3), keepdims=True)
  return pictures.astype(np.float32)


def _find_dead(
  parameters: Parameters, network: wiring.Network, pictures: np.ndarray
) -> dict[str, float]:
  """Finds the dead fraction of the units, or maps, of all layers but the last.

  A unit is dead if all of its outputs are the same. Its gradient is then 0, for
  ReLU and where another activation is saturated.
  """
  statistics = jax.device_get(model.init_statistics(network))
  variables = {
    layer.name: {**statistics.get(layer.name, {}), **parameters[layer.name]}
    for layer in network.layers
  }
  dead = jax.device_get(_are_dead(network, variables, pictures))
  return {name: float(np.mean(units)) for name, units in dead.items()}


@functools.partial(jax.jit, static_argnums=0)
def _are_dead(
  network: wiring.Network, variables: Parameters, x: jax.Array
) -> dict[str, jax.Array]:
  """Returns {layer: bool[units]}."""
  alexnet = nnx.merge(model.make_graphdef(network), variables)
  last, dead = network.layers[-1].name, {}
  for name, is_finished, outputs in alexnet.iterate_outputs(x):
    if is_finished and name != last:
      axes = tuple(range(outputs.ndim - 1))
      dead[name] = outputs.max(axes) == outputs.min(axes)
  return dead


def _find_statistics(
  parameters: Parameters, network: wiring.Network, pictures: np.ndarray
) -> dict[str, Statistics]:
  dead, found = _find_dead(parameters, network, pictures), {}
  for layer in network.layers:
    kernel, bias = (parameters[layer.name][key] for key in ("kernel", "bias"))
    found[layer.name] = Statistics(
      smoothness=(
        find_smoothness(_take_channels(kernel)) if layer.window > 1 else None
      ),
      singular_value=find_singular_value(
        _take_matrices(kernel, block_diagonal.count_blocks(network, layer.name))
      ),
      dead=dead.get(layer.name),
      bias_std=float(bias.std()),
    )
  return found


def _find_scores(
  parameters: Parameters, network: wiring.Network
) -> dict[str, dict[str, float]]:
  """Returns {layer: {test: score}}."""
  rng = np.random.default_rng(_SEED)
  kernels = {
    name: _clip(arrays["kernel"]) for name, arrays in parameters.items()
  }
  effects = _find_effects(kernels, network)
  scores, before = {}, None
  for layer in network.layers:
    kernel = kernels[layer.name]
    groups = block_diagonal.count_blocks(network, layer.name)
    of_layer = scores[layer.name] = {}
    if layer.window > 1:
      of_layer["pixels"] = score_pixels(_take_channels(kernel), rng)
    of_layer["spectrum"] = score_spectrum(_take_matrices(kernel, groups), rng)
    if before is not None:
      writes, reads = (
        _take_units(units, groups)
        for units in (
          _list_writes(kernels[before]),
          _list_reads(kernel, groups),
        )
      )
      of_layer["link before"] = score_link(writes, reads, rng)
      scores[before]["link after"] = of_layer["link before"]
      # Those of the last layer are what reads the one before it.
      if layer is not network.layers[-1]:
        scores[before]["logits"] = score_link(
          writes, _take_units(effects[before], groups), rng
        )
    before = layer.name
  return scores


def _clip(kernel: np.ndarray) -> np.ndarray:
  """Clips values at three times their root mean square.

  A few large values of a heavy-tailed distribution would decide the statistics
  alone, and scores of noise would exceed `NETWORK_SCORE`.
  """
  most = 3.0 * np.sqrt(np.mean(kernel**2))
  return np.clip(kernel, -most, most)


def _find_effects(
  kernels: Mapping[str, np.ndarray], network: wiring.Network
) -> dict[str, np.ndarray]:
  """Multiplies the kernels of all later layers, summed over their pixels.

  Returns:
    {layer but the last: f32[units, logits]}, for some of the logits.
  """
  effects, of_units = {}, None
  for before, layer in reversed(list(itertools.pairwise(network.layers))):
    kernel = kernels[layer.name]
    groups = block_diagonal.count_blocks(network, layer.name)
    *_, inputs, units = kernel.shape
    kernel = kernel.reshape(-1, inputs, units).sum(0)
    if of_units is None:
      of_units = _take(np.eye(units, dtype=np.float32), 1, _MAX_LOGITS)
    of_units = np.concatenate(
      [
        weights @ effect
        for weights, effect in zip(
          np.split(kernel, groups, axis=1),
          np.split(of_units, groups),
          strict=True,
        )
      ]
    )
    effects[before.name] = of_units
  return effects


def find_smoothness(kernel: np.ndarray) -> float:
  """Share of the energy of a kernel that a mean over 3 x 3 pixels keeps.

  Pixels that correlate with their neighbors keep more. The correlation at a
  distance of one pixel scores half as much for conv1 of runs on the digits.

  Args:
    kernel: f32[window, window, ...]; the mean of each channel is taken away,
      and zeros are outside.

  Returns:
    The mean square of the means over the mean square: below 1 / 9 for
    independent values, and up to 1; 0 if each channel is constant.
  """
  kernel = kernel - kernel.mean((0, 1), keepdims=True)
  square = np.mean(kernel**2)
  if not square > 0:
    return 0.0
  for _ in range(2):
    total = kernel.copy()
    total[1:] += kernel[:-1]
    total[:-1] += kernel[1:]
    kernel = total.swapaxes(0, 1)
  return float(np.mean(kernel**2) / 81 / square)


def score_pixels(kernel: np.ndarray, rng: np.random.Generator) -> float:
  """Scores the smoothness of f32[window, window, channels]."""
  pixels = kernel.reshape(-1, kernel.shape[-1])
  return _score(
    find_smoothness(kernel),
    (
      find_smoothness(rng.permuted(pixels, axis=0).reshape(kernel.shape))
      for _ in range(_PIXEL_ORDERS)
    ),
  )


def find_singular_value(matrices: np.ndarray) -> float:
  """Largest singular value, over that of independent values of the same size.

  Args:
    matrices: f32[columns, inputs, units], one matrix for each column of the
      network; the root of the mean of their squares counts.

  Returns:
    A multiple of s (sqrt(inputs) + sqrt(units)), where s is the root mean
    square of all values: 1 for large matrices of independent values (Marchenko
    and Pastur 1967); 0 if all values are 0.
  """
  _, inputs, units = matrices.shape
  scale = np.sqrt(np.mean(matrices**2)) * (np.sqrt(inputs) + np.sqrt(units))
  if not scale > 0:
    return 0.0
  transposed = matrices.transpose(0, 2, 1)
  products = transposed @ matrices if units <= inputs else matrices @ transposed
  largest = np.linalg.eigvalsh(products)[:, -1]
  return float(np.sqrt(np.mean(largest)) / scale)


def score_spectrum(matrices: np.ndarray, rng: np.random.Generator) -> float:
  """Scores the largest singular value of f32[columns, inputs, units]."""
  return _score(
    find_singular_value(matrices),
    (
      find_singular_value(rng.permuted(matrices, axis=1))
      for _ in range(_SPECTRUM_ORDERS)
    ),
  )


def score_link(
  writes: np.ndarray, reads: np.ndarray, rng: np.random.Generator
) -> float:
  """Scores whether units with similar kernels are read with similar weights.

  The statistic is that of Mantel 1967: the sum, over all pairs of units of a
  column, of the correlation of their kernels times the correlation of the
  weights that read them. In a linear network, gradient descent keeps the two
  matrices of inner products at a constant difference, so that both grow alike
  (Arora, Cohen and Hazan 2018, "On the optimization of deep networks").

  Args:
    writes: f32[columns, units, inputs], the kernels of the units.
    reads: f32[columns, units, outputs], the weights of the layer that reads
      them.
  """
  written, read = _correlate(writes), _correlate(reads)
  units = np.arange(writes.shape[1])
  written[:, units, units] = 0.0
  return _score(
    float(np.vdot(written, read)),
    (
      float(np.vdot(written, read[:, order[:, None], order]))
      for order in (rng.permutation(units) for _ in range(_LINK_ORDERS))
    ),
  )


def _correlate(rows: np.ndarray) -> np.ndarray:
  """Correlations of the rows of f32[n, rows, values]: f32[n, rows, rows].

  0 where all values of a row are the same.
  """
  rows = rows - rows.mean(-1, keepdims=True)
  norms = np.linalg.norm(rows, axis=-1, keepdims=True)
  rows = rows / np.where(norms > 0, norms, 1)
  return rows @ rows.transpose(0, 2, 1)


def _score(observed: float, of_orders: Iterable[float]) -> float:
  """Distance from the mean of random orders in their standard deviations."""
  of_orders = np.fromiter(of_orders, np.float64)
  mean, std = of_orders.mean(), of_orders.std(ddof=1)
  # Rounding alone, where the order makes no difference.
  if not std > 1e-5 * max(abs(observed), abs(mean)):
    return 0.0
  return float((observed - mean) / std)


def _take(array: np.ndarray, axis: int, most: int) -> np.ndarray:
  """Takes some of the indices of an axis, always the same, in their order."""
  size = array.shape[axis]
  if size <= most:
    return array
  chosen = np.random.default_rng(_SEED).choice(size, most, replace=False)
  return np.take(array, np.sort(chosen), axis)


def _take_channels(kernel: np.ndarray) -> np.ndarray:
  """Takes channels of a convolution: f32[window, window, channels]."""
  return _take(kernel.reshape(*kernel.shape[:2], -1), 2, _MAX_CHANNELS)


def _take_matrices(kernel: np.ndarray, groups: int) -> np.ndarray:
  """Takes a part of a kernel: f32[columns, inputs, units]."""
  matrices = kernel.reshape(-1, groups, kernel.shape[-1] // groups)
  matrices = matrices.transpose(1, 0, 2)
  axes = np.argsort(matrices.shape[1:], kind="stable") + 1
  for axis, most in zip(axes, (_MAX_SHORT_SIDE, _MAX_LONG_SIDE), strict=True):
    matrices = _take(matrices, axis, most)
  return matrices


def _list_writes(kernel: np.ndarray) -> np.ndarray:
  """Lists the kernels of the units of a layer: f32[units, inputs]."""
  return kernel.reshape(-1, kernel.shape[-1]).T


def _list_reads(kernel: np.ndarray, groups: int) -> np.ndarray:
  """Lists the weights that read the units before: f32[units, weights].

  Args:
    kernel: f32[..., units of a column, outputs of all columns].
    groups: number of columns, 1 if the layer reads all.
  """
  *_, units, outputs = kernel.shape
  columns = kernel.reshape(-1, units, groups, outputs // groups)
  return columns.transpose(2, 1, 0, 3).reshape(groups * units, -1)


def _take_units(rows: np.ndarray, groups: int) -> np.ndarray:
  """Takes rows of f32[units, values] by column: f32[columns, units, values]."""
  columns = rows.reshape(groups, -1, rows.shape[-1])
  return _take(columns, 1, _MAX_UNITS // groups)


def make_table(examination: Examination) -> rich.table.Table:
  """Makes a table of the statistics, those of initial values in parentheses."""
  table = summary.make_table(
    "does it look trained? In parentheses: with initial values",
    *("layer", "> smoothness", "> singular value", "> dead units"),
    *("> biases", "> spectrum", "> link before", "> highest", "of", "verdict"),
  )
  for row, layer in enumerate(examination.layers):
    found, untrained = layer.found, layer.untrained
    table.add_row(
      layer.name,
      _beside(found.smoothness, untrained.smoothness, ".3f"),
      _beside(found.singular_value, untrained.singular_value, ".2f"),
      _beside(found.dead, untrained.dead, ".1%"),
      f"{found.bias_std:.3g}",
      f"{layer.scores['spectrum']:.1f}",
      f"{layer.scores['link before']:.1f}" if row else "-",
      f"{layer.scores[layer.strongest]:.1f}",
      layer.strongest,
      RANDOM if layer.name in examination.random_layers else TRAINED,
    )
  return table


def _beside(number: float | None, other: float | None, form: str) -> str:
  if number is None or other is None:
    return "-"
  return f"{number:{form}} ({other:{form}})"


def explain(examination: Examination) -> list[str]:
  """Explains the verdict, in lines."""
  random = examination.random_layers
  if examination.verdict == RANDOM:
    return [
      f"the network {RANDOM}: no layer has an order that training would make. "
      "Do not use it before its errors on labeled pictures are known."
    ]
  if examination.verdict == TRAINED:
    lines = [f"the network {TRAINED}: every layer has an order"]
  else:
    lines = [
      f"{MIXED}: {', '.join(random)} look{'s' * (len(random) == 1)} random, "
      "the other layers look trained. These values are not from the training, "
      "or it changed them too little to tell."
    ]
  for before, layer in itertools.pairwise(examination.layers):
    spectra = (before.scores["spectrum"], layer.scores["spectrum"])
    link = layer.scores["link before"]
    is_clear = layer.reads_map and min(spectra) >= NETWORK_SCORE
    if is_clear and link < LAYER_SCORE:
      lines.append(
        f"{layer.name} does not fit {before.name} (score {link:.1f}): its rows "
        "may be in another order than position by position, channels last."
      )
  return lines
