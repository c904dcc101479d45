"""Converts layers that read their own column to layers that read all, and back.

The kernel of a layer that reads its own column is block-diagonal: input of one
column never reaches output of another. Filled with zeros between the blocks it
fits a layer that reads all columns, and computes the same. The way back is
possible as long as these zeros are zeros.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from alexnet_jax.network import wiring

KERNEL = "kernel"
# Fields of a row that may differ: `reads` is what is converted, the next two
# are initial values, and normalization is compared by its groups, and by its
# constants where it has some.
_FREE = ("reads", "kernel_std", "bias", "normalize", "lrn")


def check(source: wiring.Network, target: wiring.Network) -> None:
  """Refuses two networks that differ in more than in who reads what.

  Raises:
    ValueError: names the layer, and what it has in each of them.
  """
  source_names, target_names = (
    ", ".join(row.name for row in network.layers)
    for network in (source, target)
  )
  if source_names != target_names:
    raise ValueError(
      f"the layers are {source_names} in {source.name} and {target_names} in "
      f"{target.name}, expected the same. Set config.network.wiring."
    )
  for source_row, target_row in zip(source.layers, target.layers, strict=True):
    before, after = (
      {
        field.name: getattr(row, field.name)
        for field in dataclasses.fields(row)
        if field.name not in _FREE
      }
      | _describe_normalization(network, row)
      for network, row in ((source, source_row), (target, target_row))
    )
    for field, value in before.items():
      if value != after[field]:
        raise ValueError(
          f"the {field} of {source_row.name} is {value} in {source.name} with "
          f"{source.columns} columns, and {after[field]} in {target.name} with "
          f"{target.columns}, expected the same: the networks would compute "
          "different functions. Set config.network.wiring or "
          "config.network.columns."
        )
  for field in sorted(_find_used_constants(source)):
    value, target_value = getattr(source, field), getattr(target, field)
    if value != target_value:
      raise ValueError(
        f"network.{field} is {value} in {source.name} and {target_value} in "
        f"{target.name}, expected the same. Set config.network.{field}."
      )


def _describe_normalization(
  network: wiring.Network, row: wiring.Layer
) -> dict[str, Any]:
  if row.normalize in ("none", "batch"):
    return {"normalization": row.normalize, "lrn": None}
  groups = {"column": network.columns, "across": 1}.get(row.normalize)
  where = (
    "neighbors in a map"
    if groups is None
    else f"{row.features // groups} of {row.features} maps"
  )
  return {"normalization": f"local response over {where}", "lrn": row.lrn}


def _find_used_constants(network: wiring.Network) -> set[str]:
  """Fields of a network that its layers use."""
  kinds = {row.normalize for row in network.layers}
  used = {"image_size", "image_channels"}
  if "batch" in kinds:
    used |= {"batch_norm_momentum"}
  if any(row.dropout for row in network.layers):
    used |= {"dropout_rate", "dropout_scaling"}
  return used


def convert(tree: Any, source: wiring.Network, target: wiring.Network) -> Any:
  """Converts the kernels in a tree of one network to those of another.

  Args:
    tree: parameters {layer: {"kernel", "bias", ...}} of global shapes, or any
      tree with such in it, as the state of an optimizer: all leaves that are
      called "kernel" under the name of a layer are converted, and no others. A
      velocity or an average is 0 wherever its kernel is.
    source: the network of the tree.
    target: a network that `check` has accepted, or one whose layers in the tree
      have the same `find_dense_shapes`.

  Returns:
    The same tree, of NumPy arrays.

  Raises:
    ValueError: a value is not 0 where the columns of the target do not meet;
      names layer, leaf and the largest of them.
  """
  rows = {row.name: row for row in source.layers}
  sizes = source.sizes()

  def convert_leaf(path, leaf):
    leaf = np.asarray(leaf)
    names = [getattr(key, "key", None) for key in path]
    name = names[-2] if len(names) > 1 else None
    if names[-1] != KERNEL or name not in rows:
      return leaf
    blocks, target_blocks = (
      count_blocks(network, name) for network in (source, target)
    )
    if blocks == target_blocks:
      return leaf
    window = rows[name].window
    positions = window * window or sizes[name].positions
    dense = _to_dense(leaf.reshape(positions, -1, leaf.shape[-1]), blocks)
    leaf_name = f"{name} ({jax.tree_util.keystr(path)})"
    kernel = _to_blocks(dense, target_blocks, leaf_name)
    return kernel.reshape(target.sizes()[name].kernel)

  return jax.tree.map_with_path(convert_leaf, tree)


def count_blocks(network: wiring.Network, name: str) -> int:
  """Returns the number of blocks of a layer's kernel, 1 if it reads all."""
  return network.columns if network.layer(name).reads == "own" else 1


def find_dense_shapes(
  network: wiring.Network, name: str
) -> dict[str, tuple[int, ...]]:
  """Returns {parameter: shape} of a layer if it read all columns.

  Where two networks have the same, `convert` makes the arrays of one those of
  the other.
  """
  size = network.sizes()[name]
  *window, _, out = size.kernel
  return size.shapes | {KERNEL: (*window, size.channels, out)}


def _to_dense(kernel: np.ndarray, blocks: int) -> np.ndarray:
  """[positions, in / blocks, out] -> [positions, in, out], 0 between blocks.

  Channels are the last part of an input, so at every position column k has the
  channels from k * in / blocks on.
  """
  positions, read, out = kernel.shape
  shape = (positions, blocks, read, blocks, out // blocks)
  dense = np.zeros(shape, kernel.dtype)
  for index, block in enumerate(np.split(kernel, blocks, axis=-1)):
    dense[:, index, :, index] = block
  return dense.reshape(positions, blocks * read, out)


def _to_blocks(dense: np.ndarray, blocks: int, leaf_name: str) -> np.ndarray:
  """The inverse of `_to_dense`; refuses values between the blocks."""
  positions, read, out = dense.shape
  parts = dense.reshape(
    positions, blocks, read // blocks, blocks, out // blocks
  )
  is_block = np.eye(blocks, dtype=bool)[:, None, :, None]
  between = np.where(is_block, 0, parts)  # a product would be nan for inf
  if between.any():
    raise ValueError(
      f"{leaf_name} has values of up to {np.abs(between).max():.3g} where the "
      f"{blocks} columns of the new network do not meet, expected 0: they were "
      "trained, and would be lost. Set config.network.wiring to a network in "
      "which this layer reads all columns."
    )
  return np.concatenate(
    [parts[:, index, :, index] for index in range(blocks)], axis=-1
  )
