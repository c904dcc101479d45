"""A mesh of real devices, or of simulated ones, from a layout's sizes.

The axis along which most is sent varies fastest over the devices, so it lies
inside a process, a host, a slice, before it crosses one. Which device computes
what never changes a number.
"""

import collections
import math
import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import links

# More than this many simulated devices is a slip of the hand, not an
# experiment: each holds a copy of whatever is not split.
MAX_SIMULATED = 64

# Simulated devices meet in collectives by blocking threads of one pool that
# their computations also need: with few threads for each they wait for ever
# (seen with 2 devices and 2 or 3 threads). Below this many cores for each
# device, a device computes on the one thread that it owns instead; on 2 cores
# that is also the faster way.
CORES_PER_SHARED_POOL = 4
_OWN_THREAD = "--xla_cpu_multi_thread_eigen=false"


def simulate_devices(count: int, *, only_cpu: bool) -> None:
  """Lets the CPU act as `count` devices; before JAX is first used.

  Where the machine has an accelerator, it stays the default and this has no
  effect unless `only_cpu`. A count that the user has set for JAX itself
  (JAX_NUM_CPU_DEVICES or XLA_FLAGS) is left as it is, and so are the devices
  of a program that has already used JAX: `make_mesh` says if they are too few.

  Args:
    count: devices to simulate.
    only_cpu: whether to leave accelerators unused.
  """
  flags = os.environ.get("XLA_FLAGS", "")
  few_cores = (os.cpu_count() or 1) < count * CORES_PER_SHARED_POOL
  if count > 1 and few_cores and _OWN_THREAD not in flags:
    # First, so that what the user has set wins.
    os.environ["XLA_FLAGS"] = f"{_OWN_THREAD} {flags}"
  set_by_user = "JAX_NUM_CPU_DEVICES" in os.environ or (
    "xla_force_host_platform_device_count" in flags
  )
  if not only_cpu and (set_by_user or count > MAX_SIMULATED):
    return
  try:
    jax.config.update("jax_num_cpu_devices", count)
  except RuntimeError:  # JAX is in use already
    return
  if only_cpu:
    jax.config.update("jax_platforms", "cpu")


def make_mesh(
  layout: layout_lib.Layout,
  devices: Sequence[jax.Device] | None = None,
  *,
  sent: Mapping[str, int] | None = None,
  field: str = "config.layout.mesh",
) -> jax.sharding.Mesh:
  """Puts the first devices of this run on the axes of a layout.

  Args:
    layout: with the sizes of the axes.
    devices: to put there; None: those that JAX has.
    sent: bytes that one device sends along each axis, from `plan.sent_along`,
      by which the axes are nested; None: in the layout's order.
    field: of the config, that sets the sizes.

  Returns:
    A mesh with explicit axes, so that arrays carry their split in their type.
    Its axes are in the layout's order, whatever they are nested in.

  Raises:
    ValueError: there are fewer devices than the layout needs, or so many more
      that a process of this run would hold none; or TPU slices hold unequal
      numbers of them.
  """
  if devices is None:
    devices = jax.devices()
  if len(devices) < layout.devices:
    sizes = " x ".join(f"{axis}={size}" for axis, size in layout.mesh.items())
    raise ValueError(
      f"layout '{layout.name}' needs {layout.devices} devices ({sizes}), but "
      f"there are {len(devices)} ({devices[0].device_kind}). "
      f"Set {field}, or simulate them on the CPU with "
      f"--simulate_devices={-(-layout.devices // jax.process_count())}."
    )
  if jax.process_count() > 1:
    _check_processes(layout, devices)
  nested = nest_axes(layout, sent)
  placed = _place(layout, nested, devices[: layout.devices])
  return jax.sharding.Mesh(
    placed.transpose([nested.index(axis) for axis in layout.mesh]),
    tuple(layout.mesh),
    axis_types=(jax.sharding.AxisType.Explicit,) * len(layout.mesh),
  )


def nest_axes(
  layout: layout_lib.Layout, sent: Mapping[str, int] | None
) -> tuple[str, ...]:
  """The axes as devices are put on them, slowest first; see `make_mesh`."""
  if sent is None:
    return tuple(layout.mesh)
  return tuple(sorted(layout.mesh, key=lambda axis: sent.get(axis, 0)))


def _check_processes(
  layout: layout_lib.Layout, devices: Sequence[jax.Device]
) -> None:
  """Refuses to leave a process of a run without work.

  Raises:
    ValueError: none of a process's devices is among the first.
  """
  processes = {device.process_index for device in devices}
  used = {device.process_index for device in devices[: layout.devices]}
  if idle := sorted(processes - used):
    raise ValueError(
      f"layout '{layout.name}' needs {layout.devices} devices, and there are "
      f"{len(devices)} in {len(processes)} processes; process {idle[0]} would "
      "hold none. Set config.layout.mesh, or start fewer processes."
    )


def _place(
  layout: layout_lib.Layout,
  nested: Sequence[str],
  devices: Sequence[jax.Device],
) -> np.ndarray:
  """The devices on axes that are ordered by what is sent, least first.

  As `jax.make_mesh`, which nests axes as they are named and refuses several
  slices: on CPUs and GPUs, several hosts. A dimension of a TPU's torus may be
  split over two axes; that is done only where an axis fits none as it is.

  Raises:
    ValueError: TPU slices do not hold as many devices each.
  """
  sizes = [layout.mesh[axis] for axis in nested]
  slices = collections.Counter(links.slice_index(device) for device in devices)
  if len(slices) == 1:
    return mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  if len({*slices.values()}) > 1 and devices[0].platform != "tpu":
    # Hosts of unequal size: one after the other.
    placed = sorted(devices, key=links.slice_index)
    return np.array(placed).reshape(sizes)
  if len({*slices.values()}) > 1:
    held = ", ".join(str(slices[index]) for index in sorted(slices))
    raise ValueError(
      f"layout '{layout.name}' ({layout_lib.listed(layout.mesh)}) cannot be "
      f"factored over the {len(slices)} slices of its {layout.devices} devices "
      f"({held}), expected as many in each. Set config.layout.mesh."
    )
  # Slices of one size divide the devices, so the axes always take them up.
  between, left = [], len(slices)
  for size in sizes:
    between.append(math.gcd(size, left))
    left //= between[-1]
  return mesh_utils.create_hybrid_device_mesh(
    [size // factor for size, factor in zip(sizes, between, strict=True)],
    between,
    devices,
    allow_split_physical_axes=True,
  )


def is_simulated(mesh: jax.sharding.Mesh) -> bool:
  """Whether the mesh has several devices that are all one CPU."""
  return mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
