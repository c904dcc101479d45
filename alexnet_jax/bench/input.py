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
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from alexnet_jax.bench import step as step_lib
from alexnet_jax.bench import turns
from alexnet_jax.data import host_batches, pipeline
from alexnet_jax.data import records as records_lib
from alexnet_jax.program import compiled_step, compiler_options, summary
from alexnet_jax.program import program as program_lib

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
  order = host_batches.Order(len(records), seed)
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


_NO_TRANSFER = (
  "devices of the platform cpu take over the memory of a batch as it is: "
  "nothing is transferred",
)


def show_input(found: Speed) -> turns.Shown:
  """A row for each stage."""
  table = summary.make_table(
    "input of this process",
    *("stage", "> images/s", "> per core", "> MB/s", "> lowest", "> highest"),
  )
  for stage in STAGES:
    rate, lowest, highest = turns.spread(found.rates[stage])
    megabytes = rate * found.bytes_per_image(stage) / 1e6
    numbers = (rate, rate / found.cores, megabytes, lowest, highest)
    table.add_row(stage, *(f"{number:,.0f}" for number in numbers))
  data = {
    "threads": found.threads,
    "cores": found.cores,
    "rows": found.rows,
    "platform": found.platform,
    "stored_bytes_per_image": found.stored_bytes,
    "pixel_bytes_per_image": found.pixel_bytes,
    "images_per_second": {stage: found.median(stage) for stage in STAGES},
    "images_per_second_of_rounds": found.rates,
    "slowest": found.slowest(),
    "host_of_decoder": found.of_decoder(),
  }
  return turns.Shown(data, [table], _input_lines(found))


def _input_lines(found: Speed) -> list[str]:
  times = found.pixel_bytes / found.stored_bytes
  return [
    f"{found.threads} threads on {found.cores} cores, {found.rows} images of "
    f"each batch; medians of {len(found.rates['all'])} rounds",
    f"an image is {found.stored_bytes:,.0f} bytes as it is stored and "
    f"{found.pixel_bytes:,} as pixels, {times:.1f} times as many",
    f"of the stages alone, the slowest is {found.slowest()}",
    *(
      [
        f"the host makes batches at {found.of_decoder():.2f} of the speed of "
        "the decoder on images in memory, in the same threads"
      ]
      if found.median("decode") < found.median("read")
      else []  # there is hardly anything to decode
    ),
    *(_NO_TRANSFER if found.platform == "cpu" else ()),
  ]


def show_augmentation(found: AugmentationSpeed) -> turns.Shown:
  """A row for each step."""
  table = summary.make_table(
    f"a step of {found.batch_size} images, in ms",
    *("augmentation", "> median", "> lowest", "> highest"),
  )
  table.add_row("with", *turns.milliseconds(found.with_augmentation))
  table.add_row("without", *turns.milliseconds(found.without))
  data = {
    "batch_size": found.batch_size,
    "seconds_with": found.with_augmentation,
    "seconds_without": found.without,
    "added": found.added(),
  }
  line = (
    f"the augmentation adds {found.added():.1%} to a step: median of "
    f"{len(found.without)} pairs of steps, each with and without"
  )
  return turns.Shown(data, [table], [line])


# How fast the training step is, with its augmentation and without.
#
# Both steps are compiled first and then take turns, so that a machine that
# slows down slows both down.


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoAugmentation:
  """Crops that arrive as the network takes them, but for their type.

  Attributes:
    stored_size: side of the crops, in pixels.
  """

  stored_size: int

  def draw(
    self, key: jax.Array, n: int, *, spec, step: jax.Array
  ) -> dict[str, jax.Array]:
    """Draws nothing."""
    return {}

  def apply(self, images: jax.Array, draws) -> jax.Array:
    """u8[n, side, side, 3] -> f32[n, side, side, 3]."""
    return images.astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationSpeed:
  """Seconds of single steps, round by round.

  Attributes:
    with_augmentation: from stored images.
    without: from crops.
    batch_size: images in a step.
  """

  with_augmentation: list[float]
  without: list[float]
  batch_size: int

  def added(self) -> float:
    """What the augmentation adds to a step, as a share of it: median."""
    pairs = zip(self.with_augmentation, self.without, strict=True)
    return statistics.median(augmented / bare - 1 for augmented, bare in pairs)


def measure_augmentation(
  program: program_lib.Program,
  options: Mapping[str, compiler_options.Value],
  *,
  rounds: int,
) -> AugmentationSpeed:
  """Measures both steps.

  Args:
    program: with its augmentation.
    options: for the compiler.
    rounds: steps of each.
  """
  bare = dataclasses.replace(
    program,
    augmentation=NoAugmentation(stored_size=program.network.image_size),
  )
  steps = []
  for each in (program, bare):
    compiled, _ = compiled_step.compile_step(each, options=options)
    steps.append(step_lib.Steps(each, compiled))
    steps[-1].take()  # the first is slower
  seconds = [[], []]
  for number in range(rounds):
    # Either goes first as often as the other.
    for which in (0, 1) if number % 2 else (1, 0):
      seconds[which].append(steps[which].take())
  return AugmentationSpeed(
    with_augmentation=seconds[0],
    without=seconds[1],
    batch_size=program.batch_size,
  )
