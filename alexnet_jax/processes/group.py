"""The processes of a run, together: started, watched, and ended.

One process is a group of one; nothing is asked of the network then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import jax
import jaxlib
from jax.experimental import multihost_utils

from alexnet_jax.processes import cluster, machine, members, roll_call
from alexnet_jax.processes import watch as watch_lib

# Exit codes, after those of sysexits.h: a service is unavailable; try again.
LOST, STOPPED = 69, 75
# JAX's own limits, behind those of the roll call and of the watch.
_JAX_START_SECONDS, _JAX_HEARTBEAT_SECONDS, _JAX_END_SECONDS = 60, 100, 20


class Group(members.Members):
  """The processes of a run from its start to its end."""

  def __init__(self, place: cluster.Place, hosts: tuple[str, ...]):
    super().__init__(place.index, hosts)
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

  def heed_sigterm(self) -> None:
    """From here on, the first SIGTERM asks to stop; a second one ends.

    Several processes hear of it through JAX, which listens from the start.
    """
    if self.count == 1 and (
      threading.current_thread() is threading.main_thread()
    ):

      def stop(number, _):
        self._stopping.set()
        signal.signal(number, signal.SIG_DFL)

      signal.signal(signal.SIGTERM, stop)

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
    self.wait_for_all("leave")
    if self._watch is not None:
      self._watch.stop()
    self._exit(code)

  def _begin(self) -> None:
    if self._watch is not None:
      watch_lib.delay_abort()
      self._watch.start()

  def _finish(self) -> None:
    """After the last step: nobody leaves before all are here."""
    if self._watch is not None:
      self.wait_for_all("end")
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
    "address": machine.find_address(),
    "same": {
      "the version of jax": jax.__version__,
      "the version of jaxlib": jaxlib.__version__,
      **(same or {}),
    },
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


def _name_hosts(found: list[roll_call.Facts]) -> tuple[str, ...]:
  """With their addresses where hosts of one name have several."""
  names = [str(facts["host"]) for facts in found]
  addresses = [str(facts["address"]) for facts in found]
  apart = len(set(names)) < len(set(zip(names, addresses, strict=True)))
  return tuple(
    f"{name} {address}" if apart else name
    for name, address in zip(names, addresses, strict=True)
  )
