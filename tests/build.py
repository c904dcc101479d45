"""Builds programs from a network and a layout, for tests."""

import jax

from alexnet_jax.optim import optimizer as optimizer_lib
from alexnet_jax.optim import schedules
from alexnet_jax.partition import check
from alexnet_jax.program import program as program_lib


def make_program(
  network,
  layout,
  augmentation,
  *,
  batch_size,
  precision="float32",
  compute_dtype="float32",
  trust_coefficient=None,
  members=1,
  implementations="auto",
  **rule,
) -> program_lib.Program:
  """The program; `rule` is what else `make_optimizer` is to be told."""
  check.check(layout, network, batch_size=batch_size)
  schedule, bias_schedule = (
    schedules.make_steps(rate, drop_steps=[3], drop_factor=0.1)
    for rate in (0.01, 0.02)
  )
  return program_lib.make_program(
    network,
    layout,
    batch_size=batch_size,
    augmentation=augmentation,
    optimizer=optimizer_lib.make_optimizer(
      schedule,
      bias_schedule,
      momentum=0.9,
      weight_decay=5e-4,
      trust_coefficient=trust_coefficient,
      **rule,
    ),
    norms=trust_coefficient is not None,
    precision=precision,
    compute_dtype=compute_dtype,
    members=members,
    implementations=implementations,
  )


def put(program, batch):
  """Splits a batch over the devices, as a step takes it."""
  return jax.device_put(batch, program.batch_shardings)
