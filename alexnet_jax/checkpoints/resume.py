"""Where a run goes on: at its newest checkpoint that is sound."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

from alexnet_jax.checkpoints import metadata

State = TypeVar("State")


def find_sound(
  place: str,
  steps: Sequence[int],
  read: Callable[[int], State],
  move_aside: Callable[[int], str],
  say: Callable[[str], None],
) -> tuple[int, State] | None:
  """Reads checkpoints, the newest first, until one is sound.

  Args:
    place: where they are.
    steps: of all.
    read: reads that of a step.
    move_aside: takes away that of a step; returns where it is now.
    say: prints a line.

  Returns:
    The step and what was read; None if there are no steps.

  Raises:
    CheckpointError: none of them is sound; names them all. None is moved.
  """
  problems: dict[int, str] = {}
  for step in sorted(steps, reverse=True):
    try:
      state = read(step)
    except metadata.DamagedError as error:
      problems[step] = str(error)
      continue
    for damaged, problem in problems.items():
      say(f"{problem} It is now {move_aside(damaged)!r}.")
    return step, state
  if problems:
    raise metadata.CheckpointError(
      f"none of the checkpoints in {place!r} is sound: "
      f"{' '.join(problems.values())} Restore one of them, or set --workdir to "
      "start another run."
    )
  return None


def move_aside(folder: str, *, why: str = "broken") -> str:
  """Gives a checkpoint a name that none has; returns its path.

  Orbax reads no folder of such a name.

  Args:
    folder: of the checkpoint.
    why: begins the name, `WHY-STEP`: "broken", or "later" of a sound one that
      nothing could be saved below.
  """
  above, name = os.path.split(folder)
  number = 1
  while True:
    suffix = "" if number == 1 else f"-{number}"
    path = os.path.join(above, f"{why}-{name}{suffix}")
    if not os.path.lexists(path):
      os.rename(folder, path)
      return path
    number += 1


def has_damaged(place: str) -> bool:
  """Whether a folder of checkpoints has one that was moved aside as damaged."""
  found = os.listdir(place) if os.path.isdir(place) else []
  return any(name.startswith("broken-") for name in found)
