"""Members of an ensemble, each on devices of its own, in one program.

An axis of the mesh before those of the layout. Along it lie several runs that
differ in their seed alone: arrays that each member has for itself gain a first
dimension, `[members@ensemble, ...]`; the batch is there once, whole for every
member. Nothing crosses this axis. One member has no such axis, and a program
of one is as it would be without this module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import mesh as mesh_lib

AXIS = "ensemble"


@dataclasses.dataclass(frozen=True)
class Ensemble:
  """What a number of members makes of meshes, arrays and functions.

  Attributes:
    members: 1 or more; one is a single run.
  """

  members: int = 1

  def widen(self, layout: layout_lib.Layout) -> layout_lib.Layout:
    """The layout of all members, of which each has that of `layout`."""
    if self.members == 1:
      return layout
    return dataclasses.replace(layout, mesh={AXIS: self.members, **layout.mesh})

  def loosen(self, mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """The mesh as `each` needs it: the axes are explicit for each member only.

    Where the whole mesh is explicit, jax 0.10.2 gives the operands of a map
    over one axis no split over the others, and the compiler then gathers the
    state on every device; the audit finds it.
    """
    if self.members == 1:
      return mesh
    return jax.sharding.Mesh(
      mesh.devices,
      mesh.axis_names,
      axis_types=(jax.sharding.AxisType.Auto,) * len(mesh.axis_names),
    )

  def narrow(self, mesh: jax.sharding.Mesh, member: int) -> jax.sharding.Mesh:
    """The mesh of one member, as that of a single run."""
    if self.members == 1:
      return mesh
    names = mesh.axis_names[1:]
    return jax.sharding.Mesh(
      mesh.devices[member],
      names,
      axis_types=(jax.sharding.AxisType.Explicit,) * len(names),
    )

  def spec(self, spec: PartitionSpec) -> PartitionSpec:
    """Of what each member has for itself, from that of one member's."""
    return spec if self.members == 1 else PartitionSpec(AXIS, *spec)

  def abstract(self, mesh: jax.sharding.Mesh, of_one):
    """Shapes, types and shardings of all members' arrays.

    Args:
      mesh: of all members.
      of_one: a pytree of `jax.ShapeDtypeStruct` with shardings, of one member.
    """
    if self.members == 1:
      return of_one

    def widen(leaf):
      sharding = NamedSharding(mesh, self.spec(leaf.sharding.spec))
      shape = (self.members, *leaf.shape)
      return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(widen, of_one)

  def each(
    self,
    function: Callable,
    mesh: jax.sharding.Mesh,
    *,
    own: tuple,
    shared: tuple = (),
    result,
    donated: tuple[int, ...] = (),
  ) -> Callable:
    """What one member computes, computed by each on its own devices.

    Args:
      function: (*own, *shared) -> result, jitted, of arrays on the explicit
        axes of one member's mesh.
      mesh: of all members.
      own: specs of the arguments that each member has for itself, as those of
        one member.
      shared: specs of the other arguments, which all members read.
      result: specs of what one member returns.
      donated: which arguments may be overwritten.

    Returns:
      The function, of arrays with a first dimension of members where they are
      not shared; jitted, to be called under `mesh`.
    """
    if self.members == 1:
      return function
    split, whole = PartitionSpec(AXIS), PartitionSpec()

    def of_one(*arguments):
      mine = jax.tree.map(lambda x: x[0], arguments[: len(own)])
      explicit = jax.sharding.explicit_axes(
        function, axes=mesh.axis_names[1:], in_sharding=(*own, *shared)
      )
      found = explicit(*mine, *arguments[len(own) :])
      return jax.tree.map(lambda x: x[None], found)

    mapped = jax.shard_map(
      of_one,
      in_specs=(split,) * len(own) + (whole,) * len(shared),
      out_specs=split,
      axis_names={AXIS},
      # Nothing is declared whole along this axis that could fail to be. With
      # the check on, jax 0.10.2 gives what the inner map keeps for the
      # backward pass this axis a second time, and cannot lower it.
      check_vma=False,
    )
    return jax.jit(
      mapped,
      out_shardings=jax.tree.map(
        lambda spec: NamedSharding(mesh, self.spec(spec)),
        result,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
      ),
      donate_argnums=donated,
    )

  def stack(self, values: Sequence[jax.Array]) -> jax.Array:
    """One value of each member, in the order of the members."""
    return values[0] if self.members == 1 else jnp.stack(values)


def make_mesh(
  layout: layout_lib.Layout,
  ensemble: Ensemble,
  devices: Sequence[jax.Device] | None = None,
  **options,
) -> jax.sharding.Mesh:
  """As `mesh.make_mesh`, for all members of an ensemble."""
  if ensemble.members > 1:
    options["field"] = "config.ensemble or config.layout.mesh"
  wide = ensemble.widen(layout)
  return ensemble.loosen(mesh_lib.make_mesh(wide, devices, **options))


def take(state, like):
  """The arrays of one member; copied on the devices where they are.

  Args:
    state: of all members.
    like: shapes, types and shardings of one member's, on its own devices.
  """

  def cut(whole, one):
    blocks = [
      jax.lax.squeeze(shard.data, (0,))
      for shard in whole.addressable_shards
      if shard.device in one.sharding.device_set
    ]
    return jax.make_array_from_single_device_arrays(
      one.shape, one.sharding, blocks
    )

  return jax.tree.map(cut, state, like)


def join(states: Sequence, like):
  """The arrays of all members, from those of each.

  Args:
    states: of each member, on its own devices, in their order.
    like: shapes, types and shardings of all members'.
  """

  def stack(whole, *of_members):
    blocks = [
      jax.lax.expand_dims(shard.data, (0,))
      for one in of_members
      for shard in one.addressable_shards
    ]
    return jax.make_array_from_single_device_arrays(
      whole.shape, whole.sharding, blocks
    )

  return jax.tree.map(stack, like, *states)
