"""How a process of several ends, and what counts as the loss of another."""

import os
import subprocess
import sys

import jax
import pytest

from alexnet_jax.distributed import group
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
