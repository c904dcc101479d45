"""Warns once if the loss is still at chance level, ln(num_classes)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

# A network that learns falls below ln(classes) and stays there. One that
# guesses stays above: its last layer follows every batch a little. Measured on
# the digits with the initial weights of 2012, which learn nothing there: 2.31
# to 2.48 for ln(10) = 2.303. A still higher loss is no guess, but diverges.
_BELOW, _ABOVE = 0.02, 0.1
# However small the set is: an epoch of the digits is 23 steps, and a healthy
# run needs 35 (measured: 2.24 then, 1.99 at step 50, 0.86 at step 100).
MIN_STEPS = 100

# From Krizhevsky's code and from those who have trained the network since.
CAUSES = (
  "initial weights that do not fit the scale of the images (config.network.init"
  "=source and paper are for pixels of 0 to 255 and config.augment.scale=1, he "
  "is for about unit scale)",
  "initial biases far from 0, as those of 1 in alexnet2012, which the first "
  "two keep",
  "a config.optimizer.learning_rate that is too low or too high",
  "config.network.dropout_scaling=train with init=source, made for test",
  "labels in another order than the images",
)


def is_at_chance(losses: Sequence[float], num_classes: int) -> bool:
  """Whether a loss has never been better than chance, and is near it now.

  Args:
    losses: training losses in order, nats.
    num_classes: 2 or more; chance level is ln(num_classes), with smoothed
      labels too.
  """
  chance = math.log(num_classes)
  never_better = min(losses) >= (1 - _BELOW) * chance
  return never_better and losses[-1] <= (1 + _ABOVE) * chance


class LossMonitor:
  """Collects the losses of a run until they can be judged.

  Args:
    num_classes: of the network.
    until_step: step by which a healthy run has left chance level. At full size
      an epoch is enough, and 1,000 steps may not be: with the initial weights
      of 2012 the loss comes down to 6.9 from above (7.16, 7.06, 7.00 in the
      first 72 steps of the released code's own example).
  """

  def __init__(self, *, num_classes: int, until_step: int):
    self._num_classes = num_classes
    self._until_step = until_step
    self._losses: dict[str, list[float]] = {}
    self._is_done = num_classes < 2

  def check(self, step: int, losses: Mapping[str, float]) -> list[str]:
    """Adds the losses of a report, and returns the warnings due.

    Args:
      step: of the report.
      losses: {"the loss", or what else to call it: nats since the last report}.

    Returns:
      Once, from `until_step` on: a line for each loss at chance level.
    """
    if self._is_done:
      return []
    for name, loss in losses.items():
      self._losses.setdefault(name, []).append(loss)
    if step < self._until_step:
      return []
    self._is_done = True
    return [
      f"{name} stays at ln({self._num_classes}) = "
      f"{math.log(self._num_classes):.4g} or above, which is chance level: the "
      f"network has learned nothing so far. Known causes: {'; '.join(CAUSES)}."
      for name, history in self._losses.items()
      if is_at_chance(history, self._num_classes)
    ]
