"""Chooses XLA options for each platform.

They let a device compute while its exchanges run, and choose the library for
its matrix products. They are passed to `compile(compiler_options=...)`, which
raises an error for an unknown name; in XLA_FLAGS a name that was retired ends
the process. No option changes what a step sends, as the audit shows each time.
"""

from __future__ import annotations

import dataclasses
import os
import platform as machine
from collections.abc import Iterable, Mapping

import jax
import numpy as np

MODES = ("auto", "off")

# Collectives of a kind are combined up to this size. At full size the gradients
# of fc6, fc7 and fc8 are 96 % of all and known first; those of the convolutions
# have 9 MB in all. So the former should go alone and early, the latter a few at
# a time. XLA's own limits, 30 MiB on GPUs and 120 MiB on TPUs, combine fc8, and
# on TPUs fc7 too, with conv1, whose gradient is the last. This is reasoned, and
# seen in steps compiled for such machines, but not measured on several GPUs or
# TPUs. With it, 3 all-reduces of data_parallel instead of 0 overlap with a
# layer's computation on 8 H100, and 4 instead of 0 on 8 chips of v5e.
_COMBINED_BYTES = 4 * 2**20

# By device kind (for CPUs by instruction set), else by platform. Values have
# the types of DebugOptions: bool, int or str; it refuses "true".
#
# Left out for every platform: pipelined collectives, as
# xla_gpu_enable_pipelined_all_reduce. They move collectives from one iteration
# of a loop to the next; a step has no loop, and jaxlib 0.12 lacks these names.
Value = bool | int | str
PRESETS: Mapping[str, Mapping[str, Value]] = {
  # Collectives are asynchronous here by default, but end right where they start
  # unless the scheduler puts computation in between.
  "gpu": {
    # This scheduler does; for GPUs that XLA has a model of, as H100, it is the
    # default. JAX, "GPU performance tips"; set in NVIDIA's images of JAX.
    "xla_gpu_enable_latency_hiding_scheduler": True,
    # XLA, "XLA Flags Guidance"; JAX, "GPU performance tips".
    "xla_gpu_all_reduce_combine_threshold_bytes": _COMBINED_BYTES,
    "xla_gpu_all_gather_combine_threshold_bytes": _COMBINED_BYTES,
    "xla_gpu_reduce_scatter_combine_threshold_bytes": _COMBINED_BYTES,
  },
  # Such a scheduler and asynchronous all-gathers are on by default here,
  # asynchronous all-reduces are not. They need all three of these.
  "tpu": {
    # Runs an all-reduce in pieces beside a computation.
    # XLA, "XLA Flags Guidance"; MaxText, xla_flags_library.py,
    # CF_FOR_ALL_REDUCE.
    "xla_enable_async_all_reduce": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
    # For all-reduces. MaxText and AXLearn limit their number instead.
    "xla_jf_crs_combiner_threshold_in_bytes": _COMBINED_BYTES,
  },
  # It has 16 MiB of vector memory, too little for the pieces of an all-reduce
  # and an all-gather: fully_sharded does not compile with the options above.
  "TPU v4": {},
  # Simulated devices share the cores of one machine: while one waits, another
  # computes, so there is no time to hide.
  "cpu": {},
  "x86 cpu": {
    # By default XLA gives matrix products and convolutions to YNNPACK; this
    # leaves it the products. Convolutions then run as Eigen's, on oneDNN
    # kernels that exist only for this instruction set: kernel gradients take
    # half to a third of the time, see docs/performance.md.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
  },
}

_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# The message of XLA's and of libtpu's compiler.
_UNKNOWN = "No such compile option"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """The options that a step is compiled with.

  Attributes:
    platform: gpu, tpu or cpu.
    used: {name: value}.
    unknown: names of the preset that the installed compiler does not know.
    set_by_user: {name in the preset: variable that the user has set it in}.
    off: the user wants no preset.
  """

  platform: str
  used: Mapping[str, Value]
  unknown: tuple[str, ...] = ()
  set_by_user: Mapping[str, str] = dataclasses.field(default_factory=dict)
  off: bool = False

  def lines(self) -> list[str]:
    """Returns lines for the user; [] without a preset."""
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
  """Chooses the options for devices; compiles a small program to test them.

  Args:
    devices: of one platform; also described devices, as for a TPU topology.
    mode: of --xla_options, one of `MODES`.

  Raises:
    jax.errors.JaxRuntimeError: the compiler refuses a value.
  """
  devices = list(devices)
  platform = devices[0].platform
  kind = devices[0].device_kind
  if platform == "cpu" and machine.machine().lower() in ("x86_64", "amd64"):
    kind = "x86 cpu"
  preset = PRESETS.get(kind, PRESETS.get(platform, {}))
  if mode == "off" or not preset:
    return Options(platform=platform, used={}, off=bool(preset))
  set_by_user = {
    name: variable
    for variable in _VARIABLES
    for name in _find_names(os.environ.get(variable, ""))
    if name in preset
  }
  options = {
    name: value for name, value in preset.items() if name not in set_by_user
  }
  local = [d for d in devices if d.process_index == jax.process_index()]
  unknown = find_unknown((local or devices)[0], options)
  for name in unknown:
    del options[name]
  return Options(
    platform=platform, used=options, unknown=unknown, set_by_user=set_by_user
  )


def find_unknown(
  device: jax.Device, options: Mapping[str, Value]
) -> tuple[str, ...]:
  """Returns the options that the compiler for a device does not know.

  Takes one compilation if it knows all, otherwise one more for each option.

  Raises:
    jax.errors.JaxRuntimeError: the compiler refuses a value.
  """
  sharding = jax.sharding.SingleDeviceSharding(device)
  number = jax.ShapeDtypeStruct((), np.float32, sharding=sharding)
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


def _find_names(flags: str) -> set[str]:
  """Returns the names of the flags in a variable, or in the file it names."""
  if flags and not flags.lstrip().startswith("-"):
    with open(flags.strip()) as file:
      flags = file.read()
  return {flag.lstrip("-").partition("=")[0] for flag in flags.split()}
