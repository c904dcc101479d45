"""Where a network is computed, as data: a mesh and a placement per layer.

Standard library only. `check.py` says whether a network fits a layout before
anything is compiled; the modules beside this one compute everything else
(parameter specs, exchanges, bytes) from the two.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from alexnet_jax.network import wiring

# Dimensions of a kernel, HWIO or (in, out).
INPUTS, OUTPUTS = -2, -1
# Of layers; a layout has a placement for each.
KINDS = ("conv", "fc")
# What a config's layout has beside the placements of single layers.
FIELDS = ("name", "axes", "mesh", "allow_unplanned", *KINDS)
# Fields of a placement; an axis splits at most one of these.
DIMENSIONS = ("batch", "outputs", "inputs", "features")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
  """Which mesh axes split which dimension of one layer's work.

  Several dimensions may be split at once, each by other axes. Along an axis in
  none of them, every device computes the same.

  Attributes:
    batch: axes that split the images.
    outputs: axes that split the output features. Every device reads all that
      the layer reads, and computes its shard. Of a layer that reads its own
      column, the first axes split the columns; where each device has one
      column, those after them split the outputs inside a column.
    inputs: axes that split the input features. Every device reads its shard,
      and the partial sums are added. Of a layer that reads its own column,
      they split the channels of a column.
    features: axes of `outputs` or of `inputs`, after those named there:
      whichever makes a step send the fewest bytes, which depends on the
      network, on the other layers' placements and on the batch.
    fsdp: axes of `batch` over which the kernel and its optimizer state are
      stored sharded; gathered at use, and the gradient reduce-scattered.
    overlap_gather: compute with the local shard while the all-gather of the
      others is in flight, in a layer that reads all columns and gathers their
      features: two products instead of one, the same elements sent.
  """

  batch: tuple[str, ...] = ()
  outputs: tuple[str, ...] = ()
  inputs: tuple[str, ...] = ()
  features: tuple[str, ...] = ()
  fsdp: tuple[str, ...] = ()
  overlap_gather: bool = False

  @property
  def axes(self) -> tuple[str, ...]:
    """The axes along which the devices do different work."""
    return self.batch + self.outputs + self.inputs + self.features

  @property
  def alternatives(self) -> tuple[Placement, ...]:
    """The placements that this one may become: without `features`.

    Those of `outputs` first; one if there are no `features`.
    """
    if not self.features:
      return (self,)
    return tuple(
      dataclasses.replace(
        self, features=(), **{field: getattr(self, field) + self.features}
      )
      for field in ("outputs", "inputs")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """A mesh and the placement of every layer.

  Attributes:
    name: what users type.
    mesh: axis name -> number of devices, slowest axis first. `mesh.py` puts
      the devices on the axes.
    conv: placement of the convolutions.
    fc: placement of the fully connected layers.
    layers: placements of single layers; they override `conv` and `fc`.

  Raises:
    ValueError: a placement has a value of another type, or is that of a layer
      with an impossible name; names layer and field.
  """

  name: str
  mesh: Mapping[str, int]
  conv: Placement = Placement()
  fc: Placement = Placement()
  layers: Mapping[str, Placement] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if not isinstance(self.layers, Mapping):
      raise ValueError(
        f"layout {self.name!r}: layers is {reprlib.repr(self.layers)}, "
        "expected a dict of placements by layer. Write "
        "layers={'fc7': Placement(...)}."
      )
    _check_mesh(self)
    _check_names(self)
    for layer, placement in (
      *(("conv", self.conv), ("fc", self.fc)),
      *self.layers.items(),
    ):
      _check_types(self.name, layer, placement)

  def __hash__(self) -> int:
    # A dict has no hash of its own. As for ==, the order of axes is ignored.
    mappings = frozenset(self.mesh.items()), frozenset(self.layers.items())
    return hash((self.name, self.conv, self.fc, *mappings))

  def placement(self, layer: wiring.Layer) -> Placement:
    """Returns the placement of a layer: its own, or that of its kind."""
    return self.layers.get(layer.name, getattr(self, layer.kind))

  @property
  def devices(self) -> int:
    return math.prod(self.mesh.values())

  def size(self, axes: Iterable[str]) -> int:
    """Returns the number of devices along the axes."""
    return math.prod(self.mesh[axis] for axis in axes)

  def split_columns(
    self, axes: tuple[str, ...], columns: int
  ) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Divides the axes of a layer's outputs where columns stay together.

    Args:
      columns: of the network.

    Returns:
      The first axes, which split the columns, and the others, which split the
      outputs inside a column. None: these axes do not divide the columns so.
    """
    for count in range(len(axes), -1, -1):
      split, inside = axes[:count], axes[count:]
      if columns % self.size(split) == 0:
        is_one = self.size(split) == columns  # column on each device
        return (split, inside) if is_one or not inside else None
    return None

  def halo_axes(
    self, layer: wiring.Layer, outputs: tuple[str, ...], columns: int
  ) -> tuple[str, ...]:
    """Returns the axes along which a layer normalizes with neighbors' maps.

    Args:
      outputs: axes that split its outputs.
      columns: of the network.
    """
    if layer.normalize == "across":
      return outputs
    if layer.normalize != "column":
      return ()
    _, inside = self.split_columns(outputs, columns) or ((), ())
    return inside


def _check_mesh(layout: Layout) -> None:
  if not isinstance(layout.mesh, Mapping):
    raise ValueError(
      f"layout {layout.name!r}: mesh is {layout.mesh!r}, expected a dict of "
      "devices by axis. Write mesh={'data': 2}."
    )
  for axis, size in layout.mesh.items():
    if not isinstance(axis, str) or type(size) is not int:
      raise ValueError(
        f"layout {layout.name!r}: mesh has {size!r} devices along {axis!r}, "
        "expected a name and an integer. Write mesh={'data': 2}."
      )


def _check_names(layout: Layout) -> None:
  """Refuses placements of layers with names that no layer can have."""
  for layer in layout.layers:
    if not isinstance(layer, str) or not layer.isidentifier():
      expected = "a name of letters, digits and _"
    elif layer in KINDS:
      expected = f"a single layer: {layer} is a kind of layers"
    elif layer in FIELDS:
      expected = f"another name: a config's layout has a field {layer}"
    else:
      continue
    write = f"{layer}=" if layer in KINDS else "layers={'fc7': "
    raise ValueError(
      f"layout {layout.name!r}: layers places {reprlib.repr(layer)}, expected "
      f"{expected}. Write {write}Placement(...){'' if layer in KINDS else '}'}."
    )


def _check_types(name: str, layer: str, placement: object) -> None:
  """Refuses what is no placement, and fields of other types."""
  where = f"layout {name!r}: {layer}"
  if not isinstance(placement, Placement):
    raise ValueError(
      f"{where} is {placement!r}, expected a Placement. Write "
      f"{layer}=Placement(batch=('data',))."
    )
  for field in (*DIMENSIONS, "fsdp"):
    axes = getattr(placement, field)
    if isinstance(axes, tuple) and all(isinstance(axis, str) for axis in axes):
      continue
    is_one = isinstance(axes, str) and axes.isidentifier()
    example = repr((axes,)) if is_one else "('data',)"
    raise ValueError(
      f"{where}.{field} is {axes!r}, expected a tuple of names of mesh axes. "
      f"Write {field}={example}."
    )
  if not isinstance(placement.overlap_gather, bool):
    raise ValueError(
      f"{where}.overlap_gather is {placement.overlap_gather!r}, expected True "
      "or False. Write overlap_gather=True."
    )


def fsdp_dimension(layer: wiring.Layer, network: wiring.Network) -> int:
  """Returns the dimension of a kernel that `Placement.fsdp` splits.

  Outputs, except for the last layer: the number of classes is arbitrary. A
  TPU's compiler keeps the reduce-scatter of these; of large kernels split at
  their inputs it makes a padded sum, which sends twice as much (libtpu 0.0.42,
  v5e).
  """
  return INPUTS if layer is network.layers[-1] else OUTPUTS


def override(
  layout: Layout,
  *,
  mesh: Mapping[str, int | None],
  placements: Mapping[str, Mapping[str, object]],
  axes: Sequence[str] | None = None,
  rows: Sequence = (),
) -> Layout:
  """Replaces single sizes and placements of a layout.

  Args:
    mesh: axis -> devices; None keeps the layout's size. An axis that the layout
      does not have is added as the fastest one.
    placements: `conv`, `fc` (every layer of the kind) or a layer -> field of
      `Placement` -> value; None keeps. An axis that splits one dimension no
      longer splits another.
    axes: all axes of the mesh, slowest first; None keeps their order.
    rows: the network's layers, of `wiring.Layer`; only these have placements of
      their own.

  Raises:
    ValueError: `axes` are not those of the mesh, or the network lacks a layer.
  """
  sizes = {axis: size for axis, size in mesh.items() if size is not None}
  sizes = {**layout.mesh, **sizes}
  axes = list(sizes) if axes is None else list(axes)
  if sorted(axes) != sorted(sizes):
    raise ValueError(
      f"the axes {tuple(axes)} are not those of the mesh "
      f"({format_mesh(sizes)}). Set config.layout.axes or config.layout.mesh."
    )
  kinds = {row.name: row.kind for row in rows}
  of_kinds = {
    kind: _change(getattr(layout, kind), placements.get(kind, {}))
    for kind in KINDS
  }
  layers = {
    name: _change(placement, placements.get(kinds.get(name), {}))
    for name, placement in layout.layers.items()
  }
  for name, fields in placements.items():
    if name in KINDS:
      continue
    if name not in kinds:
      raise ValueError(
        f"layout {layout.name!r} places a layer {name!r}, expected one of the "
        f"network's: {', '.join(kinds)}. Remove config.layout.{name}."
      )
    layers[name] = _change(layers.get(name, of_kinds[kinds[name]]), fields)
  return dataclasses.replace(
    layout, mesh={axis: sizes[axis] for axis in axes}, layers=layers, **of_kinds
  )


def _change(placement: Placement, fields: Mapping[str, object]) -> Placement:
  """Sets the fields that are not None; their axes leave the other ones."""
  given = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in fields.items()
    if value is not None
  }
  taken = {axis for name in DIMENSIONS for axis in given.get(name, ())}
  left = {
    name: tuple(axis for axis in getattr(placement, name) if axis not in taken)
    for name in DIMENSIONS
  }
  return dataclasses.replace(placement, **(left | given))


def describe_removed_field(field: str) -> str | None:
  """Says in a sentence what replaces a field of old placements; else None.

  Args:
    field: its full name in a config, such as `layout.fc6.arrive`.
  """
  words = field.split(".")
  if len(words) != 3 or (words[0], words[2]) != ("layout", "arrive"):
    return None
  return (
    f"the field {field} is gone: write layout.{words[1]}.outputs (for gather), "
    ".inputs (for sum) or .features (for fewest)."
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
    {"name", "axes", "mesh", "conv", "fc", and each layer that has a placement
    of its own}. The axes give their order, which the dicts of a config do not
    keep.
  """
  placements = {"conv": layout.conv, "fc": layout.fc, **layout.layers}
  return {
    "name": layout.name,
    "axes": tuple(layout.mesh),
    "mesh": dict(layout.mesh),
    **{name: dataclasses.asdict(one) for name, one in placements.items()},
  }


def format_mesh(mesh: Mapping[str, int]) -> str:
  """Formats a mesh: `data=2, column=2`."""
  return ", ".join(f"{axis}={size}" for axis, size in mesh.items())
