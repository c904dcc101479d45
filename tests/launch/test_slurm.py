"""launch/slurm.sbatch under a real Slurm: it ends, it fails, it goes on."""

import re
import sys

import pytest

from tests import processes
from tests.launch import slurm

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
EVERY = 10

# The interpreter of the jobs: their steps wait for a moment, so that the minute
# until their time is over costs other tests little.
PYTHON = f"""#!{sys.executable}
import runpy, sys, time
from alexnet_jax.training import report
advance = report.Reporter.advance
def wait(self, step):
  time.sleep(0.05)
  advance(self, step)
report.Reporter.advance = wait
_, _, module, *arguments = sys.argv  # after -m
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""

missing = slurm.find_missing()
pytestmark = [
  pytest.mark.hosts,
  pytest.mark.skipif(missing is not None, reason=str(missing)),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
  python = tmp_path_factory.mktemp("bin") / "python"
  python.write_text(PYTHON)
  python.chmod(0o755)
  with slurm.start() as started:
    started.environment |= {
      "PYTHON": str(python),
      "PYTHONPATH": str(processes.ROOT),
      "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
    }
    yield started


class Job:
  """A job of two tasks with a simulated device each."""

  def __init__(self, cluster, tmp_path, *, options=(), fields):
    self.cluster = cluster
    self.workdir = tmp_path / "workdir"
    self.log = tmp_path / "log"
    fields = {"log_every_steps": EVERY, "eval_every_steps": 10**9} | fields
    self.number = cluster.call(
      *("sbatch", "--parsable", "--ntasks=2"),
      *(f"--chdir={processes.ROOT}", f"--output={self.log}", *options),
      f"{processes.ROOT}/launch/slurm.sbatch",
      *processes.flags("two_device", tmp_path, fields),
    )

  def shown(self):
    return self.cluster.job(self.number)

  def state(self):
    return self.shown()["JobState"]

  def text(self):
    return self.log.read_text() if self.log.exists() else ""

  def steps(self):
    return [line["step"] for line in processes.read_reports(self.workdir)]

  def wait_until(self, is_so, seconds):
    slurm.wait_until(is_so, seconds, lambda: f"{self.shown()}\n{self.text()}")


def test_job_ends_with_its_training(cluster, tmp_path):
  job = Job(cluster, tmp_path, fields={"num_epochs": 4.0})
  job.wait_until(lambda: job.state() in ENDED, 120)
  assert (job.state(), job.shown()["ExitCode"]) == ("COMPLETED", "0:0")
  # A process for each task: the second column is the device of process 1.
  assert re.search(r"^ +\d+ +1 +cpu +1 *$", job.text(), re.MULTILINE)
  assert job.steps()[-1] == 12


def test_job_with_an_error_is_not_requeued(cluster, tmp_path):
  job = Job(cluster, tmp_path, fields={"layout.name": "three_column"})
  job.wait_until(lambda: job.state() in ENDED, 60)
  assert (job.state(), job.shown()["ExitCode"]) == ("FAILED", "1:0")
  assert job.shown()["Restarts"] == "0"
  assert job.text().count("error: unknown layout 'three_column'") == 2


def test_job_saves_before_its_time_is_over_and_goes_on_by_itself(
  cluster, tmp_path
):
  job = Job(
    cluster,
    tmp_path,
    # Slurm looks every 30 seconds, and sends it up to 60 seconds early.
    options=("--time=2", "--signal=TERM@30"),
    # Longer than the test; nothing saves but TERM.
    fields={"num_epochs": 1e5, "checkpoint_every_steps": 10**9},
  )
  job.wait_until(lambda: job.shown()["Restarts"] == "1", 150)
  stopped = re.search(r"SIGTERM after step (\d+) of (\d+)", job.text())
  assert stopped, job.text()
  step, num_steps = map(int, stopped.groups())
  assert step > EVERY
  job.wait_until(lambda: job.steps()[-1] > step + 2 * EVERY, 100)
  assert f"resumes after step {step} of {num_steps}" in job.text()
  # Not a step is lost or done twice; there is a report where it was stopped.
  steps = job.steps()
  assert steps == sorted({step, *range(EVERY, steps[-1] + 1, EVERY)})
  cluster.call("scancel", job.number)
  job.wait_until(
    lambda: job.state() in ENDED and "exit code 75" in job.text(), 60
  )
  assert (job.state(), job.shown()["Restarts"]) == ("CANCELLED", "1")
