"""The cases of `benchmarks.links`: networks, batches, layouts of two devices.

The layouts are those of the catalog on every mesh of two devices, and random
ones. No two of them come to the same.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from alexnet_jax.network import wiring
from alexnet_jax.partition import catalog, per_device
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.settings import settings
from configs import default

DEVICES = 2
# Name of a network -> variant of configs/default.py, `config.network.width`.
NETWORKS = {
  "full": ("imagenet", 1.0),
  "half": ("imagenet", 0.5),
  "small": ("digits", 0.25),
}
AXIS = "x"  # of random layouts
# Random layouts are distinct for this network and batch.
_NETWORK, _BATCH_SIZE = "full", 32
_MOST_DRAWS = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """A training step.

  Attributes:
    network: a key of `NETWORKS`.
    batch_size: images in a step, over both devices.
  """

  network: str
  batch_size: int
  layout: layout_lib.Layout

  @property
  def name(self) -> str:
    """Different for each case."""
    mesh = layout_lib.format_mesh(self.layout.mesh).replace(" ", "")
    return f"{self.network} {self.batch_size} {self.layout.name} {mesh}"

  def make_plan(self) -> tuple[plan_lib.Collective, ...]:
    network = make_network(self.network)
    return plan_lib.make_plan(network, self.layout, batch_size=self.batch_size)

  def find_loads(self) -> dict[str, per_device.DeviceLoad]:
    network = make_network(self.network)
    return per_device.find_loads(
      network, self.layout, batch_size=self.batch_size
    )


def make_config(network: str, batch_size: int) -> ml_collections.ConfigDict:
  """Returns the config of a case, but for its layout."""
  variant, width = NETWORKS[network]
  config = default.get_config(variant)
  config.network.width = width
  config.batch_size = batch_size
  return config


def make_network(name: str) -> wiring.Network:
  return settings.check(make_config(name, _BATCH_SIZE))[0]


def from_fields(
  fields: Mapping[str, Any], network: wiring.Network
) -> layout_lib.Layout:
  """The inverse of `layout.to_fields`, also after a round trip through JSON."""
  placements = dict(fields)
  name, axes, mesh = (placements.pop(key) for key in ("name", "axes", "mesh"))
  return layout_lib.override(
    layout_lib.Layout(name=name, mesh={}),
    axes=axes,
    mesh=mesh,
    placements=placements,
    rows=network.layers,
  )


def find_layouts(
  network: wiring.Network, *, batch_size: int
) -> list[layout_lib.Layout]:
  """Finds the distinct layouts of the catalog on two devices."""
  return per_device.find_distinct(
    network,
    [
      fitting
      for layout in catalog.LAYOUTS
      for fitting in per_device.find_fitting(
        network, layout, DEVICES, batch_size=batch_size
      )
    ],
    batch_size=batch_size,
  )


def draw_layouts(count: int, *, seed: int) -> list[layout_lib.Layout]:
  """Draws layouts; those of a smaller count come first in a larger one.

  Raises:
    ValueError: there are fewer.
  """
  rng = random.Random(f"layouts {seed}")
  network = make_network(_NETWORK)
  distinct = find_layouts(network, batch_size=_BATCH_SIZE)
  drawn: list[layout_lib.Layout] = []
  for _ in range(_MOST_DRAWS):
    if len(drawn) == count:
      return drawn
    layout = _draw_layout(rng, network, f"random_{seed}_{len(drawn)}")
    fitting = per_device.find_fitting(
      network, layout, DEVICES, batch_size=_BATCH_SIZE
    )
    candidates = [*distinct, *fitting]
    found = per_device.find_distinct(
      network, candidates, batch_size=_BATCH_SIZE
    )
    if len(found) > len(distinct):
      drawn.append(layout)
      distinct.append(layout)
  raise ValueError(
    f"--random is {count}, but only {len(drawn)} layouts are found. Set a "
    "lower --random."
  )


def _draw_layout(
  rng: random.Random, network: wiring.Network, name: str
) -> layout_lib.Layout:
  """Draws the placements of both kinds, and of some layers or of each."""
  uses_fsdp, overlaps = rng.random() < 0.3, rng.random() < 0.25
  own = rng.choice([0.25, 1.0])

  def draw(dimensions):
    weights = [6] * len(dimensions) + [1]
    (split,) = rng.choices([*dimensions, None], weights)
    axes = {split: (AXIS,)} if split else {}
    if uses_fsdp and split == "batch" and rng.random() < 0.7:
      axes["fsdp"] = (AXIS,)
    overlap = overlaps and rng.random() < 0.7
    return layout_lib.Placement(**axes, overlap_gather=overlap)

  dimensions = ("batch", "outputs", "inputs")
  first, *others = (layer.name for layer in network.layers)
  # The image has no features to split.
  layers = {first: draw(dimensions[:2])}
  for other in others:
    if rng.random() < own:
      layers[other] = draw(dimensions)
  return layout_lib.Layout(
    name=name,
    mesh={AXIS: DEVICES},
    conv=draw(dimensions),
    fc=draw(dimensions),
    layers=layers,
  )


def make_cases(
  networks: Sequence[str],
  batch_sizes: Sequence[int],
  *,
  random_layouts: int,
  seed: int,
  names: Sequence[str] = (),
) -> Iterator[Case]:
  """Yields the cases of all networks and batches.

  Args:
    random_layouts: their number.
    names: of layouts; empty: all.

  Raises:
    ValueError: no layout has one of the names.
  """
  unused = set(names)
  drawn = draw_layouts(random_layouts, seed=seed)
  for name in networks:
    network = make_network(name)
    for batch_size in batch_sizes:
      layouts = find_layouts(network, batch_size=batch_size)
      for layout in drawn:
        layouts += per_device.find_fitting(
          network, layout, DEVICES, batch_size=batch_size
        )
      for layout in layouts:
        if not names or layout.name in names:
          unused.discard(layout.name)
          yield Case(network=name, batch_size=batch_size, layout=layout)
  if unused:
    raise ValueError(
      f"no layout of two devices is called {', '.join(sorted(unused))}. Set "
      "--layouts to names that --list shows."
    )
