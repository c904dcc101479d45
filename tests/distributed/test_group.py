"""How a process of several ends, and what counts as the loss of another."""

import concurrent.futures
import os
import subprocess
import sys
import threading

import jax
import pytest

from alexnet_jax.distributed import group, machine
from tests import processes

# Ends as `argv` says, with both outputs a pipe that is closed.
ENDS = """
import os, sys
from tests import fake_group
first, _ = fake_group.make_groups("one", "two")
reader, writer = os.pipe()
os.close(reader)
print("not flushed yet")
for output in (1, 2):
  os.dup2(writer, output)
first._heartbeat.announce_end = lambda reason, lost: None
if sys.argv[1] == "end":
  first._end_with_other("another is lost", True)
line = SystemExit("error: a reason")
first._fail(line if sys.argv[1] == "line" else OSError("other"))
"""


@pytest.mark.slow  # processes that import jax
@pytest.mark.parametrize("how, code", [("end", 69), ("line", 1), ("other", 1)])
def test_process_ends_though_its_output_is_closed(how, code):
  ended = subprocess.run(
    [sys.executable, "-c", ENDS, how],
    cwd=processes.ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    timeout=60,
  )
  assert ended.returncode == code


@pytest.mark.parametrize(
  ("error", "is_lost"),
  [
    (jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed"), True),
    (jax.errors.JaxRuntimeError("INTERNAL: Gloo AllGather failed"), True),
    (ValueError("UNKNOWN: Gloo AllGather failed: reset"), True),
    (
      jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: for barrier buffers"),
      False,
    ),
    (ValueError("XLA_FLAGS is --xla_gpu_enable_nccl_x in the workdir"), False),
    (ValueError("/scratch/igloo/run/config.json is damaged"), False),
  ],
)
def test_lost_connection_is_told_from_other_errors(error, is_lost):
  try:
    try:
      raise error
    except (ValueError, jax.errors.JaxRuntimeError):
      sys.exit(1)
  except SystemExit as end:
    assert group.find_lost_connection(end) is (error if is_lost else None)


def test_cause_that_an_error_hides_is_no_lost_connection():
  try:
    try:
      raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: GetKeyValue()")
    except jax.errors.JaxRuntimeError:
      raise TimeoutError("process 0 of 2: no value within 600 s.") from None
  except TimeoutError as error:
    assert group.find_lost_connection(error) is None


def find_policy(chosen):
  """That of a thread, and of one that it starts, after the group has started.

  Policies belong to threads, so this takes a thread that ends.
  """
  found = []

  def work():
    if chosen is not None:
      os.sched_setscheduler(0, chosen, os.sched_param(0))
    group._let_lock_holders_run()
    found.append(os.sched_getscheduler(0))
    child = threading.Thread(
      target=lambda: found.append(os.sched_getscheduler(0))
    )
    child.start()
    child.join()

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    pool.submit(work).result()
  return found


@pytest.mark.skipif(sys.platform != "linux", reason="policies of Linux")
def test_threads_do_not_take_the_core_of_the_one_they_wait_for(monkeypatch):
  monkeypatch.setattr(machine, "has_accelerator", lambda: False)
  assert find_policy(None) == [os.SCHED_BATCH] * 2
  assert find_policy(os.SCHED_IDLE) == [os.SCHED_IDLE] * 2  # the user's
  monkeypatch.setattr(machine, "has_accelerator", lambda: True)
  assert find_policy(None) == [os.SCHED_OTHER] * 2
