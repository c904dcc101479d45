"""The section on what the layers compute of one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alexnet_jax.figures import activations
from alexnet_jax.network import wiring
from alexnet_jax.report import section
from alexnet_jax.training import loaded_run

NAME, TITLE = "layers", "One picture, layer by layer"


def make_section(
  run: loaded_run.LoadedRun, image: np.ndarray, name: str
) -> section.Section:
  """Makes the section on the layers of a run.

  Args:
    image: u8[h, w, 3], of any size.
    name: of the image.

  Raises:
    FloatingPointError: an activation is not finite.
  """
  layers = find_activations(run, image)
  summaries = activations.summarize(layers)
  columns = run.network.columns
  names = [one.layer for one in layers]
  shown = [
    activations.count_shown(one) for one in layers if one.values.ndim > 1
  ]
  of_each = " of each column" if columns > 1 else ""
  caption = [
    f"What each layer computes of the picture {name}, before its pooling."
  ]
  if shown:
    caption.append(
      f"Drawn are up to {max(shown)} maps{of_each}: those with the largest "
      "mean, the largest first. Units are in their order."
    )
  caption.append(
    f"Black is 0, white the {activations.WHITE}th percentile of what is drawn "
    "of the layer; where values are negative, middle gray is 0."
  )
  return section.Section(
    name=NAME,
    title=TITLE,
    parts=[
      section.Drawing(
        name="activations",
        figure=activations.to_figure(find_crop(run, image), layers),
        kind="png",
        caption=" ".join(caption),
        alternative=(
          f"The picture {name}, and below it gray maps of the layers "
          f"{', '.join(names)}. {_describe(summaries, columns)}"
        ),
        table=_make_table(summaries, columns),
      )
    ],
  )


def find_activations(
  run: loaded_run.LoadedRun, image: np.ndarray
) -> list[activations.Activations]:
  """Finds what each layer computes of an image, before its pooling.

  Args, Raises: see `make_section`.
  """
  network = run.network
  names = [row.name for row in network.layers]
  found = run.activations_of_layers(image, names, pooled=False)
  return [
    activations.Activations(
      layer=name,
      values=values[0],
      columns=_count_columns(network, name),
    )
    for name, values in found.items()
  ]


def find_crop(run: loaded_run.LoadedRun, image: np.ndarray) -> np.ndarray:
  """Finds the pixels that the first layer reads: u8[side, side, 3].

  As `Augmentation.center` has them.
  """
  pixels, side = run.read_pictures(image).pixels[0], run.network.image_size
  start = (len(pixels) - side) // 2
  return pixels[start : start + side, start : start + side]


def _count_columns(network: wiring.Network, name: str) -> int:
  """Counts the columns of a layer; the logits belong to none."""
  return 1 if name == network.layers[-1].name else network.columns


def _describe(summaries: Sequence[activations.Summary], columns: int) -> str:
  """Says in a sentence for each layer how many of its values are zero."""
  of_layers: dict[str, list[str]] = {}
  for one in summaries:
    of_layers.setdefault(one.layer, []).append(f"{one.zeros:.0%}")
  parts = [f"{name} {' / '.join(of)}" for name, of in of_layers.items()]
  by = ", by column" if columns > 1 else ""
  return f"Zeros among the values{by}: {', '.join(parts)}."


def _make_table(
  summaries: Sequence[activations.Summary], columns: int
) -> section.Table:
  has_columns = columns > 1
  rows = []
  for one in summaries:
    is_alone = [other.layer for other in summaries].count(one.layer) == 1
    rows.append(
      [
        one.layer,
        *([""] if is_alone else [f"{one.column}"]) * has_columns,
        " × ".join(f"{size:,}" for size in one.shape),
        f"{one.mean:.3g}",
        f"{one.zeros:.1%}",
        ", ".join(map(str, one.strongest)),
      ]
    )
  header = [
    "layer",
    *["column"] * has_columns,
    *("values", "mean", "zeros", "strongest"),
  ]
  first = 1 + has_columns
  return section.Table(
    header=header,
    rows=rows,
    caption=(
      "Mean and share of zeros of all values, and the maps or units with the "
      "largest mean, numbered from 0."
    ),
    numeric=(first, first + 1, first + 2),
  )
