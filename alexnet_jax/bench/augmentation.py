"""How fast the training step is, with its augmentation and without.

Both steps are compiled first and then take turns, so that a machine that slows
down slows both down.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping

import jax
import numpy as np

from alexnet_jax.bench import steps as steps_lib
from alexnet_jax.program import compiled_step, compiler_options
from alexnet_jax.program import program as program_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoAugmentation:
  """Crops that arrive as the network takes them, but for their type.

  Attributes:
    stored_size: side of the crops, in pixels.
  """

  stored_size: int

  def draw(
    self, key: jax.Array, n: int, *, spec, step: jax.Array
  ) -> dict[str, jax.Array]:
    """Draws nothing."""
    return {}

  def apply(self, images: jax.Array, draws) -> jax.Array:
    """u8[n, side, side, 3] -> f32[n, side, side, 3]."""
    return images.astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
  """Seconds of single steps, round by round.

  Attributes:
    with_augmentation: from stored images.
    without: from crops.
    batch_size: images in a step.
  """

  with_augmentation: list[float]
  without: list[float]
  batch_size: int

  def added(self) -> float:
    """What the augmentation adds to a step, as a share of it: median."""
    pairs = zip(self.with_augmentation, self.without, strict=True)
    return statistics.median(augmented / bare - 1 for augmented, bare in pairs)


def measure(
  program: program_lib.Program,
  options: Mapping[str, compiler_options.Value],
  *,
  rounds: int,
) -> Speed:
  """Measures both steps.

  Args:
    program: with its augmentation.
    options: for the compiler.
    rounds: steps of each.
  """
  bare = dataclasses.replace(
    program,
    augmentation=NoAugmentation(stored_size=program.network.image_size),
  )
  steps = []
  for each in (program, bare):
    compiled, _ = compiled_step.compile_step(each, options=options)
    steps.append(steps_lib.Steps(each, compiled))
    steps[-1].take()  # the first is slower
  seconds = [[], []]
  for number in range(rounds):
    # Either goes first as often as the other.
    for which in (0, 1) if number % 2 else (1, 0):
      seconds[which].append(steps[which].take())
  return Speed(
    with_augmentation=seconds[0],
    without=seconds[1],
    batch_size=program.batch_size,
  )
