"""What the augmentation adds to the time of the training step."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import rich.table

from alexnet_jax.bench import report, turns
from alexnet_jax.program import compiled_step, summary
from alexnet_jax.program import program as program_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoAugmentation:
  """Stands in for the augmentation: crops that only change their type."""

  stored_size: int  # side of the crops, in pixels

  def draw(
    self, key: jax.Array, n: int, *, spec, step: jax.Array
  ) -> dict[str, jax.Array]:
    return {}

  def apply(self, images: jax.Array, draws) -> jax.Array:
    """u8[n, side, side, 3] -> f32[n, side, side, 3]."""
    return images.astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationTime(report.ProgramResult):
  """Seconds of single steps, round by round.

  Attributes:
    seconds_with: from stored images.
    seconds_without: from crops.
  """

  seconds_with: list[float]
  seconds_without: list[float]

  @property
  def added(self) -> float:
    """Added time as a part of the step without it: median of rounds."""
    return report.median_of_rounds(
      lambda augmented, bare: augmented / bare - 1,
      self.seconds_with,
      self.seconds_without,
    )

  def tables(self) -> list[rich.table.Table]:
    table = summary.make_table(
      f"a step of {self.batch_size} images, in ms",
      *("augmentation", "> median", "> lowest", "> highest"),
    )
    table.add_row("with", *report.spread_ms(self.seconds_with, 1))
    table.add_row("without", *report.spread_ms(self.seconds_without, 1))
    return [table]

  def lines(self) -> list[str]:
    return [
      f"the augmentation adds {self.added:.1%} to a step: median of "
      f"{len(self.seconds_without)} pairs of steps, with and without it"
    ]


def measure(
  program: program_lib.Program, options: report.Options, *, rounds: int
) -> AugmentationTime:
  """Measures the step of a program as it is, and without its augmentation."""
  bare = dataclasses.replace(
    program,
    augmentation=NoAugmentation(stored_size=program.network.image_size),
  )
  calls = {}
  for name, variant in (("with", program), ("without", bare)):
    compiled, _ = compiled_step.compile_step(variant, options=options)
    calls[name] = turns.StepRunner(variant, compiled).start
  # Each step is waited for.
  seconds = turns.take_turns(calls, rounds=rounds, in_order=False)
  return AugmentationTime(
    **report.describe(program, options),
    seconds_with=seconds["with"],
    seconds_without=seconds["without"],
  )
