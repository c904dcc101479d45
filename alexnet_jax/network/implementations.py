"""The implementations of single operations, and the choice by platform.

All implementations of an operation give the same numbers and gradients up to
rounding; what differs is the time they take on a platform. `PLAIN` is the
straightforward one, and what all others are tested against. `choose` is the
rule; docs/performance.md has the figures behind it, and `bench
--what=implementations` measures them on the machine at hand.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from alexnet_jax.network import winograd, wiring

AUTO = "auto"
# The plain one first.
CHOICES: Mapping[str, tuple[str, ...]] = {
  "pool": ("window", "slices"),
  "bias": ("sum", "product"),
  "conv3x3": ("direct", "winograd"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implementations:
  """One implementation of each operation.

  Attributes:
    pool: max pooling as `window`, one reduction over windows, or as `slices`,
      the maximum of strided slices, with a custom gradient: `pooling.py`.
    bias: gradient of a bias as `sum` over positions, or as `product` with a
      row of ones.
    conv3x3: convolutions with windows of 3, `direct`, or `winograd`, with half
      of the multiplications, but not in bfloat16: `winograd.py`.
  """

  pool: str = "window"
  bias: str = "sum"
  conv3x3: str = "direct"

  def __post_init__(self):
    for name, known in CHOICES.items():
      if getattr(self, name) not in known:
        raise ValueError(
          f"the implementation of {name} is {getattr(self, name)!r}, expected "
          f"one of {', '.join(known)}. Set --implementations."
        )

  def uses_winograd(self, layer: wiring.Layer, dtype: str) -> bool:
    """Whether a layer is computed by Winograd's method; never in bfloat16.

    Args:
      dtype: name of the type in which it is computed, as `float32`.
    """
    fits = layer.stride == 1 and layer.window == winograd.WINDOW
    return fits and self.conv3x3 == "winograd" and dtype != "bfloat16"

  @staticmethod
  def fewer_multiplications(sizes: wiring.Sizes, *, passes: int) -> float:
    """Returns the part of a layer's multiplications in Winograd's method.

    Args:
      passes: 2: forward, and backward for the kernel; 3: for the input too.
    """
    outputs = winograd.count_multiplications(sizes.map_side)
    inputs = winograd.count_multiplications(math.isqrt(sizes.positions))
    direct = passes * (sizes.map_side * winograd.WINDOW) ** 2
    return (2 * outputs + (passes - 2) * inputs) / direct

  def __str__(self) -> str:
    return ",".join(f"{name}={getattr(self, name)}" for name in CHOICES)


PLAIN = Implementations()
# CPU: measured. GPU and TPU: by reasoning, not measured yet: both have a fast
# reduction over windows.
PLATFORMS: Mapping[str, Implementations] = {
  "cpu": Implementations(pool="slices", bias="product", conv3x3="winograd"),
  "gpu": PLAIN,
  "tpu": PLAIN,
}
# Fewest channels of a column for which `winograd` is chosen, those of the
# narrowest such layer of 2012. With half as many it is no faster, with a
# quarter slower, and it takes the compiler three times as long.
_WINOGRAD_CHANNELS = 128


def choose(
  platform: str,
  network: wiring.Network,
  wanted: str = AUTO,
  *,
  compute_dtype: str = "float32",
) -> Implementations:
  """Chooses the implementations for a network on a platform.

  Args:
    platform: `cpu`, `gpu` or `tpu`.
    network: its widths count, not how they are split.
    wanted: `auto`, the rule; `plain`; or what differs from the rule, as
      `pool=window,bias=sum`.

  Raises:
    ValueError: there is no such operation, or no such implementation.
  """
  chosen = PLATFORMS.get(platform, PLAIN)
  is_wide = _fewest_channels(network) >= _WINOGRAD_CHANNELS
  if not is_wide or compute_dtype == "bfloat16":
    chosen = dataclasses.replace(chosen, conv3x3="direct")
  if wanted == AUTO:
    return chosen
  if wanted == "plain":
    return PLAIN
  changes = {}
  for word in wanted.split(","):
    name, _, implementation = word.strip().partition("=")
    if name not in CHOICES:
      raise ValueError(
        f"implementations are {wanted!r}, and {name!r} is no operation; "
        "expected auto, plain, or OPERATION=IMPLEMENTATION, separated by "
        f"commas, with one of {', '.join(CHOICES)}. Set --implementations."
      )
    changes[name] = implementation
  return dataclasses.replace(chosen, **changes)


def _fewest_channels(network: wiring.Network) -> int:
  """Fewest channels of a column in or out of layers with windows of 3, or 0."""
  return min(
    (
      min(size.kernel[-2], size.kernel[-1] // network.columns)
      for name, size in network.sizes().items()
      if network.layer(name).window == winograd.WINDOW
    ),
    default=0,
  )
