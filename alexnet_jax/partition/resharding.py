"""How an activation gets from where it lies to where it is wanted.

An activation lies split over mesh axes; a layer wants it to lie otherwise;
each axis on which the two differ is one `Move`.

    lies split by  wanted by batch     wanted by features  wanted whole
    batch          -                   all-to-all          all-gather
    features       all-to-all          -                   all-gather
    whole          local slice         local slice         - (or `spread`)

`whole` comes in two kinds, which matters for the gradient only. After a
gather the devices of an axis hold equal `copies`, and the gather's transpose
adds up their gradients. What was whole from the start, or is the result of a
sum, is one array; where a layer then computes something different on each
device from it, the gradients are added there (`spread`, and every slice).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from alexnet_jax.partition import layout as layout_lib

# Dimensions of an activation: f32[n, ..., channels].
BATCH, CHANNELS = 0, -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lie:
  """How an activation lies over the mesh; axes in none of these: one array.

  Attributes:
    batch: axes that split the images, slowest first.
    features: axes that split the channels or units, slowest first.
    copies: axes along which the devices hold equal copies after a gather.
  """

  batch: tuple[str, ...] = ()
  features: tuple[str, ...] = ()
  copies: tuple[str, ...] = ()

  @property
  def varying(self) -> tuple[str, ...]:
    return self.batch + self.features + self.copies


@dataclasses.dataclass(frozen=True, kw_only=True)
class Move:
  """One step of an activation on its way into a layer.

  Attributes:
    kind: `all_gather`, `all_to_all`, `slice` or `spread`.
    axes: the mesh axes along which it happens.
    source: the dimension that was split before; None where none was.
    target: the dimension that is split after; None where none is.
    elements: of the array that one device holds before it.
    images: whose activations the devices along the axes hold together.
    copied: whether the devices held copies before it, after a gather.
  """

  kind: str
  axes: tuple[str, ...]
  source: int | None
  target: int | None
  elements: int
  images: int
  copied: bool

  @property
  def sends(self) -> bool:
    """Whether anything crosses devices on the way forward."""
    return self.kind in ("all_gather", "all_to_all")

  def sent_elements(self, devices: int) -> int:
    """Elements that each device sends for it, forward and backward.

    Args:
      devices: along the axes.
    """
    others = self.elements * (devices - 1)
    if self.kind == "all_gather":
      return 2 * others
    if self.kind == "all_to_all" or not self.copied:
      return 2 * others // devices
    return 0


def find_moves(
  name: str,
  lie: Lie,
  wanted: Lie,
  layout: layout_lib.Layout,
  *,
  elements: int,
  images: int,
  spread: tuple[str, ...],
) -> tuple[tuple[Move, ...], Lie]:
  """The moves from one lie to another, and the lie they end in.

  Args:
    name: the layer, for errors.
    lie: how the activation lies.
    wanted: its batch and features axes where the layer is computed.
    layout: for the mesh.
    elements: of the whole activation.
    images: in the whole batch.
    spread: axes along which the layer computes different outputs.

  Returns:
    The moves in order, and how the activation then lies.

  Raises:
    ValueError: the axes of the two lies stand in orders that do not fit.
  """
  batch, features = list(lie.batch), list(lie.features)
  copies = list(lie.copies)
  moves = []

  def move(kind: str, axes: Sequence[str], source, to, copied=False) -> None:
    moves.append(
      Move(
        kind=kind,
        axes=tuple(axes),
        source=source,
        target=to,
        elements=elements // layout.size((*batch, *features)),
        images=images // layout.size([a for a in batch if a not in axes]),
        copied=copied,
      )
    )

  def leave(here, stays, there, enters, source: int, to: int) -> None:
    """Takes axes off one dimension, the fastest first."""
    leaving = [axis for axis in here if axis not in stays]
    if len(leaving) > 1 and here[-len(leaving) :] == leaving:
      if [axis for axis in enters if axis in leaving] == leaving:
        move("all_to_all", leaving, source, to)  # in the order they stand in
        there.extend(leaving)
        del here[-len(leaving) :]
        return
    for axis in reversed(leaving):
      _check_last(name, axis, here, layout)
      if axis in enters:
        move("all_to_all", [axis], source, to)
        there.append(axis)
      else:
        move("all_gather", [axis], source, None)
        copies.append(axis)
      here.remove(axis)

  leave(features, wanted.features, batch, wanted.batch, CHANNELS, BATCH)
  leave(batch, wanted.batch, features, wanted.features, BATCH, CHANNELS)
  for split, axes, to in (
    (batch, wanted.batch, BATCH),
    (features, wanted.features, CHANNELS),
  ):
    for axis in axes:
      if axis not in split:
        move("slice", [axis], None, to, copied=axis in copies)
        split.append(axis)
        if axis in copies:
          copies.remove(axis)
    if tuple(split) != axes:
      raise ValueError(
        f"{name} wants its input split over {_sized(axes, layout)}, but it "
        f"arrives split over {_sized(split, layout)}; the axes that both have "
        f"must stand first, in one order. Set config.layout.{name}.batch or "
        f"config.layout.{name}.features."
      )
  for axis in spread:
    if axis not in copies:
      move("spread", [axis], None, None)
      copies.append(axis)
  return tuple(moves), dataclasses.replace(wanted, copies=tuple(copies))


def _check_last(
  name: str, axis: str, split: Sequence[str], layout: layout_lib.Layout
) -> None:
  if split[-1] != axis:
    raise ValueError(
      f"{name} needs axis {axis!r} joined, but the layer before is split over "
      f"{_sized(split, layout)}, and only the last of these can be joined. "
      f"Set config.layout.{name}.batch or config.layout.{name}.features."
    )


def _sized(axes: Sequence[str], layout: layout_lib.Layout) -> str:
  """Axes with their sizes, in their order: `(a=2, b=4)`."""
  return f"({layout_lib.listed({axis: layout.mesh[axis] for axis in axes})})"
