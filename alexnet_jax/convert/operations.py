"""A network in evaluation, as the standard operations of other libraries.

Maps are [n, channels, height, width] there, and a dense layer reads a map
channel by channel. What they have no operation for becomes part of a kernel:
dropout that scales in evaluation, the mean of the three channels of an image,
and units that read one column only. The numbers stay the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from alexnet_jax.network import block_diagonal, ops, wiring


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
  """One operation of a network.

  Attributes:
    kind: "conv", "dense", "flatten", "batch_norm", "activation", "lrn" (over
      maps), "map_lrn" (over the neighbors in a map), "pool" or "dropout".
    layer: the row that it belongs to.
    options: of "conv": `stride`, `padding` (before, after) and `groups`. Of
      "batch_norm": `epsilon`. Of "activation": `name`. Of "lrn" and "map_lrn":
      the fields of `wiring.Lrn`; of "lrn" also `maps` and `groups`. Of "pool":
      the fields of `wiring.Pool`. Of "dropout": `rate`. "dense" and "flatten"
      have none.
    arrays: f32. Of "conv": `kernel` [out, in, height, width]; of "dense":
      `kernel` [out, in]; of both `bias` [out], unless "batch_norm" follows,
      which has `scale`, `bias`, `mean` and `variance` [out].
  """

  kind: str
  layer: str
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def make_operations(
  network: wiring.Network, variables: Mapping[str, Mapping[str, np.ndarray]]
) -> tuple[Operation, ...]:
  """Makes the operations that compute the logits of a network.

  Args:
    variables: {layer: {"kernel", "bias", ...}}, as `model.join_variables` has
      them, on the host.

  Returns:
    In the order in which they follow each other. The input is f32[n, 3, side,
    side], what `augment.Augment.center` gives with the channels first.
  """
  network, variables = _to_dense(network, variables)
  operations: list[Operation] = []
  for before, row in zip((None, *network.layers), network.layers, strict=False):
    of_layer = {
      name: np.asarray(array, np.float32)
      for name, array in variables[row.name].items()
    }
    if row.kind == "fc" and (before is None or before.kind == "conv"):
      operations.append(Operation(kind="flatten", layer=row.name))
    if before is not None and before.dropout:
      rate = before.dropout_rate
      rate = network.dropout_rate if rate is None else rate
      operations.append(
        Operation(kind="dropout", layer=before.name, options={"rate": rate})
      )
      if network.dropout_scaling == "test":
        keep = np.float32(network.keep_rate(before.name))
        of_layer["kernel"] = of_layer["kernel"] * keep
    elif before is None and network.image_channels == 1:
      # Of three channels with a third of the weight each.
      of_layer["kernel"] = np.repeat(of_layer["kernel"] / 3, 3, axis=-2)
    operations += _make_layer(network, row, of_layer)
  return tuple(operations)


def _to_dense(
  network: wiring.Network, variables: Mapping[str, Mapping[str, np.ndarray]]
) -> tuple[wiring.Network, Mapping[str, Mapping[str, np.ndarray]]]:
  """Lets units read all columns, with zeros where they read their own."""
  rows = tuple(
    dataclasses.replace(row, reads="all")
    if row.kind == "fc" and row.reads == "own"
    else row
    for row in network.layers
  )
  target = dataclasses.replace(network, layers=rows)
  return target, block_diagonal.convert(dict(variables), network, target)


def _make_layer(
  network: wiring.Network,
  row: wiring.Layer,
  arrays: Mapping[str, np.ndarray],
) -> Iterator[Operation]:
  product = {"kernel": _to_channels_first(arrays["kernel"])}
  if row.normalize != "batch":
    product["bias"] = arrays["bias"]
  if row.window:
    options = {
      "stride": row.stride,
      "padding": row.padding,
      "groups": block_diagonal.count_blocks(network, row.name),
    }
    yield Operation(
      kind="conv", layer=row.name, options=options, arrays=product
    )
  else:
    yield Operation(kind="dense", layer=row.name, arrays=product)
  if row.normalize == "batch":
    yield Operation(
      kind="batch_norm",
      layer=row.name,
      options={"epsilon": ops.BATCH_NORM_EPSILON},
      arrays={name: arrays[name] for name in arrays if name != "kernel"},
    )
  for part in row.order:
    if part == "activation" and row.activation != "linear":
      options = {"name": row.activation}
      yield Operation(kind=part, layer=row.name, options=options)
    elif part == "normalization":
      yield from _make_normalizations(network, row)
    elif part == "pooling" and row.pool:
      options = dataclasses.asdict(row.pool)
      yield Operation(kind="pool", layer=row.name, options=options)


def _make_normalizations(
  network: wiring.Network, row: wiring.Layer
) -> Iterator[Operation]:
  """Makes the local response normalizations of a row."""
  if row.normalize in wiring.OVER_MAPS:
    groups = network.columns if row.normalize == "column" else 1
    options = {"maps": row.features, "groups": groups}
    options |= dataclasses.asdict(row.lrn)
    yield Operation(kind="lrn", layer=row.name, options=options)
  elif row.normalize == "map":
    options = dataclasses.asdict(row.lrn)
    yield Operation(kind="map_lrn", layer=row.name, options=options)
  if row.map_lrn is not None:
    options = dataclasses.asdict(row.map_lrn)
    yield Operation(kind="map_lrn", layer=row.name, options=options)


def _to_channels_first(kernel: np.ndarray) -> np.ndarray:
  """HWIO, (positions, in, out) or (in, out) -> OIHW or (out, in)."""
  if kernel.ndim == 4:
    kernel = kernel.transpose(3, 2, 0, 1)
  else:
    kernel = kernel.T  # f32[out, in, positions] of a map
    kernel = kernel.reshape(kernel.shape[0], -1)
  return np.ascontiguousarray(kernel)
