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
from collections.abc import Mapping, Sequence

import jax

from alexnet_jax.bench import peak
from alexnet_jax.bench import steps as steps_lib
from alexnet_jax.partition import per_device
from alexnet_jax.program import compiled_step, compiler_options
from alexnet_jax.program import program as program_lib
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
  steps = steps_lib.Steps(program, compiled)
  for _ in range(_WARM):
    seconds = steps.take()
  stretch = find_stretch(seconds)
  devices = list(program.mesh.devices.flat)
  peak_bytes, peak_of = _find_peak_memory(devices)
  types = dict.fromkeys(("float32", program.compute_precision))
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
    compute=program.compute_precision,
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
