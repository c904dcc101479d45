"""Trains several members of an ensemble in one program, on devices of each.

The mesh gains a first axis, `ensemble`. Along it are runs that differ only in
their seed. Arrays that each member has for itself gain a first dimension,
`[members@ensemble, ...]`; the batch is replicated over the axis. Nothing is
sent along it. A single run has no such axis, and every method returns its
argument unchanged for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import mesh as mesh_lib

AXIS = "ensemble"
# What reports and folders call one of several runs.
NAME = "member"


@dataclasses.dataclass(frozen=True)
class Ensemble:
  """Adapts meshes, arrays and functions to `members`; 1 is a single run."""

  members: int = 1

  def describe(self, layout: layout_lib.Layout, *, seed: int) -> list[str]:
    """Returns a line for the user; [] for a single run.

    `layout` is that of each member, `seed` that of the first.
    """
    if self.members == 1:
      return []
    devices = f"{layout.devices} device{'s' if layout.devices > 1 else ''}"
    return [
      f"{self.members} members of an ensemble at once, with seeds {seed} to "
      f"{seed + self.members - 1}: each on {devices} of its own along axis "
      f"{AXIS!r}, on which nothing is sent; all read one batch"
    ]

  def add_axis(self, layout: layout_lib.Layout) -> layout_lib.Layout:
    """Returns the layout of all members, each of which has `layout`."""
    if self.members == 1:
      return layout
    return dataclasses.replace(layout, mesh={AXIS: self.members, **layout.mesh})

  def find_member_mesh(
    self, mesh: jax.sharding.Mesh, member: int
  ) -> jax.sharding.Mesh:
    """Returns the mesh of one member, the same as that of a single run."""
    if self.members == 1:
      return mesh
    names = mesh.axis_names[1:]
    return jax.sharding.Mesh(
      mesh.devices[member],
      names,
      axis_types=(AxisType.Explicit,) * len(names),
    )

  def stack(self, values: Sequence[jax.Array]) -> jax.Array:
    """Stacks one value per member."""
    return values[0] if self.members == 1 else jnp.stack(values)

  def stack_spec(self, spec: PartitionSpec) -> PartitionSpec:
    """Returns the spec of the stacked arrays of all members."""
    return spec if self.members == 1 else PartitionSpec(AXIS, *spec)

  def stack_abstract(self, mesh: jax.sharding.Mesh, like):
    """Stacks a pytree of `jax.ShapeDtypeStruct` with shardings, of one member.

    `mesh` is that of all members.
    """
    if self.members == 1:
      return like

    def stack(leaf):
      sharding = NamedSharding(mesh, self.stack_spec(leaf.sharding.spec))
      shape = (self.members, *leaf.shape)
      return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(stack, like)

  def map_members(
    self,
    function: Callable,
    mesh: jax.sharding.Mesh,
    *,
    own: tuple,
    shared: tuple = (),
    result,
    donated: tuple[int, ...] = (),
  ) -> Callable:
    """Maps a function of one member over all members.

    Args:
      function: (*own, *shared) -> result, jitted, of arrays on the explicit
        axes of one member's mesh.
      own: one member's specs of the arguments that each member has for itself.
      shared: specs of the other arguments, which all members read.
      result: specs of what one member returns.
      donated: indices of the arguments that may be overwritten.

    Returns:
      The function of the stacked arrays, `shared` excepted; jitted, to be
      called under `mesh`.
    """
    if self.members == 1:
      return function
    split, replicated = PartitionSpec(AXIS), PartitionSpec()

    def on_member(*arguments):
      mine = jax.tree.map(lambda x: x[0], arguments[: len(own)])
      explicit = jax.sharding.explicit_axes(
        function, axes=mesh.axis_names[1:], in_sharding=(*own, *shared)
      )
      output = explicit(*mine, *arguments[len(own) :])
      return jax.tree.map(lambda x: x[None], output)

    mapped = jax.shard_map(
      on_member,
      in_specs=(split,) * len(own) + (replicated,) * len(shared),
      out_specs=split,
      axis_names={AXIS},
      # No output is declared replicated along this axis, so there is nothing
      # to check. With the check on, jax 0.10.2 adds this axis a second time to
      # the residuals of the inner map, and cannot lower it.
      check_vma=False,
    )
    return jax.jit(
      mapped,
      out_shardings=jax.tree.map(
        lambda spec: NamedSharding(mesh, self.stack_spec(spec)),
        result,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
      ),
      donate_argnums=donated,
    )


def make_mesh(
  layout: layout_lib.Layout,
  ensemble: Ensemble,
  devices: Sequence[jax.Device] | None = None,
  **options,
) -> jax.sharding.Mesh:
  """Makes the mesh of all members; as `mesh.make_mesh`.

  Its axes are automatic if there are several members, and explicit only inside
  `map_members`: if all were explicit, jax 0.10.2 would give the operands of a
  map over one axis no split over the others, and the compiler would gather the
  state on every device, which the audit refuses.
  """
  if ensemble.members == 1:
    return mesh_lib.make_mesh(layout, devices, **options)
  mesh = mesh_lib.make_mesh(
    ensemble.add_axis(layout),
    devices,
    **{**options, "field": "config.ensemble or config.layout.mesh"},
  )
  return jax.sharding.Mesh(
    mesh.devices,
    mesh.axis_names,
    axis_types=(AxisType.Auto,) * len(mesh.axis_names),
  )


def take_member(state, like):
  """Takes the arrays of one member, copied on the devices they are on.

  `like` has their shapes, types and shardings.
  """

  def take(stacked, one):
    blocks = [
      jax.lax.squeeze(shard.data, (0,))
      for shard in stacked.addressable_shards
      if shard.device in one.sharding.device_set
    ]
    return jax.make_array_from_single_device_arrays(
      one.shape, one.sharding, blocks
    )

  return jax.tree.map(take, state, like)


def stack_members(states: Sequence, like):
  """Inverts `take_member`; `like` is that of the arrays of all members."""

  def stack(stacked, *members):
    blocks = [
      jax.lax.expand_dims(shard.data, (0,))
      for member in members
      for shard in member.addressable_shards
    ]
    return jax.make_array_from_single_device_arrays(
      stacked.shape, stacked.sharding, blocks
    )

  return jax.tree.map(stack, like, *states)
