"""SIGTERM and SIGINT in every phase of a run; a run that is stuck."""

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

# One device, a report of every step; shared by most, so that one compilation
# serves all.
FIELDS = {
  "log_every_steps": 1,
  "num_epochs": 1000.0,
  "checkpoint_every_steps": 100_000,
  "eval_every_steps": 100_000,
}
# A validation of ten batches of ten views each: a second, and its compilation.
VALIDATES = FIELDS | {
  "eval_every_steps": 4,
  "validation_views": 10,
  "data.validation_split": "validation[:160]",
  "optimizer.schedule": "plateau",
  # No validation but the first is an improvement: each is a drop.
  "optimizer.plateau_min_change": 0.9,
  "optimizer.plateau_patience": 1,
  "num_epochs": 10 / 3,
}
# On an idle machine all below are out within 2 s; tests share the machine.
OUT_SECONDS = 15.0
ALONE = {"variables": lambda _: {}}


def begin(tmp, fields, *more):
  arguments = [*processes.flags("one_device", tmp, fields), *more]
  return processes.start(tmp, 1, arguments, **ALONE)[0]


def end(process, *, code):
  """Waits for the end of a process; (seconds, output, errors)."""
  start = time.monotonic()
  ((found, out, errors),) = processes.finish([process], timeout=60)
  seconds = time.monotonic() - start
  print(f"out after {seconds:.2f} s")
  assert found == code, (found, out[-2000:], errors[-2000:])
  assert seconds < OUT_SECONDS, f"{seconds:.2f} s until out, {out[-500:]}"
  return seconds, out, errors


def wait_for_line(process, text):
  """Until a process has printed a line with some text."""
  for line in process.stdout:
    if text in line:
      return
  raise AssertionError(f"no {text!r}: {process.communicate()}")


def saved_step(tmp):
  """Of the newest checkpoint."""
  folders = (tmp / "workdir" / "checkpoints").iterdir()
  return max(int(found.name) for found in folders if found.name.isdecimal())


def last_step(tmp):
  """The last that was reported."""
  return processes.metrics(tmp)[-1]["step"]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signal_in_start_up_ends_at_once(sent, folder):
  tmp = folder(f"start {sent}")
  process = begin(tmp, FIELDS)
  time.sleep(0.3)  # it imports
  processes.kill(process, sent)
  _, _, errors = end(process, code=75)
  assert errors == (
    f"stopped by {sent.name} before the first step; nothing is lost, the same "
    "command goes on.\n"
  )
  assert not (tmp / "workdir").exists()


def test_signal_while_the_step_compiles_ends_at_once(folder):
  tmp = folder("compiles")
  process = begin(tmp, FIELDS, "--compilation_cache=off")
  wait_for_line(process, "layout one_device")  # then it compiles, for 2 s
  time.sleep(0.3)
  processes.kill(process, signal.SIGINT)
  _, out, errors = end(process, code=75)
  assert "the traced step" not in out  # which is said after it
  assert errors.startswith("stopped by SIGINT before the first step;")
  assert not (tmp / "workdir" / "checkpoints").exists()


def test_signal_in_training_saves_the_step_and_a_pause_is_not_stuck(folder):
  tmp = folder("training")
  process = begin(tmp, FIELDS, "--hang_timeout_seconds=10")
  processes.wait_for_step(tmp, 5, [process])
  processes.kill(process, signal.SIGSTOP)
  time.sleep(11)
  before = last_step(tmp)
  processes.kill(process, signal.SIGCONT)
  processes.wait_for_step(tmp, before + 5, [process])
  processes.kill(process, signal.SIGTERM)
  _, out, _ = end(process, code=75)
  (step,) = map(int, re.findall(r"stopped by SIGTERM after step (\d+)", out))
  # Nothing was lost: the step that was saved is the last one of all.
  assert saved_step(tmp) == step == last_step(tmp)
  # The same command goes on, and is stopped while it saves; and nobody reads
  # what it prints any more, as after Ctrl-C in `main 2>&1 | tee`.
  process = begin(tmp, FIELDS | {"checkpoint_every_steps": 1})
  wait_for_line(process, f"goes on after step {step} of")
  checkpoints = tmp / "workdir" / "checkpoints"
  while not any("tmp" in name for name in os.listdir(checkpoints)):
    assert process.poll() is None
  process.stdout.close()
  process.stderr.close()
  processes.kill(process, signal.SIGINT)
  assert process.wait(OUT_SECONDS) == 75
  assert saved_step(tmp) == last_step(tmp) > step
  assert not any("tmp" in name for name in os.listdir(checkpoints))


def test_signal_in_a_validation_leaves_it_to_the_next_start(folder):
  straight, stopped = folder("straight"), folder("stopped")
  process = begin(stopped, VALIDATES)
  processes.wait_for_step(stopped, 4, [process])  # then it validates
  processes.kill(process, signal.SIGTERM)
  _, out, _ = end(process, code=75)
  assert "stopped by SIGTERM in the validation after step 4 of 10" in out
  assert saved_step(stopped) == last_step(stopped) == 4
  for tmp in (stopped, straight):
    ((code, out, errors),) = processes.finish([begin(tmp, VALIDATES)])
    assert code == 0, errors
  found, expected = map(processes.metrics, (stopped, straight))
  assert [line["step"] for line in found] == [line["step"] for line in expected]
  for one, other in zip(found, expected, strict=True):
    one.pop("images_per_second", None)
    other.pop("images_per_second", None)
    assert one == other
  # The validations of steps 4 and 8, and of step 10, which is not one of these.
  rates = [line.get("learning_rate") for line in found]
  assert rates == [0.01] * 4 + [None] + [0.01] * 4 + [None, 0.001, 0.001, None]
  (_, ours), (_, theirs) = (
    processes.read_state(tmp, VALIDATES) for tmp in (stopped, straight)
  )
  for name, array in theirs.items():
    np.testing.assert_array_equal(ours[name], array, err_msg=name)


# Starts a run in which something waits for ever. It imports before `main` does,
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
read, counter = records.Records.find, itertools.count()
def find(self, index):
  if next(counter) >= READS:
    time.sleep(1000)
  return read(self, index)
records.Records.find = find
"""
# The loop, after four steps.
LOOP = """
def advance(self, step):
  if step == 5:
    print("waits", flush=True)
    time.sleep(1000)
report.Reporter.advance = advance
"""


def begin_waiting(tmp, patch, fields, *more):
  return subprocess.Popen(
    [
      *(sys.executable, "-c", WAITS.replace("PATCH", patch)),
      *processes.flags("one_device", tmp, fields),
      *more,
    ],
    cwd=processes.ROOT,
    env=processes.environment(tmp.parent / "cache"),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_second_signal_ends_at_once_and_harms_nothing(folder):
  tmp = folder("second")
  fields = FIELDS | {"checkpoint_every_steps": 2}
  process = begin_waiting(tmp, LOOP, fields)
  wait_for_line(process, "waits")
  processes.kill(process, signal.SIGTERM)
  time.sleep(0.7)  # sooner, and it would be the same one
  assert process.poll() is None  # step 5 does not end
  processes.kill(process, signal.SIGTERM)
  seconds, _, _ = end(process, code=128 + signal.SIGTERM)
  assert seconds < 2, f"{seconds:.2f} s"  # nothing is waited for
  step = saved_step(tmp)
  assert step in (2, 4)  # the second was being saved, or done
  process = begin(tmp, fields)
  wait_for_line(process, f"goes on after step {step} of")
  process.kill()
  process.communicate()


def test_stuck_run_ends_with_the_stacks_of_all_threads(folder):
  tmp = folder("stuck")
  for reads, last in (("160", r" \(last begun: step \d+\)"), ("0", "")):
    reader = READER.replace("READS", reads)
    process = begin_waiting(tmp, reader, FIELDS, "--hang_timeout_seconds=2")
    # Another start of a run reads before its first step.
    wait_for_line(process, "the traced step")
    _, _, errors = end(process, code=70)
    assert re.search(
      f"^error: no step finished for 2 seconds{last}; .* The same command goes "
      "on from the last checkpoint",
      processes.last_error(errors),
    )
    file = tmp / "workdir" / "stuck.txt"
    stacks = file.read_text()
    file.unlink()
    assert stacks in errors
    for where in ("in find", "train.py"):  # what sleeps, and what waits for it
      assert where in stacks


def test_ctrl_c_in_the_terminal_of_several_processes_saves_in_all(folder):
  tmp = folder("terminal")
  port = str(processes.free_port())
  environment = processes.environment(
    tmp.parent / "cache", PORT=port, PYTHON=sys.executable
  )
  terminal = subprocess.Popen(
    [
      *("launch/local.sh", "2", "1"),
      *processes.flags("two_device", tmp, FIELDS),
    ],
    cwd=processes.ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  processes.wait_for_step(tmp, 3, [terminal])
  os.killpg(terminal.pid, signal.SIGINT)
  _, out, _ = end(terminal, code=75)
  (step,) = map(int, re.findall(r"stopped by SIGTERM after step (\d+)", out))
  assert saved_step(tmp) == step == last_step(tmp)


def test_process_that_is_stopped_before_the_first_step_frees_the_others(folder):
  tmp = folder("early")
  arguments = processes.flags("two_device", tmp, FIELDS)
  running = processes.start(
    tmp, 2, [*arguments, "--compilation_cache=off", "--simulate_devices=1"]
  )
  wait_for_line(running[0], "layout two_column")
  processes.kill(running[1], signal.SIGTERM)
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
    r"first step\. The same command goes on",
    processes.last_error(others),
  )
