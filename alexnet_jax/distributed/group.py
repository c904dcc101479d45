"""The processes of a run, together: started, watched, and ended.

One process is a group of one; nothing is asked of the network then.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jaxlib
from jax._src import distributed  # its store of keys has no public name

from alexnet_jax.distributed import (
  cluster,
  heartbeat,
  machine,
  preemption,
  rendezvous,
  watchdog,
)

# The processes of a run, and what they tell each other.
#
# By the key-value store of JAX's coordination service; one process asks nobody.

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


# Exit codes, after those of sysexits.h: 69 is a service that is unavailable.
LOST, STUCK, STOPPED = 69, watchdog.STUCK, preemption.STOPPED
# JAX's own limits, behind those of the roll call and of the watch.
_JAX_START_SECONDS, _JAX_HEARTBEAT_SECONDS, _JAX_END_SECONDS = 60, 100, 20
# Processes that are stuck together do not all see it at once; process 0, which
# runs the service of all, is the last to go.
_STUCK_LINGER_SECONDS = 3.0


class Group(Members):
  """The processes of a run from its start to its end."""

  def __init__(
    self,
    place: cluster.Place,
    hosts: tuple[str, ...],
    signals: preemption.Signals | None = None,
  ):
    super().__init__(place.index, hosts)
    self._signals = signals
    self._clock: watchdog.Watchdog | None = None
    self._watch = self._agreement = None
    if self.count > 1:
      self._watch = heartbeat.Heartbeat(
        self._client,
        index=self.index,
        labels=tuple(map(self.label, range(self.count))),
        address=place.address,
        on_end=self._end,
      )
      if signals is not None:
        self._agreement = preemption.Agreement(
          self._client,
          index=self.index,
          count=self.count,
          signals=signals,
          on_end=self._end,
        )

  @property
  def signal_name(self) -> str:
    """Of the signal that has asked any of the processes to stop."""
    return (self._agreement or self._signals).name

  def start_clock(self, *, hang_timeout_seconds: float, folder: str) -> None:
    """From here on this process ends where nothing gets done any more.

    Args:
      hang_timeout_seconds: without a boundary, after which this process ends;
        0: never.
      folder: for the stacks of all threads, if so.
    """
    several = self.count > 1
    name = f"stuck_{self.index}.txt" if several else "stuck.txt"
    self._clock = watchdog.Watchdog(
      hang_timeout_seconds,
      path=os.path.join(folder, name),
      label=self.label() if several else "",
      exit=self._exit_stuck,
    )
    self._clock.start()

  def begin_steps(self) -> None:
    """From here on something can be lost: a first signal is a wish to stop.

    To be called after `start_clock`.
    """
    self._clock.tick()
    if self._signals is not None:
      self._signals.guard()
    if self._agreement is not None:
      self._agreement.start()

  def end_steps(self) -> None:
    """Nothing is watched any longer for being stuck."""
    self._clock.stop()

  def is_stopping(self, step: int | None = None) -> bool:
    """Whether all processes are to stop here, after a signal to any of them.

    To be asked after `begin_steps`, in all processes alike: before every step,
    and every batch of a validation.

    Args:
      step: that would begin here; None: a batch of a validation.
    """
    self._clock.tick(step)
    if self._agreement is not None:
      return self._agreement.is_stopping()
    return self._signals is not None and self._signals.came.is_set()

  def pause_watchdog(self) -> None:
    """What is done until the next boundary may take any time."""
    self._clock.rest()

  def leave(self, code: int) -> None:
    """Ends this process once all processes are here.

    For where a thread waits for ever: leaving in JAX's way would wait for it.
    """
    self.wait_for_all("leave")
    if self._watch is not None:
      self._watch.stop()
    self._exit(code)

  def _begin(self) -> None:
    if self._watch is not None:
      heartbeat.delay_abort()
      self._watch.start()
      if self._signals is not None:
        self._signals.set_leave(self._leave_early)

  def _leave_early(self, name: str) -> None:
    """Ends this process before its first step; the others end as if lost."""
    why = f"stopped by {name} before the first step"
    preemption.say(f"{self.label()}: {why}")
    self._watch.announce(f"was {why}", lost=True)
    os._exit(STOPPED)

  def _exit_stuck(self, code: int) -> None:
    if self._watch is not None:
      # The others are stuck too, and end by themselves: not because of this.
      self._watch.stop()
      time.sleep(_STUCK_LINGER_SECONDS * (2 if self.is_first else 1))
    os._exit(code)

  def _finish(self) -> None:
    """After the last step: nobody leaves before all are here."""
    if self._watch is not None:
      self.wait_for_all("end")
      self._watch.stop()
      if self._agreement is not None:
        self._agreement.stop()
      jax.distributed.shutdown()

  def _fail(self, error: BaseException) -> None:
    """Tells the others of an error, and ends this process.

    Only where there are others: leaving in JAX's way would wait for them.
    """
    if self._clock is not None:
      self._clock.stop()
    if self._watch is None:
      return
    if isinstance(error, jax.errors.JaxRuntimeError | ValueError):
      # Maybe because another process is lost: then the watch ends this one.
      summary = " ".join(str(error).split())[:200]
      preemption.write(f"{self.label()}: {summary}")
      time.sleep(heartbeat.LOST_SECONDS + 3 * heartbeat.BEAT_SECONDS)
    if isinstance(error, SystemExit):
      text = str(error.code)
      preemption.write(text)
      reason = text.removeprefix("error: ").removeprefix(f"{self.label()}: ")
    else:
      preemption.write("".join(traceback.format_exception(error)).rstrip())
      reason = " ".join(f"{type(error).__name__} {error}".split())
    self._watch.announce(reason)
    self._exit(1)

  def _end(self, sentence: str, lost: bool) -> None:
    """Ends this process because of another one."""
    goes_on = ". The same command goes on from the last checkpoint."
    preemption.write(
      f"error: {self.label()} ends because {sentence}{goes_on if lost else ''}"
    )
    self._exit(LOST if lost else 1)

  def _exit(self, code: int) -> None:
    """At once, whatever the other threads of this process wait for."""
    try:
      sys.stdout.flush()
    finally:  # whatever became of who reads it
      os._exit(code)


def alone() -> Group:
  """A group of one that listens to nothing."""
  return Group(cluster.Place(), (socket.gethostname(),))


@contextlib.contextmanager
def start(
  place: cluster.Place,
  *,
  same: dict[str, str] | None = None,
  timeout_seconds: float = 25,
  signals: preemption.Signals | None = None,
) -> Iterator[Group]:
  """Starts the processes of a run together, before JAX is first used.

  Where the block ends with an error, the other processes end with it too.

  Args:
    place: of this process.
    same: what must be the same in all processes, {what: value}.
    timeout_seconds: to wait until all processes are there.
    signals: that are heeded; None: none are, as Python has it.

  Raises:
    ValueError, ConnectionError: see `rendezvous.call`.
  """
  facts = {
    "host": socket.gethostname(),
    "address": machine.find_address(),
    "same": {
      "the version of jax": jax.__version__,
      "the version of jaxlib": jaxlib.__version__,
      **(same or {}),
    },
  }
  found = rendezvous.call(place, facts, timeout_seconds=timeout_seconds)
  if place.count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM from whoever heeds it: see `agreement.py`.
    jax.config.update("jax_enable_preemption_service", False)
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
  group = Group(place, _name_hosts(found), signals)
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


def _name_hosts(found: list[rendezvous.Facts]) -> tuple[str, ...]:
  """With their addresses where hosts of one name have several."""
  names = [str(facts["host"]) for facts in found]
  addresses = [str(facts["address"]) for facts in found]
  apart = len(set(names)) < len(set(zip(names, addresses, strict=True)))
  return tuple(
    f"{name} {address}" if apart else name
    for name, address in zip(names, addresses, strict=True)
  )
