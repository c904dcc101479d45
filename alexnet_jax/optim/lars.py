"""Layer-wise adaptive rates, for large batches (You et al. 2017).

Each kernel's step is measured in its own size: the decayed gradient is
multiplied by `coefficient * |kernel| / |decayed gradient|`. A kernel that is
split over devices has no norm on any of them, so the step hands the norms in:
see `partition/exchange.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

Tree = Mapping[str, Mapping[str, jax.Array]]
# (parameters, updates) -> {layer: f32[]} of each, the sums of the squares of
# its whole kernel.
SquaredNorms = Callable[
  [Tree, Tree], tuple[Mapping[str, jax.Array], Mapping[str, jax.Array]]
]


def scale_kernels_by_trust(
  coefficient: float,
) -> optax.GradientTransformationExtraArgs:
  """Multiplies the update of each kernel by its trust ratio.

  Biases, and the scales of a normalisation, stay as they are. `update` takes
  `squared_norms`, a `SquaredNorms`, beside the usual arguments.

  Args:
    coefficient: of the ratio, above 0; 0.001 in the source.

  Source: You, Gitman and Ginsburg 2017, "Large batch training of convolutional
  networks", algorithm 1; the same order as `optax.lars`, which also takes a
  ratio of 1 where a norm is 0.
  """

  def update(updates, state, parameters=None, *, squared_norms, **extra):
    del extra
    of_kernels, of_updates = squared_norms(parameters, updates)

    def scale(path, x):
      if path[-1].key != "kernel":
        return x
      layer = path[0].key
      kernel, step = jnp.sqrt(of_kernels[layer]), jnp.sqrt(of_updates[layer])
      is_zero = (kernel == 0) | (step == 0)
      ratio = coefficient * kernel / jnp.where(is_zero, 1.0, step)
      return x * jnp.where(is_zero, 1.0, ratio)

    return jax.tree.map_with_path(scale, updates), state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
