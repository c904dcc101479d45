"""A mesh of real devices, or of simulated ones, from a layout's sizes.

The axis along which most is sent varies fastest over the devices, so it lies
inside a process, a host, a slice, before it crosses one. Which device computes
what never changes a number.
"""

import collections
import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils, topologies

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
  slices = collections.Counter(slice_index(device) for device in devices)
  if len(slices) == 1:
    return mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  if len({*slices.values()}) > 1 and devices[0].platform != "tpu":
    # Hosts of unequal size: one after the other.
    placed = sorted(devices, key=slice_index)
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


# Over which links of the machine each axis of a mesh runs.
#
# By what JAX says of a device: its process and its slice. Which host a process
# runs on JAX does not say; who starts the processes knows.

NONE = "-"
IN_PROCESS = "inside a process"
IN_HOST = "inside a host"
BETWEEN_PROCESSES = "between processes"
BETWEEN_HOSTS = "between hosts"
BETWEEN_SLICES = "between slices"

# Between processes of one slice; the second where their hosts are not known.
OF_PROCESSES = (IN_HOST, BETWEEN_PROCESSES, BETWEEN_HOSTS)
# Slowest last.
LINKS = (NONE, IN_PROCESS, *OF_PROCESSES, BETWEEN_SLICES)


def slice_index(device: jax.Device) -> int:
  """The slice of a device; 0 where JAX has none.

  Devices of one slice are joined by faster links than those of several. On
  CPUs and GPUs a slice is a host, or hosts that NVLink joins.
  """
  return getattr(device, "slice_index", 0)


def find_links(
  mesh: jax.sharding.Mesh, hosts: Mapping[int, str] | None = None
) -> dict[str, str]:
  """The slowest links that each axis of a mesh runs over.

  Args:
    mesh: of devices that need not be there.
    hosts: process index -> name of its host, of every process that has devices
      in the mesh; None: not known, and then only other slices are other hosts.

  Returns:
    Axis -> one of `LINKS`. `IN_HOST` is between the processes of one host.
    An axis of one device has `NONE`.
  """
  found = {}
  for index, axis in enumerate(mesh.axis_names):
    lines = np.moveaxis(mesh.devices, index, -1)
    lines = lines.reshape(-1, mesh.shape[axis])
    found[axis] = max(
      (_find_slowest(line, hosts) for line in lines), key=LINKS.index
    )
  return found


def _find_slowest(
  devices: Sequence[jax.Device], hosts: Mapping[int, str] | None
) -> str:
  """The slowest links among the devices of one line of an axis."""
  processes = {device.process_index for device in devices}
  if len(devices) == 1:
    return NONE
  crosses_slices = len({slice_index(device) for device in devices}) > 1
  if crosses_slices and devices[0].platform == "tpu":
    return BETWEEN_SLICES
  if len(processes) == 1:
    return IN_PROCESS
  if hosts is None:
    return BETWEEN_HOSTS if crosses_slices else BETWEEN_PROCESSES
  names = {hosts[process] for process in processes}
  return IN_HOST if len(names) == 1 else BETWEEN_HOSTS


# The devices of a TPU slice that is not there, to compile for.
#
# Programs can be compiled for them, not run. Needs the libtpu wheel that fits
# the installed jaxlib (requirements-tpu.txt), and no TPU.

GENERATIONS = ("v4", "v5e", "v5p", "v6e")

# libtpu asks the machine that it runs on which slice it belongs to; here it
# belongs to none.
_NOT_ON_A_TPU = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  # Several commands at once: nothing is opened that they would share.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def find_devices(name: str) -> Sequence[jax.Device]:
  """The devices of a slice.

  Args:
    name: generation and chips along each dimension, as `v5e:2x4` or
      `v5p:4x4x4`.

  Returns:
    The devices; they compile and do not run.

  Raises:
    ValueError: there is no such slice.
    ImportError: libtpu is not installed.
  """
  generation, _, chips = name.partition(":")
  dimensions = 3 if generation in ("v4", "v5p") else 2
  shape = r"x".join([r"[1-9]\d*"] * dimensions)
  if generation not in GENERATIONS or not re.fullmatch(shape, chips):
    raise ValueError(
      f"unknown topology {name!r}, expected a generation of "
      f"{', '.join(GENERATIONS)} and its chips, as v5e:2x4 or v5p:2x2x2. "
      "Set --topology."
    )
  if importlib.util.find_spec("libtpu") is None:
    raise ImportError(
      f"compiling for {name} needs the libtpu wheel, which is not installed. "
      "Run: python -m pip install -r requirements-tpu.txt"
    )
  for variable, value in _NOT_ON_A_TPU.items():
    os.environ.setdefault(variable, value)
  # A chip of v4 is two cores, which JAX uses as one device.
  options = {"chip_config_name": "megacore"} if generation == "v4" else {}
  try:
    return topologies.get_topology_desc(
      platform="tpu", topology_name=name, **options
    ).devices
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
      f"libtpu knows no slice {name!r}: {error}. Set --topology."
    ) from error
