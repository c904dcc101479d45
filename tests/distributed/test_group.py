"""How a process of several ends, where nobody reads what it says."""

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
first._watch.announce = lambda reason: None
first._end("another is lost", True) if sys.argv[1] == "end" else first._fail(
  SystemExit("error: a reason") if sys.argv[1] == "line" else OSError("other")
)
"""


@pytest.mark.slow  # processes that import jax
@pytest.mark.parametrize("how, code", [("end", 69), ("line", 1), ("other", 1)])
def test_process_ends_though_nobody_reads_what_it_says(how, code):
  ended = subprocess.run(
    [sys.executable, "-c", ENDS, how],
    cwd=processes.ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    timeout=60,
  )
  assert ended.returncode == code
