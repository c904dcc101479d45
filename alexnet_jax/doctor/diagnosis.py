"""What is wrong with the processes of a run, from what each says of itself.

Pure: every process comes to the same list of problems, a line each, with the
process, what it has, and what to change.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from alexnet_jax.distributed import group as group_lib
from alexnet_jax.distributed import machine
from alexnet_jax.partition import mesh

Facts = Sequence[Mapping[str, Any]]

# Of what `machine.find_versions` finds, what may differ between hosts.
_MAY_DIFFER = ("python", "nvidia driver")


def join_equal(
  group: group_lib.Group,
  said: Sequence[str | None],
  *,
  name_all: bool = True,
) -> list[str]:
  """A line for all processes that say the same.

  Args:
    group: the processes.
    said: by each process; None: nothing.
    name_all: whether to say so where it is every process.
  """
  lines = []
  for text in dict.fromkeys(text for text in said if text is not None):
    who = [index for index, other in enumerate(said) if other == text]
    is_named = name_all or len(who) < group.count
    lines.append(f"{name_processes(group, who) if is_named else ''}{text}")
  return lines


def name_processes(group: group_lib.Group, indices: Sequence[int]) -> str:
  """The beginning of a line about processes; "" where there is only one."""
  if group.count == 1:
    return ""
  if len(indices) == group.count:
    return "every process: "
  if len(indices) == 1:
    return f"{group.label(indices[0])}: "
  return f"processes {list_numbers(indices)} of {group.count}: "


def list_numbers(indices: Sequence[int]) -> str:
  """Numbers in words, runs of them in short: `0, 2-5`."""
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
  """Packages that processes have in another version than process 0."""
  first = versions[0]
  said = []
  for there in versions:
    others = [
      f"{name} {there.get(name, 'not installed')}, process 0 has "
      f"{first.get(name, 'none')}"
      for name in sorted(first.keys() | there.keys())
      if name not in _MAY_DIFFER and there.get(name) != first.get(name)
    ]
    said.append(
      f"{'; '.join(others)}. Install the same versions for all processes."
      if others
      else None
    )
  return join_equal(group, said)


def find_unlike_devices(group: group_lib.Group, processes: Facts) -> list[str]:
  """Processes with other devices than process 0: no program is for both."""
  kind = processes[0]["kind"]
  return join_equal(
    group,
    [
      None
      if there["kind"] == kind
      else f"its devices are {there['kind']}, those of process 0 {kind}. Start "
      "processes on hosts with the same devices."
      for there in processes
    ],
  )


def find_unreachable(group: group_lib.Group, processes: Facts) -> list[str]:
  """Hosts whose own name leads other hosts nowhere.

  Collectives between CPUs go to the address of the host's name; those of
  accelerators choose a network interface themselves.
  """
  machines = {(there["host"], there["machine"]) for there in processes}
  if processes[0]["platform"] != "cpu" or len(machines) == 1:
    return []
  said = []
  for there in processes:
    host, address = there["host"], there["address"]
    problem = None
    if not address:
      problem = "has no address"
    elif ipaddress.ip_address(address).is_loopback:
      problem = f"resolves to {address} there, where other hosts cannot reach"
    said.append(
      problem
      and f"its host name {host!r} {problem} it. Give {host!r} the address of "
      f"its network interface in /etc/hosts of that host."
    )
  return join_equal(group, said)


def find_lack_of_memory(
  group: group_lib.Group,
  processes: Facts,
  devices: Sequence[Sequence[Mapping[str, Any]]],
  held: int,
) -> list[str]:
  """Where a run cannot fit, whatever a step needs besides.

  Args:
    group: the processes.
    processes: with `host`, `memory_free`, `platform`.
    devices: of the mesh, of each process: `id`, `limit`; bytes, or None.
    held: bytes that state and batches take on one device.
  """
  remedy = "Set config.layout.mesh to split more, or a lower config.batch_size."
  said = []
  for of_process in devices:
    small = [
      device
      for device in of_process
      if device["limit"] is not None and device["limit"] < held
    ]
    said.append(
      f"device {list_numbers([device['id'] for device in small])} may use "
      f"{machine.to_size(min(device['limit'] for device in small))}, but "
      f"parameters, optimizer and batches take {machine.to_size(held)} of "
      f"it. {remedy}"
      if small
      else None
    )
  lines = join_equal(group, said)
  if processes[0]["platform"] != "cpu":
    return lines
  for host in dict.fromkeys(group.hosts):
    here = [index for index, name in enumerate(group.hosts) if name == host]
    count = sum(len(devices[index]) for index in here)
    free = [processes[index]["memory_free"] for index in here]
    if None not in free and count * held > min(free):
      lines.append(
        f"host {host}: {machine.to_size(min(free))} of memory are free, but "
        f"parameters, optimizer and batches of its {count} devices take "
        f"{machine.to_size(count * held)}. {remedy}"
      )
  return lines


def find_silent_links(
  group: group_lib.Group,
  axis: str,
  over: str,
  said: Sequence[str | None],
) -> list[str]:
  """What became of sums along an axis that did not end well.

  Args:
    group: the processes.
    axis: of the mesh.
    over: of `mesh.LINKS`.
    said: by each process, as `a sum of 4 bytes did not end within 30 s`.
  """
  remedy = (
    "Let the hosts reach each other on all ports; GPUs use the interface that "
    "NCCL_SOCKET_IFNAME names, CPUs that of the host's name"
    if over in (mesh.BETWEEN_HOSTS, mesh.BETWEEN_SLICES)
    else "On GPUs, NCCL_DEBUG=INFO says more and NCCL_P2P_DISABLE=1 avoids "
    "direct links"
  )
  remedy += "; --timeout_seconds waits longer."
  return [
    f"axis {axis!r}, {over}: {line}. {remedy}"
    for line in join_equal(group, said)
  ]
