"""How fast the training step is, beside what the devices can do at most.

Steps, a large product and a pass over memory take turns, so that a machine
that slows down slows all of them down. Steps are taken in both ways: one at a
time, each waited for, and some ahead, as the loop starts them.
"""

from __future__ import annotations

import dataclasses
import math
import resource
import statistics
import sys
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from alexnet_jax.bench import peak, turns
from alexnet_jax.partition import per_device
from alexnet_jax.program import compiled_step, compiler_options, summary
from alexnet_jax.program import program as program_lib
from alexnet_jax.program import step as step_lib
from alexnet_jax.training import loop

# Steps before the clock counts.
_WARM = 2
# A stretch of steps that are started ahead: so long, and so many.
_STRETCH_SECONDS = 1.0
_SHORTEST, _LONGEST = loop.STEPS_AHEAD + 2, 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
  """What was measured of a program's step.

  Attributes:
    single: seconds of steps that were each waited for, round by round.
    ahead: seconds of one step in a stretch of `stretch`, started as the loop
      starts them, with one wait at the end; round by round.
    stretch: steps in a stretch.
    batch_size: images in a step.
    flops: of a step on all devices: convolutions and products, forward and
      backward, padding among them; what several devices repeat counts once.
    repeated: which part of what the devices do is repeated and not counted,
      0 to 1.
    touched_bytes: that the compiler counts for a step on all devices, read or
      written by its operations, as if there were no caches; None: not known.
    products: FLOP/s of a large product by type, round by round.
    copies: bytes a second of a pass over memory, round by round.
    compute: the type that the network is computed in.
    memory: bytes on one device, by the compiler; see `find_memory`.
    peak_bytes: most that was in use by the end of the warm steps.
    peak_of: what these are of: `device`, or `process`, all it holds.
    devices: in the mesh.
    kind: of the devices.
    platform: of the devices.
  """

  single: list[float]
  ahead: list[float]
  stretch: int
  batch_size: int
  flops: float
  repeated: float
  touched_bytes: float | None
  products: dict[str, list[float]]
  copies: list[float]
  compute: str
  memory: dict[str, int]
  peak_bytes: int
  peak_of: str
  devices: int
  kind: str
  platform: str

  def images_per_second(self, seconds: Sequence[float]) -> float:
    """Of the median of such steps."""
    return self.batch_size / statistics.median(seconds)

  def reached(self) -> float:
    """FLOP/s of the step, as the loop starts it."""
    return self.flops / statistics.median(self.ahead)

  def share_of_peak(self) -> float:
    """FLOP/s of the step in those of products of its type: median of rounds."""
    pairs = zip(self.ahead, self.products[self.compute], strict=True)
    return statistics.median(
      self.flops / seconds / rate for seconds, rate in pairs
    )

  def share_of_memory(self) -> float | None:
    """As much of a step as its bytes take at the pace of the copy: median.

    Above 1 where caches spare the memory a part of them.
    """
    if self.touched_bytes is None:
      return None
    pairs = zip(self.ahead, self.copies, strict=True)
    return statistics.median(
      self.touched_bytes / rate / seconds for seconds, rate in pairs
    )

  def host_gap(self) -> float:
    """Seconds by which a step is shorter if it is not waited for: median."""
    pairs = zip(self.single, self.ahead, strict=True)
    return statistics.median(single - ahead for single, ahead in pairs)


def measure(
  program: program_lib.Program,
  options: Mapping[str, compiler_options.Value],
  *,
  rounds: int,
) -> Speed:
  """Measures the step, and the devices beside it.

  Args:
    program: of a single run, on devices of this process.
    options: for the compiler.
    rounds: of a stretch of steps, one step, and each peak.
  """
  compiled, _ = compiled_step.compile_step(program, options=options)
  steps = Steps(program, compiled)
  for _ in range(_WARM):
    seconds = steps.take()
  stretch = find_stretch(seconds)
  devices = list(program.mesh.devices.flat)
  peak_bytes, peak_of = _find_peak_memory(devices)
  types = dict.fromkeys(("float32", program.compute_dtype))
  products = {dtype: peak.Product(devices, dtype) for dtype in types}
  copy = peak.Copy(devices)
  single, ahead, copies = [], [], []
  rates: dict[str, list[float]] = {dtype: [] for dtype in products}
  for product in products.values():
    product.measure()
  for _ in range(rounds):
    for dtype, product in products.items():
      rates[dtype].append(product.measure())
    copies.append(copy.measure())
    # First, as the single step is not to find the caches of the copy.
    ahead.append(steps.take_ahead(stretch) / stretch)
    single.append(steps.take())
  touched = (compiled.cost_analysis() or {}).get("bytes accessed")
  return Speed(
    single=single,
    ahead=ahead,
    stretch=stretch,
    batch_size=program.batch_size,
    flops=find_flops(program),
    repeated=per_device.repeated_share(program.shares),
    touched_bytes=None if touched is None else touched * len(devices),
    products=rates,
    copies=copies,
    compute=program.compute_dtype,
    memory=compiled_step.find_memory(compiled),
    peak_bytes=peak_bytes,
    peak_of=peak_of,
    devices=len(devices),
    kind=devices[0].device_kind,
    platform=devices[0].platform,
  )


def find_flops(program: program_lib.Program) -> float:
  """Of a step on all devices, once where several of them repeat it."""
  return program.layout.devices * sum(
    share.flops / share.times for share in program.shares.values()
  )


def find_stretch(seconds: float) -> int:
  """How many steps of so many seconds a stretch has."""
  return min(max(math.ceil(_STRETCH_SECONDS / seconds), _SHORTEST), _LONGEST)


def _find_peak_memory(
  devices: Sequence[jax.Device],
) -> tuple[int, str]:
  """Most bytes in use so far: of the fullest device, or of this process."""
  stats = [device.memory_stats() or {} for device in devices]
  found = [
    each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each
  ]
  if found:
    return max(found), "device"
  # Kilobytes, but on macOS.
  unit = 1 if sys.platform == "darwin" else 1024
  return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "process"


# Training steps of a program, taken by themselves on a batch of noise.
#
# What images show does not matter for the time of a step. Whoever measures
# compiles first, and takes a few steps before the clock counts.


class Steps:
  """A compiled step with the state and the batch that it takes.

  Args:
    program: of the step.
    compiled: the step, from `compiled_step.compile_step`.
  """

  def __init__(
    self, program: program_lib.Program, compiled: jax.stages.Compiled
  ):
    self._compiled = compiled
    init_key, self._key = program.make_keys(0)
    self._state = program.init(init_key)
    rng = np.random.default_rng(0)
    n, side = program.batch_size, program.augmentation.stored_size
    classes = program.network.layer("fc8").features
    self._batch = jax.device_put(
      (
        rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8),
        rng.integers(0, classes, n, dtype=np.int32),
      ),
      program.batch_shardings,
    )

  def start(self) -> tuple[step_lib.TrainState, jax.Array]:
    """Starts a step; the state after it, and the totals."""
    self._state, totals = self._compiled(self._state, self._key, *self._batch)
    return self._state, totals

  def take(self) -> float:
    """Takes one step and waits for it; its seconds."""
    return self.take_ahead(1)

  def take_ahead(self, count: int) -> float:
    """Starts steps as the loop does, and waits for the last; seconds of all."""
    jax.block_until_ready((self._state, self._batch))
    totals: list[jax.Array] = []
    begin = time.perf_counter()
    for _ in range(count):
      totals.append(self.start()[1])
      ahead = loop.STEPS_AHEAD
      jax.block_until_ready(totals[-ahead - 1 : -ahead])
    jax.block_until_ready((self._state, totals))
    return time.perf_counter() - begin


def show(found: Speed) -> turns.Shown:
  """Tables of the steps and of the peaks."""
  return turns.Shown(
    _to_data(found), [_steps(found), _peaks(found)], _say(found)
  )


def _steps(found: Speed):
  table = summary.make_table(
    f"a step of {found.batch_size} images on {found.devices} x {found.kind}",
    *("steps", "> median ms", "> lowest", "> highest", "> images/s"),
    "> GFLOP/s",
  )
  for name, seconds in (
    ("each waited for", found.single),
    (f"{found.stretch} in a row, started ahead", found.ahead),
  ):
    rate = found.images_per_second(seconds)
    table.add_row(
      name,
      *turns.milliseconds(seconds),
      f"{rate:,.1f}",
      f"{found.flops / found.batch_size * rate / 1e9:,.1f}",
    )
  return table


def _peaks(found: Speed):
  table = summary.make_table(
    "the devices at most, all together, between the steps",
    *("peak", "> median", "> lowest", "> highest", "unit"),
  )
  for dtype, rates in found.products.items():
    table.add_row(f"large product, {dtype}", *_giga(rates), "GFLOP/s")
  table.add_row("read and write memory in place", *_giga(found.copies), "GB/s")
  return table


def _giga(rates) -> list[str]:
  return [f"{rate / 1e9:,.1f}" for rate in turns.spread(rates)]


def _say(found: Speed) -> list[str]:
  lines = [
    f"{found.flops / 1e9:,.2f} GFLOP a step: convolutions and products of all "
    "devices, forward and backward, multiplications by padding among them; no "
    "normalization, pooling, augmentation or update",
    *(
      [
        f"{found.repeated:.1%} of what the devices do is repeated work, which "
        "is not counted"
      ]
      if found.repeated
      else []
    ),
    f"computed in {peak.describe_precision(found.platform, found.compute)}",
    f"the steps started ahead reach {found.share_of_peak():.1%} of the peak of "
    "a large product",
  ]
  of_memory = found.share_of_memory()
  if of_memory is not None:
    lines.append(
      f"the {found.touched_bytes / 1e9:,.2f} GB that its operations read and "
      f"write by the compiler's count take {of_memory:.0%} of a step at the "
      "pace of the copy; less where caches keep them"
    )
  gap = found.host_gap()
  lines.append(
    f"a step takes {abs(gap) * 1e3:,.1f} ms {'less' if gap >= 0 else 'more'} "
    f"started ahead than waited for; medians of {len(found.single)} rounds"
  )
  if found.memory:
    lines.append(
      f"memory of one device by the compiler: {found.memory['peak']:,} bytes "
      "at the peak of a step, of these "
      f"{found.memory['arguments']:,} state and batch, "
      f"{found.memory['temporaries']:,} temporary"
    )
  whose = "the fullest device" if found.peak_of == "device" else "this process"
  lines.append(
    f"in use at most, from the start on and with compiling: "
    f"{found.peak_bytes:,} bytes of {whose}"
  )
  return lines


def _to_data(found: Speed) -> dict:
  return {
    "batch_size": found.batch_size,
    "devices": found.devices,
    "device_kind": found.kind,
    "platform": found.platform,
    "precision": peak.describe_precision(found.platform, found.compute),
    "steps_in_a_stretch": found.stretch,
    "seconds_single": turns.of_rounds(found.single),
    "seconds_ahead": turns.of_rounds(found.ahead),
    "images_per_second_single": found.images_per_second(found.single),
    "images_per_second_ahead": found.images_per_second(found.ahead),
    "host_gap_seconds": found.host_gap(),
    "flops": found.flops,
    "repeated_share": found.repeated,
    "flops_per_second": found.reached(),
    "share_of_peak": found.share_of_peak(),
    "touched_bytes": found.touched_bytes,
    "share_of_memory": found.share_of_memory(),
    "peak_flops_per_second": {
      dtype: turns.of_rounds(rates) for dtype, rates in found.products.items()
    },
    "peak_bytes_per_second": turns.of_rounds(found.copies),
    "memory": found.memory,
    "peak_memory_bytes": found.peak_bytes,
    "peak_memory_of": found.peak_of,
  }
