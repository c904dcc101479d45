"""Finds which process of how many this is, from the launcher's variables.

JAX reads the environment variables of Slurm, Open MPI 4, Kubernetes and TPU
slices. This module adds those that it does not read: number and count under
JAX's own names, which users set, and those of `LAUNCHERS`. Where a launcher has
started one of several processes but does not say which, or where process 0 is,
the process ends with a line: each would train the same run alone.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launcher:
  """The variables in which a launcher numbers its processes.

  Attributes:
    name: for messages.
    count: the variable with the number of processes.
    index: that with the number of this process.
    local_index: those with its number on its host; the first that is set.
    local_count: those with the number of processes on its host, likewise.
    num_hosts: that with the number of hosts; None if the launcher has none.
    address: that with the host of process 0; None if the launcher has none.
    port: that with a port of process 0.
  """

  name: str
  count: str
  index: str
  local_index: tuple[str, ...]
  local_count: tuple[str, ...] = ()
  num_hosts: str | None = None
  address: str | None = None
  port: str | None = None


TORCHRUN = Launcher(
  name="torchrun",
  count="WORLD_SIZE",
  index="RANK",
  local_index=("LOCAL_RANK",),
  local_count=("LOCAL_WORLD_SIZE",),
  address="MASTER_ADDR",
  port="MASTER_PORT",
)
LAUNCHERS = (
  TORCHRUN,
  Launcher(
    name="Flux",
    count="FLUX_JOB_SIZE",
    index="FLUX_TASK_RANK",
    local_index=("FLUX_TASK_LOCAL_ID",),
    num_hosts="FLUX_JOB_NNODES",
  ),
  Launcher(
    name="MPICH, Intel MPI or PALS",
    count="PMI_SIZE",
    index="PMI_RANK",
    local_index=("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID"),
    local_count=("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE", "PALS_LOCAL_SIZE"),
  ),
  Launcher(
    name="MVAPICH2",
    count="MV2_COMM_WORLD_SIZE",
    index="MV2_COMM_WORLD_RANK",
    local_index=("MV2_COMM_WORLD_LOCAL_RANK",),
    local_count=("MV2_COMM_WORLD_LOCAL_SIZE",),
  ),
  Launcher(
    name="jsrun of LSF",
    count="JSM_NAMESPACE_SIZE",
    index="JSM_NAMESPACE_RANK",
    local_index=("JSM_NAMESPACE_LOCAL_RANK",),
    local_count=("JSM_NAMESPACE_LOCAL_SIZE",),
  ),
)
# Only the processes of torchrun have it; other launchers are around it.
_TORCHRUN_ID = "TORCHELASTIC_RUN_ID"
# "True" where torchrun itself listens at MASTER_PORT.
_TORCHRUN_LISTENS = "TORCHELASTIC_USE_AGENT_STORE"

# One of several processes, but of how many?
_UNCOUNTED = {
  one.index: one.name for one in LAUNCHERS if one is not TORCHRUN
} | {
  "PMIX_RANK": "PMIx",
  "PALS_RANKID": "PALS",
  "JOB_COMPLETION_INDEX": "an indexed job of Kubernetes",
}
# Of SageMaker: a JSON list of hosts.
_SAGEMAKER_HOSTS = "SM_HOSTS"
_SET_ALL = (
  f"Set {ADDRESS}=HOST:PORT of process 0, JAX_NUM_PROCESSES and JAX_PROCESS_ID "
  "in each process, or --distributed=off to start each alone."
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
    source: what has said so, for people: `WORLD_SIZE, RANK (torchrun)`.
  """

  index: int = 0
  count: int = 1
  address: str | None = None
  local_devices: tuple[int, ...] | None = None
  source: str = dataclasses.field(default="", compare=False)


def find_process(
  mode: str,
  environ: Mapping[str, str] = os.environ,
  *,
  timeout_seconds: float = 25,
) -> Process:
  """Finds which process of a run this is.

  Args:
    mode: `off`: the only one. `env`: by JAX_COORDINATOR_ADDRESS,
      JAX_NUM_PROCESSES and JAX_PROCESS_ID, or the variables of Open MPI 5,
      PMIx, or one of `LAUNCHERS`. `auto`: as `env` where JAX's variables or
      those of a launcher are set; else what JAX detects; else the only one.
    environ: the environment.
    timeout_seconds: for a coordinator whose name does not resolve yet.

  Raises:
    ValueError: variables are missing, wrong, or contradict each other.
  """
  if mode == "off":
    return Process(source="--distributed=off")
  # JAX 0.10 does not see Open MPI 5, and 0.12 wants the package mpi4py for it.
  is_open_mpi_5 = environ.get("OMPI_COMM_WORLD_SIZE") and _OPEN_MPI_4 not in (
    environ
  )
  if "JAX_NUM_PROCESSES" in environ or "JAX_PROCESS_ID" in environ:
    return _from_environment(environ)
  if _TORCHRUN_ID in environ and _is_started_by(TORCHRUN, environ):
    return _from_launcher(TORCHRUN, environ)
  if is_open_mpi_5:
    return _from_environment(environ)
  launcher = _find_launcher(environ)
  if launcher is not None:
    return _from_launcher(launcher, environ)
  if mode == "env":
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
  _refuse_uncounted(environ)
  return Process(source="the environment, which has no launcher")


def _is_started_by(launcher: Launcher, environ: Mapping[str, str]) -> bool:
  """Whether it has numbered this process as one of several."""
  count, index = environ.get(launcher.count), environ.get(launcher.index)
  # A count of 1, or one without the other, may be left over in a shell.
  return bool(count and index and count != "1")


def _find_launcher(environ: Mapping[str, str]) -> Launcher | None:
  """Returns the launcher that has started this process as one of several.

  None for srun, which JAX detects.

  Raises:
    ValueError: several have, with other numbers.
  """
  found = [one for one in LAUNCHERS if _is_started_by(one, environ)]
  for other in found[1:]:
    for name in ("count", "index"):
      first, second = getattr(found[0], name), getattr(other, name)
      if environ[first] != environ[second]:
        raise ValueError(
          f"{first}={environ[first]} ({found[0].name}) and "
          f"{second}={environ[second]} ({other.name}) contradict each other. "
          "Unset those of the launcher that has not started this process, or "
          "set --distributed=off."
        )
  if not found or _is_left_to_jax(found[0], environ):
    return None
  return found[0]


def _is_left_to_jax(launcher: Launcher, environ: Mapping[str, str]) -> bool:
  """Whether JAX finds the processes by what Slurm or Open MPI 4 have set.

  srun sets the variables of other launchers, too. Those of torchrun have common
  names; in a script they may be anything.
  """
  slurm = "1"
  if {"SLURM_STEP_NODELIST", "SLURM_LOCALID"} <= environ.keys():
    slurm = environ.get("SLURM_NTASKS", "1")
  if launcher is TORCHRUN:
    return slurm != "1" or _OPEN_MPI_4 in environ
  return (
    slurm == environ[launcher.count]
    and environ.get("SLURM_PROCID") == environ[launcher.index]
  )


def _from_launcher(launcher: Launcher, environ: Mapping[str, str]) -> Process:
  count, index = _read_numbers(environ, (launcher.count,), (launcher.index,))
  local_index = _read_first(environ, launcher.local_index)
  local_count = _read_first(environ, launcher.local_count)
  if launcher.num_hosts and environ.get(launcher.num_hosts) == "1":
    local_count = count
  is_one_host = local_count == count
  names = [launcher.count, launcher.index]
  address = environ.get(ADDRESS)
  if address:
    names.append(ADDRESS)
  elif launcher.address and environ.get(launcher.address):
    names.append(launcher.address)
    address = f"{environ[launcher.address]}:{_choose_port(launcher, environ)}"
  elif is_one_host:
    # The processes of one start have one parent, and only they.
    port = environ.get("JAX_COORDINATOR_PORT")
    parent = _find_launcher_pid(launcher.index)
    address = f"localhost:{port or _FIRST_PORT + parent % _PORTS}"
  else:
    where = f"of which {local_count} are on this host, " if local_count else ""
    needed = launcher.address or ADDRESS
    raise ValueError(
      f"{launcher.count} is {count} and {launcher.index} is {index}: "
      f"{launcher.name} has started {count} processes, {where}but {needed} "
      f"does not say where process 0 is. Set {ADDRESS}=HOST:PORT of process 0, "
      "the same for all, or --distributed=off to start each alone."
    )
  return _make_process(
    environ,
    index,
    count,
    address,
    local_index,
    is_alone=local_count == 1,
    source=f"{', '.join(names)} ({launcher.name})",
  )


def _choose_port(launcher: Launcher, environ: Mapping[str, str]) -> str:
  """Returns a port of process 0, from that of a launcher that has one."""
  if port := environ.get("JAX_COORDINATOR_PORT"):
    return port
  port = _read(environ, (launcher.port,), "a port of process 0", least=1)
  is_taken = environ.get(_TORCHRUN_LISTENS) == "True"
  return str(_FIRST_PORT + port % _PORTS if is_taken else port)


def _find_launcher_pid(variable: str) -> int:
  """Returns the nearest ancestor that does not have an environment variable.

  The parent may be a shell around this process, with the variables of it alone.
  """
  pid = os.getppid()
  try:
    while f"\0{variable}=" in f"\0{_read_process(pid, 'environ')}":
      pid = int(_read_process(pid, "stat").rpartition(")")[2].split()[1])
  except OSError:  # no /proc, or a process of another user
    pass
  return pid


def _read_process(pid: int, name: str) -> str:
  path = pathlib.Path("/proc", str(pid), name)
  return path.read_bytes().decode(errors="replace")


def _refuse_uncounted(environ: Mapping[str, str]) -> None:
  """Refuses to be the only process where a launcher has started several.

  Raises:
    ValueError: it has, but not said how many, or where process 0 is.
  """
  # A launcher that has said that there is one process is done with.
  is_counted = any(
    environ.get(one.count) == "1" for one in LAUNCHERS if one is not TORCHRUN
  )
  for name, launcher in _UNCOUNTED.items():
    if environ.get(name) and not is_counted:
      raise ValueError(
        f"{name} is {environ[name]!r}: {launcher} has started this process, "
        f"and does not say as one of how many. {_SET_ALL}"
      )
  hosts = environ.get(_SAGEMAKER_HOSTS, "")
  if "," in hosts:
    raise ValueError(
      f"{_SAGEMAKER_HOSTS} is {hosts}: SageMaker has started a process on each "
      f"of several hosts. {_SET_ALL}"
    )


def _read_first(
  environ: Mapping[str, str], names: tuple[str, ...]
) -> int | None:
  """Returns the first of these variables that is a number."""
  values = (environ.get(name, "") for name in names)
  return next((int(value) for value in values if value.isdecimal()), None)


def _from_environment(environ: Mapping[str, str]) -> Process:
  count, index = _read_numbers(environ, COUNTS, INDICES)
  address = environ.get(ADDRESS) or _find_open_mpi_address(environ)
  if count > 1 and address is None:
    raise ValueError(
      f"{ADDRESS} is not set, expected host:port of process 0, the same in "
      f"all {count} processes. Set {ADDRESS}."
    )
  return _make_process(
    environ,
    index,
    count,
    address,
    _read_first(environ, ("OMPI_COMM_WORLD_LOCAL_RANK",)),
    source=f"{_set(environ, COUNTS)[0]}, {_set(environ, INDICES)[0]}",
  )


def _make_process(
  environ: Mapping[str, str],
  index: int,
  count: int,
  address: str,
  local_index: int | None,
  *,
  source: str,
  is_alone: bool = False,
) -> Process:
  """Makes a process; `is_alone` is whether no other one is on its host."""
  if count == 1:
    return Process(source=source)
  return Process(
    index=index,
    count=count,
    address=check_address(address, environ.get("JAX_COORDINATOR_PORT")),
    local_devices=_choose_devices(environ, None if is_alone else local_index),
    source=source,
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
  return _make_process(
    environ,
    index,
    count,
    address,
    local[0] if local else None,
    source="the cluster that JAX detects",
  )


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


def _read_numbers(
  environ: Mapping[str, str], counts: tuple[str, ...], indices: tuple[str, ...]
) -> tuple[int, int]:
  """Returns the number of processes, and that of this one.

  Args:
    environ: the environment.
    counts, indices: the variables that have them, which must agree.
  """
  count = _read(environ, counts, "how many processes there are", least=1)
  index = _read(environ, indices, "which process this is", least=0)
  if index >= count:
    name = _set(environ, indices)[0]
    raise ValueError(
      f"{name} is {index}, but there are {count} processes "
      f"({_set(environ, counts)[0]}), expected 0 to {count - 1}. Set {name}."
    )
  return count, index


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
