"""Tells every process within seconds when another one is lost.

A process that is killed, stopped or cut off leaves the others waiting in a
collective. So each one posts a beat every two seconds to the key-value store of
JAX's coordination service, which process 0 runs. Process 0 posts a verdict on
one that has not done so for `LOST_SECONDS`, and the others read it. They watch
process 0 itself by whether its service answers, and whether anything listens at
its address.

A process that ends with an error posts that too, and the others end with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

BEAT_SECONDS = 2.0
# Silence of process 0 after which its address is tried: early enough to know
# before the delay of `delay_abort` is over.
_SUSPECT_SECONDS = 1.5 * BEAT_SECONDS
# More than the longest time for which other code may hold Python's lock.
LOST_SECONDS = 20.0
# A longer time between two turns of a thread means that this process itself was
# stopped (a suspended job, a virtual machine) and could not hear the others.
_PAUSE_SECONDS = 4 * BEAT_SECONDS
# From seeing an abort to the end: a process that is lost is named meanwhile,
# and the delay of `delay_abort` is not over yet.
_ABORT_SECONDS = 3.5
# Time for the others to read the verdict before process 0 ends its service.
_LINGER_SECONDS = 4 * BEAT_SECONDS

_BEATS, _READ = "watch/beat/", "watch/read/"
# At most one: the first verdict stands.
_VERDICTS = "watch/verdict/"


class Store(Protocol):
  """The part of JAX's `DistributedRuntimeClient` that is used."""

  def key_value_set(
    self, key: str, value: str, allow_overwrite: bool = False
  ) -> None: ...

  def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...


class Heartbeat:
  """Watches the other processes from threads of its own.

  Args:
    store: that all processes share.
    index: of this process.
    labels: of all processes, for messages.
    address: host:port of process 0.
    on_end: called once, in a thread, to end this process; gets a sentence on
      another process, and True if that one is lost, False if it ended with an
      error.
  """

  def __init__(
    self,
    store: Store,
    *,
    index: int,
    labels: tuple[str, ...],
    address: str,
    on_end: Callable[[str, bool], None],
  ):
    self._store = store
    self._index = index
    self._labels = labels
    host, _, port = address.rpartition(":")
    self._address = host.strip("[]"), int(port)
    self._on_end = on_end
    self._stopped = threading.Event()
    self._ended = threading.Lock()
    self._answered = time.monotonic()
    # Of process 0: its last look at the beats; the last beat of each process,
    # and when that was seen.
    self._looked = self._answered
    self._seen = {i: ("", self._answered) for i in range(len(labels))}

  def start(self) -> None:
    targets = [self._beat, self._watch_abort]
    if self._index != 0:
      targets.append(self._watch_first)
    for target in targets:
      threading.Thread(target=target, daemon=True, name="heartbeat").start()

  def stop(self) -> None:
    """Stops watching; does not wait for the threads."""
    self._stopped.set()

  def announce_end(self, reason: str, *, lost: bool = False) -> None:
    """Tells the others that this process ends, and waits until they know.

    Args:
      reason: the error that ends it; if lost, a predicate, as "was stopped".
      lost: whether the others treat it as lost rather than ended by an error.
    """
    self.stop()
    try:
      reason = reason if lost else f"ended: {reason}"
      self._post_verdict(self._index, reason, lost=lost)
      if self._index == 0:
        self._wait_until_read()
      else:
        self._set(f"{_READ}{self._index}", "")
    except Exception:  # no service: no other process is left
      return

  def _beat(self) -> None:
    """Posts beats and reads verdicts; may block in the store."""
    beat = 0
    while not self._stopped.is_set():
      beat += 1
      try:
        self._set(f"{_BEATS}{self._index}", str(beat))
        if self._index == 0:
          self._find_lost()
        verdict = self._read_verdict()
        self._answered = time.monotonic()
      except Exception:
        # The store is JAX's service in process 0, and never refuses: an error
        # means that it does not answer.
        if self._index != 0:
          self._end_process(
            f"{self._labels[0]} is lost: it does not answer", lost=True
          )
        return
      if verdict is not None:
        self._apply_verdict(*verdict)
        return
      self._stopped.wait(BEAT_SECONDS)

  def _watch_first(self) -> None:
    """Finds that process 0 is lost where the store blocks."""
    turn = time.monotonic()
    while not self._stopped.wait(BEAT_SECONDS / 4):
      last, turn = turn, time.monotonic()
      if turn - last > _PAUSE_SECONDS:
        self._answered = turn
      silence = turn - self._answered
      if silence > LOST_SECONDS:
        self._end_process(
          f"{self._labels[0]} is lost: nothing was heard from it for "
          f"{silence:.0f} s",
          lost=True,
        )
      elif silence > _SUSPECT_SECONDS and self._is_gone():
        self._end_process(
          f"{self._labels[0]} is lost: it no longer runs", lost=True
        )

  def _watch_abort(self) -> None:
    """Ends this process where JAX aborts it although no process is lost."""
    while not self._stopped.wait(BEAT_SECONDS):
      aborting = _find_aborting_threads()
      if not aborting:
        continue
      self._stopped.wait(_ABORT_SECONDS)
      if not aborting & _find_aborting_threads():
        continue
      reason = "JAX aborts it for the reason above, which may be a clock that "
      reason += "was set back"
      # The abort goes on in half a second.
      if self._index != 0 and self._is_gone(timeout_seconds=0.3):
        reason = f"{self._labels[0]} is lost: it no longer runs"
      self._end_process(reason, lost=True)

  def _is_gone(self, timeout_seconds: float = BEAT_SECONDS) -> bool:
    """Whether the host of process 0 refuses a connection to its address."""
    try:
      socket.create_connection(self._address, timeout_seconds).close()
    except ConnectionError:
      return True
    except OSError:  # the host does not answer either: unknown
      return False
    return False

  def _find_lost(self) -> None:
    """Posts a verdict on a process that has been silent for too long."""
    last, now = self._looked, time.monotonic()
    self._looked = now
    if now - last > _PAUSE_SECONDS:
      self._seen = {i: (beat, now) for i, (beat, _) in self._seen.items()}
    for key, beat in self._store.key_value_dir_get(_BEATS):
      index = int(key.rpartition("/")[2])
      if self._seen[index][0] != beat:
        self._seen[index] = beat, now
    index, (_, since) = min(self._seen.items(), key=lambda item: item[1][1])
    if now - since > LOST_SECONDS:
      reason = f"is lost: nothing was heard from it for {now - since:.0f} s"
      self._post_verdict(index, reason, lost=True)

  def _post_verdict(self, index: int, reason: str, *, lost: bool) -> None:
    with contextlib.suppress(Exception):  # another was first, or no service
      verdict = json.dumps([index, reason, lost])
      self._store.key_value_set(f"{_VERDICTS}0", verdict)

  def _read_verdict(self) -> tuple[int, str, bool] | None:
    # A single key that does not exist would be an error of the store.
    verdicts = self._store.key_value_dir_get(_VERDICTS)
    return tuple(json.loads(verdicts[0][1])) if verdicts else None

  def _apply_verdict(self, index: int, reason: str, lost: bool) -> None:
    if self._index == 0:
      self._wait_until_read(but=index)
    else:
      self._set(f"{_READ}{self._index}", "")
    if index == self._index:
      reason = f"{reason}, according to the others"
    self._end_process(f"{self._labels[index]} {reason}", lost=lost)

  def _wait_until_read(self, but: int = 0) -> None:
    """Keeps the service of process 0 up until the others have the verdict."""
    others = len({*range(len(self._labels))} - {0, but})
    end = time.monotonic() + _LINGER_SECONDS
    while time.monotonic() < end:
      if len(self._store.key_value_dir_get(_READ)) >= others:
        return
      time.sleep(0.1)

  def _set(self, key: str, value: str) -> None:
    self._store.key_value_set(key, value, allow_overwrite=True)

  def _end_process(self, sentence: str, *, lost: bool) -> None:
    if not self._stopped.is_set() and self._ended.acquire(blocking=False):
      self._on_end(sentence, lost)


def _find_aborting_threads() -> set[str]:
  """Returns the threads that are in the handler of `delay_abort`.

  There, SIGABRT is blocked besides the signals that all threads of a run block,
  this one too. None where there is no /proc.
  """
  blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ()) | {signal.SIGABRT}
  expected = sum(1 << (number - 1) for number in blocked)
  found = set()
  with contextlib.suppress(OSError):  # no /proc
    for thread in os.listdir("/proc/self/task"):
      with contextlib.suppress(OSError):  # the thread has ended
        with open(f"/proc/self/task/{thread}/status", "rb") as file:
          mask = re.search(rb"SigBlk:\s*(\w+)", file.read())
        if mask and int(mask[1], 16) == expected:
          found.add(thread)
  return found


def delay_abort() -> None:
  """Delays an abort of this process, so that the heartbeat can end it first.

  If process 0 dies, a thread of JAX aborts this process at once, with a dump of
  its stack that does not name the lost process; as of jaxlib 0.12 the callback
  for that cannot be set from Python. The handler of SIGABRT becomes C's own
  `sleep`, which gets the number of the signal: 6 seconds, and the abort
  continues. It replaces a handler that the user has set.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
  libc.signal.restype = ctypes.c_void_p
  libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
