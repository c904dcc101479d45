"""Which process of how many this is, from what its surroundings say.

Launchers say it in environment variables. JAX reads those of Slurm, Open MPI 4,
Kubernetes and TPU slices; here are those that it does not read: the number and
the count that operators set under JAX's own names, and Open MPI 5 and PMIx.
"""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Mapping

from jax._src import clusters  # there is no public way to ask

MODES = ("auto", "off", "env")

ADDRESS = "JAX_COORDINATOR_ADDRESS"
COUNTS = ("JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE")
INDICES = ("JAX_PROCESS_ID", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")

# Set by Open MPI 4 only.
_OPEN_MPI_4 = "OMPI_MCA_orte_hnp_uri"

# Which accelerators a launcher shows to a process, by their makers.
_VISIBLE = (
  *("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
)

# As Open MPI 5 names a job, after the host and the process of its launcher.
_NAMESPACE = re.compile(r"prterun-(?P<host>.+)-(?P<pid>\d+)@\d+")
# Ports for jobs that name none, as JAX chooses them for Slurm.
_FIRST_PORT, _PORTS = 61440, 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
  """A process among those of a run.

  Attributes:
    index: of this process, from 0 on.
    count: of all processes.
    address: host:port at which process 0 can be reached; None with one process.
    local_devices: the devices of this host that the process is to use; None:
      all that it sees.
  """

  index: int = 0
  count: int = 1
  address: str | None = None
  local_devices: tuple[int, ...] | None = None


def find(
  mode: str,
  environ: Mapping[str, str] = os.environ,
  *,
  timeout_seconds: float = 25,
) -> Place:
  """Finds the place of this process.

  Args:
    mode: `off`: it is the only one. `env`: by JAX_COORDINATOR_ADDRESS,
      JAX_NUM_PROCESSES and JAX_PROCESS_ID, or the variables of Open MPI 5 and
      PMIx. `auto`: as `env` where JAX's variables or those of Open MPI 5 are
      set; else what JAX detects; else it is the only one.
    environ: the environment.
    timeout_seconds: for a coordinator whose name is not known yet.

  Raises:
    ValueError: variables are missing, wrong, or contradict each other.
  """
  if mode == "off":
    return Place()
  # JAX 0.10 does not see Open MPI 5, and 0.12 wants the package mpi4py for it.
  is_open_mpi_5 = environ.get("OMPI_COMM_WORLD_SIZE") and _OPEN_MPI_4 not in (
    environ
  )
  if (
    mode == "env"
    or "JAX_NUM_PROCESSES" in environ
    or "JAX_PROCESS_ID" in environ
    or is_open_mpi_5
  ):
    return _from_environment(environ)
  place = _detect(environ, timeout_seconds)
  if place is not None:
    return place
  if ADDRESS in environ:
    raise ValueError(
      f"{ADDRESS} is {environ[ADDRESS]!r}, but neither JAX_NUM_PROCESSES nor "
      "JAX_PROCESS_ID is set, and no cluster is found that would say them. "
      "Set them, or --distributed=off."
    )
  return Place()


def _from_environment(environ: Mapping[str, str]) -> Place:
  count = _read(environ, COUNTS, "how many processes there are", least=1)
  index = _read(environ, INDICES, "which process this is", least=0)
  if index >= count:
    name = _set(environ, INDICES)[0]
    raise ValueError(
      f"{name} is {index}, but there are {count} processes "
      f"({_set(environ, COUNTS)[0]}), expected 0 to {count - 1}. Set {name}."
    )
  if count == 1:
    return Place()
  address = environ.get(ADDRESS) or _address_of_job(environ)
  if address is None:
    raise ValueError(
      f"{ADDRESS} is not set, expected host:port of process 0, the same in "
      f"all {count} processes. Set {ADDRESS}."
    )
  return Place(
    index=index,
    count=count,
    address=check_address(address, environ.get("JAX_COORDINATOR_PORT")),
    local_devices=_choose_devices(
      environ, _optional(environ, "OMPI_COMM_WORLD_LOCAL_RANK")
    ),
  )


def check_address(address: str, port: str | None = None) -> str:
  """Refuses what is no address; adds the port where it has none.

  Raises:
    ValueError: it is not host:port.
  """
  host, _, end = address.rpartition(":")
  if ":" in host and not host.endswith("]"):  # a bare IPv6 address
    host, end = f"[{address}]", port or ""
  elif not host and port:
    host, end = address, port
  if not host or not end.isdecimal() or not 0 < int(end) < 2**16:
    raise ValueError(
      f"{ADDRESS} is {address!r}, expected host:port with a port of 1 to "
      f"65535. Set {ADDRESS}."
    )
  return f"{host}:{end}"


def _detect(environ: Mapping[str, str], timeout_seconds: float) -> Place | None:
  """What JAX finds; None where it finds no cluster, or one process."""
  known = environ.get(ADDRESS)
  try:
    with warnings.catch_warnings():
      # In Kubernetes, of a package that nobody has asked for.
      warnings.simplefilter("ignore")
      address, count, index, local = (
        clusters.ClusterEnv.auto_detect_unset_distributed_params(
          known, None, None, None, None, round(timeout_seconds)
        )
      )
  except Exception as error:  # of many libraries, all about the cluster
    raise ValueError(
      f"a cluster is found, but not the place of this process in it "
      f"({' '.join(str(error).split())}). Set {ADDRESS}, JAX_NUM_PROCESSES and "
      "JAX_PROCESS_ID, or --distributed=off."
    ) from error
  if count is None or index is None or address is None:
    return None
  if count == 1:
    return Place()
  return Place(
    index=index,
    count=count,
    address=check_address(address, environ.get("JAX_COORDINATOR_PORT")),
    local_devices=_choose_devices(environ, local[0] if local else None),
  )


def _choose_devices(
  environ: Mapping[str, str], local_index: int | None
) -> tuple[int, ...] | None:
  """The accelerator of a process that shares its host with others.

  A process that has the host to itself takes all; so does one to which the
  launcher shows a single accelerator.
  """
  if given := environ.get("JAX_LOCAL_DEVICE_IDS"):
    numbers = given.split(",")
    if not all(number.isdecimal() for number in numbers):
      raise ValueError(
        f"JAX_LOCAL_DEVICE_IDS is {given!r}, expected numbers of devices as "
        "0,1. Set JAX_LOCAL_DEVICE_IDS."
      )
    return tuple(int(number) for number in numbers)
  visible = [environ[name] for name in _VISIBLE if name in environ]
  tasks = environ.get("SLURM_STEP_TASKS_PER_NODE")
  alone = (
    environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    or (tasks is not None and re.fullmatch(r"1(\(x\d+\))?", tasks) is not None)
    or any("," not in devices for devices in visible)
  )
  return None if alone or local_index is None else (local_index,)


def _read(
  environ: Mapping[str, str], names: tuple[str, ...], what: str, *, least: int
) -> int:
  """The number that the variables of these names agree on."""
  found = {name: environ[name] for name in _set(environ, names)}
  if not found:
    raise ValueError(
      f"{names[0]} is not set, expected {what}: a whole number of {least} or "
      f"more. Set it, or --distributed=auto or off."
    )
  for name, value in found.items():
    if not value.isdecimal() or int(value) < least:
      raise ValueError(
        f"{name} is {value!r}, expected {what}: a whole number of {least} or "
        f"more. Set {name}."
      )
  if len({int(value) for value in found.values()}) > 1:
    said = " and ".join(f"{name}={value}" for name, value in found.items())
    raise ValueError(
      f"{said} contradict each other about {what}. Unset one of them."
    )
  return int(next(iter(found.values())))


def _set(environ: Mapping[str, str], names: tuple[str, ...]) -> list[str]:
  return [name for name in names if environ.get(name)]


def _optional(environ: Mapping[str, str], name: str) -> int | None:
  return int(environ[name]) if environ.get(name, "").isdecimal() else None


def _address_of_job(environ: Mapping[str, str]) -> str | None:
  """Of the host that Open MPI 5 was started on, which runs process 0."""
  job = _NAMESPACE.fullmatch(environ.get("PMIX_NAMESPACE", ""))
  if job is None:
    return None
  port = environ.get("JAX_COORDINATOR_PORT")
  return f"{job['host']}:{port or _FIRST_PORT + int(job['pid']) % _PORTS}"
