import numpy as np
import pytest

from alexnet_jax.training import nonfinite

FINE = [[0.0, 2.0], [0.0, 3.0]]


def notes(**values):
  """Of two devices each; those that are not named are fine."""
  names = ("images", "conv1", "conv2", "fc6")
  return {name: np.array(values.get(name, FINE)) for name in names}


def variables(**values):
  names = ("conv1.kernel", "conv1.bias", "conv2.kernel", "fc6.kernel")
  given = {name.replace("_", "."): value for name, value in values.items()}
  return {name: np.array(given.get(name, FINE)) for name in names}


@pytest.mark.parametrize(
  ("outputs", "parameters", "loss", "expected"),
  [
    (
      notes(conv2=[[0, 9], [7, 8]], fc6=[[4, 0], [4, 0]]),
      variables(conv1_kernel=[[0, 5], [0, 6]]),
      np.nan,
      "the first non-finite values are in the output of conv2; "
      "before it, values reach 3 in images; all parameters were finite, up to "
      "6 in conv1.kernel",
    ),
    (
      notes(conv1=[[1, 0], [1, 0]]),
      variables(conv1_bias=[[2, 0], [0, 1]], conv2_kernel=[[1, 0], [0, 1]]),
      np.nan,
      "the update of step 40, whose own loss was finite, left non-finite "
      "values in conv1.bias, conv2.kernel; the backward pass reaches conv2 "
      "first",
    ),
    (
      notes(fc6=[[0, 3e38], [0, 1]]),
      variables(),
      np.inf,
      "the outputs of all layers are finite, but their loss is not; the "
      "largest output is 3e+38 in fc6; all parameters were finite, up to 3 in "
      "conv1.kernel",
    ),
    (
      notes(),
      variables(),
      2.5,
      "replayed, the same step has the finite loss 2.5, so a hardware fault "
      "is possible; all parameters were finite, up to 3 in conv1.kernel",
    ),
  ],
)
def test_first_non_finite_value_is_named(outputs, parameters, loss, expected):
  cause = nonfinite.find_cause(outputs, parameters, step=41, loss=loss)
  assert cause == expected
