"""launch/mpirun.sh under a real Open MPI."""

import os
import pathlib
import re
import shutil
import signal
import sys

import pytest

from alexnet_jax.distributed import group
from tests import processes

pytestmark = [
  pytest.mark.hosts,
  pytest.mark.skipif(
    shutil.which("mpirun") is None,
    reason="mpirun not installed: openmpi-bin of Debian",
  ),
]


def start(tmp_path, fields=None):
  flags = processes.flags("two_device", tmp_path / "run", fields)
  return processes.open_process(
    ["launch/mpirun.sh", "2", *flags],
    tmp_path / "cache",
    variables={
      "PYTHON": sys.executable,
      # Open MPI 4 starts nothing as root, nor more processes than cores, if not
      # told so.
      "OMPI_ALLOW_RUN_AS_ROOT": "1",
      "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
      "OMPI_MCA_rmaps_base_oversubscribe": "1",
      # It waits that long twice, whatever has ended by then.
      "OMPI_MCA_odls_base_sigkill_timeout": "3",
    },
  )


def ranks(mpirun):
  """The processes that it has started here."""
  listed = pathlib.Path(f"/proc/{mpirun.pid}/task/{mpirun.pid}/children")
  return [int(child) for child in listed.read_text().split()]


def test_two_processes_train_to_the_end(tmp_path):
  ((code, output, errors),) = processes.finish([start(tmp_path)])
  assert code == 0, errors
  # The second column is the device of process 1.
  assert re.search(r"^ +\d+ +1 +cpu +1 *$", output, re.MULTILINE), output
  assert processes.metrics(tmp_path / "run")[-1]["step"] == 9
  assert "\x1b" not in output  # no progress bar where no terminal is


def test_term_to_one_process_lets_both_save(tmp_path):
  mpirun = start(tmp_path, {"num_epochs": 1e5})
  try:
    processes.wait_for_step(tmp_path / "run", 4, [mpirun])
    os.kill(ranks(mpirun)[1], signal.SIGTERM)
  finally:
    ((code, output, errors),) = processes.finish([mpirun])
  assert code == group.STOPPED, errors
  step = int(re.search(r"stopped by SIGTERM after step (\d+)", output)[1])
  saved, _ = processes.read_state(tmp_path / "run")
  assert saved == step
