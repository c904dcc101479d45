"""What a step draws for the layers of a network.

In the global view, so that every layout draws the same, and split as the
outputs are that the draws belong to.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.sharding import PartitionSpec

from alexnet_jax.network import wiring
from alexnet_jax.partition import specs as specs_lib


def draw_all(
  network: wiring.Network,
  specs: specs_lib.Specs,
  augmentation,
  key: jax.Array,
  step: jax.Array,
  n: int,
) -> tuple[dict[str, jax.Array], dict[str, dict[str, jax.Array]]]:
  """All that a step draws: for its images, and for the layers.

  Args:
    network: the network.
    specs: of its arrays.
    augmentation: of the images; see `data/augment.py`.
    key: the same for all steps.
    step: i32[], steps before this one.
    n: images in the batch, over all devices.
  """
  augment_key, *keys = jax.random.split(
    jax.random.fold_in(key, step), 1 + count(specs)
  )
  draws = augmentation.draw(augment_key, n, spec=specs.images, step=step)
  return draws, draw(network, specs, keys, n)


def draw(
  network: wiring.Network,
  specs: specs_lib.Specs,
  keys: Sequence[jax.Array],
  n: int,
) -> dict[str, dict[str, jax.Array]]:
  """Draws for one batch; to be called under the layout's mesh.

  Args:
    network: the network.
    specs: of its arrays.
    keys: as many as `count` says.
    n: images in the batch, over all devices.

  Returns:
    {"masks": {layer: bool[N, ...]}, "points": {layer: f32[N, ...]}}: what
    dropout keeps, and where stochastic pooling points; see `model.AlexNet`.
  """
  shapes = {
    name: (n, *size.out_shape) for name, size in network.sizes().items()
  }
  masks, points = {}, {}
  for layer, key in zip(specs.masks, keys, strict=False):
    masks[layer] = jax.random.bernoulli(
      key,
      network.keep_rate(layer),
      shapes[layer],
      out_sharding=specs.masks[layer],
    )
  for layer, key in zip(specs.points, keys[len(masks) :], strict=True):
    points[layer] = jax.random.uniform(
      key, shapes[layer], out_sharding=specs.points[layer]
    )
  return {"masks": masks, "points": points}


def count(specs: specs_lib.Specs) -> int:
  """Keys that `draw` takes."""
  return len(specs.masks) + len(specs.points)


def to_specs(specs: specs_lib.Specs) -> dict[str, dict[str, PartitionSpec]]:
  """The splits of what `draw` returns."""
  return {"masks": dict(specs.masks), "points": dict(specs.points)}
