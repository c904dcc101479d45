"""How fast the input is: each stage alone, and all of them together.

    read      record -> stored image and label, in threads
    decode    stored image in memory -> pixels, in threads
    batch     which rows, memory for them, threads; rows stay as they are
    transfer  one batch in memory -> devices
    host      read, decode and batch together, as a run has it
    all       everything, as a run has it

Stages take turns, so that a machine that slows down slows all of them down; a
stage goes on in the split where it stopped a round before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from alexnet_jax.data import host_batches, pipeline
from alexnet_jax.data import order as order_lib
from alexnet_jax.data import records as records_lib

ALONE = ("read", "decode", "batch", "transfer")
STAGES = (*ALONE, "host", "all")
# Stored images in memory for `decode`; more than the caches of a CPU hold.
_SAMPLE = 1024
# Records that `read` goes through; of a larger split, not all.
_INDICES = 1 << 16
# Rows that a thread decodes into by turns.
_ROWS = 64
# Batches before the clock starts; more than are read ahead.
_WARM = 6
_ENDLESS = 2**40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
  """What was measured in one process.

  Attributes:
    rates: images per second of each stage, one for each round.
    stored_bytes: of an image as it is stored, on average.
    pixel_bytes: of an image as pixels.
    threads: that read and decode.
    cores: that they run on.
    rows: of each batch that this process reads.
    platform: of the devices: cpu, gpu, tpu.
  """

  rates: dict[str, list[float]]
  stored_bytes: float
  pixel_bytes: int
  threads: int
  cores: int
  rows: int
  platform: str

  def median(self, stage: str) -> float:
    """Images per second."""
    return statistics.median(self.rates[stage])

  def bytes_per_image(self, stage: str) -> float:
    """What the stage works through for an image."""
    return self.stored_bytes if stage == "read" else self.pixel_bytes

  def slowest(self) -> str:
    """The stage that bounds the others: of those that work alone."""
    return min(ALONE, key=self.median)

  def of_decoder(self) -> float:
    """How much of the speed of the decoder the host reaches, 0..1."""
    ratios = zip(self.rates["host"], self.rates["decode"], strict=True)
    return statistics.median(host / decode for host, decode in ratios)


class _Idle(records_lib.Records):
  """Records that leave the rows as they are."""

  def fill(self, indices, images, labels):
    return []


def measure(
  records: records_lib.Records,
  *,
  batch_size: int,
  seed: int,
  shardings: pipeline.Shardings,
  threads: int | None,
  batches_ahead: int,
  rounds: int,
  seconds: float,
) -> Speed:
  """Measures every stage.

  Args:
    records: the split.
    rounds: how often each stage is measured.
    seconds: how long, each time.

  The other arguments are those of `pipeline.train_batches`.

  Raises:
    source.RecordError: see `Records.fill`.
  """
  threads = threads or host_batches.find_threads()
  rows = pipeline.find_rows(shardings, batch_size)
  size, side = len(rows), records.stored_size
  order = order_lib.Order(len(records), seed)
  indices = order.find(np.arange(_INDICES)).tolist()
  sample = [
    records.find(index)[0] for index in indices[: min(_SAMPLE, len(records))]
  ]
  out = np.empty((threads, _ROWS, side, side, 3), np.uint8)
  places = itertools.count()  # for all threads: its steps are not divided
  steps = {"batch": 0, "host": 0, "all": 0}
  idle = _Idle(
    **{
      field.name: getattr(records, field.name)
      for field in dataclasses.fields(records)
    }
  )
  common = {"batch_size": batch_size, "seed": seed, "threads": threads}
  devices = {"shardings": shardings, "batches_ahead": batches_ahead}

  def read(thread: int, turn: int) -> None:
    records.find(indices[next(places) % _INDICES])

  def decode(thread: int, turn: int) -> None:
    image = sample[(thread + turn * threads) % len(sample)]
    records.decode(image, out[thread, turn % _ROWS])

  def batch() -> Iterator[Any]:
    return host_batches.train_blocks(
      idle, rows=rows, steps=range(steps["batch"], _ENDLESS), **common
    )

  def host() -> Iterator[Any]:
    return host_batches.train_blocks(
      records, rows=rows, steps=range(steps["host"], _ENDLESS), **common
    )

  def transfer() -> Iterator[Any]:
    with contextlib.closing(host()) as blocks:
      block = next(blocks)
    return pipeline.to_devices(
      (block for _ in itertools.count()),
      rows=rows,
      batch_size=batch_size,
      **devices,
    )

  def everything() -> Iterator[Any]:
    return pipeline.train_batches(
      records,
      first_step=steps["all"],
      num_steps=_ENDLESS,
      **common,
      **devices,
    )

  rates = {stage: [] for stage in STAGES}
  for _ in range(rounds):
    rates["read"].append(in_threads(read, threads, seconds))
    rates["decode"].append(in_threads(decode, threads, seconds))
    for stage, start in (
      ("batch", batch),
      ("transfer", transfer),
      ("host", host),
      ("all", everything),
    ):
      per_second, taken = _in_turn(start(), seconds)
      rates[stage].append(size * per_second)
      if stage in steps:
        steps[stage] += taken
  return Speed(
    rates=rates,
    stored_bytes=statistics.mean(map(len, sample)),
    pixel_bytes=3 * side**2,
    threads=threads,
    cores=min(threads, host_batches.find_cores()),
    rows=size,
    platform=min(device.platform for device in shardings[0].device_set),
  )


def in_threads(
  work: Callable[[int, int], None], threads: int, seconds: float
) -> float:
  """How often a second `work(thread, turn)` is done in all threads."""
  turns, errors = [0] * threads, []
  begin = time.perf_counter()

  def run(thread: int) -> None:
    try:
      while not turns[thread] or time.perf_counter() < begin + seconds:
        work(thread, turns[thread])
        turns[thread] += 1
    except Exception as error:
      errors.append(error)

  running = [
    threading.Thread(target=run, args=(thread,)) for thread in range(threads)
  ]
  for thread in running:
    thread.start()
  for thread in running:
    thread.join()
  if errors:
    raise errors[0]
  return sum(turns) / (time.perf_counter() - begin)


def _in_turn(batches: Iterator[Any], seconds: float) -> tuple[float, int]:
  """Batches a second, ready on the devices where they go there; all taken."""
  with contextlib.closing(batches):
    for batch in itertools.islice(batches, _WARM):
      jax.block_until_ready(batch)
    begin, taken = time.perf_counter(), 0
    while not taken or time.perf_counter() < begin + seconds:
      jax.block_until_ready(next(batches))
      taken += 1
    return taken / (time.perf_counter() - begin), _WARM + taken
