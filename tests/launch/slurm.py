"""A Slurm cluster of one node on this machine, while a test needs it.

Everything of it is in one temporary folder: configuration, key, sockets, state
and logs; its ports are free ones of the loopback device. A Slurm that the
machine may have is not touched: what finds this one does so by SLURM_CONF.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
# Node and controller have the name of this machine, which must resolve: JAX
# calls the coordinator by the name of the node.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
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
# Unused here, but slurmd loads one; this one asks nothing of the machine.
CONTROL_GROUPS = "CgroupPlugin=cgroup/v1\n"


class Cluster:
  """What a test asks of it.

  Attributes:
    environment: of commands that are to find this cluster.
  """

  def __init__(self, folder: pathlib.Path):
    foreign = re.compile(
      r"(SLURM|SBATCH|SRUN|SCANCEL|JAX_(?!DISABLE)|XLA_|OMPI_|PMIX_).*"
    )
    self.environment = {
      name: value
      for name, value in os.environ.items()
      if not foreign.fullmatch(name)
    } | {"SLURM_CONF": str(folder / "slurm.conf")}

  def call(self, *command: str) -> str:
    """The output of one of Slurm's commands."""
    return subprocess.run(
      command,
      env=self.environment,
      check=True,
      stdout=subprocess.PIPE,
      text=True,
      timeout=30,
    ).stdout.strip()

  def job(self, number: str) -> dict[str, str]:
    """{field: value} of a job, as `JobState` and `ExitCode`."""
    shown = self.call("scontrol", "--oneliner", "show", "job", number)
    return dict(field.split("=", 1) for field in shown.split() if "=" in field)


def find_missing() -> str | None:
  """Why there can be no cluster here; None if there can."""
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
    controller_port, node_port = _free_ports(2)
    (folder / "slurm.conf").write_text(
      CONFIG.format(
        host=_host(),
        folder=folder,
        controller_port=controller_port,
        node_port=node_port,
      )
    )
    (folder / "cgroup.conf").write_text(CONTROL_GROUPS)
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
      f"--socket={folder}/munge.socket",
      f"--pid-file={folder}/munged.pid",
      f"--seed-file={folder}/munge.seed",
    )
    wait_until((folder / "munge.socket").exists, 20, logs)
    run("slurmctld", "-D")
    run("slurmd", "-D")
    wait_until(
      lambda: cluster.call("sinfo", "--noheader", "--format=%T") == "idle",
      60,
      logs,
    )
    stack.callback(_cancel_all, cluster)
    yield cluster


def wait_until(
  is_so: Callable[[], bool], seconds: float, explain: Callable[[], str]
) -> None:
  """Waits until something is so.

  Raises:
    AssertionError: it is not in time; with what `explain` says.
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


def _free_ports(count: int) -> list[int]:
  with contextlib.ExitStack() as stack:
    return [
      stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[
        1
      ]
      for _ in range(count)
    ]


def _cancel_all(cluster: Cluster) -> None:
  """Ends the jobs while there are daemons to do it."""
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
  """Ends what daemons have left: whatever has this cluster's SLURM_CONF."""
  mark = f"SLURM_CONF={cluster.environment['SLURM_CONF']}".encode()
  for process in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):
      if mark in (process / "environ").read_bytes().split(b"\0"):
        os.kill(int(process.name), signal.SIGKILL)
