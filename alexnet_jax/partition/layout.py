"""Where a network is computed, as data: a mesh and a placement per layer.

Standard library only. `check.py` says whether a network fits a layout before
anything is compiled; the modules beside this one compute everything else
(parameter specs, exchanges, bytes) from the two.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

# Dimensions of a kernel, HWIO or (in, out).
INPUTS, OUTPUTS = -2, -1
ARRIVALS = ("gather", "sum", "fewest")
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
  """Which mesh axes split one layer, and how its input arrives.

  Along an axis in neither batch nor features, every device computes the same.

  Attributes:
    batch: axes that split the layer's images.
    features: axes that split its output features or, if it arrives as a sum,
      its input features.
    arrive: `gather`: every device receives all that the layer reads and
      computes its shard of the outputs. `sum`: every device reads only its
      shard of the input, and the partial results are summed. `fewest`: the one
      of the two with which the whole step sends fewer bytes, which depends on
      the network, on the other layers' placements and on the batch.
    fsdp: axes of `batch` over which the kernel and its optimizer state are
      stored sharded; gathered at use, and the gradient reduce-scattered.
    overlap_gather: compute with the local shard while the all-gather of the
      others is in flight, in a layer that reads all columns and gathers them
      by features: two products instead of one, the same elements sent.
  """

  batch: tuple[str, ...] = ()
  features: tuple[str, ...] = ()
  arrive: str = "gather"
  fsdp: tuple[str, ...] = ()
  overlap_gather: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """A mesh and the placement of every layer.

  Attributes:
    name: what users type.
    mesh: axis name -> number of devices, slowest axis first. `mesh.py` puts
      the devices on the axes.
    conv: placement of conv1 to conv5.
    fc: placement of fc6 to fc8.
    layers: placements of single layers; they override `conv` and `fc`.
  """

  name: str
  mesh: Mapping[str, int]
  conv: Placement = Placement()
  fc: Placement = Placement()
  layers: Mapping[str, Placement] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for layer in self.layers:
      if layer not in LAYERS:
        raise ValueError(
          f"layout '{self.name}' places a layer {layer!r}, expected one of "
          f"{', '.join(LAYERS)}. Change the keys of its layers."
        )

  def __hash__(self) -> int:
    # A dict has no hash of its own. As for ==, the order of axes is ignored.
    mappings = frozenset(self.mesh.items()), frozenset(self.layers.items())
    return hash((self.name, self.conv, self.fc, *mappings))

  def placement(self, layer: str) -> Placement:
    group = self.conv if layer.startswith("conv") else self.fc
    return self.layers.get(layer, group)

  def uses(self, axis: str) -> bool:
    """Whether a layer is split along an axis."""
    placements = map(self.placement, LAYERS)
    return any(axis in one.batch + one.features for one in placements)

  @property
  def devices(self) -> int:
    return math.prod(self.mesh.values())

  def size(self, axes: Iterable[str]) -> int:
    """Returns the number of devices along the axes."""
    return math.prod(self.mesh[axis] for axis in axes)


def fsdp_dimension(layer: str) -> int:
  """Returns the dimension of a kernel that `Placement.fsdp` splits.

  Outputs, except for the last layer: the number of classes is arbitrary. A
  TPU's compiler keeps the reduce-scatter of these; of large kernels split at
  their inputs it makes a padded sum, which sends twice as much (libtpu 0.0.42,
  v5e).
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
    mesh: axis -> devices; None keeps the layout's size. An axis that the layout
      does not have is added as the fastest one.
    placements: layer -> field of `Placement` -> value; None keeps.
    axes: all axes of the mesh, slowest first; None keeps their order.

  Raises:
    ValueError: `axes` are not those of the mesh.
  """
  sizes = {axis: size for axis, size in mesh.items() if size is not None}
  sizes = {**layout.mesh, **sizes}
  axes = list(sizes) if axes is None else list(axes)
  if sorted(axes) != sorted(sizes):
    raise ValueError(
      f"the axes {tuple(axes)} are not those of the mesh "
      f"({format_mesh(sizes)}). Set config.layout.axes or config.layout.mesh."
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
  """Converts a layout to nested dicts, for a config.

  Returns:
    {"name", "axes", "mesh", and each layer's placement}. The axes give their
    order, which the dicts of a config do not keep.
  """
  return {
    "name": layout.name,
    "axes": tuple(layout.mesh),
    "mesh": dict(layout.mesh),
    **{name: dataclasses.asdict(layout.placement(name)) for name in LAYERS},
  }


def format_mesh(mesh: Mapping[str, int]) -> str:
  """Formats a mesh: `data=2, column=2`."""
  return ", ".join(f"{axis}={size}" for axis, size in mesh.items())
