"""kill -9 at any moment: the same command goes on, and nothing is lost."""

import signal
import time

import pytest

from tests import processes

pytestmark = pytest.mark.faults


def test_killed_at_random_moments_it_ends_as_if_never_killed(folder):
  tmp = folder("random")
  # 90 steps, each of them reported.
  fields = processes.SMALL | {
    "num_epochs": 30.0,
    "log_every_steps": 1,
    "checkpoint_every_steps": 6,
  }
  done = processes.run(
    [
      *("python", "-m", "tests.faults.kills", "--kills=2", "--seed=1"),
      "--config=tests/short_network.py:two_device",
      *(f"--workdir={tmp}", f"--data_dir={tmp.parent}/data"),
      *(f"--config.{name}={value}" for name, value in fields.items()),
    ],
    tmp.parent / "cache",
  )
  assert done.code == 0, done
  for row in (
    "| did not resume from the newest complete checkpoint | 0 |",
    "| hung | 0 |",
    "| final parameters, optimizer and statistics | equal, bit for bit |",
  ):
    assert row in done.out
  # The second one may come too late on a busy machine.
  assert "| kills | 0 |" not in done.out


def test_killed_before_its_first_step_it_starts_again(folder):
  tmp = folder("early")
  data_dir = tmp / "fresh"

  def start(*flags):
    return processes.start_training(
      tmp, {"num_epochs": 0.1}, *(f"--data_dir={data_dir}", *flags)
    )

  # While the digits are made: their folder has another name meanwhile.
  running = start()
  processes.wait_until(
    lambda: [*data_dir.glob("digits/*incomplete*")], running, poll_seconds=0.002
  )
  running[0].kill()
  processes.finish(running)
  assert not (data_dir / "digits" / "1.0.0").exists()
  assert not (tmp / "workdir").exists()

  # While the step compiles, which the tables of the layout come before.
  running = start("--compilation_cache=off")
  processes.wait_for_line(
    *running, "which part of each layer one device computes"
  )
  time.sleep(0.5)  # tracing, then XLA; together 2 s or more
  running[0].kill()
  ((code, out, _),) = processes.finish(running)
  assert code == -signal.SIGKILL
  assert "audit:" not in out
  assert list((tmp / "workdir").rglob("*.orbax-checkpoint-tmp*")) == []

  ((code, out, errors),) = processes.finish(start())
  assert (code, errors) == (0, ""), errors
  assert "resumes after" not in out
  assert processes.metrics(tmp)[-1]["validation_images"] == 21
