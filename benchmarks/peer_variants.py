"""The variants of `peers`: which worker, how, and beside which of ours.

Those of GPUs come in three groups, by what products and convolutions are made
of. `ours` is as `main` trains it: arrays of float32, and JAX's default
precision, which on NVIDIA GPUs since Ampere is TF32, so that PyTorch's rows
beside it have TF32 on. `ours_float32` has jax_default_matmul_precision=float32
and stands beside PyTorch with TF32 off. `ours_bfloat16` has
config.compute_dtype=bfloat16, beside autocast.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

OURS, FLAX, TORCH = "peer_ours", "peer_flax", "peer_torch"
KEPT = "_kept_heap"
# glibc: freed memory stays, in huge pages, in one arena. Without it a step maps
# and clears most of its memory anew.
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
    worker: module of `benchmarks`.
    settings: what its `make` takes besides the sizes.
    beside: the variant of ours that it is compared with.
    environment: what its process has besides.
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
  """The variants that patterns name, and those of ours beside them.

  Args:
    platform: of JAX.
    patterns: names, with * for any part; none: all.
    kept_heap: whether peers come once more with `KEPT_HEAP`.

  Raises:
    ValueError: a pattern matches nothing, or there is nothing to compare.
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
  """What is measured together: a variant of ours, and those beside it.

  Args:
    chosen: from `choose`.
    at_once: workers that there may be, 2 or more; None: any number.
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
