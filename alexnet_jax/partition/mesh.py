"""Makes a mesh of devices from a layout's sizes, and finds its links.

The axis along which most is sent varies fastest over the devices, so it stays
inside a process, a host or a slice if it can. Which device computes what never
changes a number. The devices may be real ones, simulated ones, or those of a
TPU slice that is not attached, for which programs can be compiled but not run.
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

# More simulated devices than this are a typing error: each holds a copy of
# all that is not split.
MAX_SIMULATED = 64

# Simulated devices meet in collectives by blocking threads of one pool that
# their computations also need: with few threads for each they wait for ever
# (seen with 2 devices and 2 or 3 threads). Below this many cores for each
# device, a device computes on its own single thread instead; on 2 cores that
# is also faster.
CORES_PER_SHARED_POOL = 4
_OWN_THREAD = "--xla_cpu_multi_thread_eigen=false"

# Links between devices, slowest last. JAX knows the process and the slice of a
# device, not the host of a process; whoever starts the processes knows it.
NO_LINK = "-"
IN_PROCESS = "inside a process"
IN_HOST = "inside a host"  # between its processes
BETWEEN_PROCESSES = "between processes"  # if their hosts are not known
BETWEEN_HOSTS = "between hosts"
BETWEEN_SLICES = "between slices"
# Between processes of one slice.
PROCESS_LINKS = (IN_HOST, BETWEEN_PROCESSES, BETWEEN_HOSTS)
LINKS = (NO_LINK, IN_PROCESS, *PROCESS_LINKS, BETWEEN_SLICES)

# Variables by which a user chooses JAX's devices.
_CHOICES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_NUM_CPU_DEVICES")

TPU_GENERATIONS = ("v4", "v5e", "v5p", "v6e")
# libtpu asks the machine which slice it belongs to; here it belongs to none.
_NOT_ON_A_TPU = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  # Several commands at once: none opens anything that they would share.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def simulate_devices(count: int, *, only_cpu: bool) -> None:
  """Makes the CPU act as `count` devices; call it before JAX is first used.

  If the machine has an accelerator, that stays the default and this has no
  effect unless `only_cpu`. A count that the user has set for JAX itself
  (JAX_NUM_CPU_DEVICES or XLA_FLAGS) is kept, and so are the devices of a
  program that has already used JAX: `make_mesh` refuses them if they are too
  few.
  """
  flags = os.environ.get("XLA_FLAGS", "")
  few_cores = (os.cpu_count() or 1) < count * CORES_PER_SHARED_POOL
  if count > 1 and few_cores and _OWN_THREAD not in flags:
    # First, so that the user's flags win.
    os.environ["XLA_FLAGS"] = f"{_OWN_THREAD} {flags}"
  if not only_cpu and (_suggest_unsetting_count() or count > MAX_SIMULATED):
    return
  try:
    jax.config.update("jax_num_cpu_devices", count)
  except RuntimeError:  # JAX is in use already
    return
  if only_cpu:
    jax.config.update("jax_platforms", "cpu")


def _suggest_unsetting_count() -> str:
  """Returns the end of an error, ", or unset NAME", or "".

  NAME is where the user has set a number of CPU devices for JAX itself.
  """
  if "JAX_NUM_CPU_DEVICES" in os.environ:
    return ", or unset JAX_NUM_CPU_DEVICES"
  flag = "xla_force_host_platform_device_count"
  if flag in os.environ.get("XLA_FLAGS", ""):
    return f", or unset {flag} in XLA_FLAGS"
  return ""


def start_devices() -> list[jax.Device]:
  """Returns the devices that JAX has, which it starts when first asked.

  Raises:
    OSError: JAX cannot use them.
  """
  try:
    return jax.devices()
  # An assertion fails where a plug-in is not installed.
  except (RuntimeError, AssertionError) as error:
    chosen = [
      f"{name}={os.environ[name]}" for name in _CHOICES if os.environ.get(name)
    ]
    remedy = f" Correct or unset {', '.join(chosen)}." if chosen else ""
    raise OSError(
      "JAX cannot start its devices "
      f"({str(error).rstrip('.') or 'their plug-in is not installed'}).{remedy}"
    ) from error


def make_mesh(
  layout: layout_lib.Layout,
  devices: Sequence[jax.Device] | None = None,
  *,
  sent: Mapping[str, int] | None = None,
  field: str = "config.layout.mesh",
) -> jax.sharding.Mesh:
  """Puts the first devices of this run on the axes of a layout.

  Args:
    devices: to use; None: those that JAX has.
    sent: bytes that one device sends along each axis, from `plan.sent_along`,
      by which the axes are nested; None: in the layout's order.
    field: of the config, that sets the sizes; for errors.

  Returns:
    A mesh with explicit axes, so that arrays carry their sharding in their
    type. Its axes are in the layout's order, however they are nested.

  Raises:
    ValueError: there are fewer devices than the layout needs, or so many more
      that a process of this run would hold none; or TPU slices hold unequal
      numbers of them.
  """
  if devices is None:
    devices = start_devices()
  if len(devices) < layout.devices:
    raise ValueError(
      f"layout '{layout.name}' needs {layout.devices} devices "
      f"({layout_lib.format_mesh(layout.mesh)}), but there are {len(devices)} "
      f"({devices[0].device_kind}). "
      f"Set {field}, or simulate them on the CPU with "
      f"--simulate_devices={-(-layout.devices // jax.process_count())}"
      f"{_suggest_unsetting_count()}."
    )
  processes = {device.process_index for device in devices}
  used = {device.process_index for device in devices[: layout.devices]}
  if jax.process_count() > 1 and (idle := sorted(processes - used)):
    raise ValueError(
      f"layout '{layout.name}' needs {layout.devices} devices, and there are "
      f"{len(devices)} in {len(processes)} processes; process {idle[0]} would "
      "hold none. Set config.layout.mesh, or start fewer processes."
    )
  nested = nest_axes(layout, sent)
  placed = _place_devices(layout, nested, devices[: layout.devices])
  return jax.sharding.Mesh(
    placed.transpose([nested.index(axis) for axis in layout.mesh]),
    tuple(layout.mesh),
    axis_types=(jax.sharding.AxisType.Explicit,) * len(layout.mesh),
  )


def nest_axes(
  layout: layout_lib.Layout, sent: Mapping[str, int] | None
) -> tuple[str, ...]:
  """Returns the axes in their order over the devices, slowest first."""
  if sent is None:
    return tuple(layout.mesh)
  return tuple(sorted(layout.mesh, key=lambda axis: sent.get(axis, 0)))


def _place_devices(
  layout: layout_lib.Layout,
  nested: Sequence[str],
  devices: Sequence[jax.Device],
) -> np.ndarray:
  """Puts devices on axes that are ordered by what is sent, least first.

  Works like `jax.make_mesh`, which nests axes as they are named and refuses
  several slices: on CPUs and GPUs, several hosts. A dimension of a TPU's torus
  is split over two axes only if no axis fits it.

  Raises:
    ValueError: TPU slices do not hold as many devices each.
  """
  sizes = [layout.mesh[axis] for axis in nested]
  slices = collections.Counter(slice_index(device) for device in devices)
  if len(slices) == 1:
    return mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  if len({*slices.values()}) > 1:
    if devices[0].platform != "tpu":
      # Hosts of unequal size: one after another.
      return np.array(sorted(devices, key=slice_index)).reshape(sizes)
    held = ", ".join(str(slices[index]) for index in sorted(slices))
    raise ValueError(
      f"layout '{layout.name}' ({layout_lib.format_mesh(layout.mesh)}) cannot "
      f"be factored over the {len(slices)} slices of its {layout.devices} "
      f"devices ({held}), expected equal numbers. Set config.layout.mesh."
    )
  # Slices of one size divide the devices, so the sizes always have this factor.
  between = split_sizes(sizes, len(slices))
  return mesh_utils.create_hybrid_device_mesh(
    [size // factor for size, factor in zip(sizes, between, strict=True)],
    between,
    devices,
    allow_split_physical_axes=True,
  )


def split_sizes(sizes: Sequence[int], blocks: int) -> list[int]:
  """Splits nested axes over blocks of neighbors, such as slices or hosts.

  Args:
    sizes: of the axes, slowest first.
    blocks: their number; the product of the sizes is a multiple of it.

  Returns:
    Of each axis, how many blocks it runs over; inside one it has the rest.
  """
  between = []
  for size in sizes:
    between.append(math.gcd(size, blocks))
    blocks //= between[-1]
  return between


def is_simulated(mesh: jax.sharding.Mesh) -> bool:
  """Whether the mesh has several devices that one CPU simulates."""
  return mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"


def slice_index(device: jax.Device) -> int:
  """Returns the slice of a device; 0 if JAX has none.

  Links inside a slice are faster than between slices. On CPUs and GPUs a slice
  is a host, or hosts that NVLink joins.
  """
  return getattr(device, "slice_index", 0)


def find_links(
  mesh: jax.sharding.Mesh, hosts: Mapping[int, str] | None = None
) -> dict[str, str]:
  """Finds the slowest links that each axis of a mesh runs over.

  Args:
    mesh: of devices that need not be attached.
    hosts: process index -> name of its host, for every process with devices in
      the mesh; None: not known, and then only other slices are other hosts.

  Returns:
    Axis -> one of `LINKS`; `NO_LINK` for an axis of one device.
  """
  links = {}
  for index, axis in enumerate(mesh.axis_names):
    lines = np.moveaxis(mesh.devices, index, -1)
    lines = lines.reshape(-1, mesh.shape[axis])
    links[axis] = max(
      (_find_slowest(line, hosts) for line in lines), key=LINKS.index
    )
  return links


def _find_slowest(
  devices: Sequence[jax.Device], hosts: Mapping[int, str] | None
) -> str:
  """Finds the slowest links among the devices of one line of an axis."""
  processes = {device.process_index for device in devices}
  if len(devices) == 1:
    return NO_LINK
  crosses_slices = len({slice_index(device) for device in devices}) > 1
  if crosses_slices and devices[0].platform == "tpu":
    return BETWEEN_SLICES
  if len(processes) == 1:
    return IN_PROCESS
  if hosts is None:
    return BETWEEN_HOSTS if crosses_slices else BETWEEN_PROCESSES
  names = {hosts[process] for process in processes}
  return IN_HOST if len(names) == 1 else BETWEEN_HOSTS


def find_topology_devices(name: str) -> Sequence[jax.Device]:
  """Finds the devices of a TPU slice that is not attached.

  Needs the libtpu wheel that fits the installed jaxlib (requirements-tpu.txt),
  and no TPU.

  Args:
    name: generation and chips along each dimension, as `v5e:2x4` or
      `v5p:4x4x4`.

  Raises:
    ValueError: there is no such slice.
    ImportError: libtpu is not installed.
  """
  generation, _, chips = name.partition(":")
  dimensions = 3 if generation in ("v4", "v5p") else 2
  shape = r"x".join([r"[1-9]\d*"] * dimensions)
  if generation not in TPU_GENERATIONS or not re.fullmatch(shape, chips):
    raise ValueError(
      f"unknown topology {name!r}, expected a generation of "
      f"{', '.join(TPU_GENERATIONS)} and its chips, as v5e:2x4 or v5p:2x2x2. "
      "Set --topology."
    )
  if importlib.util.find_spec("libtpu") is None:
    raise ImportError(
      f"compiling for {name} needs the libtpu wheel, which is not installed. "
      "Run: python -m pip install -r requirements-tpu.txt"
    )
  for variable, value in _NOT_ON_A_TPU.items():
    os.environ.setdefault(variable, value)
  # A chip of v4 has two cores, which JAX uses as one device.
  options = {"chip_config_name": "megacore"} if generation == "v4" else {}
  try:
    return topologies.get_topology_desc(
      platform="tpu", topology_name=name, **options
    ).devices
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
      f"libtpu knows no slice {name!r}: {error}. Set --topology."
    ) from error
