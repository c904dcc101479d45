"""A loss that stays at that of guessing is pointed out, once and early."""

from __future__ import annotations

import math
from collections.abc import Sequence

# What learns falls below ln(classes) and stays there. What guesses lies above:
# its last layer follows every batch a little. Measured on the digits with the
# initial weights of 2012, which learn nothing there: 2.31 to 2.48 for ln(10) =
# 2.303. What is higher still does not guess, it diverges.
_BELOW, _ABOVE = 0.02, 0.1
# However small the set is: an epoch of the digits is 23 steps, and a healthy
# run needs 35 (measured: 2.24 then, 1.99 at step 50, 0.86 at step 100).
MIN_STEPS = 100

# From Krizhevsky's code and from those who have trained the network since.
CAUSES = (
  "initial weights that do not fit the scale of the images (config.network.init"
  "=source and paper are for pixels of 0 to 255 and config.augment.scale=1, he "
  "is for about unit scale)",
  "biases of 1 in conv2, conv4, conv5, fc6 and fc7, which the first two have",
  "a config.optimizer.learning_rate that is too low or too high",
  "config.network.dropout_scaling=train with init=source, made for test",
  "labels in another order than the images",
)


def is_at_chance(losses: Sequence[float], num_classes: int) -> bool:
  """Whether a loss has never been better than guessing, and is near it now.

  Args:
    losses: of the training, one after the other, nats.
    num_classes: 2 or more; guessing has a loss of ln(num_classes), with
      smoothed labels too.
  """
  chance = math.log(num_classes)
  never_better = min(losses) >= (1 - _BELOW) * chance
  return never_better and losses[-1] <= (1 + _ABOVE) * chance


class LossMonitor:
  """Looks at the losses of a run until there is an answer.

  Args:
    num_classes: of the network.
    until_step: from which on a healthy run has left the loss of guessing. At
      full size an epoch takes it there, and 1,000 steps need not: with the
      initial weights of 2012 the loss comes down to 6.9 from above (7.16, 7.06,
      7.00 in the first 72 steps of the released code's own example).
  """

  def __init__(self, *, num_classes: int, until_step: int):
    self._num_classes = num_classes
    self._until_step = until_step
    self._losses: list[Sequence[float]] = []
    self._is_over = num_classes < 2

  def look(self, step: int, losses: Sequence[float]) -> list[str]:
    """What to say after a report.

    Args:
      step: of the report.
      losses: of the run, or of each member of an ensemble, since the last one.

    Returns:
      A line for each that learns nothing, or nothing.
    """
    if self._is_over:
      return []
    self._losses.append(losses)
    if step < self._until_step:
      return []
    self._is_over = True
    of_members = list(zip(*self._losses, strict=True))
    return [
      f"the loss{f' of member {member}' if len(of_members) > 1 else ''} stays "
      f"at ln({self._num_classes}) = {math.log(self._num_classes):.4g} or "
      "above, as if it guessed: nothing is learned so far. Known causes: "
      f"{'; '.join(CAUSES)}."
      for member, found in enumerate(of_members)
      if is_at_chance(found, self._num_classes)
    ]
