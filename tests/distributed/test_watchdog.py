"""A run that hangs ends, with the stacks of its threads."""

import os
import threading
import time

import pytest

from alexnet_jax.distributed import watchdog


@pytest.fixture
def watched(tmp_path):
  """A watchdog of 0.2 s, and the exit codes that it has passed on."""
  codes = []
  path = str(tmp_path / "hang_stacks.txt")
  options = {"path": path, "label": "process 1 of 2", "exit": codes.append}
  made = watchdog.Watchdog(0.2, **options)
  made.start()
  yield made, codes
  made.stop()


def wait_for(codes):
  end = time.monotonic() + 10
  while not codes and time.monotonic() < end:
    time.sleep(0.01)


def test_watchdog_ends_a_run_without_boundaries_and_says_where(
  watched, tmp_path, capfd
):
  made, codes = watched
  for step in range(1, 21):
    made.reset(step)
    time.sleep(0.02)
  assert not codes  # 0.4 s, but never 0.2 s without one
  wait_for(codes)
  assert codes == [watchdog.HUNG]
  stacks = (tmp_path / "hang_stacks.txt").read_text()
  assert "process 1 of 2: the stacks of all threads at" in stacks
  assert "test_watchdog.py" in stacks  # where this thread is
  said = capfd.readouterr().err
  assert stacks in said
  assert "process 1 of 2: no step finished for 0.2 seconds" in said
  assert "last begun: step 20" in said.splitlines()[-1]


def test_watchdog_counts_before_the_first_boundary(watched, capfd):
  _, codes = watched
  wait_for(codes)
  assert codes == [watchdog.HUNG]
  said = capfd.readouterr().err.splitlines()[-1]
  assert "no step finished for 0.2 seconds; the stacks" in said


def test_watchdog_is_paused_until_the_next_boundary(watched):
  made, codes = watched
  made.reset()
  made.pause()
  time.sleep(0.4)
  assert not codes


def test_watchdog_of_0_seconds_never_ends_a_run(tmp_path):
  before = {*threading.enumerate()}
  path = str(tmp_path / "hang_stacks.txt")
  watchdog.Watchdog(0.0, path=path, exit=os._exit).start()
  assert {*threading.enumerate()} <= before  # no thread counts
