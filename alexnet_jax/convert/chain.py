"""Makes a table of layers from a chain of operations, as other formats have it.

Caffe and ONNX list convolutions, products, activations, normalizations,
poolings and dropout one by one; a row of ours has one product and what follows
it.
"""

from __future__ import annotations

import collections
import dataclasses
import keyword
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from alexnet_jax.network import wiring

# Of a table that the catalog does not have.
NAME = "imported"
PRODUCT, DROPOUT = "product", "dropout"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
  """One operation of the chain.

  Attributes:
    kind: PRODUCT, DROPOUT or one of `wiring.ORDER`.
    label: its name in the file, for errors.
    name: of the layer of a product, if the file names it; else None.
    fields: of a row, that it sets; of a product also `groups`.
  """

  kind: str
  label: str
  fields: Mapping[str, Any]
  name: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
  """A table of layers, and what it was made from.

  Attributes:
    labels: {layer: name of its product in the file}.
    notes: lines on layers with another name than in the file.
  """

  table: wiring.Wiring
  labels: Mapping[str, str]
  dropout_rate: float
  notes: tuple[str, ...]


def make_chain(
  operations: Sequence[Operation], *, image_size: int, image_channels: int
) -> Chain:
  """Makes the table of a chain.

  Args:
    operations: in the order in which they are computed.

  Raises:
    ValueError: there is no such row of ours; names the operation.
  """
  groups = _split(operations)
  if not groups:
    raise ValueError("it has no layer with weights, expected a network")
  counts = [group[0].fields["groups"] for group in groups]
  # Most layers with groups have those of the columns; another one is named.
  grouped = collections.Counter(count for count in counts if count > 1)
  columns = max(grouped, key=grouped.__getitem__, default=1)
  rows, labels, notes = [], {}, []
  for number, (group, count) in enumerate(
    zip(groups, counts, strict=True), start=1
  ):
    product = group[0]
    if count not in (1, columns) or (count > 1 and number == 1):
      raise ValueError(
        f"layer {product.label!r} has {count} groups, expected 1"
        + (f" or {columns}, as others have" if number > 1 else "")
      )
    name = _find_name(product, number, labels)
    labels[name] = product.label
    if product.name not in (None, name):
      notes.append(f"layer {product.name!r} of the file is called {name}")
    rows.append(_make_row(name, group, count, is_first=number == 1))
  rates = {row.dropout_rate for row in rows if row.dropout}
  if len(rates) == 1:
    rows = [dataclasses.replace(row, dropout_rate=None) for row in rows]
  table = wiring.Wiring(
    name=NAME,
    columns=columns,
    layers=tuple(rows),
    image_channels=image_channels,
    published_size=image_size,
    published_classes=rows[-1].features,
  )
  return Chain(
    table=table,
    labels=labels,
    dropout_rate=rates.pop() if len(rates) == 1 else 0.5,
    notes=tuple(notes),
  )


def _split(operations: Sequence[Operation]) -> list[list[Operation]]:
  """Splits a chain into products, each with what follows it."""
  groups: list[list[Operation]] = []
  for one in operations:
    if one.kind == PRODUCT:
      groups.append([one])
      continue
    if not groups:
      raise ValueError(
        f"layer {one.label!r} ({one.kind}) comes before the first layer with "
        "weights, expected a convolution or a fully connected layer"
      )
    kinds = [before.kind for before in groups[-1]]
    # Twice the same: ReLU after ReLU, or dropout after dropout.
    if one.kind in kinds or DROPOUT in kinds:
      raise ValueError(
        f"layer {one.label!r} ({one.kind}) follows {', '.join(kinds)}, "
        "expected at most one activation, normalization and pooling, in any "
        "order, and dropout at the end"
      )
    groups[-1].append(one)
  return groups


def _find_name(
  product: Operation, number: int, taken: Mapping[str, str]
) -> str:
  """Returns the name of a layer: that of the file where we can have it."""
  name = re.sub(r"\W", "_", product.name or "", flags=re.ASCII)
  if (
    re.fullmatch(r"[A-Za-z]\w{0,40}", name)
    and not keyword.iskeyword(name)
    and name not in wiring.RESERVED_NAMES
    and name not in taken
  ):
    return name
  made = f"{'conv' if product.fields['window'] else 'fc'}{number}"
  return f"{made}_of_file" if made in taken else made


def _make_row(
  name: str, group: Sequence[Operation], groups: int, *, is_first: bool
) -> wiring.Layer:
  values: dict[str, Any] = {"activation": "linear", "kernel_std": None}
  for one in group:
    values |= one.fields
  del values["groups"]
  found = [one.kind for one in group if one.kind in wiring.ORDER]
  absent = [kind for kind in wiring.ORDER if kind not in found]
  order = tuple(kind for kind in wiring.ORDER if kind in found)
  reads = "own" if groups > 1 else "all"
  return wiring.Layer(
    name=name,
    reads="image" if is_first else reads,
    order=wiring.ORDER if list(order) == found else (*found, *absent),
    **values,
  )


def find_padding_after(
  side: int, *, window: int, stride: int, before: int, after: int, label: str
) -> tuple[int, tuple[int, int]]:
  """Finds the padding of a pooling that rounds the number of windows up.

  Args:
    side: of the map, in pixels.
    before, after: padding that the file has.

  Returns:
    The number of windows along a side, and a padding (before, after) with which
    rounding down gives the same windows.
  """
  windows = math.ceil((side + before + after - window) / stride) + 1
  # No window begins in the padding after the map.
  if (windows - 1) * stride >= side + before:
    windows -= 1
  if windows < 1:
    raise ValueError(
      f"layer {label!r} has a window of {window} for a map of {side} pixels"
    )
  needed = (windows - 1) * stride + window - side - before
  return windows, (before, max(needed, 0))
