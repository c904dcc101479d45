"""A process of several ends, even where its output cannot be written."""

import os
import subprocess
import sys

import pytest

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
