"""The ways in which one operation can be computed, and which is taken where.

Every form gives the same numbers up to rounding, and so do its gradients; what
differs is how long a platform takes for it. `PLAIN` is how one would write it
down, and what all others are tested against. The rule is `choose`; the figures
behind it are in docs/performance.md; `bench --what=implementations` measures
them again on the machine at hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from alexnet_jax.network import winograd, wiring

AUTO = "auto"
# The plain one first.
CHOICES: Mapping[str, tuple[str, ...]] = {
  "pool": ("window", "slices"),
  "norm": ("window", "slices", "product"),
  "bias": ("sum", "product"),
  "conv1": ("direct", "blocks"),
  "conv3x3": ("direct", "winograd"),
  "columns": ("separate", "grouped"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implementations:
  """One form for each operation.

  Attributes:
    pool: max pooling as `window`, one reduction over windows, or as `slices`,
      the maximum of strided slices, with a gradient of its own: `slices.py`.
    norm: the energy of local response normalization as `window`, a reduction,
      as `slices`, the sum of shifted maps, or as `product` with a matrix of
      ones around its diagonal.
    bias: gradient of a bias as `sum` over positions, or as `product` with a
      row of ones.
    conv1: the convolution of the image as it is, `direct`, or as `blocks`, with
      a stride of 1 on blocks of pixels: `blocks.py`.
    conv3x3: convolutions with windows of 3, `direct`, or in float32 with half
      of the multiplications: `winograd.py`. Not where columns are `grouped`.
    columns: convolutions of a device's own columns `separate` or `grouped`.
  """

  pool: str = "window"
  norm: str = "window"
  bias: str = "sum"
  conv1: str = "direct"
  conv3x3: str = "direct"
  columns: str = "separate"

  def __post_init__(self):
    for name, known in CHOICES.items():
      if getattr(self, name) not in known:
        raise ValueError(
          f"the form of {name} is {getattr(self, name)!r}, expected one of "
          f"{', '.join(known)}. Set --implementations."
        )

  def __str__(self) -> str:
    return ",".join(f"{name}={getattr(self, name)}" for name in CHOICES)


PLAIN = Implementations()
# By platform, and there by the type of the activations where it matters. CPU:
# measured. GPU and TPU: by reasoning, not measured yet. There both have a fast
# reduction over windows, and units for products that the energy is handed to.
PLATFORMS: Mapping[str, Implementations] = {
  "cpu": Implementations(pool="slices", bias="product", conv3x3="winograd"),
  "gpu": PLAIN,
  "tpu": PLAIN,
}
# Fewest channels of a column for which `winograd` is taken: as many as the
# narrowest such layer of 2012 has. With half as many it is no faster, with a
# quarter slower, and it takes the compiler three times as long.
_WINOGRAD_CHANNELS = 128


def choose(
  platform: str,
  network: wiring.Network,
  wanted: str = AUTO,
  *,
  precision: str = "float32",
) -> Implementations:
  """The forms for a network on a platform.

  Args:
    platform: `cpu`, `gpu` or `tpu`.
    network: its widths count, not how they are split.
    wanted: `auto`, the rule; or in the place of its forms others, as
      `pool=window,bias=sum`; `plain`: all of them.
    precision: of the activations, `float32` or `bfloat16`.

  Raises:
    ValueError: there is no such operation, or no such form.
  """
  implementations = PLATFORMS.get(platform, PLAIN)
  is_wide = _fewest_channels(network) >= _WINOGRAD_CHANNELS
  if not is_wide or precision != "float32":
    implementations = dataclasses.replace(implementations, conv3x3="direct")
  if wanted == AUTO:
    return implementations
  if wanted == "plain":
    return PLAIN
  chosen = {}
  for word in wanted.split(","):
    name, _, form = word.strip().partition("=")
    if name not in CHOICES:
      raise ValueError(
        f"implementations are {wanted!r}, where {name!r} is no operation, "
        f"expected auto, plain, or OPERATION=FORM with one of {', '.join(CHOICES)}, separated "
        "by commas. Set --implementations."
      )
    chosen[name] = form
  return dataclasses.replace(implementations, **chosen)


def _fewest_channels(network: wiring.Network) -> int:
  """Of a column, read or written by a layer with windows of 3; 0: no such."""
  return min(
    (
      min(size.kernel[-2], size.kernel[-1] // network.columns)
      for name, size in network.sizes().items()
      if network.layer(name).window == winograd.WINDOW
    ),
    default=0,
  )
