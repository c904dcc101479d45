"""Finds which process of how many this is, from the launcher's variables.

JAX reads the environment variables of Slurm, Open MPI 4, Kubernetes and TPU
slices. This module adds those that it does not read: number and count under
JAX's own names, which users set, and those of Open MPI 5 and PMIx.
"""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Mapping

from jax._src import clusters  # there is no public function

MODES = ("auto", "off", "env")

ADDRESS = "JAX_COORDINATOR_ADDRESS"
COUNTS = ("JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE")
INDICES = ("JAX_PROCESS_ID", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")

# Set by Open MPI 4 only.
_OPEN_MPI_4 = "OMPI_MCA_orte_hnp_uri"

# The accelerators that a launcher shows to a process.
_VISIBLE = (
  "CUDA_VISIBLE_DEVICES",
  "ROCR_VISIBLE_DEVICES",
  "HIP_VISIBLE_DEVICES",
)

# Open MPI 5 names a job after the host and the process of its launcher.
_NAMESPACE = re.compile(r"prterun-(?P<host>.+)-(?P<pid>\d+)@\d+")
# Ports for jobs that name none, as JAX chooses them for Slurm.
_FIRST_PORT, _PORTS = 61440, 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process:
  """One of the processes of a run.

  Attributes:
    index: of this process, from 0 on.
    count: of all processes.
    address: host:port of process 0; None if it is the only process.
    local_devices: the devices of this host for this process; None: all that it
      sees.
  """

  index: int = 0
  count: int = 1
  address: str | None = None
  local_devices: tuple[int, ...] | None = None


def find_process(
  mode: str,
  environ: Mapping[str, str] = os.environ,
  *,
  timeout_seconds: float = 25,
) -> Process:
  """Finds which process of a run this is.

  Args:
    mode: `off`: the only one. `env`: by JAX_COORDINATOR_ADDRESS,
      JAX_NUM_PROCESSES and JAX_PROCESS_ID, or the variables of Open MPI 5 and
      PMIx. `auto`: as `env` where JAX's variables or those of Open MPI 5 are
      set; else what JAX detects; else the only one.
    environ: the environment.
    timeout_seconds: for a coordinator whose name does not resolve yet.

  Raises:
    ValueError: variables are missing, wrong, or contradict each other.
  """
  if mode == "off":
    return Process()
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
  process = _detect(environ, timeout_seconds)
  if process is not None:
    return process
  if ADDRESS in environ:
    raise ValueError(
      f"{ADDRESS} is {environ[ADDRESS]!r}, but neither JAX_NUM_PROCESSES nor "
      "JAX_PROCESS_ID is set, and no cluster is found that has them. "
      "Set them, or --distributed=off."
    )
  return Process()


def _from_environment(environ: Mapping[str, str]) -> Process:
  count = _read(environ, COUNTS, "how many processes there are", least=1)
  index = _read(environ, INDICES, "which process this is", least=0)
  if index >= count:
    name = _set(environ, INDICES)[0]
    raise ValueError(
      f"{name} is {index}, but there are {count} processes "
      f"({_set(environ, COUNTS)[0]}), expected 0 to {count - 1}. Set {name}."
    )
  address = environ.get(ADDRESS) or _find_open_mpi_address(environ)
  if count > 1 and address is None:
    raise ValueError(
      f"{ADDRESS} is not set, expected host:port of process 0, the same in "
      f"all {count} processes. Set {ADDRESS}."
    )
  local = environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "")
  local_index = int(local) if local.isdecimal() else None
  return _make_process(environ, index, count, address, local_index)


def _make_process(
  environ: Mapping[str, str],
  index: int,
  count: int,
  address: str,
  local_index: int | None,
) -> Process:
  if count == 1:
    return Process()
  return Process(
    index=index,
    count=count,
    address=check_address(address, environ.get("JAX_COORDINATOR_PORT")),
    local_devices=_choose_devices(environ, local_index),
  )


def check_address(address: str, port: str | None = None) -> str:
  """Returns an address with a port, which it may lack.

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


def _detect(
  environ: Mapping[str, str], timeout_seconds: float
) -> Process | None:
  """Returns what JAX finds; None where it finds no cluster."""
  known = environ.get(ADDRESS)
  try:
    with warnings.catch_warnings():
      # In Kubernetes JAX warns that an optional package is missing.
      warnings.simplefilter("ignore")
      address, count, index, local = (
        clusters.ClusterEnv.auto_detect_unset_distributed_params(
          known, None, None, None, None, round(timeout_seconds)
        )
      )
  except Exception as error:  # of many libraries, all about the cluster
    raise ValueError(
      f"a cluster is found, but not the number of this process in it "
      f"({' '.join(str(error).split())}). Set {ADDRESS}, JAX_NUM_PROCESSES and "
      "JAX_PROCESS_ID, or --distributed=off."
    ) from error
  if count is None or index is None or address is None:
    return None
  local_index = local[0] if local else None
  return _make_process(environ, index, count, address, local_index)


def _choose_devices(
  environ: Mapping[str, str], local_index: int | None
) -> tuple[int, ...] | None:
  """Returns the accelerator of a process that shares its host with others.

  None, which is all that it sees, for a process that has its host to itself or
  to which the launcher shows a single accelerator.
  """
  if given := environ.get("JAX_LOCAL_DEVICE_IDS"):
    numbers = given.split(",")
    if not all(number.isdecimal() for number in numbers):
      raise ValueError(
        f"JAX_LOCAL_DEVICE_IDS is {given!r}, expected device numbers as 0,1. "
        "Set JAX_LOCAL_DEVICE_IDS."
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
  """Returns the number that the variables of these names agree on."""
  given = {name: environ[name] for name in _set(environ, names)}
  for name, value in given.items() or [(names[0], None)]:
    if value is None or not value.isdecimal() or int(value) < least:
      problem = "not set" if value is None else repr(value)
      raise ValueError(
        f"{name} is {problem}, expected {what}, an integer >= {least}. Set "
        f"{name}, or --distributed=off to start this process alone."
      )
  if len({int(value) for value in given.values()}) > 1:
    values = " and ".join(f"{name}={value}" for name, value in given.items())
    raise ValueError(
      f"{values} contradict each other about {what}. Unset one of them."
    )
  return int(next(iter(given.values())))


def _set(environ: Mapping[str, str], names: tuple[str, ...]) -> list[str]:
  return [name for name in names if environ.get(name)]


def _find_open_mpi_address(environ: Mapping[str, str]) -> str | None:
  """Returns an address on the host that Open MPI 5 was started on."""
  job = _NAMESPACE.fullmatch(environ.get("PMIX_NAMESPACE", ""))
  if job is None:
    return None
  port = environ.get("JAX_COORDINATOR_PORT")
  return f"{job['host']}:{port or _FIRST_PORT + int(job['pid']) % _PORTS}"
