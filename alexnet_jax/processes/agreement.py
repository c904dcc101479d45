"""All processes of a run stop before the same boundary.

A boundary is where a run may stop: between two steps, or two batches of a
validation. All processes come to the same boundaries, but not at the same time.
So whoever is asked to stop gives notice; each process then says how many
boundaries it has reached, and stays at the next one until all have said it. One
after the highest count is a boundary that nobody has reached yet: there all
stop.

JAX has the same for SIGTERM, as its preemption service. That waits at a
boundary with Python's lock held, so that neither the watch nor a second signal
gets through, if need be for three minutes.
"""

from __future__ import annotations

import threading
import time

from alexnet_jax.processes import signals as signals_lib
from alexnet_jax.processes import watch as watch_lib

# Until a process hears of a notice of another one.
NOTICE_SECONDS = 1.0
_RETRY_SECONDS = 0.05

_NOTICES, _COUNTS = "agreement/notice/", "agreement/count/"


class Agreement:
  """What one process does so that all stop before the same boundary.

  Args:
    store: that all processes share.
    index: of this process.
    count: of all.
    signals: of this process.
  """

  def __init__(
    self,
    store: watch_lib.Store,
    *,
    index: int,
    count: int,
    signals: signals_lib.Signals,
  ):
    self._store = store
    self._index = index
    self._count = count
    self._signals = signals
    # Held while the processes tell each other where they are.
    self._lock = threading.Lock()
    self._boundary = 0
    self._last: int | None = None
    self._name = ""

  @property
  def name(self) -> str:
    """Of the signal that one of the processes has had."""
    return self._name

  def start(self) -> None:
    threading.Thread(target=self._listen, daemon=True, name="stop").start()

  def is_stopping(self) -> bool:
    """Whether all stop here; to be asked at every boundary, in all."""
    with self._lock:
      self._boundary += 1
      return self._last is not None and self._boundary >= self._last

  def _listen(self) -> None:
    try:
      while not (name := self._find_notice()):
        self._signals.came.wait(NOTICE_SECONDS)
      self._name = name
      self._agree()
    except Exception:
      return  # the store is gone: the run has ended, or the watch ends it

  def _find_notice(self) -> str:
    """The name of a signal that any process has had; empty if none."""
    if self._signals.came.is_set():
      self._store.key_value_set(f"{_NOTICES}{self._index}", self._signals.name)
      return self._signals.name
    notices = self._store.key_value_dir_get(_NOTICES)
    return notices[0][1] if notices else ""

  def _agree(self) -> None:
    with self._lock:
      self._store.key_value_set(f"{_COUNTS}{self._index}", str(self._boundary))
      # A process that is lost meanwhile is the watch's to find.
      while len(said := self._store.key_value_dir_get(_COUNTS)) < self._count:
        time.sleep(_RETRY_SECONDS)
      self._last = max(int(boundary) for _, boundary in said) + 1
