import pytest

from alexnet_jax.settings import build, settings
from alexnet_jax.training import run as run_lib
from configs import default, two_device


@pytest.mark.parametrize(
  ("changes", "slots"),
  [
    ({}, 1),
    ({"optimizer.ema_decay": 0.9}, 2),
    ({"grad_accumulation_steps": 2}, 2),
    ({"optimizer.ema_decay": 0.9, "grad_accumulation_steps": 2}, 3),
    ({"optimizer.trust_coefficient": 0.001, "exchange_dtype": "bfloat16"}, 1),
  ],
)
def test_workload_is_that_of_the_program(changes, slots):
  config = two_device.get_config()
  config.network.width = 1 / 8
  config.update_from_flattened_dict(changes)
  network, layout = settings.check(config)
  found = build.make_workload(config, network)
  program = run_lib.make_program(config, network, layout)
  assert found.optimizer_slots == slots
  for name, load in program.device_loads.items():
    assert program.optimizer_bytes[name] == slots * load.parameter_bytes
  assert found.make_plan(layout) == program.plan
  assert found.find_loads(layout) == program.device_loads
  assert found.stored_size == program.augmentation.stored_size


def test_initial_values_that_init_replaces_are_refused():
  config = default.get_config("digits")
  config.network.layers = {"conv1": {"kernel_std": 0.01}}
  with pytest.raises(ValueError, match="conv1.kernel_std is 0.01, but .*'he'"):
    settings.check(config)
  config.network.init = "source"
  network, _ = settings.check(config)
  assert network.layer("conv1").kernel_std == 0.01
