"""Eight simulated devices, strict types, and the fixtures that tests share."""

import gc
import os
import pathlib
import signal

import jax
import numpy as np
import pytest
from ml_collections import config_dict

from alexnet_jax.data import augment
from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog, mesh
from alexnet_jax.program import compiler_options
from configs import default
from tests import build

# Where they are ignored, under `nohup` or in the background of a script, the
# processes that tests start would ignore them, too; a handler is not inherited.
for number in (signal.SIGHUP, signal.SIGINT):
  if signal.getsignal(number) is signal.SIG_IGN:
    signal.signal(number, lambda *_: None)

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

# Tracing makes millions of objects that stay; by default the collector walks
# them again and again, an eighth of the time.
gc.freeze()
gc.set_threshold(50_000, 10, 10)


def pytest_collection_modifyitems(items):
  """Begins with what waits for minutes and computes little."""
  waiting = ("test_slurm.py", "test_kills.py")
  items.sort(key=lambda item: item.path.name not in waiting)


@pytest.fixture
def key() -> jax.Array:
  return jax.random.key(0)


@pytest.fixture(params=catalog.LAYOUTS, ids=lambda layout: layout.name)
def layout(request):
  return request.param


@pytest.fixture(scope="session")
def tiny_network() -> wiring.Network:
  return build.TINY_NETWORK


@pytest.fixture(scope="session")
def tiny_augmentation() -> augment.Augment:
  return build.TINY_AUGMENTATION


@pytest.fixture(scope="session")
def tiny_batch() -> tuple[np.ndarray, np.ndarray]:
  """Eight noisy images and their labels."""
  return build.make_batch(72)


@pytest.fixture(scope="session")
def program():
  """layout -> its program, its traced and its compiled step, made once.

  In float32, or, to compare numbers or if the type does not matter, in float64.
  """
  made = {}
  options = compiler_options.choose(jax.devices(), mode="auto").used

  def make(layout, compute_dtype="float32"):
    name = layout.name, compute_dtype
    if name not in made:
      parts = build.make_program(layout, compute_dtype=compute_dtype)
      traced = parts.trace()
      compiled = traced.lower().compile(compiler_options=options)
      made[name] = parts, traced, compiled
    return made[name]

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


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> str:
  """A folder for data sets, common to all runs."""
  return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> pathlib.Path:
  """A folder for what processes compile, common to all modules and workers."""
  base = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    base = base.parent  # of all workers of this session
  cache = base / "common_cache"
  cache.mkdir(exist_ok=True)
  return cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data_dir, cache_dir):
  """name -> a folder for a run; all have one data_dir and one cache."""
  made = tmp_path_factory.mktemp("processes")
  (made / "data").symlink_to(data_dir)
  (made / "cache").symlink_to(cache_dir)

  def make(name):
    place = made / name.replace(" ", "_")
    place.mkdir()
    return place

  return make
