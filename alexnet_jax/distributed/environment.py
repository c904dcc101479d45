"""The settings that JAX and XLA take from the environment of a process.

JAX reads JAX_NAME into `jax.config.jax_name`; XLA and other libraries read
variables of their own. The tables below say what a command does with those that
change results or that no step works with. All other settings are the user's.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax

# Commands set these themselves, whatever the environment says: a step is
# defined with them. Set in the environment, they have no effect.
FIXED: Mapping[str, Any] = {
  # Random numbers: another generator, other bits, another seed.
  "jax_default_prng_impl": "threefry2x32",
  "jax_enable_custom_prng": False,
  "jax_random_seed_offset": 0,
  "jax_threefry_partitionable": True,
  # Types and shapes.
  "jax_enable_x64": False,
  "jax_explicit_x64_dtypes": "warn",
  "jax_numpy_dtype_promotion": "standard",
  "jax_numpy_rank_promotion": "allow",
  # Checks of JAX that stop the search for a layer that is not finite, that no
  # step with `shard_map` passes, that make compiling it take many minutes, or
  # that fail at the end of a process.
  "jax_check_tracer_leaks": False,
  "jax_debug_infs": False,
  "jax_debug_nans": False,
  "jax_error_checking_behavior_divide": "ignore",
  "jax_error_checking_behavior_nan": "ignore",
  "jax_error_checking_behavior_oob": "ignore",
  "jax_debug_leaked_clients_on_clear_backends": False,
  # Some copies from host to devices are implicit.
  "jax_transfer_guard": "allow",
  "jax_transfer_guard_device_to_device": "allow",
  "jax_transfer_guard_device_to_host": "allow",
  "jax_transfer_guard_host_to_device": "allow",
  # Other ways to compute or differentiate the same function.
  "jax_accurate_erf_inv": False,
  "jax_high_dynamic_range_gumbel": False,
  "jax_softmax_custom_jvp": False,
  "jax_use_direct_linearize": True,
  "jax_use_hlo_logistic_lowering": None,
  "eager_constant_folding": False,
  # What `shard_map` and meshes mean, and so what a step sends.
  "jax_auto_pcast": True,
  "jax_remove_size_one_mesh_axis_from_type": False,
  "jax_use_shardy_partitioner": True,
  "jax_sort_devices_by_process_index": True,
  "jax_default_device": None,
}

# No training step works with these.
REFUSED: Mapping[str, Any] = {
  "jax_disable_jit": False,
  "jax_no_execution": False,
  "jax_no_tracing": False,
}

# Results depend on these, and they are the user's choice: a run records them,
# and resumes only with the same ones.
RECORDED: Mapping[str, Any] = {
  "jax_default_matmul_precision": None,
  # How the compiler orders and fuses operations, and so how it rounds.
  "jax_compiler_enable_remat_pass": True,
  "jax_disable_most_optimizations": False,
  "jax_enable_pgle": False,
  "jax_exec_time_optimization_effort": 0.0,
  "jax_memory_fitting_effort": 0.0,
  "jax_memory_fitting_level": "O2",
  "jax_optimization_level": "UNKNOWN",
  "jax_xla_profile_version": 0,
}

# Variables that are not JAX's, on which results depend as well.
_OTHERS = re.compile(
  r"XLA_FLAGS|LIBTPU_INIT_ARGS|NVIDIA_TF32_OVERRIDE|CUBLAS_WORKSPACE_CONFIG"
  r"|TF_ENABLE_ONEDNN_OPTS|(ONEDNN|DNNL)_(DEFAULT_FPMATH_MODE|MAX_CPU_ISA)"
)
_TRUE = ("true", "y", "yes", "t", "on", "1")
_FALSE = ("false", "n", "no", "f", "off", "0")
# What the doctor shows.
_SHOWN = re.compile(r"XLA_.*|JAX_.*|TPU_.*|NCCL_.*|(?i:\w+_proxy)")
_PASSWORD = re.compile(r"(?<=://)[^/@]+@")
# What `mesh.simulate_devices` adds to XLA_FLAGS where cores are few.
_OWN_FLAG = "--xla_cpu_multi_thread_eigen=false"
# Flags on which no result depends; JAX itself adds the last one on a TPU.
_NEUTRAL = re.compile(
  r"--xla_(dump_\w+|force_host_platform_device_count|gpu_cuda_data_dir"
  r"|tpu_use_enhanced_launch_barrier)(=.*)?"
)
# Where XLA cannot read XLA_FLAGS, it prints why and ends the process.
_READ_XLA_FLAGS = (
  "from jaxlib import _jax; "
  "_jax.CompileOptions().executable_build_options.debug_options"
)
_XLA_MESSAGE = re.compile(
  r"^[EF]\d{4} .*?\] ((?:Unknown flag|Couldn't interpret|Could not open).*)$",
  re.MULTILINE,
)


def apply() -> None:
  """Sets what is `FIXED`, and refuses what no command works with.

  For the start of a command, before JAX is used.

  Raises:
    ValueError: names the variable.
  """
  for name, value in REFUSED.items():
    found = getattr(jax.config, name, value)
    if found != value:
      raise ValueError(
        f"{name.upper()} is {os.environ.get(name.upper(), found)!r}, with "
        f"which no step can run. Unset {name.upper()}."
      )
  for name, value in FIXED.items():
    if hasattr(jax.config, name):  # other versions of JAX lack some
      jax.config.update(name, value)
  flags = os.environ.get("XLA_FLAGS", "")
  if flags.strip() not in ("", _OWN_FLAG):
    _check_xla_flags(flags)


def _check_xla_flags(text: str) -> None:
  """Refuses flags that XLA would end the process for, or ignore."""
  words = [word for word in text.split() if not word.startswith("-")]
  # XLA also accepts the name of a file, and flags in quotes.
  if words and not os.path.exists(text) and not {*text} & {*"'\""}:
    raise ValueError(
      f"XLA_FLAGS has {words[0]!r}, expected flags as --xla_NAME=VALUE. Set "
      "XLA_FLAGS."
    )
  done = subprocess.run(
    [sys.executable, "-c", _READ_XLA_FLAGS], capture_output=True, text=True
  )
  message = _XLA_MESSAGE.search(done.stderr)
  if done.returncode != 0 and message is not None:
    raise ValueError(
      f"XLA cannot read XLA_FLAGS, {text!r}: {message[1].rstrip('.')}. Set "
      "XLA_FLAGS."
    )


def find_shared(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
  """Returns the settings that must be the same in all processes of a run."""
  unused = {name: environ[name] for name in _find_unused(environ)}
  return unused | _find_recorded(environ)


def describe_recorded(environ: Mapping[str, str] = os.environ) -> str:
  """Returns the settings that a run records, as `NAME=VALUE`, or "none"."""
  found = _find_recorded(environ)
  return " ".join(f"{name}={found[name]}" for name in sorted(found)) or "none"


def _find_recorded(environ: Mapping[str, str]) -> dict[str, str]:
  """Returns the settings that results depend on, but for defaults."""
  found = {}
  for name, default in RECORDED.items():
    value = getattr(jax.config, name, default)
    if value != default:
      found[name.upper()] = str(value)
  for name in filter(_OTHERS.fullmatch, environ):
    value = environ[name]
    if name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"):
      value = _normalize_flags(value)
    if value:
      found[name] = value
  return found


def _normalize_flags(text: str) -> str:
  """Returns the flags that count, sorted; a name given twice has its last."""
  if text and not text.lstrip().startswith("-") and os.path.exists(text):
    with open(text) as file:
      text = file.read()
  words = [word.strip("'\"") for word in text.split()]
  flags = {word.partition("=")[0]: word for word in words}
  return " ".join(
    word
    for word in sorted(flags.values())
    if word != _OWN_FLAG and not _NEUTRAL.fullmatch(word)
  )


def find_settings(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
  """Returns the variables of JAX, XLA, their runtimes, and proxies.

  Says which have no effect, and leaves out the user names and passwords that
  the addresses of proxies may have.
  """
  unused = _find_unused(environ)
  return {
    name: _PASSWORD.sub("", environ[name])
    + (f" (no effect: set to {unused[name]})" if name in unused else "")
    for name in sorted(environ)
    if _SHOWN.fullmatch(name) or _OTHERS.fullmatch(name)
  }


def describe_unused(environ: Mapping[str, str] = os.environ) -> list[str]:
  """Returns a line for each variable whose value a command does not use."""
  return [
    f"{name}={environ[name]} has no effect: a command sets it to {value}"
    for name, value in _find_unused(environ).items()
  ]


def _find_unused(environ: Mapping[str, str]) -> dict[str, Any]:
  """Returns the variables that differ from `FIXED`, with the value used."""
  return {
    name.upper(): value
    for name, value in FIXED.items()
    if environ.get(name.upper(), str(value)).lower() not in _say(value)
  }


def _say(value: Any) -> tuple[str, ...]:
  """Returns the words that JAX reads as a value, in lower case."""
  if isinstance(value, bool):
    return _TRUE if value else _FALSE
  return (str(value).lower(),)
