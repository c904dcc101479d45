"""Processes of a run that are threads of one, for tests."""

import concurrent.futures
import threading

import jax

from alexnet_jax.distributed import cluster, group


class Store:
  """What JAX's service keeps for all processes, here for threads."""

  def __init__(self):
    self._kept = {}
    self._changed = threading.Condition()

  def key_value_set(self, key, value):
    with self._changed:
      assert key not in self._kept, f"{key} is said twice"
      self._kept[key] = value
      self._changed.notify_all()

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
    place = cluster.Place(index=index, count=len(hosts), address="host0:1")
    groups.append(group.Group(place, hosts))
    groups[-1]._client = store
  return groups


def in_all(groups, act):
  """What each of several processes returns."""
  with concurrent.futures.ThreadPoolExecutor(len(groups)) as pool:
    return list(pool.map(act, groups))
