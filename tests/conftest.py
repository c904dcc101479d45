"""Eight simulated devices, strict types, and the fixtures that tests share."""

import dataclasses
import os

import jax
import numpy as np
import pytest
from ml_collections import config_dict

from alexnet_jax.data import augment, statistics
from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog, mesh
from configs import default
from tests import build

# Most of the time goes to the compiler, which is told not to optimize machine
# code that runs for a moment; in processes that tests start, too. A user's
# programs have it as it is.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
jax.config.update(
  "jax_disable_most_optimizations",
  os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1",
)
mesh.simulate_devices(8, only_cpu=True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
assert len(jax.devices()) == 8  # from here on the devices are settled


@pytest.fixture
def key() -> jax.Array:
  return jax.random.key(0)


@pytest.fixture(params=catalog.LAYOUTS, ids=lambda layout: layout.name)
def layout(request):
  return request.param


@pytest.fixture(scope="session")
def tiny_network() -> wiring.Network:
  """An eighth of the width; two columns, dropout on."""
  return wiring.make_network(
    wirings.ALEXNET_2012, width=1 / 8, image_size=67, num_classes=10, init="he"
  )


@pytest.fixture(scope="session")
def tiny_augmentation() -> augment.Augment:
  """Everything on: crops, flips, color noise, a mean."""
  return augment.Augment(
    stored_size=72,
    image_size=67,
    flip=True,
    color_noise=0.1,
    statistics=dataclasses.replace(
      statistics.PUBLISHED, mean=(127.0, 120.0, 105.0)
    ),
    scale=64.0,
  )


@pytest.fixture(scope="session")
def tiny_batch() -> tuple[np.ndarray, np.ndarray]:
  """Eight noisy images and their labels."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (8, 72, 72, 3), dtype=np.uint8)
  return images, rng.integers(0, 10, 8, dtype=np.int32)


@pytest.fixture(scope="session")
def program(tiny_network, tiny_augmentation):
  """layout -> its program, its traced and its compiled step, made once."""
  made = {}

  def make(layout):
    if layout.name not in made:
      parts = build.make_program(
        tiny_network, layout, tiny_augmentation, batch_size=8
      )
      traced = parts.trace()
      made[layout.name] = parts, traced, traced.lower().compile()
    return made[layout.name]

  return make


@pytest.fixture
def tiny_config() -> config_dict.ConfigDict:
  """The embedded default, an eighth of the width, for a handful of steps."""
  config = default.get_config("digits")
  config.network.width = 1 / 8
  config.batch_size = 16
  config.data.train_split = "train[:48]"
  config.data.validation_split = "validation[:21]"
  config.num_epochs = 2.0
  config.optimizer.drop_epochs = (1.0,)
  config.log_every_steps = 2
  config.eval_every_steps = 100
  config.checkpoint_every_steps = 100
  return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """name -> a folder for a run; all have one data_dir and one cache."""
  made = tmp_path_factory.mktemp("processes")

  def make(name):
    place = made / name.replace(" ", "_")
    place.mkdir()
    return place

  return make
