"""Starts a Slurm cluster of one node on this machine for a test.

Its configuration, key, sockets, state and logs are in one temporary folder; it
uses free ports of the loopback device. Commands find it by SLURM_CONF, so it
does not affect a Slurm that the machine has.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

from tests import processes

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
# Node and controller have the name of this machine, which must resolve: JAX
# calls the coordinator by the name of the node.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
# How long credentials hold is also how long a requeued job waits.
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SchedulerParameters=sched_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# Two tasks also where there is one CPU.
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=test Nodes=ALL Default=YES State=UP
"""


class Cluster:
  """A running cluster.

  Attributes:
    environment: for commands that should find this cluster.
  """

  def __init__(self, folder: pathlib.Path):
    self.environment = processes.environment(
      folder / "cache", SLURM_CONF=str(folder / "slurm.conf")
    )

  def call(self, *command: str) -> str:
    """The output of one of Slurm's commands."""
    options = {"env": self.environment, "text": True, "timeout": 30}
    return subprocess.check_output(command, **options).strip()

  def job(self, number: str) -> dict[str, str]:
    """{field: value} of a job, as `JobState` and `ExitCode`."""
    shown = self.call("scontrol", "--oneliner", "show", "job", number)
    return dict(field.split("=", 1) for field in shown.split() if "=" in field)


def find_missing() -> str | None:
  """Returns why no cluster can start here; None if it can."""
  missing = [name for name in PROGRAMS if shutil.which(name) is None]
  if missing:
    return f"{', '.join(missing)} not installed: slurm-wlm and munge of Debian"
  if os.geteuid() != 0:
    return "Slurm's daemons start processes of other users: needs root"
  try:
    socket.gethostbyname(_host())
  except OSError:
    return f"the name of this machine, {_host()}, does not resolve"
  return None


@contextlib.contextmanager
def start() -> Iterator[Cluster]:
  """Starts the daemons, and stops them and all jobs at the end."""
  with contextlib.ExitStack() as stack:
    # In a short path: sockets have 108 characters.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)  # munged wants its socket within everyone's reach
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(1024))
    ports = processes.free_ports(2)
    (folder / "slurm.conf").write_text(
      CONFIG.format(host=_host(), folder=folder, ports=ports)
    )
    # Unused, but slurmd loads a plugin; this one needs nothing of the machine.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    cluster = Cluster(folder)
    stack.callback(_end_leftovers, cluster)

    def run(name: str, *flags: str) -> None:
      with (folder / f"{name}.log").open("w") as log:
        daemon = subprocess.Popen(
          [name, *flags],
          env=cluster.environment,
          stdin=subprocess.DEVNULL,
          stdout=log,
          stderr=subprocess.STDOUT,
        )
      stack.callback(_stop, daemon)

    def logs() -> str:
      return "\n".join(
        f"{log.name}:\n{log.read_text()[-2000:]}"
        for log in folder.glob("*.log")
      )

    run(
      *("munged", "--foreground", f"--key-file={key}"),
      *(f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"),
      f"--seed-file={folder}/munge.seed",
    )
    wait_until((folder / "munge.socket").exists, 20, logs)
    run("slurmctld", "-D")
    run("slurmd", "-D")
    states = ("sinfo", "--noheader", "--format=%T")
    wait_until(lambda: cluster.call(*states) == "idle", 60, logs)
    stack.callback(_cancel_all, cluster)
    yield cluster


def wait_until(
  is_so: Callable[[], bool], seconds: float, explain: Callable[[], str]
) -> None:
  """Waits for a condition.

  Raises:
    AssertionError: it is not met in time; with the result of `explain`.
  """
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    with contextlib.suppress(subprocess.CalledProcessError):
      if is_so():
        return
    time.sleep(0.25)
  raise AssertionError(f"waited {seconds} s\n{explain()}")


def _host() -> str:
  return socket.gethostname().split(".")[0]


def _cancel_all(cluster: Cluster) -> None:
  """Ends the jobs while the daemons still run."""
  with contextlib.suppress(AssertionError, subprocess.SubprocessError):
    cluster.call("scancel", "--user=root")
    cluster.call("scancel", "--user=root", "--signal=KILL", "--full")
    wait_until(lambda: not cluster.call("squeue", "--noheader"), 15, str)


def _stop(daemon: subprocess.Popen) -> None:
  daemon.terminate()
  try:
    daemon.wait(15)
  except subprocess.TimeoutExpired:
    daemon.kill()
    daemon.wait()


def _end_leftovers(cluster: Cluster) -> None:
  """Kills leftover processes: all that have this cluster's SLURM_CONF."""
  mark = f"SLURM_CONF={cluster.environment['SLURM_CONF']}".encode()
  for process in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):
      if mark in (process / "environ").read_bytes().split(b"\0"):
        os.kill(int(process.name), signal.SIGKILL)
