"""Where a network is computed, as data: a mesh and a placement per layer.

Standard library only. `Layout.check` says whether a network fits a layout
before anything is compiled; everything else (parameter specs, exchanges,
bytes) is computed from the two in the modules beside this one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from alexnet_jax.network import wiring

_WORDS = {"batch": "batch", "features": "features", "stored": "weights"}
# Dimensions of a kernel, HWIO or (in, out).
INPUTS, OUTPUTS = -2, -1
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
  """Which mesh axes split one layer, and how its input arrives.

  Attributes:
    batch: axes that split the layer's images.
    features: axes that split its output features or, where it arrives as a
      sum, the features it reads.
    arrive: `gather`: every device receives all that the layer reads and
      computes its share of the outputs. `sum`: every device reads only its
      share, and the partial results are added.
    stored: axes of `batch` over which the kernel and its optimizer state are
      kept in shares; gathered at use, and the gradient reduce-scattered.

  An axis in neither batch nor features computes the layer again on each of its
  devices.
  """

  batch: tuple[str, ...] = ()
  features: tuple[str, ...] = ()
  arrive: str = "gather"
  stored: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """A mesh and the placement of every layer.

  Attributes:
    name: what users type.
    mesh: axis name -> number of devices, slowest axis first.
    conv: placement of conv1 to conv5.
    fc: placement of fc6 to fc8.
    layers: placements of single layers, before `conv` and `fc`.
  """

  name: str
  mesh: Mapping[str, int]
  conv: Placement = Placement()
  fc: Placement = Placement()
  layers: Mapping[str, Placement] = dataclasses.field(default_factory=dict)

  def placement(self, layer: str) -> Placement:
    group = self.conv if layer.startswith("conv") else self.fc
    return self.layers.get(layer, group)

  @property
  def devices(self) -> int:
    return math.prod(self.mesh.values())

  def size(self, axes: Iterable[str]) -> int:
    """Devices along the given axes."""
    return math.prod(self.mesh[axis] for axis in axes)

  def check(self, network: wiring.Network, *, batch_size: int) -> None:
    """Refuses a layout that cannot run this network.

    Args:
      network: the network.
      batch_size: images in a step, over all devices.

    Raises:
      ValueError: names the layer, the axis, the sizes and the field to change.
    """
    for axis, size in self.mesh.items():
      if size < 1:
        raise ValueError(
          f"mesh axis {axis!r} has {size} devices, expected 1 or more. "
          f"Set config.layout.mesh.{axis}."
        )
    for name, sizes in network.sizes().items():
      self._check_axes(name)
      self._check_batch(name, batch_size)
      self._check_features(network, network.layer(name), sizes)
      self._check_stored(network.layer(name), sizes)

  def fits(self, network: wiring.Network, *, batch_size: int) -> bool:
    """Whether `check` accepts this layout."""
    try:
      self.check(network, batch_size=batch_size)
    except ValueError:
      return False
    return True

  def _check_axes(self, name: str) -> None:
    placement = self.placement(name)
    field = f"config.layout.{name}"
    if placement.arrive not in ("gather", "sum"):
      raise ValueError(
        f"{name} arrives by {placement.arrive!r}, expected 'gather' or 'sum'. "
        f"Set {field}.arrive."
      )
    for kind in ("batch", "features", "stored"):
      axes = getattr(placement, kind)
      for axis in axes:
        if axis not in self.mesh:
          raise ValueError(
            f"{name} splits its {_WORDS[kind]} over axis {axis!r}, but the "
            f"mesh of layout '{self.name}' has {_listed(self.mesh)}. "
            f"Set {field}.{kind} or config.layout.mesh."
          )
      if len(set(axes)) < len(axes):
        raise ValueError(
          f"{name} names an axis twice in its {kind} axes {axes}. "
          f"Set {field}.{kind}."
        )
    for axis in placement.batch:
      if axis in placement.features:
        raise ValueError(
          f"{name} splits both its batch and its features over axis {axis!r}, "
          f"expected one of the two. Set {field}.batch or {field}.features."
        )
    for axis in placement.stored:
      if axis not in placement.batch:
        raise ValueError(
          f"{name} stores its weights in shares over axis {axis!r}, which does "
          f"not split its batch; it is split by {_axes(placement.batch)}. "
          f"Set {field}.stored or {field}.batch."
        )

  def _check_batch(self, name: str, batch_size: int) -> None:
    axes = self.placement(name).batch
    if batch_size < 1 or batch_size % self.size(axes):
      raise ValueError(
        f"a batch of {batch_size} images does not divide evenly over the "
        f"{self.size(axes)} devices of {_axes(axes)} that split the batch of "
        f"{name} in layout '{self.name}'. "
        "Set config.batch_size or config.layout.mesh."
      )

  def _check_features(
    self, network: wiring.Network, layer: wiring.Layer, sizes: wiring.Sizes
  ) -> None:
    placement = self.placement(layer.name)
    devices = self.size(placement.features)
    over = f"the {devices} devices of {_axes(placement.features)}"
    fix = f"Set config.layout.{layer.name}.features or config.layout.mesh."
    if devices == 1:
      return
    whole_columns = layer.reads == "own" or layer.normalise
    if placement.arrive == "sum" and layer.reads != "all":
      raise ValueError(
        f"{layer.name} reads {_what(layer)}, so there is nothing to sum over "
        f"{over}. Set config.layout.{layer.name}.arrive to 'gather'."
      )
    if whole_columns and network.columns % devices:
      raise ValueError(
        f"{layer.name} keeps its columns whole, and {over} in layout "
        f"'{self.name}' do not divide the network's {network.columns} "
        f"columns. {fix}"
      )
    if placement.arrive == "gather" and layer.features % devices:
      raise ValueError(
        f"{layer.name} has {layer.features} features, which {over} in layout "
        f"'{self.name}' do not divide. {fix}"
      )
    if placement.arrive == "sum":
      # A fully connected layer reads a map position by position, so its input
      # rows split at positions; where there is one, at channels.
      rows = sizes.channels
      if not layer.window and sizes.positions > 1:
        rows = sizes.positions
      if rows % devices:
        raise ValueError(
          f"{layer.name} sums over {over} in layout '{self.name}', which do "
          f"not divide the {rows} "
          f"{'channels' if rows == sizes.channels else 'positions'} that it "
          f"reads. {fix}"
        )

  def _check_stored(self, layer: wiring.Layer, sizes: wiring.Sizes) -> None:
    placement = self.placement(layer.name)
    dimension = stored_dimension(layer.name)
    axes = placement.stored
    # Both may split one dimension: first the layer's own axes, then these.
    if (dimension == OUTPUTS) == (placement.arrive == "gather"):
      axes = placement.features + axes
    size = sizes.kernel[dimension]
    if placement.stored and size % self.size(axes):
      raise ValueError(
        f"{layer.name} has {size} "
        f"{'outputs' if dimension == OUTPUTS else 'inputs'}, which the "
        f"{self.size(axes)} devices of {_axes(axes)} that keep shares of its "
        f"kernel in layout '{self.name}' do not divide. "
        f"Set config.layout.{layer.name}.stored or config.layout.mesh."
      )


def stored_dimension(layer: str) -> int:
  """The dimension of a kernel that `Placement.stored` splits.

  Outputs, but for the last layer: classes come in any number. A TPU's compiler
  keeps the reduce-scatter of these; of large kernels split at their inputs it
  makes a padded sum, which sends twice as much (libtpu 0.0.42, v5e).
  """
  return INPUTS if layer == LAYERS[-1] else OUTPUTS


def override(
  layout: Layout,
  *,
  mesh: Mapping[str, int | None],
  placements: Mapping[str, Mapping[str, object]],
  axes: Sequence[str] | None = None,
) -> Layout:
  """Replaces single sizes and placements of a layout.

  Args:
    layout: the layout to start from.
    mesh: axis -> devices; None keeps the layout's own. An axis the layout does
      not have is added as the fastest one.
    placements: layer -> field of `Placement` -> value; None keeps.
    axes: all of the mesh, slowest first; None keeps their order.

  Returns:
    The changed layout.

  Raises:
    ValueError: `axes` are not those of the mesh.
  """
  sizes = {axis: size for axis, size in mesh.items() if size is not None}
  sizes = {**layout.mesh, **sizes}
  axes = list(sizes) if axes is None else list(axes)
  if sorted(axes) != sorted(sizes):
    raise ValueError(
      f"the order of axes {tuple(axes)} is not one of the mesh "
      f"({_listed(sizes)}). Set config.layout.axes or config.layout.mesh."
    )
  layers = {}
  for name in LAYERS:
    fields = {
      field: tuple(value) if isinstance(value, list | tuple) else value
      for field, value in placements.get(name, {}).items()
      if value is not None
    }
    layers[name] = dataclasses.replace(layout.placement(name), **fields)
  return dataclasses.replace(
    layout, mesh={axis: sizes[axis] for axis in axes}, layers=layers
  )


def find_meshes(layout: Layout, devices: int) -> Iterator[Layout]:
  """Yields the layout on every mesh of its axes with that many devices."""
  axes = list(layout.mesh)
  divisors = [size for size in range(1, devices + 1) if devices % size == 0]
  for sizes in itertools.product(divisors, repeat=len(axes)):
    if math.prod(sizes) == devices:
      mesh = dict(zip(axes, sizes, strict=True))
      yield dataclasses.replace(layout, mesh=mesh)


def to_fields(layout: Layout) -> dict[str, object]:
  """A layout as nested dicts, for a config.

  Returns:
    {"name", "axes", "mesh", and each layer's placement}. The axes are there
    for their order, which the dicts of a config do not keep.
  """
  return {
    "name": layout.name,
    "axes": tuple(layout.mesh),
    "mesh": dict(layout.mesh),
    **{name: dataclasses.asdict(layout.placement(name)) for name in LAYERS},
  }


def _axes(axes: tuple[str, ...]) -> str:
  return (
    "no axis" if not axes else "axis " + " x ".join(repr(axis) for axis in axes)
  )


def _listed(mesh: Mapping[str, int]) -> str:
  return ", ".join(f"{axis!r}: {size}" for axis, size in mesh.items())


def _what(layer: wiring.Layer) -> str:
  return "the image" if layer.reads == "image" else "its own column"
