"""Which checkpoints stay: the newest, the best, and one every so often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def find_kept(
  steps: Sequence[int],
  errors: Mapping[int, float],
  *,
  newest: int,
  best: int,
  every: int | None,
) -> set[int]:
  """The steps whose checkpoints are to stay.

  Args:
    steps: of all checkpoints.
    errors: step -> top-1 error of its validation; of two that are equal the
      later one is better. Steps that were saved without one have none.
    newest: how many of the newest stay, 1 or more.
    best: how many of lowest error stay.
    every: steps of which each multiple stays; None: none does for that.
  """
  rising = sorted(steps)
  validated = sorted(
    (step for step in rising if step in errors),
    key=lambda step: (errors[step], -step),
  )
  return {
    *rising[-newest:],
    *validated[:best],
    *(step for step in rising if every and step % every == 0),
  }


class Policy:
  """`find_kept`, as Orbax asks for it.

  Orbax's own policy for the best reads their metrics from an item of its own,
  and a damaged one would keep it from opening.
  """

  def __init__(self, *, newest: int, best: int, every: int | None):
    self.errors: dict[int, float] = {}
    self._options = {"newest": newest, "best": best, "every": every}

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Whether each of the checkpoints stays."""
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = find_kept(steps, self.errors, **self._options)
    return [step in kept for step in steps]
