"""Over which links of the machine each axis of a mesh runs.

By what JAX says of a device: its process and its slice. Which host a process
runs on JAX does not say; who starts the processes knows.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

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
