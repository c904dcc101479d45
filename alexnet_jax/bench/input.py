"""The speed of the input: each stage alone, and all of them together.

    read      record -> stored image and label, in threads
    decode    stored image in memory -> pixels, in threads
    batch     order of the images, memory and threads; no row is filled
    transfer  one batch in memory -> devices
    host      read, decode and batch together, as a run has it
    all       everything, as a run has it

Stages take turns, so that a machine that slows down slows all of them. In each
round a stage continues where it stopped in the split.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import operator
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import rich.table

from alexnet_jax.bench import report
from alexnet_jax.data import cores as cores_lib
from alexnet_jax.data import host_batches, pipeline
from alexnet_jax.data import records as records_lib
from alexnet_jax.program import summary

ALONE = ("read", "decode", "batch", "transfer")
STAGES = (*ALONE, "host", "all")
# Stored images in memory for `decode`; more than the caches of a CPU hold.
SAMPLE = 1024
# Records that `read` reads, in a larger split not all of them.
_INDICES = 1 << 16
_ROWS = 64
# Batches before the clock starts; more than are read ahead.
_WARM = 6
_ENDLESS = 2**40


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputRates:
  """The speed of the input of one process.

  Attributes:
    images_per_second: of each stage, round by round.
    stored_bytes_per_image: mean size of a stored image.
    pixel_bytes_per_image: size of an image as pixels.
    threads: that read and decode.
    cores: that they run on.
    rows: of each batch that this process reads.
    platform: of the devices: cpu, gpu, tpu.
  """

  images_per_second: dict[str, list[float]]
  stored_bytes_per_image: float
  pixel_bytes_per_image: int
  threads: int
  cores: int
  rows: int
  platform: str

  def median(self, stage: str) -> float:
    """Images per second."""
    return statistics.median(self.images_per_second[stage])

  @property
  def slowest(self) -> str:
    """The slowest of the stages that are measured alone."""
    return min(ALONE, key=self.median)

  @property
  def host_of_decoder(self) -> float:
    """Speed of the host by that of the decoder: median of rounds."""
    return report.median_of_rounds(
      operator.truediv,
      self.images_per_second["host"],
      self.images_per_second["decode"],
    )

  def tables(self) -> list[rich.table.Table]:
    table = summary.make_table(
      "input of this process",
      *("stage", "> images/s", "> per core", "> MB/s", "> lowest", "> highest"),
    )
    for stage in STAGES:
      rate, lowest, highest = report.spread(self.images_per_second[stage])
      size = (
        self.stored_bytes_per_image
        if stage == "read"
        else self.pixel_bytes_per_image
      )
      numbers = (rate, rate / self.cores, rate * size / 1e6, lowest, highest)
      table.add_row(stage, *(f"{number:,.0f}" for number in numbers))
    return [table]

  def lines(self) -> list[str]:
    times = self.pixel_bytes_per_image / self.stored_bytes_per_image
    lines = [
      f"{self.threads} threads on {self.cores} cores, {self.rows} images of "
      f"each batch; medians of {len(self.images_per_second['all'])} rounds",
      f"an image has {self.stored_bytes_per_image:,.0f} bytes as stored and "
      f"{self.pixel_bytes_per_image:,} as pixels, {times:.1f} times as many",
      f"of the stages alone, the slowest is {self.slowest}",
    ]
    # Else there is hardly anything to decode.
    if self.median("decode") < self.median("read"):
      lines.append(
        f"the host makes batches at {self.host_of_decoder:.2f} of the speed of "
        "the decoder on images in memory, in the same threads"
      )
    if self.platform == "cpu":
      lines.append(
        "CPU devices use the memory of a batch directly: nothing is transferred"
      )
    return lines


class _Unfilled(records_lib.Records):
  """Records that fill no rows."""

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
) -> InputRates:
  """Measures every stage.

  Args:
    rounds: how often each stage is measured.
    seconds: how long to measure a stage in a round.

  The other arguments are those of `pipeline.train_batches`.

  Raises:
    source.RecordError: see `Records.fill`.
  """
  threads = threads or host_batches.default_threads()
  rows = pipeline.find_local_rows(shardings, batch_size)
  size = len(rows)
  stream = host_batches.ShuffledStream(len(records), seed)
  indices = stream.records_at(np.arange(_INDICES)).tolist()
  count = min(SAMPLE, len(records))
  sample = [records.read_encoded(index)[0] for index in indices[:count]]
  decode = make_decoder(records, sample, threads)
  places = itertools.count()  # for all threads: its steps are not divided
  steps = {"batch": 0, "host": 0, "all": 0}
  unfilled = _Unfilled(**vars(records))
  common = {"batch_size": batch_size, "seed": seed, "threads": threads}
  devices = {"shardings": shardings, "batches_ahead": batches_ahead}

  def read(thread: int, turn: int) -> None:
    records.read_encoded(indices[next(places) % _INDICES])

  def batches(stage: str, source: records_lib.Records) -> Iterator[Any]:
    return host_batches.train_batches(
      source, rows=rows, steps=range(steps[stage], _ENDLESS), **common
    )

  def transfer() -> Iterator[Any]:
    with contextlib.closing(batches("host", records)) as read_once:
      batch = next(read_once)
    return pipeline.to_devices(
      (batch for _ in itertools.count()),  # a generator, which is closed
      rows=rows,
      batch_size=batch_size,
      **devices,
    )

  starts = {
    "batch": lambda: batches("batch", unfilled),
    "transfer": transfer,
    "host": lambda: batches("host", records),
    "all": lambda: pipeline.train_batches(
      records, first_step=steps["all"], num_steps=_ENDLESS, **common, **devices
    ),
  }
  rates = {stage: [] for stage in STAGES}
  for _ in range(rounds):
    rates["read"].append(in_threads(read, threads, seconds))
    rates["decode"].append(in_threads(decode, threads, seconds))
    for stage, start in starts.items():
      with contextlib.closing(start()) as running:
        per_second, taken = measure_batches(running, seconds, warm=_WARM)
      rates[stage].append(size * per_second)
      if stage in steps:
        steps[stage] += taken
  return InputRates(
    images_per_second=rates,
    stored_bytes_per_image=statistics.mean(map(len, sample)),
    pixel_bytes_per_image=3 * records.stored_size**2,
    threads=threads,
    cores=min(threads, cores_lib.count_cores()),
    rows=size,
    platform=min(device.platform for device in shardings[0].device_set),
  )


def make_decoder(
  records: records_lib.Records, sample: Sequence[bytes], threads: int
) -> Callable[[int, int], None]:
  """Returns work for `in_threads`: decodes stored images of a sample in memory.

  Each thread decodes into `_ROWS` rows of its own by turns.
  """
  side = records.stored_size
  out = np.empty((threads, _ROWS, side, side, 3), np.uint8)

  def decode(thread: int, turn: int) -> None:
    image = sample[(thread + turn * threads) % len(sample)]
    records.decode(image, out[thread, turn % _ROWS])

  return decode


def in_threads(
  work: Callable[[int, int], None], threads: int, seconds: float
) -> float:
  """Returns the calls of `work(thread, turn)` per second, in all threads."""
  begin = time.perf_counter()

  def run(thread: int) -> int:
    for turn in itertools.count():
      if turn and time.perf_counter() >= begin + seconds:
        return turn
      work(thread, turn)

  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    turns = sum(pool.map(run, range(threads)))
  return turns / (time.perf_counter() - begin)


def measure_batches(
  batches: Iterator[Any], seconds: float, *, warm: int
) -> tuple[float, int]:
  """Measures batches that are ready on the devices, if they go there.

  Args:
    batches: without an end.
    seconds: how long to take batches.
    warm: batches before the clock starts.

  Returns:
    Batches per second, and how many were taken in all.
  """
  for batch in itertools.islice(batches, warm):
    jax.block_until_ready(batch)
  begin, taken = time.perf_counter(), 0
  while not taken or time.perf_counter() < begin + seconds:
    jax.block_until_ready(next(batches))
    taken += 1
  return taken / (time.perf_counter() - begin), warm + taken
