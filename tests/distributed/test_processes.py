"""Runs of several real processes give the numbers of one."""

import numpy as np
import pytest

from tests import processes

pytestmark = pytest.mark.hosts

# Layout -> its config, its mesh, and (processes, devices in each) to run it in.
SPLITS = {
  "two_column_data": (
    *("four_device", {"layout.mesh.data": 2}),
    [(1, 4), (2, 2), (4, 1)],
  ),
}


def check_states(found, expected):
  for name, array in expected.items():
    # Rounding of nine steps of sums in another order; 5e-7 was seen.
    np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


def same_reports(found, expected):
  assert [line["step"] for line in found] == [line["step"] for line in expected]
  for one, other in zip(found, expected, strict=True):
    assert one.keys() == other.keys()
    for name in one.keys() - {"images_per_second"}:
      # Sums over four devices in another order.
      np.testing.assert_allclose(one[name], other[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", SPLITS)
def test_numbers_do_not_depend_on_the_processes(case, folder):
  config, fields, splits = SPLITS[case]
  results = []
  for count, devices in splits:
    tmp = folder(f"{case}-{count}x{devices}")
    processes.train_local(tmp, count, devices, fields, config=config)
    _, state = processes.read_state(tmp, fields)
    results.append((processes.metrics(tmp), state))
  (expected, state), *others = results
  assert [line["step"] for line in expected] == [2, 4, 6, 8, 9, 9]
  for reports, found in others:
    same_reports(reports, expected)
    check_states(found, state)


def test_checkpoint_of_four_processes_goes_on_in_one_and_back(folder):
  config, fields, _ = SPLITS["two_column_data"]
  straight = folder("straight")
  processes.train_local(straight, 1, 4, fields, config=config)
  tmp = folder("moved")
  for number, (count, devices) in enumerate([(4, 1), (1, 4), (4, 1)]):
    more = fields | {"num_epochs": 1.0 + number}
    out = processes.train_local(tmp, count, devices, more, config=config)
    if number:
      assert f"resumes after step {3 * number} of" in out
  _, expected = processes.read_state(straight, fields)
  step, found = processes.read_state(tmp, fields)
  assert step == 9
  check_states(found, expected)
