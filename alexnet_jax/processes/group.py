"""The processes of a run, together: started, watched, and ended.

One process is a group of one; nothing is asked of the network then.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import distributed  # its store of keys has no public name
from jax.experimental import multihost_utils

from alexnet_jax.processes import cluster, roll_call
from alexnet_jax.processes import watch as watch_lib

# Exit codes, after those of sysexits.h: a service is unavailable; try again.
LOST, STOPPED = 69, 75
# JAX's own limits, behind those of the roll call and of the watch.
_JAX_START_SECONDS, _JAX_HEARTBEAT_SECONDS, _JAX_END_SECONDS = 60, 100, 20
# For what one process does while the others wait, as preparing a small set.
WAIT_SECONDS = 600.0


class Group:
  """All processes of a run, as one of them sees them.

  Attributes:
    index: of this process.
    count: of all.
    hosts: the host of each process, as `name` or `name (address)`.
  """

  def __init__(self, place: cluster.Place, hosts: tuple[str, ...]):
    self.index = place.index
    self.count = place.count
    self.hosts = hosts
    self._client = distributed.global_state.client
    self._stopping = threading.Event()
    self._watch = None
    if self.count > 1:
      self._watch = watch_lib.Watch(
        self._client,
        index=self.index,
        labels=tuple(map(self.label, range(self.count))),
        address=place.address,
        on_end=self._end,
      )

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
      except jax.errors.JaxRuntimeError:
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

  def stops_at(self, step: int) -> bool:
    """Whether all processes are to stop before this step, after a SIGTERM.

    To be asked before every step, in all processes.
    """
    if self.count == 1:
      return self._stopping.is_set()
    return multihost_utils.reached_preemption_sync_point(step)

  def leave(self, code: int) -> None:
    """Ends this process once all processes are here.

    For where a thread waits for ever: leaving in JAX's way would wait for it.
    """
    if self._watch is not None:
      here = self.total("leave", 0)
      if self.is_first:
        here()
      self._watch.stop()
    self._exit(code)

  def _begin(self) -> None:
    if self._watch is not None:
      watch_lib.delay_abort()
      self._watch.start()
    elif threading.current_thread() is threading.main_thread():
      # Several processes hear of a SIGTERM through JAX, which installs its own.
      signal.signal(signal.SIGTERM, lambda *_: self._stopping.set())

  def _finish(self) -> None:
    """After the last step: nobody leaves before all are here."""
    if self._watch is not None:
      self._client.wait_at_barrier("group/end", round(WAIT_SECONDS * 1000))
      self._watch.stop()
      jax.distributed.shutdown()

  def _fail(self, error: BaseException) -> None:
    """Tells the others of an error, and ends this process.

    Only where there are others: leaving in JAX's way would wait for them.
    """
    if self._watch is None:
      return
    if isinstance(error, jax.errors.JaxRuntimeError | ValueError):
      # Maybe because another process is lost: then the watch ends this one.
      summary = " ".join(str(error).split())[:200]
      print(f"{self.label()}: {summary}", file=sys.stderr, flush=True)
      time.sleep(watch_lib.LOST_SECONDS + 3 * watch_lib.BEAT_SECONDS)
    if isinstance(error, SystemExit):
      text = str(error.code)
      print(text, file=sys.stderr)
      reason = text.removeprefix("error: ").removeprefix(f"{self.label()}: ")
    else:
      traceback.print_exception(error)
      reason = " ".join(f"{type(error).__name__} {error}".split())
    self._watch.announce(reason)
    self._exit(1)

  def _end(self, sentence: str, lost: bool) -> None:
    """Ends this process because of another one."""
    goes_on = ". The same command goes on from the last checkpoint."
    print(
      f"error: {self.label()} ends because {sentence}{goes_on if lost else ''}",
      file=sys.stderr,
    )
    self._exit(LOST if lost else 1)

  def _exit(self, code: int) -> None:
    """At once, whatever the other threads of this process wait for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

  def _post(self, name: str, index: int, value: Any) -> None:
    self._client.key_value_set(f"{_key(name)}{index}", json.dumps(value))

  def _fetch(self, name: str, index: int, seconds: float) -> Any:
    return json.loads(
      self._client.blocking_key_value_get(
        f"{_key(name)}{index}", round(seconds * 1000)
      )
    )


def alone() -> Group:
  """A group of one that listens to nothing."""
  return Group(cluster.Place(), (socket.gethostname(),))


@contextlib.contextmanager
def start(
  place: cluster.Place,
  *,
  same: dict[str, str] | None = None,
  timeout_seconds: float = 25,
) -> Iterator[Group]:
  """Starts the processes of a run together, before JAX is first used.

  Where the block ends with an error, the other processes end with it too.

  Args:
    place: of this process.
    same: what must be the same in all processes, {what: value}.
    timeout_seconds: to wait until all processes are there.

  Raises:
    ValueError, ConnectionError: see `roll_call.call`.
  """
  facts = {
    "host": socket.gethostname(),
    "address": find_address(),
    "same": {"the version of jax": jax.__version__, **(same or {})},
  }
  found = roll_call.call(place, facts, timeout_seconds=timeout_seconds)
  if place.count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
      place.address,
      place.count,
      place.index,
      local_device_ids=place.local_devices,
      cluster_detection_method="deactivate",
      initialization_timeout=_JAX_START_SECONDS,
      heartbeat_timeout_seconds=_JAX_HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=_JAX_END_SECONDS,
    )
  group = Group(place, _name_hosts(found))
  group._begin()
  try:
    yield group
  except BaseException as error:
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
      group._finish()  # an end that all processes come to
    else:
      group._fail(error)  # does not return where there are others
    raise
  group._finish()


def find_address() -> str:
  """The address that this host has for its own name; "" if it has none."""
  try:
    return socket.gethostbyname(socket.gethostname())
  except OSError:
    return ""


def _name_hosts(found: list[roll_call.Facts]) -> tuple[str, ...]:
  """With their addresses where hosts of one name have several."""
  names = [str(facts["host"]) for facts in found]
  addresses = [str(facts["address"]) for facts in found]
  apart = len(set(names)) < len(set(zip(names, addresses, strict=True)))
  return tuple(
    f"{name} {address}" if apart else name
    for name, address in zip(names, addresses, strict=True)
  )


def _key(name: str) -> str:
  return f"group/{name}/"
