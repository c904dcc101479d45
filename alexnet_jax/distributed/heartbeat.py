"""Every process knows within seconds when another one is lost.

A process that is killed, stopped, or cut off leaves the others waiting in a
collective. So each says every two seconds that it lives, by the key-value store
of JAX's coordination service, which process 0 runs. Process 0 judges: who has
not said so for `LOST_SECONDS` is lost, and a verdict in the store tells the
others. They watch process 0 itself by whether its service answers, and by
whether anything listens at its address.

What ends a process on purpose, an error of its own, it announces, and the
others end with that.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

BEAT_SECONDS = 2.0
# Silence of process 0 after which to look whether it is there at all. With
# that it is known before `delay_abort` is over.
_SUSPECT_SECONDS = 1.5 * BEAT_SECONDS
# More than the longest time for which Python code of a process may be held up.
LOST_SECONDS = 20.0
# Between two turns of a thread that beats: more, and this process itself was
# held up (a suspended job, a virtual machine), and has heard nobody meanwhile.
_PAUSE_SECONDS = 4 * BEAT_SECONDS
# For the others to read what process 0 has to say before its service is gone.
_LINGER_SECONDS = 4 * BEAT_SECONDS

_BEATS, _READ = "watch/beat/", "watch/read/"
# One at most: the first one stands.
_VERDICTS = "watch/verdict/"


class Store(Protocol):
  """What is used of JAX's `DistributedRuntimeClient`."""

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
    on_end: called once, in a thread, with a sentence on another process and
      whether it is lost; not so if it ended with an error. It is to end this
      process.
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
    self._end = threading.Event()
    self._spoken = threading.Lock()
    self._answered = time.monotonic()
    # Process 0: when it judged last, and of each process, its last beat and
    # when that was seen.
    self._judged = self._answered
    self._seen = {i: ("", self._answered) for i in range(len(labels))}

  def start(self) -> None:
    works = [self._talk]
    if self._index != 0:  # whose service is in the process itself
      works.append(self._listen_for_silence)
    for work in works:
      threading.Thread(target=work, daemon=True, name="watch").start()

  def stop(self) -> None:
    """Watches no longer; does not wait for the threads."""
    self._end.set()

  def announce(self, reason: str, *, lost: bool = False) -> None:
    """Tells the others that this process ends, and waits until they know.

    Args:
      reason: the error that ends it; or what becomes of it, where it is lost.
      lost: whether it is lost to the others, and not ended by an error.
    """
    self.stop()
    try:
      self._say(self._index, reason if lost else f"ended: {reason}", lost=lost)
      if self._index == 0:
        self._wait_until_read()
      else:
        self._set(f"{_READ}{self._index}", "")
    except Exception:  # no service: there is nobody left to tell
      return

  def _talk(self) -> None:
    """Beats, and reads what there is to read; may block in the store."""
    beat = 0
    while not self._end.is_set():
      beat += 1
      try:
        self._set(f"{_BEATS}{self._index}", str(beat))
        if self._index == 0:
          self._judge()
        verdict = self._read_verdict()
        self._answered = time.monotonic()
      except Exception:
        # The store is JAX's service in process 0. It does not say no: it is
        # there, or it is not.
        if self._index != 0:
          self._speak(
            f"{self._labels[0]} is lost: it does not answer", lost=True
          )
        return
      if verdict is not None:
        self._pass_on(*verdict)
        return
      self._end.wait(BEAT_SECONDS)

  def _listen_for_silence(self) -> None:
    """Speaks up where the store says nothing at all."""
    turn = time.monotonic()
    while not self._end.wait(BEAT_SECONDS / 4):
      last, turn = turn, time.monotonic()
      if turn - last > _PAUSE_SECONDS:
        self._answered = turn
      silence = turn - self._answered
      if silence > LOST_SECONDS:
        self._speak(
          f"{self._labels[0]} is lost: nothing was heard of it for "
          f"{silence:.0f} s",
          lost=True,
        )
      elif silence > _SUSPECT_SECONDS and self._is_gone():
        self._speak(f"{self._labels[0]} is lost: it no longer runs", lost=True)

  def _is_gone(self) -> bool:
    """Whether the host of process 0 says that nothing listens there."""
    try:
      socket.create_connection(self._address, timeout=BEAT_SECONDS).close()
    except ConnectionError:
      return True
    except OSError:  # no answer at all: as silent as its service
      return False
    return False

  def _judge(self) -> None:
    """Says who has been silent for too long."""
    last, now = self._judged, time.monotonic()
    self._judged = now
    if now - last > _PAUSE_SECONDS:
      self._seen = {i: (beat, now) for i, (beat, _) in self._seen.items()}
    for key, beat in self._store.key_value_dir_get(_BEATS):
      index = int(key.rpartition("/")[2])
      if self._seen[index][0] != beat:
        self._seen[index] = beat, now
    index, (_, since) = min(self._seen.items(), key=lambda item: item[1][1])
    if now - since > LOST_SECONDS:
      reason = f"is lost: nothing was heard of it for {now - since:.0f} s"
      self._say(index, reason, lost=True)

  def _say(self, index: int, reason: str, *, lost: bool) -> None:
    with contextlib.suppress(Exception):  # another was first, or no service
      verdict = json.dumps([index, reason, lost])
      self._store.key_value_set(f"{_VERDICTS}0", verdict)

  def _read_verdict(self) -> tuple[int, str, bool] | None:
    # Asking for a key that is not there is an error in the store.
    verdicts = self._store.key_value_dir_get(_VERDICTS)
    return tuple(json.loads(verdicts[0][1])) if verdicts else None

  def _pass_on(self, index: int, reason: str, lost: bool) -> None:
    if self._index == 0:
      self._wait_until_read(but=index)
    else:
      self._set(f"{_READ}{self._index}", "")
    if index == self._index:
      reason = f"{reason}; so the others saw it"
    self._speak(f"{self._labels[index]} {reason}", lost=lost)

  def _wait_until_read(self, but: int = 0) -> None:
    """Process 0 keeps its service up until the others have read a verdict."""
    others = len({*range(len(self._labels))} - {0, but})
    end = time.monotonic() + _LINGER_SECONDS
    while time.monotonic() < end:
      if len(self._store.key_value_dir_get(_READ)) >= others:
        return
      time.sleep(0.1)

  def _set(self, key: str, value: str) -> None:
    self._store.key_value_set(key, value, allow_overwrite=True)

  def _speak(self, sentence: str, *, lost: bool) -> None:
    if not self._end.is_set() and self._spoken.acquire(blocking=False):
      self._on_end(sentence, lost)


def delay_abort() -> None:
  """Lets an abort of this process wait, so that the watch can speak first.

  Where process 0 dies, a thread of JAX aborts this process at once, with a dump
  of its stack and no word on which process was lost; JAX offers no way to hear
  of it (its callback for that cannot be set from Python as of jaxlib 0.12). The
  handler is C's own `sleep`, whose one argument is then the number of the
  signal, 6: seconds, after which the abort goes on. A handler that the user has
  set for SIGABRT is replaced.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
  libc.signal.restype = ctypes.c_void_p
  libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
