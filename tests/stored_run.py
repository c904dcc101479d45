"""Writes workdirs of runs that were never trained: no data set is needed."""

from __future__ import annotations

import dataclasses

import jax
import ml_collections
import numpy as np

from alexnet_jax.checkpoints import checkpoint
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.data import statistics as statistics_lib
from alexnet_jax.partition import catalog
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from alexnet_jax.training import run_data
from configs import default

CLASSES = tuple(f"class {label}" for label in range(10))


def make_config(table, **fields) -> ml_collections.ConfigDict:
  """Makes a config of a wiring, of a sixteenth of the width and 67 pixels."""
  config = default.get_config("digits")
  default.use_wiring(config, table)
  config.network.wiring = f"own_{table.name}"
  config.network.width, config.network.image_size = 1 / 16, 67
  config.data.stored_size = 72
  config.update_from_flattened_dict(fields)
  return config


def write(
  path, config, *, step: int = 3, change=None, class_names=CLASSES
) -> dict:
  """Writes a run with a checkpoint.

  Args:
    change: of its first state; None: its biases are noise, so that no two
      positions of a layer are equal.
    class_names: by label.

  Returns:
    {layer: {name: array}}, the parameters.
  """
  network, _ = settings.check(config)
  image = np.random.default_rng(1).uniform(0, 255, (72, 72, 3))
  statistics = dataclasses.replace(
    statistics_lib.PUBLISHED, mean_image=image.astype(np.float32)
  )
  program = run_lib.make_program(
    config, network, catalog.ONE_DEVICE, statistics=statistics
  )
  state = program.init(program.make_keys(0)[0])
  state = (change or add_noise)(state)
  found = {
    "dataset": "none/1.0.0",
    "training_images": None,
    "statistics": statistics.fingerprint(),
  }
  acquired = workdir_lib.acquire(
    {str(path): config.to_dict()}, found, may_change=()
  )
  run_data.write(
    str(path),
    run_data.RunData(class_names=tuple(class_names), statistics=statistics),
  )
  checkpoints = checkpoint.Checkpoints(str(path), keep=3)
  checkpoints.save(step, state)
  checkpoints.close()
  for lock in acquired.locks:
    lock.release()
  return jax.device_get(state.parameters)


def add_noise(state):
  """Adds noise to all biases."""
  rng = np.random.default_rng(0)
  parameters = {
    layer: arrays
    | {
      "bias": jax.device_put(
        rng.normal(size=arrays["bias"].shape).astype(np.float32),
        arrays["bias"].sharding,
      )
    }
    for layer, arrays in state.parameters.items()
  }
  return state._replace(parameters=parameters)
