"""Signals in every phase of a run; a run that hangs; output that fails."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import processes

pytestmark = pytest.mark.faults

# One device, a report of every step; shared by most tests, so that one
# compilation serves all.
FIELDS = {
  "log_every_steps": 1,
  "num_epochs": 1000.0,
  "checkpoint_every_steps": 100_000,
  "eval_every_steps": 100_000,
}
# A validation of ten batches of ten views of more pixels each: a second, and
# its compilation.
VALIDATES = FIELDS | {
  "eval_every_steps": 4,
  "validation_views": 10,
  "data.validation_split": "validation[:160]",
  "data.stored_size": 77,
  "network.image_size": 67,
  "optimizer.schedule": "plateau",
  # No validation but the first is an improvement: each is a drop.
  "optimizer.plateau_min_change": 0.9,
  "optimizer.plateau_patience": 1,
  "num_epochs": 10 / 3,
}
# On an idle machine all below end within 2 s; tests share the machine.
OUT_SECONDS = 15.0


def begin(tmp, fields, *flags):
  (process,) = processes.start_training(
    tmp, fields, *flags, config="one_device"
  )
  return process


def end(process, sent=None, *, code=75):
  """Sends a signal, if any, and waits: (seconds, output, errors)."""
  if sent:
    process.send_signal(sent)
  start = time.monotonic()
  ((found, out, errors),) = processes.finish([process], timeout=60)
  seconds = time.monotonic() - start
  print(f"out after {seconds:.2f} s")
  assert found == code, (found, out[-2000:], errors[-2000:])
  assert seconds < OUT_SECONDS, f"{seconds:.2f} s until out, {out[-500:]}"
  return seconds, out, errors


def saved_step(tmp):
  """The step of the newest checkpoint."""
  names = os.listdir(tmp / "workdir" / "checkpoints")
  return max(int(name) for name in names if name.isdecimal())


def last_step(tmp):
  """The last step that was reported."""
  return processes.metrics(tmp)[-1]["step"]


def check_nothing_is_lost(tmp, out):
  """The step that was saved is the last one of all; returns it."""
  (step,) = map(int, re.findall(r"stopped by SIGTERM after step (\d+)", out))
  assert saved_step(tmp) == step == last_step(tmp)
  return step


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_in_start_up_ends_at_once(sent, folder):
  tmp = folder(f"start {sent}")
  process = begin(tmp, FIELDS)
  time.sleep(0.3)  # it imports
  _, _, errors = end(process, sent)
  assert errors == (
    f"stopped by {sent.name} before the first step; nothing is lost, the same "
    "command starts it again.\n"
  )
  assert not (tmp / "workdir").exists()


def test_signal_while_the_step_compiles_ends_at_once(folder):
  tmp = folder("compiles")
  process = begin(tmp, FIELDS, "--compilation_cache=off")
  processes.wait_for_line(process, "layout one_device")  # then 1 s to compile
  time.sleep(0.3)
  _, out, errors = end(process, signal.SIGINT)
  assert "the traced step" not in out  # which is printed after it
  assert errors.startswith("stopped by SIGINT before the first step;")
  assert not (tmp / "workdir" / "checkpoints").exists()


def test_signal_in_training_saves_the_step_and_a_pause_is_no_hang(folder):
  tmp = folder("training")
  process = begin(tmp, FIELDS, "--hang_timeout_seconds=10")
  processes.wait_for_step(tmp, 5, [process])
  process.send_signal(signal.SIGSTOP)
  time.sleep(11)
  before = last_step(tmp)
  process.send_signal(signal.SIGCONT)
  processes.wait_for_step(tmp, before + 5, [process])
  _, out, _ = end(process, signal.SIGTERM)
  step = check_nothing_is_lost(tmp, out)
  # The same command goes on, and is stopped while it saves; nothing reads what
  # it prints any more, as after Ctrl-C in `main 2>&1 | tee`.
  process = begin(tmp, FIELDS | {"checkpoint_every_steps": 1})
  processes.wait_for_line(process, f"resumes after step {step} of")
  checkpoints = tmp / "workdir" / "checkpoints"
  while not any("tmp" in name for name in os.listdir(checkpoints)):
    assert process.poll() is None
  process.stdout.close()
  process.stderr.close()
  process.send_signal(signal.SIGHUP)
  assert process.wait(OUT_SECONDS) == 75
  assert saved_step(tmp) == last_step(tmp) > step
  assert not any("tmp" in name for name in os.listdir(checkpoints))


@pytest.mark.parametrize("gone", ["a full disk", "a terminal that is gone"])
def test_output_that_cannot_be_written_does_not_end_a_run(gone, folder):
  tmp = folder(gone)
  fields = {"eval_every_steps": 100, "checkpoint_every_steps": 100_000}
  command = [
    *(sys.executable, "-m", "alexnet_jax.main"),
    *processes.flags("one_device", tmp, fields),
  ]
  reader, terminal = os.openpty()
  streams = {"stdout": terminal, "stderr": terminal}
  if gone == "a full disk":
    os.close(terminal)
    terminal = os.open("/dev/full", os.O_WRONLY)
    streams = {"stdout": terminal, "stderr": subprocess.PIPE}
  process = subprocess.Popen(
    command,
    cwd=processes.ROOT,
    env=processes.environment(tmp.parent / "cache"),
    text=True,
    **streams,
  )
  os.close(terminal)
  if gone == "a terminal that is gone":
    processes.wait_for_step(tmp, 1, [process])
  os.close(reader)  # what is written into the terminal from now on is an EIO
  ((code, _, errors),) = processes.finish([process], timeout=90)
  assert code == 0
  assert last_step(tmp) == saved_step(tmp) == 9
  if gone == "a full disk":
    assert errors == (
      "standard output cannot be written (No space left on device): the run "
      "continues, and its reports are in metrics.jsonl\n"
    )


def test_signal_in_a_validation_leaves_it_to_the_next_start(folder):
  straight, stopped = folder("straight ü"), folder("stopped")
  process = begin(stopped, VALIDATES)
  processes.wait_for_step(stopped, 4, [process])  # then it validates
  _, out, _ = end(process, signal.SIGTERM)
  assert "stopped by SIGTERM in the validation after step 4 of 10" in out
  assert saved_step(stopped) == last_step(stopped) == 4
  # The output cannot have all that a path has.
  ascii_only = {"PYTHONIOENCODING": "ascii"}
  for tmp in (stopped, straight):
    ended = processes.train(
      tmp, VALIDATES, config="one_device", variables=lambda _: ascii_only
    )
  assert r"straight_\xfc/workdir/metrics.jsonl" in ended.out
  found, expected = map(processes.metrics, (stopped, straight))
  for line in found + expected:
    line.pop("images_per_second", None)
  assert found == expected
  # The validations of steps 4 and 8, and of step 10, which is not one of these.
  rates = [line.get("learning_rate") for line in found]
  assert rates == [0.01] * 4 + [None] + [0.01] * 4 + [None, 0.001, 0.001, None]
  (_, ours), (_, theirs) = (
    processes.read_state(tmp, VALIDATES) for tmp in (stopped, straight)
  )
  for name, array in theirs.items():
    np.testing.assert_array_equal(ours[name], array, err_msg=name)


# Starts a run in which something waits forever. It imports before `main` does,
# so it also blocks before `main` does what the threads of that inherit.
WAITS = """
import itertools, runpy, signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
from alexnet_jax.training import report
from alexnet_jax.data import records
PATCH
runpy.run_module("alexnet_jax.main", run_name="__main__")
"""
# The reader, after some reads: ten batches, or none.
READER = """
read, counter = records.Records.read_encoded, itertools.count()
def read_encoded(self, index):
  if next(counter) >= READS:
    time.sleep(1000)
  return read(self, index)
records.Records.read_encoded = read_encoded
records.Records.fingerprint = lambda self: None  # which reads some, too
"""
# The loop, after four steps.
LOOP = """
def advance(self, step):
  if step == 5:
    print("waits", flush=True)
    time.sleep(1000)
report.Reporter.advance = advance
"""


def begin_waiting(tmp, patch, fields, *flags):
  return processes.open_process(
    [
      *("python", "-c", WAITS.replace("PATCH", patch)),
      *(*processes.flags("one_device", tmp, fields), *flags),
    ],
    tmp.parent / "cache",
  )


def test_second_signal_ends_at_once_and_harms_nothing(folder):
  tmp = folder("second")
  fields = FIELDS | {"checkpoint_every_steps": 2}
  process = begin_waiting(tmp, LOOP, fields)
  processes.wait_for_line(process, "waits")
  process.send_signal(signal.SIGTERM)
  time.sleep(0.7)  # sooner, and it would be the same one
  assert process.poll() is None  # step 5 does not end
  seconds, _, _ = end(process, signal.SIGTERM, code=128 + signal.SIGTERM)
  assert seconds < 2, f"{seconds:.2f} s"  # nothing is waited for
  step = saved_step(tmp)
  assert step in (2, 4)  # the second was being saved, or done
  process = begin(tmp, fields)
  processes.wait_for_line(process, f"resumes after step {step} of")
  process.kill()
  process.communicate()


def test_hanging_run_ends_with_the_stacks_of_all_threads(folder):
  tmp = folder("hang")
  for reads, last in (("160", r" \(last begun: step \d+\)"), ("0", "")):
    reader = READER.replace("READS", reads)
    process = begin_waiting(tmp, reader, FIELDS, "--hang_timeout_seconds=2")
    # Another start of a run reads before its first step.
    processes.wait_for_line(process, "the traced step")
    _, _, errors = end(process, code=70)
    assert re.search(
      f"^error: no step finished for 2 seconds{last}; .* The same command "
      "resumes from the last checkpoint",
      processes.last_error(errors),
    )
    file = tmp / "workdir" / "hang_stacks.txt"
    stacks = file.read_text()
    file.unlink()
    assert stacks in errors
    # What sleeps, and what waits for it.
    assert "in read_encoded" in stacks and "train.py" in stacks


def test_ctrl_c_in_the_terminal_of_several_processes_saves_in_all(folder):
  tmp = folder("terminal")
  terminal = processes.open_local(tmp, 2, 1, FIELDS, start_new_session=True)
  processes.wait_for_step(tmp, 3, [terminal])
  os.killpg(terminal.pid, signal.SIGINT)
  _, out, _ = end(terminal)
  check_nothing_is_lost(tmp, out)


def test_process_that_is_stopped_before_the_first_step_frees_the_others(folder):
  tmp = folder("early")
  running = processes.start_training(
    tmp, FIELDS, "--compilation_cache=off", "--simulate_devices=1", count=2
  )
  processes.wait_for_line(running[0], "layout two_column")
  running[1].send_signal(signal.SIGTERM)
  start = time.monotonic()
  (first, _, others), (second, _, own) = processes.finish(running, timeout=60)
  seconds = time.monotonic() - start
  assert seconds < OUT_SECONDS, f"{seconds:.2f} s"
  assert (first, second) == (69, 75)
  assert re.search(
    r"process 1 of 2 \(.+\): stopped by SIGTERM before the first step", own
  )
  assert re.search(
    r"ends because process 1 of 2 \(.+\) was stopped by SIGTERM before the "
    r"first step\. The same command resumes",
    processes.last_error(others),
  )
