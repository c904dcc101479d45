"""Networks, augmentations and programs for tests."""

import dataclasses

import jax
import numpy as np
import pytest

from alexnet_jax.data import augment, statistics
from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import wiring
from alexnet_jax.optim import optimizer as optimizer_lib
from alexnet_jax.optim import schedules
from alexnet_jax.partition import catalog, check, plan, specs
from alexnet_jax.program import program as program_lib


def make_network(table=wirings.ALEXNET_2012, **options) -> wiring.Network:
  """Makes a network of an eighth of the width."""
  size = {"width": 1 / 8, "image_size": 67, "num_classes": 10, "init": "he"}
  return wiring.make_network(table, **size | options)


# As published: 224 pixels, 1,000 classes.
FULL_NETWORK = wiring.make_network(wirings.ALEXNET_2012)
# Two columns, dropout on.
TINY_NETWORK = make_network()
FULL_AUGMENTATION = augment.Augment(
  stored_size=256,
  image_size=224,
  flip=True,
  color_noise=0.1,
  statistics=statistics.PUBLISHED,
)
# Everything on: crops, flips, color noise, a mean.
TINY_AUGMENTATION = dataclasses.replace(
  FULL_AUGMENTATION,
  stored_size=72,
  image_size=67,
  statistics=dataclasses.replace(
    statistics.PUBLISHED, mean=(127.0, 120.0, 105.0)
  ),
  scale=64.0,
)


# Three layers, which compile fast: two convolutions and fc8.
SHORT_NETWORK = make_network(
  dataclasses.replace(
    wirings.ALEXNET_2012,
    name="short",
    layers=tuple(
      layer
      for layer in wirings.ALEXNET_2012.layers
      if layer.name in ("conv1", "conv2", "fc8")
    ),
  ),
  image_size=35,
)
SHORT_AUGMENTATION = dataclasses.replace(
  FULL_AUGMENTATION, stored_size=36, image_size=35, scale=64.0
)


def slow(*values):
  """Marks values of a parameter, which say what others say, as slow."""
  return [pytest.param(value, marks=pytest.mark.slow) for value in values]


# The first two have, between them, all fields of a placement but
# `overlap_gather`; `verify` has every layout and mesh.
PRESETS = (
  *(catalog.TWO_COLUMN_SHARDED, catalog.TWO_DIMENSIONAL),
  *slow(catalog.TWO_COLUMN, catalog.ONE_WEIRD_TRICK),
)
on_presets = pytest.mark.parametrize(
  "layout", PRESETS, ids=lambda layout: layout.name
)


def make_program(
  layout,
  network=TINY_NETWORK,
  augmentation=TINY_AUGMENTATION,
  *,
  batch_size=8,
  trust_coefficient=None,
  **options,
) -> program_lib.Program:
  """Makes a program; `options` are of `make_program` and `make_optimizer`."""
  check.check(layout, network, batch_size=batch_size)
  rule = {
    name: options.pop(name)
    for name in ("plateau", "ema_decay", "accumulate")
    if name in options
  }
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
    **options,
  )


def make_short_program(layout_name) -> program_lib.Program:
  """Makes a program of `SHORT_NETWORK` on a layout of the catalog."""
  return make_program(
    catalog.find(layout_name), SHORT_NETWORK, SHORT_AUGMENTATION
  )


def make_plan(network, layout, *, batch_size=8, **options):
  """Plans a step."""
  return plan.make_plan(network, layout, batch_size=batch_size, **options)


def make_collective(elements, kind="sum", axes=("data",), devices=2, **fields):
  """Makes a line of a plan; the gradient of conv1's kernel by default."""
  gradient = {"layer": "conv1", "direction": "backward", "tensor": "kernel"}
  fields = gradient | fields | {"kind": kind, "axes": axes, "devices": devices}
  return plan.Collective(elements=elements, **fields)


def with_mesh(layout, **mesh):
  """Returns the layout on a mesh of other sizes."""
  return dataclasses.replace(layout, mesh=mesh)


def make_batch(side, *, size=8) -> tuple[np.ndarray, np.ndarray]:
  """Makes noisy images of `side` pixels and their labels."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (size, side, side, 3), dtype=np.uint8)
  return images, rng.integers(0, 10, size, dtype=np.int32)


def put_parameters(program, parameters):
  """Shards parameters as a program does."""
  return jax.device_put(
    parameters, specs.to_shardings(program.mesh, program.specs.parameters)
  )


def put(program, batch):
  """Splits a batch over the devices, as a step takes it."""
  return jax.device_put(batch, program.batch_shardings)
