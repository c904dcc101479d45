"""What the kernels of a first layer look like, and whether columns differ.

The kernels of one column are half of Figure 3 of Krizhevsky et al. 2012.
`measure` says of each what it prefers: color or gray, an orientation, a
frequency; `compare` asks whether the columns differ in that by more than
chance. NumPy, and scipy for the test; `kernel_charts.py` draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

# What `compare` is given of `Measures`, and how a sentence calls it.
COMPARED = {
  "color": "share of color",
  "selectivity": "orientation selectivity",
  "direction": "orientation",
  "frequency": "frequency",
}
# Of `Measures.smoothness`: noise of 11 x 11 x 3 values is below .2.
MIN_SMOOTHNESS = 0.5
PERMUTATIONS = 9_999
# Kernels beside each other in a group, as in the paper's figure.
_PER_ROW = 16
# Neighbors of a value: (rows, columns) from it.
_NEIGHBORS = ((0, 1), (1, 0), (1, 1), (1, -1))
# Points of a spectrum along each axis, of a cycle per pixel; larger windows
# than this have as many points as values.
_POINTS = 64
# Points of a ray from 0 to half a cycle per pixel.
_RAY_POINTS = 257
# Colors that vary less than this part of what gray does are no colors: what
# JPEG leaves of a gray picture.
_GRAY = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measures:
  """What each kernel of a layer prefers; NaN: it cannot be said.

  k[y, x, c] is a kernel. Its *pattern* p[y, x] is the one that, times one
  color, has most of its energy: k projected on the first right singular vector
  of k[(y, x), c]. P(f) is the pattern's power at a frequency f of two
  components, |sum p[y, x] exp(-2 pi i f . (y, x))|^2, for |f| up to half a
  cycle per pixel.

  Attributes:
    energy: sum of k^2, >= 0.
    smoothness: the largest of the correlations of k with itself moved by one
      pixel, across, down and along both diagonals, without removing the mean.
      -1 to 1: near 0 for noise, 1 for a uniform kernel and for straight bars.
    color: share of color in the energy, 0 to 1: that of the differences from
      the mean of the channels. 0 for gray; 2/3 for noise of three channels.
      NaN for one channel.
    selectivity: for orientation, |sum P exp(2 i angle(f))| / sum P, 0 to 1,
      the first sum without f = 0: 0 for a spot or a checkerboard, 1 for endless
      bars; noise of 11 x 11 values has .15 or so.
    orientation: of the bars, degrees, 0 <= x < 180: 0 lie flat, 90 stand, and
      45 rise to the right.
    frequency: |f| of the largest P, cycles per pixel, 0 to 0.5. A uniform
      kernel has 0.
    bandwidth: width of P around that frequency at half its height, cycles per
      pixel, along the ray from 0 through it (up to 0.5 and down to 0).
  """

  energy: np.ndarray
  smoothness: np.ndarray
  color: np.ndarray
  selectivity: np.ndarray
  orientation: np.ndarray
  frequency: np.ndarray
  bandwidth: np.ndarray

  @property
  def direction(self) -> np.ndarray:
    """c128[kernels]: selectivity * exp(2 i orientation), which can be averaged.

    Orientations cannot: 179 and 1 degrees are 2 apart.
    """
    return self.selectivity * np.exp(2j * np.radians(self.orientation))

  @property
  def is_learned(self) -> np.ndarray:
    """bool[kernels]: whether a kernel is more than what is left of noise.

    About half of its energy or more varies smoothly. Which column it is in
    plays no part, so that tests of columns stay valid.
    """
    # A window of one pixel has no neighbors.
    return ~(self.smoothness < MIN_SMOOTHNESS) & (self.energy > 0)

  def split(self, name: str, columns: int) -> list[np.ndarray]:
    """Returns for each column the known values of its learned kernels.

    Args:
      name: of a measure.
      columns: of equal numbers of kernels, one after the other.
    """
    values = getattr(self, name)
    known = self.is_learned & np.isfinite(values)
    return [
      one[inside]
      for one, inside in zip(
        np.split(values, columns), np.split(known, columns), strict=True
      )
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """Whether columns differ in a measure by more than chance.

  Attributes:
    name: of `COMPARED`.
    means: of each column; complex for `direction`. NaN: it has no kernels.
    p: probability of so large a difference if kernels were in columns by
      chance, in (0, 1]; None: a column has fewer than two kernels.
    adjusted_p: p by Holm's method for all measures that were compared at once.
  """

  name: str
  means: tuple[complex, ...] | tuple[float, ...]
  p: float | None
  adjusted_p: float | None


def find_seen(
  kernel: np.ndarray,
  *,
  color_order: str = "rgb",
  color_stds: Sequence[float] | None = None,
) -> np.ndarray:
  """Returns a kernel as it acts on pictures: R, G, B, or gray.

  Args:
    kernel: f32[window, window, channels, maps].
    color_order: of its channels, rgb or bgr.
    color_stds: standard deviations of the data's colors along their principal
      directions, largest first. With gray pictures all but one are 0: then a
      kernel's colors meet nothing, training leaves them as they were drawn,
      and the mean of the channels is returned, f32[window, window, 1, maps].
      None: there are colors.
  """
  if kernel.shape[2] == 3 and color_stds is not None:
    if max(color_stds[1:]) <= _GRAY * color_stds[0]:
      return kernel.mean(axis=2, keepdims=True)
  return kernel[:, :, ::-1] if color_order == "bgr" else kernel


def measure(kernel: np.ndarray) -> Measures:
  """Measures the kernels of a layer.

  Args:
    kernel: f32[window, window, channels, maps], from `find_seen`.
  """
  kernel = np.moveaxis(np.asarray(kernel, np.float64), -1, 0)
  energy = (kernel**2).sum((1, 2, 3))
  patterns = _find_patterns(kernel)
  with np.errstate(invalid="ignore"):
    shares = ((kernel - kernel.mean(3, keepdims=True)) ** 2).sum((1, 2, 3))
    color = shares / energy if kernel.shape[3] > 1 else energy * np.nan
    selectivity, orientation, frequency, angle = _find_spectrum(patterns)
    smoothness = _find_smoothness(kernel)
    bandwidth = _find_bandwidth(patterns, frequency, angle)
  # A window of one pixel has no bars, and a kernel of zeros prefers nothing.
  unknown = (energy == 0) | (kernel.shape[1] < 2)
  for values in (selectivity, orientation, frequency, bandwidth):
    values[unknown] = np.nan
  return Measures(
    energy=energy,
    smoothness=smoothness,
    color=color,
    selectivity=selectivity,
    orientation=orientation,
    frequency=frequency,
    bandwidth=bandwidth,
  )


def compare(
  measures: Measures, columns: int, *, seed: int = 0
) -> list[Comparison]:
  """Compares the learned kernels of columns in each measure, by permutation.

  The statistic is the sum over columns of n |mean - mean of all|^2, n the
  kernels of the column. For two columns this is the two-sided test of the
  difference of their means. Kernels are assigned to columns anew 9,999 times,
  or in all ways if there are fewer (scipy.stats.permutation_test).

  Args:
    columns: >= 2, of equal numbers of kernels, one after the other.
    seed: of the permutations.

  Returns:
    One for each of `COMPARED`, but those that cannot be said of any kernel.
  """
  means, found = {}, {}
  for name in COMPARED:
    groups = measures.split(name, columns)
    if not any(one.size for one in groups):
      continue
    means[name] = tuple(
      one.mean().item() if one.size else float("nan") for one in groups
    )
    found[name] = _permute(groups, seed)
  adjusted = _adjust({name: p for name, p in found.items() if p is not None})
  return [
    Comparison(name=name, means=means[name], p=p, adjusted_p=adjusted.get(name))
    for name, p in found.items()
  ]


def format_p(p: float | None) -> str:
  """Formats a probability: `0.04`, `0.0012`, `< 0.0001`; None is a dash."""
  if p is None:
    return "–"
  if p < 1e-4:
    return "< 0.0001"
  return f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def to_orientation(direction: complex) -> float:
  """Returns the orientation of `Measures.direction`, or of a mean of them."""
  return float(np.degrees(np.angle(direction)) / 2 % 180)


def tile(
  kernel: np.ndarray,
  columns: int,
  *,
  scale: int = 1,
  order: Sequence[Sequence[int]] | None = None,
) -> list[np.ndarray]:
  """Lays the kernels of each column beside each other, as Figure 3 does.

  Each kernel is scaled by itself: its largest absolute value is black or white
  (of a color: dark or light), and 0 is the gray of 50 %.

  Args:
    kernel: f32[window, window, 3 or 1, maps], from `find_seen`.
    columns: of equal numbers of kernels, one after the other.
    scale: pixels along each side of a weight.
    order: for each column the indices of its kernels among its own, as they
      are shown; None: that of the network.

  Returns:
    For each column u8[height, width, 4], R, G, B and opacity: lines of `scale`
    pixels between the kernels are transparent.
  """
  largest = np.abs(kernel).max((0, 1, 2), keepdims=True)
  largest[largest == 0] = 1.0
  levels = np.round(127.5 + 127.5 * kernel / largest).astype(np.uint8)
  cell = kernel.shape[0] + 1
  tiles = []
  for index, column in enumerate(np.split(levels, columns, axis=-1)):
    maps = column.shape[-1]
    across = min(_PER_ROW, maps)
    rows = -(-maps // across)
    sheet = np.zeros((rows * cell - 1, across * cell - 1, 4), np.uint8)
    places = range(maps) if order is None else order[index]
    for place, number in enumerate(places):
      y, x = (cell * part for part in divmod(place, across))
      inside = sheet[y : y + cell - 1, x : x + cell - 1]
      inside[..., :3] = column[..., number]
      inside[..., 3] = 255
    tiles.append(sheet.repeat(scale, axis=0).repeat(scale, axis=1))
  return tiles


def tile_columns(kernel: np.ndarray, columns: int) -> np.ndarray:
  """Lays the groups of `tile` below each other, as one picture.

  Returns:
    u8[height, width, 4]; a kernel's height is between two groups.
  """
  tiles = tile(kernel, columns)
  between = np.zeros((kernel.shape[0], tiles[0].shape[1], 4), np.uint8)
  rows = [part for one in tiles for part in (between, one)]
  return np.concatenate(rows[1:])


def sort(measures: Measures, columns: int) -> list[np.ndarray]:
  """Sorts the kernels of each column from gray to color, for `tile`.

  Of one channel, by frequency. Kernels that are still noise come last.

  Returns:
    For each column i64[maps], indices among its own.
  """
  by_color = not np.isnan(measures.color).all()
  values = measures.color if by_color else measures.frequency
  return [
    np.lexsort((one, ~learned))
    for one, learned in zip(
      np.split(values, columns),
      np.split(measures.is_learned, columns),
      strict=True,
    )
  ]


def _find_patterns(kernel: np.ndarray) -> np.ndarray:
  """Finds the pattern of each kernel, with most of its energy.

  Args:
    kernel: f64[maps, window, window, channels].

  Returns:
    f64[maps, window, window].
  """
  maps, window, _, channels = kernel.shape
  flat = kernel.reshape(maps, window**2, channels)
  _, vectors = np.linalg.eigh(np.swapaxes(flat, 1, 2) @ flat)
  return (flat @ vectors[:, :, -1:]).reshape(maps, window, window)


def _find_smoothness(kernel: np.ndarray) -> np.ndarray:
  """f64[maps]; see `Measures`."""
  found = []
  height, width = kernel.shape[1:3]
  for down, right in _NEIGHBORS:
    left = max(0, -right)
    one = kernel[:, : height - down, left : width - max(0, right)]
    two = kernel[:, down:, left + right : width - max(0, right) + right]
    product = (one * two).sum((1, 2, 3))
    energies = (one**2).sum((1, 2, 3)) * (two**2).sum((1, 2, 3))
    found.append(product / np.sqrt(energies))
  found = np.array(found)
  known = ~np.isnan(found)
  best = np.where(known, found, -1.0).max(0)
  return np.where(known.any(0), best, np.nan)


def _find_spectrum(patterns: np.ndarray) -> tuple[np.ndarray, ...]:
  """Finds selectivity, orientation, frequency, and the angle of that.

  Returns:
    f64[maps] each. The angle, in radians, is that from the x axis to the
    frequency of most power, with y downwards; for a frequency of 0, that of the
    orientation.
  """
  points = max(_POINTS, patterns.shape[-1])
  power = np.abs(np.fft.fft2(patterns, (points, points))) ** 2
  steps = np.fft.fftfreq(points)
  radius = np.hypot(steps[:, None], steps[None])
  angles = np.arctan2(steps[:, None], steps[None])
  inside = radius <= 0.5
  power, radius, angles = power[:, inside], radius[inside], angles[inside]
  # The frequency 0 has no direction.
  axes = np.where(radius > 0, np.exp(2j * angles), 0)
  moment = (power * axes).sum(1) / power.sum(1)
  peak = power.argmax(1)
  frequency, axis = radius[peak], np.angle(moment) / 2
  # Bars are across the frequency; y counts downwards.
  orientation = (90 - np.degrees(axis)) % 180
  angle = np.where(frequency > 0, angles[peak], axis)
  return np.abs(moment), orientation, frequency, angle


def _find_bandwidth(
  patterns: np.ndarray, frequency: np.ndarray, angle: np.ndarray
) -> np.ndarray:
  """f64[maps]; see `Measures`."""
  window = patterns.shape[-1]
  places = np.arange(window)
  radii = np.linspace(0, 0.5, _RAY_POINTS)
  widths = np.empty(len(patterns))
  for index, pattern in enumerate(patterns):
    # The exponential of a sum is a product of two.
    down, across = (
      np.exp(-2j * np.pi * radii[:, None] * places * part)
      for part in (np.sin(angle[index]), np.cos(angle[index]))
    )
    power = np.abs(((down @ pattern) * across).sum(1)) ** 2
    peak = np.abs(radii - frequency[index]).argmin()
    low = power < power[peak] / 2
    above, below = np.flatnonzero(low[peak:]), np.flatnonzero(low[:peak])
    end = radii[peak + above[0]] if above.size else radii[-1]
    start = radii[below[-1]] if below.size else 0.0
    widths[index] = end - start
  return widths


def _permute(groups: Sequence[np.ndarray], seed: int) -> float | None:
  """Returns the p-value of a difference; None: a group has fewer than two."""
  from scipy import stats  # a second to import, and training does without

  if min(len(one) for one in groups) < 2:
    return None
  result = stats.permutation_test(
    groups,
    _find_spread,
    vectorized=True,
    n_resamples=PERMUTATIONS,
    alternative="greater",
    axis=-1,
    random_state=np.random.default_rng(seed),
  )
  return float(np.real(result.pvalue))  # complex values have a complex one


def _find_spread(*groups: np.ndarray, axis: int) -> np.ndarray:
  """Returns the sum of n |mean - mean of all|^2 over groups of n values."""
  count = sum(one.shape[axis] for one in groups)
  mean = sum(one.sum(axis) for one in groups) / count
  return sum(
    one.shape[axis] * np.abs(one.mean(axis) - mean) ** 2 for one in groups
  )


def _adjust(found: Mapping[str, float]) -> dict[str, float]:
  """Adjusts p-values for their number: Holm 1979."""
  adjusted, highest = {}, 0.0
  names = sorted(found, key=found.__getitem__)
  for index, name in enumerate(names):
    highest = max(highest, min(1.0, (len(names) - index) * found[name]))
    adjusted[name] = highest
  return adjusted
