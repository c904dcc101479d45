import math

import pytest

from alexnet_jax.program import summary


@pytest.mark.parametrize(
  ("number", "text"),
  [
    *((0, "0"), (0.0004, "<0.001"), (0.01234, "0.0123"), (1.0, "1")),
    *((99.94, "99.9"), (99.96, "100"), (1234.5, "1,234"), (math.pi, "3.14")),
  ],
)
def test_numbers_have_three_digits(number, text):
  assert summary.to_short(number) == text
