"""What there is to compare with on this machine.

Each package is tried in a process of its own: one that has started JAX would
hold memory of the accelerator.
"""

from __future__ import annotations

import platform as machine
import subprocess
import sys
from collections.abc import Mapping

from benchmarks import peer_variants

_FIND_JAX = "import jax; print(jax.default_backend())"
_FIND_TORCH = "import torch; print(torch.cuda.is_available())"


def find_platform() -> str:
  """What JAX computes on, found in a process of its own.

  Raises:
    OSError: JAX does not start.
  """
  process = _run(sys.executable, _FIND_JAX)
  if process.returncode:
    last = process.stderr.strip().splitlines()[-1:]
    raise OSError(f"JAX cannot start here: {' '.join(last)}.")
  return process.stdout.split()[-1]


def find_missing(
  python: str, platform: str, chosen: Mapping[str, peer_variants.Variant]
) -> str | None:
  """Why PyTorch's variants cannot run; None: they can, or there are none.

  Raises:
    ValueError: there is no such Python.
  """
  if not any(v.worker == peer_variants.TORCH for v in chosen.values()):
    return None
  try:
    process = _run(python, _FIND_TORCH)
  except OSError as error:
    raise ValueError(
      f"--torch_python is {python!r}, which cannot be started: {error}. Set it "
      "to the Python of an environment with PyTorch."
    ) from None
  if process.returncode:
    return (
      f"not installed: pip install -r requirements-bench.txt for {python}, or "
      "set --torch_python"
    )
  if platform == "gpu" and process.stdout.split()[-1] != "True":
    return (
      f"without CUDA: install PyTorch's build for it for {python}, or set "
      "--torch_python"
    )
  return None


def check_heap(kept: bool, platform: str) -> None:
  """Refuses --kept_heap where it would change nothing.

  Raises:
    ValueError: it is set, on a GPU or without glibc.
  """
  if kept and (platform != "cpu" or machine.libc_ver()[0] != "glibc"):
    raise ValueError(
      f"--kept_heap is set, and JAX computes on {platform} with the C library "
      f"{machine.libc_ver()[0] or 'unknown'}, expected cpu and glibc. Leave it "
      "out."
    )


def _run(python: str, code: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [python, "-c", code], capture_output=True, text=True, check=False
  )
