"""Draws what each layer computes of one picture, column by column.

Of each column the maps with the largest mean are shown, the largest first. A
layer has one scale for all its columns, so that these can be compared.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import figure

from alexnet_jax.figures import charts

# Maps of a column that are shown, in rows of `_ACROSS`; of an only column twice
# as many.
SHOWN = 12
# Percentile of what is drawn of a layer that is white: a few large values would
# leave all others black.
WHITE = 99.5
_ACROSS = 12
# The strongest maps that a summary names.
_NAMED = 3
# Inches: of the figure, of the labels on the left, and of parts from the top.
_WIDTH, _LEFT, _RIGHT = 5.0, 0.68, 0.05
_PICTURE, _TITLE, _GAP, _SPACE = 1.4, 0.2, 0.05, 0.13
# Pixels of a drawn map and between two of them.
_SIDE, _BETWEEN = 64, 4
# Around maps and units, which may be as light as a page, or as dark.
_EDGE = 128
# Units in a row: as many as a block has that is so many times as wide as high;
# up to `_ONE_ROW` are in one row.
_ASPECT, _ONE_ROW = 12, 40
_MAX_CELL = 0.12  # inches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activations:
  """What a layer computes of one picture.

  Attributes:
    layer: its name.
    values: f32[h, w, maps] or f32[units].
    columns: K, which divides the maps or units into equal groups, in order.
  """

  layer: str
  values: np.ndarray
  columns: int

  @property
  def by_column(self) -> list[np.ndarray]:
    """Of each column, f32[h, w, maps / K] or f32[units / K]."""
    return np.split(self.values, self.columns, axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
  """What a column of a layer computes of a picture, in numbers.

  Attributes:
    layer: its name.
    column: from 0.
    shape: (h, w, maps) or (units,), of this column.
    mean: over all values.
    zeros: part of the values that are 0, 0 to 1.
    strongest: the maps or units with the largest mean, the largest first; their
      indices in the layer.
  """

  layer: str
  column: int
  shape: tuple[int, ...]
  mean: float
  zeros: float
  strongest: tuple[int, ...]


def summarize(layers: Sequence[Activations]) -> list[Summary]:
  """Summarizes each column of each layer."""
  found = []
  for one in layers:
    for column, values in enumerate(one.by_column):
      first = column * values.shape[-1]
      found.append(
        Summary(
          layer=one.layer,
          column=column,
          shape=values.shape,
          mean=float(values.mean(dtype=np.float64)),
          zeros=float(np.mean(values == 0)),
          strongest=tuple(
            first + int(index) for index in order_maps(values)[:_NAMED]
          ),
        )
      )
  return found


def order_maps(values: np.ndarray) -> np.ndarray:
  """Orders maps by their mean, the largest first; of equal ones the first.

  Args:
    values: f32[h, w, maps] or f32[units].

  Returns:
    i64[maps] or i64[units].
  """
  means = values.reshape(-1, values.shape[-1]).mean(axis=0, dtype=np.float64)
  return np.argsort(-means, kind="stable")


def count_shown(one: Activations) -> int:
  """Counts the maps of each column that are drawn; all of units are."""
  each = one.values.shape[-1] // one.columns
  if one.values.ndim == 1:
    return each
  return min(each, SHOWN if one.columns > 1 else 2 * SHOWN)


def to_figure(
  picture: np.ndarray, layers: Sequence[Activations]
) -> figure.Figure:
  """Draws a picture, and below it what each layer computes of it.

  Black is 0 and white the `WHITE` percentile of what is drawn of a layer, and
  above; of a layer with values below 0, black is as far below 0 as white is
  above it.

  Args:
    picture: u8[h, w, 3], as the first layer reads it.
  """
  with matplotlib.rc_context(charts.SETTINGS):
    blocks = [_make_blocks(one) for one in layers]
    height = _TITLE + _PICTURE + _SPACE
    for of_layer in blocks:
      height += _TITLE + _SPACE
      height += sum(block.height + _GAP for block in of_layer)
    drawn = figure.Figure(figsize=(_WIDTH, height))
    drawn.patch.set_alpha(0)
    sheet = _Sheet(drawn, height)
    h, w, _ = picture.shape
    sheet.add_title("picture", f"{h} × {w} pixels")
    sheet.add_image(picture, width=_PICTURE * w / h, height=_PICTURE)
    sheet.skip(_SPACE)
    for one, of_layer in zip(layers, blocks, strict=True):
      sheet.add_title(one.layer, _describe(one))
      for column, block in enumerate(of_layer):
        label = f"column {column}" if one.columns > 1 else ""
        sheet.add_image(
          block.pixels,
          width=block.width,
          height=block.height,
          framed=one.values.ndim == 1,
          label=label,
        )
        sheet.skip(_GAP)
      sheet.skip(_SPACE)
  return drawn


def _describe(one: Activations) -> str:
  """Says what is drawn: `27 × 27, 12 of 96 maps of each column`."""
  each, shown = one.values.shape[-1] // one.columns, count_shown(one)
  of_each = " of each column" if one.columns > 1 else ""
  if one.values.ndim == 1:
    return f"{each:,} units{of_each}"
  h, w, _ = one.values.shape
  some = f"{shown} of " if shown < each else ""
  return f"{h} × {w}, {some}{each:,} maps{of_each}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Block:
  """A column of a layer: u8[h, w, RGBA], and its size in inches."""

  pixels: np.ndarray
  width: float
  height: float


def _make_blocks(one: Activations) -> list[_Block]:
  """Makes the block of each column, in the scale of the layer."""
  shown, columns = count_shown(one), one.by_column
  if one.values.ndim > 1:
    columns = [values[..., order_maps(values)[:shown]] for values in columns]
  low = min(float(values.min()) for values in columns)
  sizes = np.abs(np.concatenate([values.ravel() for values in columns]))
  most = float(np.percentile(sizes, WHITE) or sizes.max() or 1.0)
  start = -most if low < 0 else 0.0
  blocks = []
  for values in columns:
    share = np.clip((values - start) / (most - start), 0, 1)
    gray = np.round(255 * share).astype(np.uint8)
    make = _arrange_maps if one.values.ndim > 1 else _arrange_units
    blocks.append(make(gray))
  return blocks


def _arrange_maps(gray: np.ndarray) -> _Block:
  """Arranges u8[h, w, maps] in rows, with nothing between them."""
  h, w, maps = gray.shape
  factor = max(1, round(_SIDE / max(h, w)))
  gray = gray.repeat(factor, axis=0).repeat(factor, axis=1)
  down, between = factor * h + _BETWEEN, factor * w + _BETWEEN
  rows = math.ceil(maps / _ACROSS)
  pixels = np.zeros((rows * down, _ACROSS * between, 4), np.uint8)
  for index in range(maps):
    y, x = index // _ACROSS * down, index % _ACROSS * between
    place = pixels[y : y + factor * h, x : x + factor * w]
    place[..., :3], place[..., 3] = gray[..., index, None], 255
    for edge in (place[0], place[-1], place[:, 0], place[:, -1]):
      edge[:, :3] = _EDGE
  pixels = pixels[:-_BETWEEN, :-_BETWEEN]
  width = _WIDTH - _LEFT - _RIGHT
  return _Block(
    pixels=pixels, width=width, height=width * len(pixels) / pixels.shape[1]
  )


def _arrange_units(gray: np.ndarray) -> _Block:
  """Arranges u8[units] in rows, in their order."""
  units = len(gray)
  across = _choose_across(units)
  down = math.ceil(units / across)
  pixels = np.zeros((down * across, 4), np.uint8)
  pixels[:units, :3], pixels[:units, 3] = gray[:, None], 255
  cell = min((_WIDTH - _LEFT - _RIGHT) / across, _MAX_CELL)
  return _Block(
    pixels=pixels.reshape(down, across, 4),
    width=cell * across,
    height=cell * down,
  )


def _choose_across(units: int) -> int:
  """Chooses units in a row so that the last row is full, if one can be."""
  if units <= _ONE_ROW:
    return units
  wanted = math.sqrt(_ASPECT * units)
  near = [
    across
    for across in range(math.ceil(wanted / 1.5), int(1.5 * wanted) + 1)
    if units % across == 0
  ]
  return min(
    near, key=lambda across: abs(across - wanted), default=math.ceil(wanted)
  )


class _Sheet:
  """A figure that is filled from the top; in inches."""

  def __init__(self, drawn: figure.Figure, height: float):
    self._drawn, self._height, self._y = drawn, height, 0.0

  def skip(self, height: float) -> None:
    self._y += height

  def add_title(self, name: str, text: str) -> None:
    """Adds the title of a layer, and in the same line what is drawn of it."""
    y = 1 - (self._y + 0.12) / self._height
    options = {"va": "center", "color": "black"}
    self._drawn.text(0, y, name, weight="bold", **options)
    self._drawn.text(_LEFT / _WIDTH, y, text, **options)
    self.skip(_TITLE)

  def add_image(
    self,
    pixels: np.ndarray,
    *,
    width: float,
    height: float,
    framed: bool = True,
    label: str = "",
  ) -> None:
    self.skip(height)
    bottom = 1 - self._y / self._height
    box = (
      *(_LEFT / _WIDTH, bottom),
      *(width / _WIDTH, height / self._height),
    )
    axes = self._drawn.add_axes(box)
    axes.imshow(pixels, interpolation="nearest", aspect="auto")
    axes.patch.set_alpha(0)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=str(_EDGE / 255), linewidth=0.5, visible=framed)
    if label:
      y = bottom + height / 2 / self._height
      self._drawn.text(0, y, label, va="center", color="black", size=8)
