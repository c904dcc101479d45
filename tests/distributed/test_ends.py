"""How runs of several processes end, and go on."""

import re
import signal
import time

import pytest

from tests import processes

pytestmark = pytest.mark.hosts


@pytest.mark.parametrize("lost", [0, 1])
def test_process_that_is_killed_is_named_and_the_run_goes_on(lost, folder):
  tmp = folder(f"killed {lost}")
  many = {"num_epochs": 1000.0, "checkpoint_every_steps": 5}
  arguments = processes.flags("two_device", tmp, many)
  running = processes.start(tmp, 2, arguments)
  processes.wait_for_step(tmp, 12, running)
  processes.kill(running[lost])
  start = time.monotonic()
  done = processes.finish(running, timeout=60)
  assert time.monotonic() - start < 60
  code, _, errors = done[1 - lost]
  assert code == 69
  assert re.search(
    rf"^error: process {1 - lost} of 2 \(.+\) ends because process {lost} of 2 "
    rf"\(.+\) is lost: .* The same command goes on",
    processes.last_error(errors),
  )
  again = processes.flags("two_device", tmp, many | {"num_epochs": 0.1})
  for code, _, errors in processes.finish(processes.start(tmp, 2, again)):
    assert code == 0, errors
  _, out, _ = processes.finish(
    processes.start(
      tmp, 1, again + ["--simulate_devices=2"], variables=lambda _: {}
    )
  )[0]
  assert "finished already, at step" in out


def test_process_that_is_stopped_is_named(folder):
  tmp = folder("stopped")
  arguments = processes.flags("two_device", tmp, {"num_epochs": 1000.0})
  running = processes.start(tmp, 2, arguments)
  processes.wait_for_step(tmp, 4, running)
  processes.kill(running[0], signal.SIGSTOP)
  start = time.monotonic()
  _, errors = running[1].communicate(timeout=60)
  assert time.monotonic() - start < 60
  assert running[1].returncode == 69
  assert "process 0 of 2" in processes.last_error(errors)
  assert "nothing was heard of it" in processes.last_error(errors)
  processes.finish(running[1:])
  running[0].kill()
  running[0].communicate()


# The other phases are in test_faults_signals.py, and SIGTERM in test_mpi.py.
def test_signal_to_one_process_saves_in_all_and_the_run_goes_on(folder):
  tmp = folder("signalled")
  many = {
    "num_epochs": 1000.0,
    "checkpoint_every_steps": 100_000,
    # 23 batches of ten views each take some seconds.
    "eval_every_steps": 4,
    "validation_views": 10,
    "data.validation_split": "validation",
  }
  arguments = processes.flags("two_device", tmp, many)
  running = processes.start(tmp, 2, arguments)
  processes.wait_for_step(tmp, 4, running)
  processes.kill(running[1], signal.SIGINT)
  done = processes.finish(running, timeout=60)
  for code, _, errors in done:
    assert code == 75, errors
  (step,) = re.findall(
    r"stopped by SIGINT in the validation after step (\d+)", done[0][1]
  )
  running = processes.start(tmp, 2, arguments)
  processes.wait_for_step(tmp, int(step) + 2, running)
  for process in running:
    processes.kill(process)
  (_, out, _), *_ = processes.finish(running)
  assert f"goes on after step {step} of" in out


def test_error_of_one_process_ends_all_in_a_line(folder):
  tmp = folder("error")
  arguments = processes.flags("two_device", tmp)
  running = processes.start(tmp, 2, arguments)
  for code, _, errors in processes.finish(running):
    assert code == 0, errors
  # A run of another seed: process 0 refuses it, and says so.
  running = processes.start(tmp, 2, arguments + ["--config.seed=1"])
  start = time.monotonic()
  (first, _, own), (second, _, others) = processes.finish(running, timeout=60)
  assert time.monotonic() - start < 60
  assert first == second == 1
  assert re.search(r"^error: process 0 of 2 .* of another config", own)
  assert re.search(
    r"^error: process 1 of 2 .* ends because process 0 of 2 .* ended: the "
    r"workdir .*seed: 0 there, 1 here",
    processes.last_error(others),
  )
