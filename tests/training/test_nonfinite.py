import numpy as np
import pytest

from alexnet_jax.training import nonfinite, report

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
      "the first values that are not finite are in the output of conv2; "
      "before it, values reach 3 in images; all parameters were finite, up to "
      "6 in conv1.kernel",
    ),
    (
      notes(conv1=[[1, 0], [1, 0]]),
      variables(conv1_bias=[[2, 0], [0, 1]], conv2_kernel=[[1, 0], [0, 1]]),
      np.nan,
      "the update of step 40, whose own loss was finite, has left values that "
      "are not in conv1.bias, conv2.kernel, of whose layers the backward pass "
      "comes to conv2 first",
    ),
    (
      notes(fc6=[[0, 3e38], [0, 1]]),
      variables(),
      np.inf,
      "the outputs of all layers are finite, the loss of them is not; the "
      "largest output is 3e+38 in fc6; all parameters were finite, up to 3 in "
      "conv1.kernel",
    ),
    (
      notes(),
      variables(),
      2.5,
      "taken again, the same step has the finite loss 2.5, so a fault of the "
      "hardware is possible; all parameters were finite, up to 3 in "
      "conv1.kernel",
    ),
  ],
)
def test_first_value_that_is_not_finite_is_named(
  outputs, parameters, loss, expected
):
  assert (
    nonfinite.find_cause(outputs, parameters, step=41, loss=loss) == expected
  )


def test_losses_that_nobody_has_reported_are_looked_at_before_a_save():
  totals = [np.array([[1.0, 0, 0, 8], [2.0, 0, 0, 8]])] * 2
  assert report.check_losses(7, totals).shape == (2, 2, 4)
  totals.append(np.array([[1.0, 0, 0, 8], [np.inf, 0, 0, 8]]))
  with pytest.raises(
    report.LossNotFinite, match="of member 1 of step 8 is inf"
  ):
    report.check_losses(8, totals)
