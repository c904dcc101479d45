"""Shards written in many processes, which end with the one they serve."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator

from alexnet_jax.data import shards


def write(
  waiting: list[shards.Shard], *, jobs: int, report: Callable[[int], None]
) -> None:
  """Writes shards, each in one process.

  After an error or Ctrl-C no further shard is begun. After an error those that
  were begun are finished; after Ctrl-C they are dropped.

  Args:
    waiting: the shards.
    jobs: processes; 1: this one.
    report: called every second with the files done so far.

  Raises:
    ValueError, OSError: as `shards.write`, or a process was killed.
  """
  if jobs == 1:
    done = 0
    for shard in waiting:
      shards.write(shard)
      done += len(shard.members)
      report(done)
    return
  context = multiprocessing.get_context("spawn")  # JAX may have threads by now
  stop, done = context.Event(), context.Value("q", 0)
  with concurrent.futures.ProcessPoolExecutor(
    max(1, min(jobs, len(waiting))),
    mp_context=context,
    initializer=_start_process,
    initargs=(stop, done),
  ) as pool:
    try:
      with _without_interrupts():
        futures = {pool.submit(_write_one, shard) for shard in waiting}
      while futures:
        finished, futures = concurrent.futures.wait(
          futures, timeout=1, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for future in finished:
          future.result()
        report(done.value)
    except concurrent.futures.process.BrokenProcessPool:
      raise OSError(
        "a process that wrote shards was killed, maybe for want of memory; "
        f"expected {jobs} to go on. Set --jobs lower; finished shards are kept."
      ) from None
    except KeyboardInterrupt:
      stop.set()
      raise
    finally:
      pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
  """Processes started meanwhile leave Ctrl-C to this one, for good.

  They inherit that it is blocked. Here one that comes meanwhile is not lost.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In a process that writes shards: the signal to stop, and the files done. Such
# objects can be handed over only when a process starts.
_shared: tuple = ()


def _start_process(*shared: object) -> None:
  """Has the process end with its parent, however that one ends."""
  global _shared
  _shared = shared

  def end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=end_with_parent, daemon=True).start()


def _write_one(shard: shards.Shard) -> None:
  stop, done = _shared

  def count():
    with done.get_lock():
      done.value += 1

  shards.write(shard, stop, count)
