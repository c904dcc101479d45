"""A layer that reads its own column is one that reads all, with zeros between.

The kernel of such a layer is block-diagonal: input of one column never reaches
output of another. Written out with its zeros it fits a layer that reads all
columns, which computes the same; and back, as long as the zeros are zeros.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from alexnet_jax.network import wiring

KERNEL = "kernel"
# Of a row, what has no part in what it computes: `reads` is what may differ,
# the next two are initial values, and normalization is compared by its groups.
_FREE = ("reads", "kernel_std", "bias", "normalize")


def check(source: wiring.Network, target: wiring.Network) -> None:
  """Refuses two networks that differ in more than in who reads what.

  Raises:
    ValueError: names the layer, and what it has in each of them.
  """
  there, here = ([row.name for row in each.layers] for each in (source, target))
  if there != here:
    raise ValueError(
      f"the layers are {', '.join(there)} in {source.name} and "
      f"{', '.join(here)} in {target.name}, expected the same. Set "
      "config.network.wiring."
    )
  for row, other in zip(source.layers, target.layers, strict=True):
    before, after = (
      {k: v for k, v in dataclasses.asdict(of).items() if k not in _FREE}
      | {"normalization": _describe_groups(network, of)}
      for network, of in ((source, row), (target, other))
    )
    for what, value in before.items():
      if value != after[what]:
        raise ValueError(
          f"the {what} of {row.name} is {value} in {source.name} with "
          f"{source.columns} columns, and {after[what]} in {target.name} with "
          f"{target.columns}, expected the same: it would be another function. "
          "Set config.network.wiring or config.network.columns."
        )
  for what in sorted(_find_constants(source)):
    value, other = getattr(source, what), getattr(target, what)
    if value != other:
      raise ValueError(
        f"network.{what} is {value} in {source.name} and {other} in "
        f"{target.name}, expected the same. Set config.network.{what}."
      )


def _describe_groups(network: wiring.Network, row: wiring.Layer) -> str:
  """What a layer normalizes over."""
  groups = {"column": network.columns, "across": 1}.get(row.normalize)
  if groups is None:
    return row.normalize
  return f"local response over {row.features // groups} of {row.features} maps"


def _find_constants(network: wiring.Network) -> set[str]:
  """Fields that all layers share, of those that this network uses."""
  kinds = {row.normalize for row in network.layers}
  used = {"image_size", "image_channels"}
  if kinds & {"column", "across"}:
    used |= {"lrn_k", "lrn_alpha"}
  if "batch" in kinds:
    used |= {"batch_norm_momentum"}
  if any(row.dropout for row in network.layers):
    used |= {"dropout_rate", "dropout_scaling"}
  return used


def find_changes(
  source: wiring.Network, target: wiring.Network
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
  """Shapes of the kernels that differ: layer -> (there, here)."""
  before, after = source.sizes(), target.sizes()
  return {
    name: (size.kernel, after[name].kernel)
    for name, size in before.items()
    if size.kernel != after[name].kernel
  }


def convert(tree: Any, source: wiring.Network, target: wiring.Network) -> Any:
  """What one network holds, as another that computes the same holds it.

  Args:
    tree: parameters {layer: {"kernel", "bias", ...}} of global shapes, or any
      tree with such in it, as the state of an optimizer: all leaves that are
      called "kernel" under the name of a layer are changed, and no others. A
      velocity or an average is 0 where the columns do not meet, as what it is
      of.
    source: whose tree it is.
    target: that `check` has accepted.

  Returns:
    The same tree, of NumPy arrays.

  Raises:
    ValueError: a value is not 0 where the columns of the target do not meet;
      names layer, leaf and the largest of them.
  """
  rows = {row.name: row for row in source.layers}
  sizes = source.sizes()

  def change(path, leaf):
    leaf = np.asarray(leaf)
    names = [getattr(key, "key", None) for key in path]
    name = names[-2] if len(names) > 1 else None
    if names[-1] != KERNEL or name not in rows:
      return leaf
    blocks, wanted = (
      _count_blocks(network, name) for network in (source, target)
    )
    if blocks == wanted:
      return leaf
    window = rows[name].window
    places = window * window or sizes[name].positions
    dense = _fill(leaf.reshape(places, -1, leaf.shape[-1]), blocks)
    cut = _cut(dense, wanted, where=f"{name} ({jax.tree_util.keystr(path)})")
    return cut.reshape(target.sizes()[name].kernel)

  return jax.tree.map_with_path(change, tree)


def _count_blocks(network: wiring.Network, name: str) -> int:
  return network.columns if network.layer(name).reads == "own" else 1


def _fill(kernel: np.ndarray, blocks: int) -> np.ndarray:
  """[places, in / blocks, out] -> [places, in, out], 0 between the blocks.

  Channels are the last part of an input, so column k of every place has the
  channels from k * in / blocks on.
  """
  places, read, out = kernel.shape
  dense = np.zeros((places, blocks, read, blocks, out // blocks), kernel.dtype)
  for block, own in enumerate(np.split(kernel, blocks, axis=-1)):
    dense[:, block, :, block] = own
  return dense.reshape(places, blocks * read, out)


def _cut(dense: np.ndarray, blocks: int, *, where: str) -> np.ndarray:
  """The reverse of `_fill`; refuses what would be lost."""
  places, read, out = dense.shape
  parts = dense.reshape(places, blocks, read // blocks, blocks, out // blocks)
  own = [parts[:, block, :, block] for block in range(blocks)]
  kernel = np.concatenate(own, axis=-1)
  between = parts * (1 - np.eye(blocks, dtype=dense.dtype))[:, None, :, None]
  if between.any():
    raise ValueError(
      f"{where} has values of up to {np.abs(between).max():.3g} where the "
      f"{blocks} columns of the new network do not meet, expected 0: they were "
      "trained, and would be lost. Set config.network.wiring to a network in "
      "which this layer reads all columns."
    )
  return kernel
