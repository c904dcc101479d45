"""How runs of several processes end, and go on."""

import os
import re
import signal
import time

import pytest

from alexnet_jax.checkpoints import reader
from alexnet_jax.distributed import machine
from tests import processes

pytestmark = pytest.mark.hosts


def test_process_that_is_killed_is_named_and_the_run_goes_on(folder):
  tmp = folder("killed")
  many = {"num_epochs": 1000.0, "checkpoint_every_steps": 5}
  running = processes.start_training(tmp, many, count=2)
  processes.wait_for_step(tmp, 12, running)
  running[0].kill()
  code, _, errors = processes.finish(running, timeout=60)[1]
  assert code == 69
  assert re.search(
    r"^error: process 1 of 2 \(.+\) ends because process 0 of 2 \(.+\) is lost"
    r": .* The same command resumes",
    processes.last_error(errors),
  )
  fields = many | {"num_epochs": 0.1}
  first, second = processes.finish(
    processes.start_training(tmp, fields, count=2)
  )
  assert first.code == second.code == 0, first.errors + second.errors
  assert "finished already, at step" in first.out


def test_process_that_is_stopped_is_named(folder):
  tmp = folder("stopped")
  running = processes.start_training(tmp, {"num_epochs": 1000.0}, count=2)
  processes.wait_for_step(tmp, 4, running)
  if not machine.has_accelerator():
    policies = {os.sched_getscheduler(process.pid) for process in running}
    assert policies == {os.SCHED_BATCH}
  running[0].send_signal(signal.SIGSTOP)
  ((code, _, errors),) = processes.finish(running[1:], timeout=60)
  assert code == 69
  assert "process 0 of 2" in processes.last_error(errors)
  assert "nothing was heard from it" in processes.last_error(errors)
  running[0].kill()
  running[0].communicate()


# The other phases: tests/faults/test_signals.py; SIGTERM: launch/test_mpi.py.
def test_signal_to_one_process_saves_in_all_and_the_run_goes_on(folder):
  tmp = folder("signalled")
  many = {
    "num_epochs": 1000.0,
    "checkpoint_every_steps": 100_000,
    # 23 batches of ten views of more pixels each take some seconds.
    "eval_every_steps": 4,
    "validation_views": 10,
    "data.validation_split": "validation",
    "data.stored_size": 77,
    "network.image_size": 67,
  }
  running = processes.start_training(tmp, many, count=2)
  processes.wait_for_step(tmp, 4, running)
  running[1].send_signal(signal.SIGINT)
  done = processes.finish(running, timeout=60)
  for code, _, errors in done:
    assert code == 75, errors
  (step,) = re.findall(
    r"stopped by SIGINT in the validation after step (\d+)", done[0][1]
  )
  running = processes.start_training(tmp, many, count=2)
  processes.wait_for_step(tmp, int(step) + 2, running)
  for process in running:
    process.kill()
  (_, out, _), *_ = processes.finish(running)
  assert f"resumes after step {step} of" in out


def test_error_of_one_process_ends_all_in_a_line(folder):
  tmp = folder("error")
  for ended in processes.finish(processes.start_training(tmp, count=2)):
    assert ended.code == 0, ended.errors
  # A run of another seed: process 0 refuses it, and says so.
  running = processes.start_training(tmp, {"seed": 1}, count=2)
  start = time.monotonic()
  (first, _, own), (second, _, others) = processes.finish(running, timeout=60)
  assert time.monotonic() - start < 60
  assert first == second == 1
  assert re.search(r"^error: process 0 of 2 .* of another config", own)
  assert re.search(
    r"^error: process 1 of 2 .* ends because process 0 of 2 .* ended: the "
    r"workdir .*seed: 0 in the workdir, 1 now",
    processes.last_error(others),
  )


# Starts a process of a run, one of which fails.
STARTS = """
import os, runpy
from alexnet_jax.data import records, source
from alexnet_jax.training import events, train
records.Records.fingerprint = lambda self: None  # which reads some labels
if os.environ["JAX_PROCESS_ID"] == "INDEX":
  PATCH
runpy.run_module("alexnet_jax.main", run_name="__main__")
"""
# In a validation, which takes rows of this process from both devices.
WRONG_LABEL = """
  read = records.Records.read_encoded
  def read_encoded(self, index):
    if "validation" in self.source.name:
      raise source.RecordError("record 3 has label -1")
    return read(self, index)
  records.Records.read_encoded = read_encoded
"""
FULL_DISK = """
  add = events.Events.add
  def fail(self, name, value, step):
    if step >= 4:
      raise OSError(28, "No space left on device")
    add(self, name, value, step)
  events.Events.add = fail
"""


@pytest.mark.parametrize(
  ("index", "patch", "message", "interrupted"),
  [
    (1, WRONG_LABEL, "record 3 has label -1", True),
    (0, FULL_DISK, "the reports in .* cannot be written: No space", False),
  ],
  ids=["wrong label in a validation", "full disk of the reports"],
)
def test_error_of_one_process_after_a_step_saves_it_in_all(
  index, patch, message, interrupted, folder
):
  tmp = folder(f"error after a step {index}")
  fields = {
    "checkpoint_every_steps": 100_000,
    "eval_every_steps": 4 if interrupted else 100_000,
    "num_epochs": 1000.0,
  }
  start = STARTS.replace("INDEX", str(index)).replace("PATCH", patch.lstrip())
  address = f"localhost:{processes.free_port()}"
  running = [
    processes.open_process(
      ["python", "-c", start, *processes.flags("two_device", tmp, fields)],
      tmp.parent / "cache",
      variables=processes.cluster_variables(2, number, address),
    )
    for number in range(2)
  ]
  ended = processes.finish(running)
  assert [code for code, *_ in ended] == [1, 1], ended
  assert re.search(message, processes.last_error(ended[index].errors)), ended
  assert re.search(f"process {index} of 2 .*{message}", ended[1 - index].errors)
  # Both layouts and numbers of processes read the checkpoint.
  step = reader.find_latest_step(f"{tmp}/workdir")
  assert step == 4 if interrupted else step > 4
  facts = reader.read_facts(f"{tmp}/workdir", step)
  assert facts.get("owes_validation", False) == interrupted
  fields["num_epochs"] = (step + 1) / 3
  out = processes.train(tmp, fields, "--simulate_devices=2").out
  assert f"resumes after step {step} of {step + 1}" in out
  reports = processes.metrics(tmp)
  validated = [line["step"] for line in reports if "validation_loss" in line]
  assert validated == [*[4] * interrupted, step + 1]
