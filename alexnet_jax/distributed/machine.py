"""Facts about a process and its machine, found without JAX's devices."""

from __future__ import annotations

import glob
import os
import pathlib
import platform
import re
import socket
from importlib import metadata

# The packages that compute a step, or read data and checkpoints.
PACKAGES = (
  *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
  *("tensorflow-datasets", "grain", "numpy"),
)
# The packages of an accelerator's runtime, by their vendors' names.
_RUNTIME = re.compile(
  r"jax-.*(plugin|pjrt)|libtpu.*|nvidia-(nccl|cudnn|cuda-runtime)(-cu\d+)?"
)
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/*")
_DRIVER = pathlib.Path("/proc/driver/nvidia/version")
_MEMORY = pathlib.Path("/proc/meminfo")
# The limits of a container, where it has them; bytes.
_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")
_USED = pathlib.Path("/sys/fs/cgroup/memory.current")
_BOOT = pathlib.Path("/proc/sys/kernel/random/boot_id")


def find_versions() -> dict[str, str]:
  """Returns those of Python, `PACKAGES`, runtime and driver of accelerators."""
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


def has_accelerator() -> bool:
  """Whether this process sees the device files of a GPU or TPU."""
  return any(map(glob.glob, _ACCELERATORS))


def describe() -> dict[str, str | int | None]:
  """Returns where this process runs, and how much memory it may use.

  Returns:
    `host`: the name of its host; `address`: what that name resolves to, "" if
    nothing; `machine`: differs between machines, whatever their names; `pid`;
    `memory_total` and `memory_free`: see `find_memory`.
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
  """Returns what the name of this host resolves to; "" if nothing."""
  try:
    return socket.getaddrinfo(socket.gethostname(), None)[0][4][0]
  except OSError:
    return ""


def find_memory() -> tuple[int | None, int | None]:
  """Returns the bytes that processes may use here in all, and those still free.

  None where the system does not say.
  """
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
  """Returns the text of a file; "" on systems that do not have it."""
  try:
    return path.read_text()
  except OSError:
    return ""


def format_bytes(count: int | None) -> str:
  """Formats a number of bytes as `1.5 GiB`, or as `-` if it is not known."""
  if count is None:
    return "-"
  units = ("bytes", "KiB", "MiB", "GiB", "TiB")
  power = min(max(count.bit_length() - 1, 0) // 10, len(units) - 1)
  return f"{count / 1024**power:,.{1 if power else 0}f} {units[power]}"
