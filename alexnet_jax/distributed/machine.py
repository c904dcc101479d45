"""What a process can say of itself and its machine, without JAX's devices."""

from __future__ import annotations

import os
import pathlib
import platform
import re
import socket
from collections.abc import Mapping
from importlib import metadata

# What a step is computed with, or data and checkpoints are read with.
PACKAGES = (
  *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
  *("tensorflow-datasets", "grain", "numpy"),
)
# What belongs to an accelerator, under the names that vendors give it.
_RUNTIME = re.compile(
  r"jax-.*(plugin|pjrt)|libtpu.*|nvidia-(nccl|cudnn|cuda-runtime)(-cu\d+)?"
)
_SETTINGS = re.compile(r"XLA_.*|JAX_.*|LIBTPU_INIT_ARGS|TPU_.*|NCCL_.*")
_DRIVER = pathlib.Path("/proc/driver/nvidia/version")
_MEMORY = pathlib.Path("/proc/meminfo")
# Of a container, where it has limits of its own; bytes.
_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")
_USED = pathlib.Path("/sys/fs/cgroup/memory.current")
_BOOT = pathlib.Path("/proc/sys/kernel/random/boot_id")


def find_versions() -> dict[str, str]:
  """Of Python, of `PACKAGES`, and of an accelerator's runtime and driver."""
  found = {"python": platform.python_version()}
  for name in PACKAGES:
    found[name] = metadata.version(name)
  runtime = {}
  for package in metadata.distributions():
    name = package.metadata["Name"] or ""
    if _RUNTIME.fullmatch(name.lower()):
      runtime[name.lower()] = package.version
  found |= dict(sorted(runtime.items()))
  driver = re.search(r"Module.*?(\d+(\.\d+)+)", _read(_DRIVER))
  if driver is not None:
    found["nvidia driver"] = driver[1]
  return found


def find_settings(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
  """The variables that are set for JAX, XLA, and their runtimes."""
  return {
    name: environ[name] for name in sorted(environ) if _SETTINGS.fullmatch(name)
  }


def describe() -> dict[str, str | int | None]:
  """Where this process runs, and what memory there is.

  Returns:
    `host`: the name of its host; `address`: what that name resolves to, "" if
    nothing; `machine`: differs between machines, whatever their names; `pid`;
    `memory_total` and `memory_free`: bytes that processes here may use in all,
    and that they can still take; None where the system does not say.
  """
  total, free = find_memory()
  return {
    "host": socket.gethostname(),
    "address": find_address(),
    "machine": _read(_BOOT).strip(),
    "pid": os.getpid(),
    "memory_total": total,
    "memory_free": free,
  }


def find_address() -> str:
  """The address that this host has for its own name; "" if it has none."""
  try:
    return socket.getaddrinfo(socket.gethostname(), None)[0][4][0]
  except OSError:
    return ""


def find_memory() -> tuple[int | None, int | None]:
  """Bytes that processes may use here in all, and those not yet in use."""
  lines = dict(re.findall(r"(\w+):\s+(\d+) kB", _read(_MEMORY)))
  if not {"MemTotal", "MemAvailable"} <= lines.keys():
    return None, None
  total, free = (
    1024 * int(lines[name]) for name in ("MemTotal", "MemAvailable")
  )
  limit, used = _read(_LIMIT).strip(), _read(_USED).strip()
  if limit.isdecimal() and used.isdecimal():
    total = min(total, int(limit))
    free = min(free, max(int(limit) - int(used), 0))
  return total, free


def _read(path: pathlib.Path) -> str:
  """The text of a file that not every system has."""
  try:
    return path.read_text()
  except OSError:
    return ""


def to_size(count: int | None) -> str:
  """Bytes in words: `1.5 GiB`; `-` where they are not known."""
  if count is None:
    return "-"
  units = ("bytes", "KiB", "MiB", "GiB", "TiB")
  power = min(max(count.bit_length() - 1, 0) // 10, len(units) - 1)
  return f"{count / 1024**power:,.{1 if power else 0}f} {units[power]}"
