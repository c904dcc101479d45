"""A mesh of real devices, or of simulated ones, from a layout's sizes."""

import os
from collections.abc import Sequence

import jax

from alexnet_jax.partition import layout as layout_lib

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
  layout: layout_lib.Layout, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """Puts the first devices of this run on the axes of a layout.

  Args:
    layout: with the sizes of the axes.
    devices: to put there; None: those that JAX has.

  Returns:
    A mesh with explicit axes, so that arrays carry their split in their type.

  Raises:
    ValueError: there are fewer devices than the layout needs.
  """
  if devices is None:
    devices = jax.devices()
  if len(devices) < layout.devices:
    sizes = " x ".join(f"{axis}={size}" for axis, size in layout.mesh.items())
    raise ValueError(
      f"layout '{layout.name}' needs {layout.devices} devices ({sizes}), but "
      f"there are {len(devices)} ({devices[0].device_kind}). "
      f"Set config.layout.mesh, or simulate them on the CPU with "
      f"--simulate_devices={layout.devices}."
    )
  return jax.make_mesh(
    tuple(layout.mesh.values()),
    tuple(layout.mesh),
    devices=devices[: layout.devices],
  )


def is_simulated(mesh: jax.sharding.Mesh) -> bool:
  """Whether the mesh has several devices that are all one CPU."""
  return mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
