"""The processes of a run: started together, exchanging values, ending together.

They exchange values in the key-value store of JAX's coordination service. One
process is a group of one, and needs no network.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jaxlib
from jax._src import distributed  # its key-value store has no public name

from alexnet_jax.distributed import (
  cluster,
  environment,
  heartbeat,
  machine,
  preemption,
  rendezvous,
  watchdog,
)

# Exit codes, after sysexits.h: 69 is a service that is unavailable.
LOST, HUNG, STOPPED = 69, watchdog.HUNG, preemption.STOPPED
# For what one process does while the others wait, as preparing a small set.
WAIT_SECONDS = 600.0
# Python handles no Ctrl-C during one wait in JAX's client.
_SLICE_SECONDS = 1.0
# JAX's own limits, longer than those of rendezvous and heartbeat. Its heartbeat
# reads the clock of the wall, and takes one that is set for a loss: a week, so
# that it is up to ours.
_JAX_START_SECONDS, _JAX_END_SECONDS = 60, 20
_JAX_HEARTBEAT_SECONDS = 7 * 24 * 60 * 60
# Processes that hang together do not all notice it at once; process 0, which
# runs the service of all, exits last.
_HUNG_LINGER_SECONDS = 3.0
# A process that is lost is known three beats after that time, on a machine that
# is not too busy to look; two more.
_VERDICT_SECONDS = heartbeat.LOST_SECONDS + 5 * heartbeat.BEAT_SECONDS
# Until the end is announced: process 0 waits up to 8 s until the others have
# read it; for another one the service may be gone.
_ANNOUNCE_SECONDS, _ANNOUNCE_FIRST_SECONDS = 4.0, 12.0
# What gloo and NCCL say where a process no longer answers, and JAX's service.
# All begin with a status, as no message of this program does.
_STATUS = re.compile("(?!RESOURCE_EXHAUSTED)[A-Z_]+: ")
_COLLECTIVE = re.compile("gloo|nccl", re.IGNORECASE)
_SERVICE = re.compile(
  "connection|barrier|heartbeat|coordination|socket|UNAVAILABLE"
  "|DEADLINE_EXCEEDED|ABORTED",
  re.IGNORECASE,
)


class Group:
  """The processes of a run, from its start to its end.

  Args:
    process: this process.
    hosts: the host of each process, as `name` or `name address`.
    signals: that stop the run; None: they do what Python does.

  Attributes:
    index: of this process.
    count: of all processes.
    hosts: as above.
    source: what has numbered the processes.
  """

  def __init__(
    self,
    process: cluster.Process,
    hosts: tuple[str, ...],
    signals: preemption.Signals | None = None,
  ):
    self.index = process.index
    self.count = len(hosts)
    self.hosts = hosts
    self.source = process.source
    self._client = distributed.global_state.client
    self._signals = signals
    self._watchdog: watchdog.Watchdog | None = None
    self._heartbeat: heartbeat.Heartbeat | None = None
    self._agreement: preemption.StopAgreement | None = None
    if self.count > 1:
      self._heartbeat = heartbeat.Heartbeat(
        self._client,
        index=self.index,
        labels=tuple(map(self.label, range(self.count))),
        address=process.address,
        on_end=self._end_with_other,
      )
      if signals is not None:
        self._agreement = preemption.StopAgreement(
          self._client,
          index=self.index,
          count=self.count,
          signals=signals,
          on_end=self._end_with_other,
        )

  @property
  def is_first(self) -> bool:
    """Whether this is process 0, which reports and writes."""
    return self.index == 0

  @property
  def num_on_host(self) -> int:
    """The number of processes on the host of this one."""
    return self.hosts.count(self.hosts[self.index])

  @property
  def signal_name(self) -> str:
    """The signal that has asked any of the processes to stop."""
    return (self._agreement or self._signals).name

  def label(self, index: int | None = None) -> str:
    """Names a process, this one by default: `process 1 of 4 (host)`."""
    index = self.index if index is None else index
    return f"process {index} of {self.count} ({self.hosts[index]})"

  def gather(
    self, name: str, value: Any, *, timeout_seconds: float = WAIT_SECONDS
  ) -> list[Any]:
    """Returns the values that all processes pass, in their order.

    Args:
      name: of the values; each only once in a run.
      value: of this process; anything that JSON has.
      timeout_seconds: to wait for the others.

    Raises:
      TimeoutError: names the processes that have posted no value.
    """
    if self.count == 1:
      return [value]
    self._post(name, self.index, value)
    end = time.monotonic() + timeout_seconds
    values, missing = [], []
    for index in range(self.count):
      left = max(end - time.monotonic(), 0.1)
      try:
        values.append(self._fetch(name, index, left))
      except TimeoutError:
        missing.append(index)
    if missing:
      raise TimeoutError(
        f"{', '.join(map(self.label, missing))}: no value for {name} within "
        f"{timeout_seconds:g} s."
      )
    return values

  def run_in_first(self, name: str, act: Callable[[], Any]) -> Any:
    """Calls a function in process 0, and returns its result in all processes.

    Args:
      name: of the result; each only once in a run.
      act: returns anything that JSON has.
    """
    if self.count == 1:
      return act()
    if self.is_first:
      self._post(name, 0, act())
    # If process 0 fails, the heartbeat ends this process meanwhile.
    return self._fetch(name, 0, WAIT_SECONDS)

  def start_sum(self, name: str, value: int) -> Callable[[], int]:
    """Posts a number of this process.

    Returns:
      A function for process 0, which returns the sum over all processes.
    """
    if self.count == 1:
      return lambda: value
    self._post(name, self.index, value)

    def add_up() -> int:
      values = [self._fetch(name, i, WAIT_SECONDS) for i in range(self.count)]
      self._client.key_value_delete(_key(name))
      return sum(values)

    return add_up

  def _wait_for_all(self, name: str) -> None:
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
            f"{self.label(index)}: no value for {name} within {seconds:g} s."
          ) from None

  def start_watchdog(self, *, hang_timeout_seconds: float, folder: str) -> None:
    """Ends this process, from here on, if it hangs.

    Args:
      hang_timeout_seconds: without a boundary, after which it ends; 0: never.
      folder: for the stacks of all threads, if so.
    """
    several = self.count > 1
    name = f"hang_stacks_{self.index}.txt" if several else "hang_stacks.txt"
    self._watchdog = watchdog.Watchdog(
      hang_timeout_seconds,
      path=os.path.join(folder, name),
      label=self.label() if several else "",
      exit=self._exit_hung,
    )
    self._watchdog.start()

  def pause_watchdog(self) -> None:
    """Lets what happens until the next boundary take any time."""
    self._watchdog.pause()

  def begin_steps(self) -> None:
    """Makes a first signal a request to stop: from here on it can lose a step.

    Call it after `start_watchdog`.
    """
    self._watchdog.reset()
    if self._signals is not None:
      self._signals.start_deferring()
    if self._agreement is not None:
      self._agreement.start()

  def should_stop(self, step: int | None = None) -> bool:
    """Whether all processes stop here, after a signal to any of them.

    Every process calls this after `begin_steps` before every step, and before
    every batch of a validation.

    Args:
      step: that would begin here; None: a batch of a validation.
    """
    self._watchdog.reset(step)
    if self._agreement is not None:
      return self._agreement.should_stop()
    return self._signals is not None and self._signals.received.is_set()

  def request_stop(self, reason: str) -> None:
    """Makes all processes stop at the next boundary, as a signal does.

    Args:
      reason: in place of the name of the signal.
    """
    if self._signals is not None:
      self._signals.request(reason)

  def end_steps(self) -> None:
    """Stops the watchdog."""
    self._watchdog.stop()

  def exit_together(self, code: int) -> None:
    """Ends this process once all processes call this.

    For where a thread waits for ever, which a normal exit would wait for.
    """
    self._wait_for_all("leave")
    if self._heartbeat is not None:
      self._heartbeat.stop()
    self._exit(code)

  def _begin(self) -> None:
    if self._heartbeat is not None:
      heartbeat.delay_abort()
      self._heartbeat.start()
      if self._signals is not None:
        self._signals.set_exit_early(self._exit_early)

  def _exit_early(self, name: str) -> None:
    """Ends this process before its first step; to the others it is lost."""
    reason = f"stopped by {name} before the first step"
    preemption.print_early_stop(f"{self.label()}: {reason}")
    self._heartbeat.announce_end(f"was {reason}", lost=True)
    os._exit(STOPPED)

  def _exit_hung(self, code: int) -> None:
    if self._heartbeat is not None:
      # The others hang too, and end by themselves, not because of this one.
      self._heartbeat.stop()
      time.sleep(_HUNG_LINGER_SECONDS * (2 if self.is_first else 1))
    os._exit(code)

  def _finish(self) -> None:
    """Waits after the last step until all processes are here."""
    if self._heartbeat is not None:
      self._wait_for_all("end")
      self._heartbeat.stop()
      if self._agreement is not None:
        self._agreement.stop()
      jax.distributed.shutdown()

  def _fail(self, error: BaseException) -> None:
    """Tells the others of an error, and ends this process.

    Returns if there are no others: a normal exit would wait for them.
    """
    if self._watchdog is not None:
      self._watchdog.stop()
    if self._heartbeat is None:
      return
    lost = find_lost_connection(error)
    if lost or isinstance(error, jax.errors.JaxRuntimeError | ValueError):
      # Another process may be lost: the heartbeat then ends this one meanwhile.
      summary = " ".join(str(lost or error).split())[:200]
      preemption.write_stderr(f"{self.label()}: {summary}")
      time.sleep(_VERDICT_SECONDS)
      if lost:
        reason = f"lost the connection to another one: {summary}"
        self._announce(reason, lost=True)
        self._end_with_other(f"it {reason}", lost=True)
    if isinstance(error, SystemExit):
      text = str(error.code)
      preemption.write_stderr(text)
      reason = text.removeprefix("error: ").removeprefix(f"{self.label()}: ")
    else:
      preemption.write_stderr(
        "".join(traceback.format_exception(error)).rstrip()
      )
      reason = " ".join(f"{type(error).__name__} {error}".split())
    self._announce(reason)
    self._exit(1)

  def _announce(self, reason: str, *, lost: bool = False) -> None:
    """Tells the others of an end; not for long if their service is gone."""
    announcing = threading.Thread(
      target=self._heartbeat.announce_end,
      args=(reason,),
      kwargs={"lost": lost},
      daemon=True,
    )
    announcing.start()
    announcing.join(
      _ANNOUNCE_FIRST_SECONDS if self.is_first else _ANNOUNCE_SECONDS
    )

  def _end_with_other(self, sentence: str, lost: bool) -> None:
    """Ends this process because of another one."""
    resume = ". The same command resumes from the last checkpoint."
    preemption.write_stderr(
      f"error: {self.label()} ends because {sentence}{resume if lost else ''}"
    )
    self._exit(LOST if lost else 1)

  def _exit(self, code: int) -> None:
    """Ends this process at once, whatever its other threads wait for."""
    try:
      sys.stdout.flush()
    finally:  # also where the reader of standard output is gone
      os._exit(code)


def find_lost_connection(error: BaseException | None) -> Exception | None:
  """Returns the error, among the causes of one, of a failed collective.

  Another process is lost then, until shown otherwise. None: there is none.
  """
  seen: list[BaseException] = []
  while error is not None and error not in seen:
    text = str(error) if _STATUS.match(str(error)) else ""
    # jaxlib raises a ValueError where a value of a collective is read.
    if (
      isinstance(error, jax.errors.JaxRuntimeError | ValueError)
      and _COLLECTIVE.search(text)
      or isinstance(error, jax.errors.JaxRuntimeError)
      and _SERVICE.search(text)
    ):
      return error
    seen.append(error)
    if error.__suppress_context__:
      error = error.__cause__
    else:
      error = error.__context__
  return None


def _key(name: str) -> str:
  return f"group/{name}/"


def alone() -> Group:
  """Returns a group of one process that handles no signals."""
  return Group(cluster.Process(), (socket.gethostname(),))


@contextlib.contextmanager
def start(
  process: cluster.Process,
  *,
  same: dict[str, str] | None = None,
  timeout_seconds: float = 25,
  signals: preemption.Signals | None = None,
) -> Iterator[Group]:
  """Starts the processes of a run together, before JAX is first used.

  Where the block ends with an error, the other processes end with it too.

  Args:
    process: this process.
    same: values that must be the same in all processes, by their names.
    timeout_seconds: to wait until all processes have started.
    signals: that stop the run; None: they do what Python does.

  Raises:
    ValueError, ConnectionError: see `rendezvous.join`.
  """
  facts = {
    "host": socket.gethostname(),
    "address": machine.find_address(),
    "same": {
      "the version of jax": jax.__version__,
      "the version of jaxlib": jaxlib.__version__,
      **environment.find_shared(),
      **(same or {}),
    },
  }
  found = rendezvous.join(process, facts, timeout_seconds=timeout_seconds)
  if process.count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would handle SIGTERM in place of `preemption`.
    jax.config.update("jax_enable_preemption_service", False)
    _exempt_from_proxy(process.address)
    _let_lock_holders_run()
    jax.distributed.initialize(
      process.address,
      process.count,
      process.index,
      local_device_ids=process.local_devices,
      cluster_detection_method="deactivate",
      initialization_timeout=_JAX_START_SECONDS,
      heartbeat_timeout_seconds=_JAX_HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=_JAX_END_SECONDS,
    )
  group = Group(process, _name_hosts(found), signals)
  group._begin()
  try:
    yield group
  except BaseException as error:
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
      group._finish()  # an end that all processes come to
    else:
      group._fail(error)  # does not return if there are others
    raise
  group._finish()


def _let_lock_holders_run() -> None:
  """Keeps gloo's thread from taking the core of the thread it waits for.

  That thread polls the sockets, and passes over one that another thread has
  locked. If it is woken on the core of that other thread, it polls until its
  time slice ends: 3 to 4 ms, up to four times in a sum. A thread of SCHED_BATCH
  does not take a core when it is woken. All threads that are started from now
  on have the policy. Sources: gloo, transport/tcp/pair.cc, `handleEvents`;
  sched(7).
  """
  if sys.platform != "linux" or machine.has_accelerator():
    return
  if os.sched_getscheduler(0) == os.SCHED_OTHER:  # the user chose no other
    with contextlib.suppress(OSError):  # a container may forbid it
      os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _exempt_from_proxy(address: str) -> None:
  """Lets this process connect to an address without a proxy.

  gRPC sends connections through `http_proxy` and the like; the rendezvous and
  the collectives do not. Only gRPC reads `no_grpc_proxy`, in place of
  `no_proxy`.
  """
  host = address.rpartition(":")[0].strip("[]")
  exempt = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy")
  os.environ["no_grpc_proxy"] = f"{exempt},{host}" if exempt else host
  jax.config.update("jax_check_proxy_envs", False)  # it would warn


def _name_hosts(facts: list[rendezvous.Facts]) -> tuple[str, ...]:
  """Returns host names, with addresses if hosts of one name have several."""
  names = [str(one["host"]) for one in facts]
  addresses = [str(one["address"]) for one in facts]
  if len(set(names)) == len(set(zip(names, addresses, strict=True))):
    return tuple(names)
  return tuple(map(" ".join, zip(names, addresses, strict=True)))
