import pytest


@pytest.fixture
def program_facts():
  """Fields of `report.ProgramResult`."""
  devices = {"devices": 2, "device_kind": "cpu", "platform": "cpu"}
  computed = {"compute_dtype": "float32", "implementations": "plain"}
  return devices | computed | {"batch_size": 1, "xla_options": {}}
