"""Runs of several real processes give the numbers of one."""

import numpy as np
import pytest

from tests import processes

pytestmark = pytest.mark.hosts

# Layout -> its config, its mesh, and (processes, devices in each) to run it in.
SPLITS = {
  "two_column_data": (
    "four_device",
    {"layout.mesh.data": 2},
    [(1, 4), (2, 2), (4, 1)],
  ),
  "a column in each process": ("two_device", {}, [(1, 2), (2, 1)]),
}


def same_reports(found, expected):
  assert [line["step"] for line in found] == [line["step"] for line in expected]
  for one, other in zip(found, expected, strict=True):
    assert one.keys() == other.keys()
    for name in one.keys() - {"images_per_second"}:
      # Sums over four devices in another order; the issue's own limit.
      np.testing.assert_allclose(one[name], other[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", SPLITS)
def test_numbers_do_not_depend_on_the_processes(case, folder):
  config, fields, splits = SPLITS[case]
  results = []
  for count, devices in splits:
    tmp = folder(f"{case}-{count}x{devices}")
    done = processes.local(
      tmp, count, devices, processes.flags(config, tmp, fields)
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    _, state = processes.read_state(tmp, fields)
    results.append((processes.metrics(tmp), state))
  (expected, state), *others = results
  assert [line["step"] for line in expected] == [2, 4, 6, 8, 9, 9]
  for reports, found in others:
    same_reports(reports, expected)
    for name, array in state.items():
      # Rounding of nine steps of sums in another order; 5e-7 was seen.
      np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


def test_checkpoint_of_four_processes_goes_on_in_one_and_back(folder):
  config, fields, _ = SPLITS["two_column_data"]
  straight = folder("straight")
  done = processes.local(
    straight, 1, 4, processes.flags(config, straight, fields)
  )
  assert done.returncode == 0, done.stderr
  tmp = folder("moved")
  places = [(4, 1, 1.0), (1, 4, 2.0), (4, 1, 3.0)]
  for number, (count, devices, epochs) in enumerate(places):
    done = processes.local(
      tmp,
      count,
      devices,
      processes.flags(config, tmp, fields | {"num_epochs": epochs}),
    )
    assert done.returncode == 0, done.stderr
    if number:
      assert f"goes on after step {3 * number} of" in done.stdout
  _, expected = processes.read_state(straight, fields)
  step, found = processes.read_state(tmp, fields)
  assert step == 9
  for name, array in expected.items():
    # As above.
    np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)
