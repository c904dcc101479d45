"""Runs of several real processes give the numbers of one."""

import shutil

import numpy as np
import pytest

from tests import processes

pytestmark = pytest.mark.hosts

# A 2 x 2 mesh of columns and data.
CONFIG, FIELDS = "four_device", {"layout.mesh.data": 2}


@pytest.fixture(scope="module")
def trained(folder):
  """(processes, devices in each) -> a run of nine steps in these, made once."""
  made = {}

  def train(count, devices):
    if (count, devices) not in made:
      tmp = made[count, devices] = folder(f"{count} x {devices}")
      processes.train_local(tmp, count, devices, FIELDS, config=CONFIG)
    return made[count, devices]

  return train


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


@pytest.mark.parametrize(("count", "devices"), [(2, 2), (4, 1)])
def test_numbers_do_not_depend_on_the_processes(count, devices, trained):
  straight, split = trained(1, 4), trained(count, devices)
  expected = processes.metrics(straight)
  assert [line["step"] for line in expected] == [2, 4, 6, 8, 9, 9]
  same_reports(processes.metrics(split), expected)
  _, state = processes.read_state(straight, FIELDS)
  _, found = processes.read_state(split, FIELDS)
  check_states(found, state)


def test_processes_start_from_another_run_as_one_does(trained, folder):
  source = trained(1, 4) / "workdir"
  found = []
  for count, devices in ((1, 4), (2, 2)):
    tmp = folder(f"warm {count} x {devices}")
    fields = FIELDS | {
      "init_from.workdir": str(source),
      "init_from.leave_out": ("fc8",),
      "num_epochs": 1.0,
    }
    out = processes.train_local(tmp, count, devices, fields, config=CONFIG)
    assert "starts with the parameters of step 9" in out
    found.append(processes.read_state(tmp, fields)[1])
  check_states(*found)


def test_checkpoint_of_four_processes_goes_on_in_one_and_back(trained, folder):
  tmp = folder("moved")
  shutil.copytree(trained(4, 1) / "workdir", tmp / "workdir")
  # As if it had been lost after the third of its nine steps.
  for step in (6, 9):
    shutil.rmtree(tmp / "workdir" / "checkpoints" / str(step))
  for step, count, devices in ((3, 1, 4), (6, 4, 1)):
    more = FIELDS | {"num_epochs": step / 3 + 1}
    out = processes.train_local(tmp, count, devices, more, config=CONFIG)
    assert f"resumes after step {step} of {step + 3}" in out
  _, expected = processes.read_state(trained(1, 4), FIELDS)
  step, found = processes.read_state(tmp, FIELDS)
  assert step == 9
  check_states(found, expected)
