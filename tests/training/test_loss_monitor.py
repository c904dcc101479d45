import math

import pytest

from alexnet_jax.training import loss_monitor

CHANCE = math.log(10)
# Means of five steps each, the embedded default as it learns.
DIGITS = (2.341, 2.321, 2.272, 2.28, 2.263, 2.241, 2.236, 2.188, 2.112, 1.992)
# The released code's own example on ImageNet, log losses of its first 72 steps.
START_OF_2012 = (7.16, 7.06, 7.00)


@pytest.mark.parametrize(
  ("losses", "classes", "stays"),
  [
    ((2.35, 2.31, 2.303, 2.301), 10, True),
    ((CHANCE,), 10, True),
    (DIGITS[:4], 10, True),
    (DIGITS, 10, False),
    (START_OF_2012, 1000, True),  # so an answer this early would be wrong
    ((*START_OF_2012, 6.91, 6.90, 6.7), 1000, False),
    # It has been better: another problem.
    ((2.2, 2.31, 2.303), 10, False),
    # Slightly above chance is guessing too; more is another problem.
    ((2.303, 2.385, 2.484, 2.43), 10, True),
    ((2.303, 2.4, 3.5), 10, False),
    ((math.log(2),) * 3, 2, True),
  ],
)
def test_loss_at_chance_has_never_been_better(losses, classes, stays):
  assert loss_monitor.is_at_chance(losses, classes) is stays


def test_each_loss_is_judged_once_and_not_too_early():
  monitor = loss_monitor.LossMonitor(num_classes=10, until_step=100)
  warnings = [
    monitor.check(step, {"loss 0": CHANCE, "loss 1": loss})
    for step, loss in ((50, 2.2), (99, 2.0), (150, 1.8), (200, 1.7))
  ]
  assert [len(lines) for lines in warnings] == [0, 0, 1, 0]
  (line,) = warnings[2]
  assert line.startswith("loss 0 stays at ln(10) = 2.303")
  for cause in ("config.network.init", "biases far from 0", "learning_rate"):
    assert cause in line
