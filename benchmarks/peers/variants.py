"""The variants that `benchmarks.peers` compares, and which can run here.

Variants on GPUs come in three groups, by the precision of products and
convolutions. `ours` is as `main` trains it: float32 arrays and JAX's default
precision, which is TF32 on NVIDIA GPUs since Ampere; PyTorch's variants next to
it have TF32 on. `ours_float32` has jax_default_matmul_precision=float32, next
to PyTorch with TF32 off. `ours_bfloat16` has config.compute_dtype=bfloat16,
next to autocast.

Packages are looked up in processes of their own, since a process that has
started JAX holds memory of the accelerator.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import platform as machine
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

OURS, FLAX, TORCH = "our_worker", "flax_worker", "torch_worker"
_FIND_JAX = "import jax; print(jax.default_backend())"
_FIND_TORCH = "import torch; print(torch.cuda.is_available())"
KEPT = "_kept_heap"
# glibc then keeps freed memory, in huge pages and one arena. By default, a step
# maps and clears most of its memory again.
KEPT_HEAP = {
  "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
  "MALLOC_ARENA_MAX": "1",
  "MALLOC_MMAP_MAX_": "0",
  "MALLOC_TRIM_THRESHOLD_": "100000000000",
  "MALLOC_TOP_PAD_": "67108864",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
  """One way to train the network.

  Attributes:
    worker: module of `benchmarks.peers`.
    settings: arguments of its `make` besides the sizes.
    beside: the variant of ours that it is compared with.
    environment: variables to add to that of its process.
  """

  worker: str
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  beside: str = "ours"
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _ours(layout="one_device", compute="float32", matmul=None, **more):
  settings = {
    "layout": layout,
    "compute_dtype": compute,
    "matmul_precision": matmul,
  }
  return Variant(worker=OURS, settings=settings, **more)


def _torch(device, precision, *, beside="ours", modes, layouts) -> dict:
  suffix = "" if device == "cpu" else f"_{precision}"
  return {
    f"torch{mode and '_'}{mode}_{layout}{suffix}": Variant(
      worker=TORCH,
      settings={
        "device": device,
        "layout": layout,
        "compile_mode": _MODES[mode],
        "precision": precision,
      },
      beside=beside,
    )
    for mode, layout in itertools.product(modes, layouts)
  }


_MODES = {"": None, "compile": "default", "autotune": "max-autotune"}
_BOTH = {"modes": ("", "compile"), "layouts": ("nchw", "channels_last")}
VARIANTS: Mapping[str, Mapping[str, Variant]] = {
  "cpu": {
    "ours": _ours(),
    "ours_two_column": _ours("two_column"),
    "flax": Variant(worker=FLAX),
    **_torch("cpu", "float32", **_BOTH),
  },
  "gpu": {
    "ours": _ours(),
    "flax": Variant(worker=FLAX),
    **_torch("cuda", "tf32", **_BOTH),
    "ours_float32": _ours(matmul="float32", beside="ours_float32"),
    **_torch("cuda", "float32", beside="ours_float32", **_BOTH),
    "ours_bfloat16": _ours(compute="bfloat16", beside="ours_bfloat16"),
    **_torch(
      "cuda",
      "bfloat16",
      beside="ours_bfloat16",
      modes=_MODES,
      layouts=("channels_last",),
    ),
  },
}


def choose(
  platform: str, patterns: Sequence[str], *, kept_heap: bool
) -> dict[str, Variant]:
  """Returns the variants that match patterns, and ours beside them.

  Args:
    platform: of JAX.
    patterns: names, with * for any part; none: all.
    kept_heap: whether to add peers with `KEPT_HEAP`.

  Raises:
    ValueError: a pattern matches nothing, or the platform has no variants.
  """
  if platform not in VARIANTS:
    raise ValueError(
      f"JAX computes on {platform!r} here, expected one of "
      f"{', '.join(VARIANTS)}. Set JAX_PLATFORMS=cpu."
    )
  known = dict(VARIANTS[platform])
  for pattern in patterns:
    if not fnmatch.filter(known, pattern):
      raise ValueError(
        f"--variants has {pattern!r}, which is none of {', '.join(known)}. Set "
        "--variants."
      )
  picked = {
    name
    for name in known
    for pattern in patterns or ["*"]
    if fnmatch.fnmatchcase(name, pattern)
  }
  picked |= {known[name].beside for name in picked}
  chosen = {}
  for name in known:
    if name in picked:
      chosen[name] = known[name]
      if kept_heap and known[name].worker != OURS:
        chosen[name + KEPT] = dataclasses.replace(
          known[name], environment=KEPT_HEAP
        )
  return chosen


def group(
  chosen: Mapping[str, Variant], at_once: int | None
) -> list[tuple[str, list[str]]]:
  """Returns what to measure together: a variant of ours, and those beside it.

  Args:
    chosen: from `choose`.
    at_once: most workers at a time, 2 or more; None: any number.
  """
  groups = []
  for reference in dict.fromkeys(variant.beside for variant in chosen.values()):
    others = [
      name
      for name, variant in chosen.items()
      if variant.beside == reference and name != reference
    ]
    size = at_once - 1 if at_once else max(1, len(others))
    for start in range(0, max(1, len(others)), size):
      groups.append((reference, others[start : start + size]))
  return groups


def find_platform() -> str:
  """Returns the platform of JAX: cpu, gpu or tpu.

  Raises:
    OSError: JAX does not start.
  """
  process = _run(sys.executable, _FIND_JAX)
  if process.returncode:
    last = process.stderr.strip().splitlines()[-1:]
    raise OSError(f"JAX cannot start here: {' '.join(last)}.")
  return process.stdout.split()[-1]


def find_missing(
  python: str, platform: str, chosen: Mapping[str, Variant]
) -> str | None:
  """Returns why PyTorch's variants cannot run, or None.

  Raises:
    ValueError: the Python cannot be started.
  """
  if not any(v.worker == TORCH for v in chosen.values()):
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
  """Checks that --kept_heap has an effect.

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
