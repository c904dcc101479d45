"""kill -9 at any moment: the same command goes on, and nothing is lost."""

import signal
import subprocess
import sys
import time

import pytest

from tests import processes

pytestmark = pytest.mark.faults


def test_killed_at_random_moments_it_ends_as_if_never_killed(folder):
  tmp = folder("random")
  # 90 steps, each of them reported.
  fields = processes.SMALL | {"num_epochs": 30.0, "log_every_steps": 1}
  done = subprocess.run(
    [
      *(sys.executable, "-m", "tests.faults.kills", "--kills=2", "--seed=1"),
      *(f"--workdir={tmp}", f"--data_dir={tmp.parent}/data"),
      *(f"--config.{name}={value}" for name, value in fields.items()),
    ],
    cwd=processes.ROOT,
    env=processes.environment(tmp.parent / "cache"),
    capture_output=True,
    text=True,
    timeout=200,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  for row in (
    "| lost: did not go on from the newest complete checkpoint | 0 |",
    "| hung | 0 |",
    "| final parameters, optimizer and statistics | equal, bit for bit |",
  ):
    assert row in done.stdout
  # The second one may come too late on a busy machine.
  assert "| kills | 0 |" not in done.stdout


def test_killed_before_its_first_step_it_starts_again(folder):
  tmp = folder("early")
  arguments = processes.flags("two_device", tmp, {"num_epochs": 0.1})
  data_dir = tmp / "fresh"
  arguments.append(f"--data_dir={data_dir}")  # the last one counts

  def start(*more):
    (running,) = processes.start(
      tmp, 1, [*arguments, *more], variables=lambda _: {}
    )
    return running

  # While the digits are made: their folder has another name meanwhile.
  running = start()
  end = time.monotonic() + 60
  while not list(data_dir.glob("digits/*incomplete*")):
    assert time.monotonic() < end and running.poll() is None
    time.sleep(0.002)
  processes.kill(running)
  processes.finish([running])
  assert not (data_dir / "digits" / "1.0.0").exists()
  assert not (tmp / "workdir").exists()

  # While the step compiles, which the plan comes before.
  running = start("--compilation_cache=off")
  for line in running.stdout:
    if "plan, a step of" in line:
      break
  time.sleep(0.5)  # tracing, then XLA; together 2 s or more
  processes.kill(running)
  ((code, said, _),) = processes.finish([running])
  assert code == -signal.SIGKILL
  assert "audit:" not in said
  assert list((tmp / "workdir").rglob("*.orbax-checkpoint-tmp*")) == []

  ((code, said, errors),) = processes.finish([start()])
  assert (code, errors) == (0, ""), errors
  assert "goes on after" not in said
  assert processes.metrics(tmp)[-1]["validation_images"] == 21
