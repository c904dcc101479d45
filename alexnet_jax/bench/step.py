"""The time of the training step, beside what the devices can do at most.

Steps, large products and a pass over memory take turns, so that a machine that
slows down slows all of them. Steps are measured in two ways: each one waited
for, and many started ahead, as the training loop starts them.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import resource
import statistics
import sys
from collections.abc import Sequence

import jax
import rich.table

from alexnet_jax.bench import peak, report, turns
from alexnet_jax.partition import per_device
from alexnet_jax.program import compiled_step, profiler, summary
from alexnet_jax.program import program as program_lib
from alexnet_jax.program import timeline as timeline_lib
from alexnet_jax.training import loop

# Steps before the clock counts.
_WARM = 2
# A stretch is a number of steps that are started ahead: about a second of them.
_STRETCH_SECONDS = 1.0
_SHORTEST, _LONGEST = loop.STEPS_AHEAD + 2, 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTime(report.ProgramResult):
  """The time of a step, and the peaks measured in the same rounds.

  Attributes:
    seconds_single: of steps that were each waited for, round by round.
    seconds_ahead: of one step of a stretch that was started ahead, with one
      wait at its end, round by round.
    steps_in_a_stretch: steps that were started ahead.
    flops: of a step on all devices: convolutions and products, forward and
      backward, including padding; repeated work counts once.
    repeated_share: part of the devices' work that is repeated and therefore
      not counted, 0 to 1.
    touched_bytes: that the operations of a step on all devices read or write
      according to the compiler, which ignores caches; None: not known.
    peak_flops_per_second: of a large product, by dtype, round by round.
    peak_bytes_per_second: of a pass over memory, round by round.
    memory: bytes on one device according to the compiler; see
      `compiled_step.find_memory`.
    peak_memory_bytes: most that was in use by the end of the warm-up.
    peak_memory_of: what these bytes are of: the fullest `device`, or this
      `process`.
    timeline: of further steps, if they were traced.
    trace_folder: where its files are.
  """

  seconds_single: list[float]
  seconds_ahead: list[float]
  steps_in_a_stretch: int
  flops: float
  repeated_share: float
  touched_bytes: float | None
  peak_flops_per_second: dict[str, list[float]]
  peak_bytes_per_second: list[float]
  memory: dict[str, int]
  peak_memory_bytes: int
  peak_memory_of: str
  timeline: timeline_lib.Timeline | None = dataclasses.field(
    default=None, repr=False
  )
  trace_folder: str | None = None

  @property
  def precision(self) -> str:
    """How products are computed, in words."""
    return peak.describe_precision(self.platform, self.compute_dtype)

  @property
  def images_per_second_single(self) -> float:
    return self.batch_size / statistics.median(self.seconds_single)

  @property
  def images_per_second_ahead(self) -> float:
    return self.batch_size / statistics.median(self.seconds_ahead)

  @property
  def flops_per_second(self) -> float:
    """FLOP/s of steps that are started ahead."""
    return self.flops / statistics.median(self.seconds_ahead)

  @property
  def share_of_peak(self) -> float:
    """FLOP/s of the step by those of a large product: median of rounds."""
    return report.median_of_rounds(
      lambda seconds, rate: self.flops / seconds / rate,
      self.seconds_ahead,
      self.peak_flops_per_second[self.compute_dtype],
    )

  @property
  def share_of_memory(self) -> float | None:
    """Part of a step that its bytes take at the pace of the copy: median.

    Above 1 where caches serve many of the reads.
    """
    if self.touched_bytes is None:
      return None
    return report.median_of_rounds(
      lambda seconds, rate: self.touched_bytes / rate / seconds,
      self.seconds_ahead,
      self.peak_bytes_per_second,
    )

  @property
  def host_gap_seconds(self) -> float:
    """Seconds that starting ahead saves for each step: median of rounds."""
    return report.median_of_rounds(
      operator.sub, self.seconds_single, self.seconds_ahead
    )

  def tables(self) -> list[rich.table.Table]:
    steps = summary.make_table(
      f"a step of {self.batch_size} images on {self.devices} x "
      f"{self.device_kind}",
      *("steps", "> median ms", "> lowest", "> highest", "> images/s"),
      "> GFLOP/s",
    )
    ahead = f"{self.steps_in_a_stretch} in a row, started ahead"
    for name, seconds, rate in (
      ("each waited for", self.seconds_single, self.images_per_second_single),
      (ahead, self.seconds_ahead, self.images_per_second_ahead),
    ):
      steps.add_row(
        *(name, *report.spread_ms(seconds, 1), f"{rate:,.1f}"),
        f"{self.flops / self.batch_size * rate / 1e9:,.1f}",
      )
    peaks = summary.make_table(
      "peak of all devices together, measured between the steps",
      *("peak", "> median", "> lowest", "> highest", "unit"),
    )

    def add_peak(name: str, rates: list[float], unit: str) -> None:
      cells = [f"{rate / 1e9:,.1f}" for rate in report.spread(rates)]
      peaks.add_row(name, *cells, unit)

    for dtype, rates in self.peak_flops_per_second.items():
      add_peak(f"large product, {dtype}", rates, "GFLOP/s")
    copy = "read and write memory in place"
    add_peak(copy, self.peak_bytes_per_second, "GB/s")
    traced = self.timeline.tables if self.timeline else []
    return [steps, peaks, *traced]

  def lines(self) -> list[str]:
    lines = [
      f"{self.flops / 1e9:,.2f} GFLOP a step: convolutions and products of all "
      "devices, forward and backward, including those with padding; without "
      "normalization, pooling, augmentation and update",
    ]
    if self.repeated_share:
      lines.append(
        f"{self.repeated_share:.1%} of what the devices do is repeated work, "
        "which is not counted"
      )
    lines += [
      f"computed in {self.precision}",
      f"steps started ahead reach {self.share_of_peak:.1%} of the peak of a "
      "large product",
    ]
    if self.share_of_memory is not None:
      lines.append(
        f"by the compiler's count, operations read and write "
        f"{self.touched_bytes / 1e9:,.2f} GB; at the pace of the copy this "
        f"takes {self.share_of_memory:.0%} of a step; less where caches help"
      )
    gap = self.host_gap_seconds
    lines.append(
      f"a step takes {report.to_ms(abs(gap), 1)} ms "
      f"{'less' if gap >= 0 else 'more'} started ahead than waited for; median "
      f"of {len(self.seconds_single)} rounds"
    )
    if self.memory:
      lines.append(
        f"memory of one device by the compiler: {self.memory['peak']:,} bytes "
        f"at the peak of a step, of these {self.memory['arguments']:,} for "
        f"state and batch, {self.memory['temporaries']:,} temporary"
      )
    where = {"device": "on the fullest device", "process": "by this process"}
    lines.append(
      f"most memory in use since the start, with compilation: "
      f"{self.peak_memory_bytes:,} bytes {where[self.peak_memory_of]}"
    )
    if self.timeline:
      lines += self.timeline.lines()
      lines.append(profiler.describe_files(self.trace_folder, process=0))
    return lines


def measure(
  program: program_lib.Program,
  options: report.Options,
  *,
  rounds: int,
  trace_folder: str | None = None,
) -> StepTime:
  """Measures the step, and the peaks of the devices between steps.

  A round is a stretch of steps, one step, and each peak.

  Args:
    trace_folder: for a trace of further steps, which are started ahead; None:
      there is none.
  """
  compiled, _ = compiled_step.compile_step(program, options=options)
  steps = turns.StepRunner(program, compiled)
  for _ in range(_WARM):
    seconds = steps.run()
  stretch = choose_stretch(seconds)
  devices = list(program.mesh.devices.flat)
  peak_bytes, peak_of = _find_peak_memory(devices)
  products = {
    dtype: peak.Product(devices, dtype)
    for dtype in dict.fromkeys(("float32", program.compute_dtype))
  }
  copy = peak.Copy(devices)
  single, ahead, copies = [], [], []
  rates: dict[str, list[float]] = {dtype: [] for dtype in products}
  for product in products.values():
    product.measure()
  for _ in range(rounds):
    for dtype, product in products.items():
      rates[dtype].append(product.measure())
    copies.append(copy.measure())
    # The stretch comes first, so that the single step does not run with the
    # caches that the copy leaves.
    ahead.append(steps.run(stretch) / stretch)
    single.append(steps.run())
  timeline = None
  if trace_folder is not None:
    timeline = _trace(program, steps, trace_folder)
  touched = (compiled.cost_analysis() or {}).get("bytes accessed")
  return StepTime(
    **report.describe(program, options),
    seconds_single=single,
    seconds_ahead=ahead,
    steps_in_a_stretch=stretch,
    flops=count_flops(program),
    repeated_share=per_device.repeated_fraction(program.device_loads),
    touched_bytes=None if touched is None else touched * len(devices),
    peak_flops_per_second=rates,
    peak_bytes_per_second=copies,
    memory=compiled_step.find_memory(compiled),
    peak_memory_bytes=peak_bytes,
    peak_memory_of=peak_of,
    timeline=timeline,
    trace_folder=trace_folder,
  )


def _trace(
  program: program_lib.Program, steps: turns.StepRunner, folder: str
) -> timeline_lib.Timeline:
  """Traces steps, and leaves the files of the trace in a folder."""
  found: list[timeline_lib.Timeline] = []
  recorder = profiler.Recorder(
    folder,
    steps=range(1, profiler.NUM_STEPS + 1),
    program=program,
    first_step=0,
    show=found.append,
  )
  try:
    steps.take_step = recorder.wrap(steps.take_step)
    steps.run(profiler.NUM_STEPS)
  finally:
    recorder.close()
  return found[0]


def count_flops(program: program_lib.Program) -> float:
  """FLOP of a step on all devices; what several devices repeat counts once."""
  return program.layout.devices * sum(
    load.flops / load.times_computed for load in program.device_loads.values()
  )


def choose_stretch(seconds: float) -> int:
  """Returns how many steps of so many seconds to start ahead."""
  return min(max(math.ceil(_STRETCH_SECONDS / seconds), _SHORTEST), _LONGEST)


def _find_peak_memory(devices: Sequence[jax.Device]) -> tuple[int, str]:
  """Most bytes in use so far, and of what: `device` or `process`."""
  key = "peak_bytes_in_use"
  stats = [device.memory_stats() or {} for device in devices]
  peaks = [device[key] for device in stats if key in device]
  if peaks:
    return max(peaks), "device"
  # Kilobytes, but on macOS.
  unit = 1 if sys.platform == "darwin" else 1024
  return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "process"
