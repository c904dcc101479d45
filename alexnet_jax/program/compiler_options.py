"""What XLA is asked for beyond its defaults, platform by platform.

Options that let a device compute while its exchanges run, and that choose the
library for its products. They reach the
compiler with the step, as `compile(compiler_options=...)`, which refuses a name
that it does not know; in XLA_FLAGS a name that was retired ends the process.
None changes what a step sends, as the audit shows each time.
"""

from __future__ import annotations

import dataclasses
import os
import platform as machine
from collections.abc import Iterable, Mapping

import jax
import numpy as np

MODES = ("auto", "off")

# Exchanges of a kind are combined up to this size. At full size the gradients
# of fc6, fc7 and fc8 are 96 % of all and known first, those of the convolutions
# 9 MB together: the former are to go alone and early, the latter a few at a
# time. XLA's own bounds, 30 MiB on GPUs and 120 MiB on TPUs, join fc8, and on
# TPUs fc7 too, to conv1, whose gradient is the last. Reasoned, and seen in
# steps compiled for machines that were not there; not measured on several GPUs
# or TPUs. Sums of data_parallel that run beside a layer's computation with it:
# 3, not 0, on 8 H100; 4, not 0, on 8 chips of v5e.
_COMBINED_BYTES = 4 * 2**20

# By device kind, of CPUs by instruction set, else by platform. Values are as
# DebugOptions has them, bool, int or str; "true" is refused there.
#
# Left out, for every platform: pipelined collectives, as
# xla_gpu_enable_pipelined_all_reduce. They move the exchanges of one round of a
# loop into the next; a step has no loop, and jaxlib 0.12 none of these names.
Value = bool | int | str
PRESETS: Mapping[str, Mapping[str, Value]] = {
  # Exchanges are asynchronous here by default, but end right where they start
  # unless the scheduler looks for something to do between.
  "gpu": {
    # It does; for GPUs that XLA has a model of, as H100, also by itself.
    # JAX, "GPU performance tips"; set in NVIDIA's images of JAX.
    "xla_gpu_enable_latency_hiding_scheduler": True,
    # XLA, "XLA Flags Guidance"; JAX, "GPU performance tips".
    "xla_gpu_all_reduce_combine_threshold_bytes": _COMBINED_BYTES,
    "xla_gpu_all_gather_combine_threshold_bytes": _COMBINED_BYTES,
    "xla_gpu_reduce_scatter_combine_threshold_bytes": _COMBINED_BYTES,
  },
  # Such a scheduler and asynchronous gathers are on by default here, sums are
  # not. Without one of these three none is.
  "tpu": {
    # Runs a sum piece by piece beside a computation.
    # XLA, "XLA Flags Guidance"; MaxText, xla_flags_library.py,
    # CF_FOR_ALL_REDUCE.
    "xla_enable_async_all_reduce": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
    # Of sums. MaxText's and AXLearn's options bound their number instead.
    "xla_jf_crs_combiner_threshold_in_bytes": _COMBINED_BYTES,
  },
  # Has 16 MiB of memory for vectors, too little for the pieces of a sum beside
  # those of a gather: fully_sharded does not compile with the options above.
  "TPU v4": {},
  # Simulated devices share the cores of one machine: while one waits, another
  # computes, and there is no time to hide.
  "cpu": {},
  "x86 cpu": {
    # YNNPACK, which XLA hands products and convolutions to, is to have the
    # products only. Convolutions then run as Eigen's, on kernels of oneDNN that
    # exist for this instruction set alone: the gradients of kernels take a half
    # to a third of the time, see docs/performance.md.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
  },
}

_X86 = ("x86_64", "amd64")
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# Of XLA's and of libtpu's compiler alike.
_UNKNOWN = "No such compile option"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """The options that a step is compiled with.

  Attributes:
    platform: gpu, tpu or cpu.
    used: name -> value.
    unknown: names of the preset that the installed compiler does not know.
    set_by_user: those that the user has set: name -> variable.
    off: whether the user wants none of what is preset.
  """

  platform: str
  used: Mapping[str, Value]
  unknown: tuple[str, ...] = ()
  set_by_user: Mapping[str, str] = dataclasses.field(default_factory=dict)
  off: bool = False

  def lines(self) -> list[str]:
    """What a person should know of it; nothing where nothing is preset."""
    if self.off:
      return [f"XLA options for {self.platform}: XLA's own (--xla_options=off)"]
    lines = []
    if self.used:
      named = ", ".join(f"{name}={value}" for name, value in self.used.items())
      lines.append(
        f"XLA options for {self.platform}: {named} (--xla_options=off leaves "
        "them out)"
      )
    left_out = [
      *(f"{name} (set in {where})" for name, where in self.set_by_user.items()),
      *(f"{name} (the installed XLA has none)" for name in self.unknown),
    ]
    if left_out:
      lines.append(f"XLA options left out: {', '.join(left_out)}")
    return lines


def choose(devices: Iterable[jax.Device], *, mode: str) -> Options:
  """The options for devices; compiles a sum of two numbers to try them.

  Args:
    devices: of one platform, maybe of a slice that is not there.
    mode: of --xla_options, one of `MODES`.

  Raises:
    jax.errors.JaxRuntimeError: a value is refused.
  """
  devices = list(devices)
  platform = devices[0].platform
  preset = PRESETS.get(_kind(devices[0]), PRESETS.get(platform, {}))
  if mode == "off" or not preset:
    return Options(platform=platform, used={}, off=bool(preset))
  set_by_user = {
    name: variable
    for variable in _VARIABLES
    for name in _find_names(os.environ.get(variable, ""))
    if name in preset
  }
  wanted = {
    name: value for name, value in preset.items() if name not in set_by_user
  }
  unknown = find_unknown(_find_own(devices), wanted)
  return Options(
    platform=platform,
    used={name: value for name, value in wanted.items() if name not in unknown},
    unknown=unknown,
    set_by_user=set_by_user,
  )


def _kind(device: jax.Device) -> str:
  if device.platform == "cpu" and machine.machine().lower() in _X86:
    return "x86 cpu"
  return device.device_kind


def find_unknown(
  device: jax.Device, options: Mapping[str, Value]
) -> tuple[str, ...]:
  """Those options that the compiler for a device does not know.

  Takes one compilation where it knows all, and one more for each otherwise.

  Raises:
    jax.errors.JaxRuntimeError: it knows an option and refuses its value.
  """
  place = jax.sharding.SingleDeviceSharding(device)
  number = jax.ShapeDtypeStruct((), np.float32, sharding=place)
  lowered = jax.jit(lambda x: x + x).lower(number)

  def knows(options: Mapping[str, Value]) -> bool:
    try:
      lowered.compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError as error:
      if _UNKNOWN in str(error):
        return False
      raise
    return True

  if not options or knows(options):
    return ()
  return tuple(
    name for name, value in options.items() if not knows({name: value})
  )


def _find_own(devices: list[jax.Device]) -> jax.Device:
  """A device of this process."""
  own = jax.process_index()
  return next(
    (device for device in devices if device.process_index == own), devices[0]
  )


def _find_names(flags: str) -> set[str]:
  """Names of the flags in a variable, or in the file that it names."""
  if flags and not flags.lstrip().startswith("-"):
    with open(flags.strip()) as file:
      flags = file.read()
  return {flag.lstrip("-").partition("=")[0] for flag in flags.split()}
