"""Finds what is wrong with the processes of a run, from the facts of each.

These functions only compute, so every process finds the same problems: a line
for each, with the process, what it has, and what to change.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from alexnet_jax.distributed import group as group_lib
from alexnet_jax.distributed import machine
from alexnet_jax.partition import mesh

Facts = Sequence[Mapping[str, Any]]

# The entries of `machine.find_versions` that may differ between hosts.
_MAY_DIFFER = ("python", "nvidia driver")


def merge_equal_lines(
  group: group_lib.Group,
  lines: Sequence[str | None],
  *,
  name_all: bool = True,
) -> list[str]:
  """Merges equal lines of several processes into one that names them.

  Args:
    group: the processes.
    lines: of each process; None: it has none.
    name_all: whether to say "every process" where that is so.
  """
  merged = []
  for line in dict.fromkeys(line for line in lines if line is not None):
    indices = [index for index, other in enumerate(lines) if other == line]
    is_named = name_all or len(indices) < group.count
    prefix = name_processes(group, indices) if is_named else ""
    merged.append(f"{prefix}{line}")
  return merged


def name_processes(group: group_lib.Group, indices: Sequence[int]) -> str:
  """Returns the beginning of a line about processes; "" for a single one."""
  if group.count == 1:
    return ""
  if len(indices) == group.count:
    return "every process: "
  if len(indices) == 1:
    return f"{group.label(indices[0])}: "
  return f"processes {list_numbers(indices)} of {group.count}: "


def list_numbers(indices: Sequence[int]) -> str:
  """Formats numbers, with ranges: `0, 2-5`."""
  runs: list[list[int]] = []
  for index in sorted(indices):
    if runs and index == runs[-1][-1] + 1:
      runs[-1] = [runs[-1][0], index]
    else:
      runs.append([index])
  return ", ".join("-".join(map(str, run)) for run in runs)


def find_differing_versions(
  group: group_lib.Group, versions: Facts
) -> list[str]:
  """Finds packages with other versions than in process 0."""
  first = versions[0]
  lines = []
  for own in versions:
    differing = "; ".join(
      f"{name} {own.get(name, 'not installed')}, process 0 has "
      f"{first.get(name, 'none')}"
      for name in sorted(first.keys() | own.keys())
      if name not in _MAY_DIFFER and own.get(name) != first.get(name)
    )
    lines.append(
      f"{differing}. Install the same versions for all processes."
      if differing
      else None
    )
  return merge_equal_lines(group, lines)


def find_differing_devices(
  group: group_lib.Group, processes: Facts
) -> list[str]:
  """Finds processes with other devices than process 0."""
  kind = processes[0]["kind"]
  return merge_equal_lines(
    group,
    [
      None
      if own["kind"] == kind
      else f"its devices are {own['kind']}, those of process 0 {kind}. Start "
      "processes on hosts with the same devices."
      for own in processes
    ],
  )


def find_unreachable_hosts(
  group: group_lib.Group, processes: Facts
) -> list[str]:
  """Finds hosts whose name does not resolve to an address that others reach.

  Collectives of CPUs connect to the address of the host's name; those of
  accelerators choose a network interface themselves.
  """
  machines = {(own["host"], own["machine"]) for own in processes}
  if processes[0]["platform"] != "cpu" or len(machines) == 1:
    return []
  lines = []
  for own in processes:
    host, address = own["host"], own["address"]
    problem = None
    if not address:
      problem = "has no address"
    elif ipaddress.ip_address(address).is_loopback:
      problem = f"resolves to {address}, which other hosts cannot reach"
    lines.append(
      problem
      and f"its host name {host!r} {problem}. Give {host!r} the address of its "
      f"network interface in /etc/hosts of that host."
    )
  return merge_equal_lines(group, lines)


def find_memory_shortage(
  group: group_lib.Group,
  processes: Facts,
  devices: Sequence[Sequence[Mapping[str, Any]]],
  held: int,
) -> list[str]:
  """Finds devices and hosts that cannot hold the state, even without a step.

  Args:
    group: the processes.
    processes: with `host`, `memory_free`, `platform`.
    devices: of the mesh, for each process: `id`, `limit`; bytes, or None.
    held: bytes of state and batches on one device.
  """
  remedy = "Set config.layout.mesh to split more, or a lower config.batch_size."
  lines = []
  for local in devices:
    small = [
      device
      for device in local
      if device["limit"] is not None and device["limit"] < held
    ]
    lines.append(
      f"device {list_numbers([device['id'] for device in small])} may use "
      f"{machine.format_bytes(min(device['limit'] for device in small))}, but "
      f"parameters, optimizer and batches take "
      f"{machine.format_bytes(held)} of it. {remedy}"
      if small
      else None
    )
  problems = merge_equal_lines(group, lines)
  if processes[0]["platform"] != "cpu":
    return problems
  for host in dict.fromkeys(group.hosts):
    on_host = [index for index, name in enumerate(group.hosts) if name == host]
    count = sum(len(devices[index]) for index in on_host)
    free = [processes[index]["memory_free"] for index in on_host]
    if None not in free and count * held > min(free):
      problems.append(
        f"host {host}: {machine.format_bytes(min(free))} of memory are free, "
        f"but parameters, optimizer and batches of its {count} devices take "
        f"{machine.format_bytes(count * held)}. {remedy}"
      )
  return problems


def find_failed_links(
  group: group_lib.Group,
  axis: str,
  link: str,
  errors: Sequence[str | None],
) -> list[str]:
  """Returns a line for each error of sums along a mesh axis.

  Args:
    group: the processes.
    axis: of the mesh.
    link: one of `mesh.LINKS`.
    errors: of each process, as `a sum of 4 bytes did not end within 30 s`.
  """
  remedy = (
    "Let the hosts reach each other on all ports; GPUs use the interface that "
    "NCCL_SOCKET_IFNAME names, CPUs that of the host's name"
    if link in (mesh.BETWEEN_HOSTS, mesh.BETWEEN_SLICES)
    else "On GPUs, NCCL_DEBUG=INFO says more and NCCL_P2P_DISABLE=1 avoids "
    "direct links"
  )
  remedy += "; --timeout_seconds waits longer."
  return [
    f"axis {axis!r}, {link}: {line}. {remedy}"
    for line in merge_equal_lines(group, errors)
  ]
