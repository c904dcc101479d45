"""The processes of a run, and what they tell each other.

By the key-value store of JAX's coordination service; one process asks nobody.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed  # its store of keys has no public name

# For what one process does while the others wait, as preparing a small set.
WAIT_SECONDS = 600.0
# One wait of JAX's, in which Python hears no Ctrl-C.
_SLICE_SECONDS = 1.0


class Members:
  """All processes of a run, as one of them sees them.

  Attributes:
    index: of this process.
    count: of all.
    hosts: the host of each process, as `name` or `name address`.
  """

  def __init__(self, index: int, hosts: tuple[str, ...]):
    self.index = index
    self.count = len(hosts)
    self.hosts = hosts
    self._client = distributed.global_state.client

  @property
  def is_first(self) -> bool:
    """Whether this is the process that reports and writes."""
    return self.index == 0

  @property
  def num_on_host(self) -> int:
    """Processes on the host of this one."""
    return self.hosts.count(self.hosts[self.index])

  def label(self, index: int | None = None) -> str:
    """A process in words: `process 1 of 4 (host)`."""
    index = self.index if index is None else index
    return f"process {index} of {self.count} ({self.hosts[index]})"

  def gather(
    self, name: str, value: Any, *, timeout_seconds: float = WAIT_SECONDS
  ) -> list[Any]:
    """What every process has to say about something.

    Args:
      name: of what; each only once in a run.
      value: of this process; anything that JSON has.
      timeout_seconds: to wait for the others.

    Returns:
      The value of each process, in their order.

    Raises:
      TimeoutError: names the processes that have said nothing.
    """
    if self.count == 1:
      return [value]
    self._post(name, self.index, value)
    end = time.monotonic() + timeout_seconds
    found, missing = [], []
    for index in range(self.count):
      left = max(end - time.monotonic(), 0.1)
      try:
        found.append(self._fetch(name, index, left))
      except TimeoutError:
        missing.append(index)
    if missing:
      raise TimeoutError(
        f"{', '.join(map(self.label, missing))}: no word about {name} within "
        f"{timeout_seconds:g} s."
      )
    return found

  def first(self, name: str, act: Callable[[], Any]) -> Any:
    """Lets process 0 do something while the others wait.

    Args:
      name: of what is done; each only once in a run.
      act: what process 0 does.

    Returns:
      What `act` returned, in all processes; of the kinds that JSON has.
    """
    if self.count == 1:
      return act()
    if self.is_first:
      self._post(name, 0, act())
    # If process 0 fails, the watch ends this process meanwhile.
    return self._fetch(name, 0, WAIT_SECONDS)

  def total(self, name: str, value: int) -> Callable[[], int]:
    """Posts a number of this process, to be added up later.

    Returns:
      A function that gives the sum over all processes. For process 0 to call.
    """
    if self.count == 1:
      return lambda: value
    self._post(name, self.index, value)

    def add_up() -> int:
      values = [self._fetch(name, i, WAIT_SECONDS) for i in range(self.count)]
      self._client.key_value_delete(_key(name))
      return sum(values)

    return add_up

  def wait_for_all(self, name: str) -> None:
    """Waits until all processes are here; each name only once in a run."""
    if self.count > 1:
      self._client.wait_at_barrier(_key(name), round(WAIT_SECONDS * 1000))

  def _post(self, name: str, index: int, value: Any) -> None:
    self._client.key_value_set(f"{_key(name)}{index}", json.dumps(value))

  def _fetch(self, name: str, index: int, seconds: float) -> Any:
    end = time.monotonic() + seconds
    while True:
      left = min(end - time.monotonic(), _SLICE_SECONDS)
      try:
        value = self._client.blocking_key_value_get(
          f"{_key(name)}{index}", max(round(left * 1000), 1)
        )
        return json.loads(value)
      except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
          raise
        if time.monotonic() >= end:
          raise TimeoutError(
            f"{self.label(index)}: no word about {name} within {seconds:g} s."
          ) from error


def _key(name: str) -> str:
  return f"group/{name}/"
