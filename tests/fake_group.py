"""Processes of a run that are threads of one, for tests."""

import concurrent.futures
import threading

import jax

from alexnet_jax.distributed import cluster, group


class Store:
  """What JAX's service keeps for all processes, here for threads.

  Attributes:
    fails: whether the next answer is an error; what was set is kept even then.
  """

  def __init__(self):
    self.fails = lambda: False
    self._kept = {}
    self._changed = threading.Condition()

  def key_value_set(self, key, value, allow_overwrite=False):
    with self._changed:
      if key in self._kept and not allow_overwrite:
        raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
      self._kept[key] = value
      self._changed.notify_all()
      self._answer()

  def key_value_dir_get(self, key):
    with self._changed:
      self._answer()
      return [item for item in self._kept.items() if item[0].startswith(key)]

  def _answer(self):
    if self.fails():
      raise jax.errors.JaxRuntimeError("UNAVAILABLE")

  def blocking_key_value_get(self, key, milliseconds):
    with self._changed:
      if not self._changed.wait_for(
        lambda: key in self._kept, milliseconds / 1000
      ):
        raise jax.errors.JaxRuntimeError(f"DEADLINE_EXCEEDED: {key}")
      return self._kept[key]


def make_groups(*hosts):
  """A group for each host, as several processes see it."""
  store = Store()
  groups = []
  for index in range(len(hosts)):
    process = cluster.Process(index=index, count=len(hosts), address="host0:1")
    groups.append(group.Group(process, hosts))
    groups[-1]._client = store
  return groups


def in_all(groups, act):
  """What each of several processes returns."""
  with concurrent.futures.ThreadPoolExecutor(len(groups)) as pool:
    return list(pool.map(act, groups))
