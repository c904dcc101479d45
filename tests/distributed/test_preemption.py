"""Signals, what processes agree on after one, and the clock of a stuck run."""

import itertools
import os
import signal
import threading
import time

import pytest

from alexnet_jax.distributed import heartbeat, preemption, watchdog


class Left(Exception):
  """The process would have ended here."""


class Store:
  """What JAX's service keeps for all processes, here for threads."""

  def __init__(self):
    self.kept = {}
    self.fails = lambda: False

  def key_value_set(self, key, value, allow_overwrite=False):
    self.kept[key] = value
    self._answer()

  def key_value_dir_get(self, key):
    self._answer()
    return [item for item in list(self.kept.items()) if item[0].startswith(key)]

  def _answer(self):
    if self.fails():
      raise RuntimeError("UNAVAILABLE")


def test_first_signal_ends_at_once_while_nothing_can_be_lost():
  def leave(name):
    raise Left(name)

  heard = preemption.Signals()
  heard.set_leave(leave)
  with pytest.raises(Left, match="SIGTERM"):
    heard.hear(signal.SIGTERM)
  assert not heard.came.is_set()
  heard.guard()
  heard.hear(signal.SIGINT)
  assert heard.came.is_set()
  assert heard.name == "SIGINT"


def test_processes_stop_before_the_same_boundary(monkeypatch):
  monkeypatch.setattr(preemption, "NOTICE_SECONDS", 0.02)
  store, answers = Store(), itertools.count()
  store.fails = lambda: next(answers) % 3 == 1  # now and then, also after a set
  own = [preemption.Signals() for _ in range(3)]
  parts = [
    preemption.Agreement(
      store, index=i, count=3, signals=own[i], on_end=pytest.fail
    )
    for i in range(3)
  ]
  stopped = [0, 0, 0]

  def run(index):
    parts[index].start()
    while not parts[index].is_stopping():
      stopped[index] += 1
      time.sleep(0.001 * (index + 1))  # each as fast as it is

  threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
  for thread in threads:
    thread.start()
  time.sleep(0.1)
  own[1].guard()
  own[1].hear(signal.SIGINT)
  for thread in threads:
    thread.join(10)
  assert stopped[0] == stopped[1] == stopped[2] > 0
  assert {part.name for part in parts} == {"SIGINT"}


def test_process_ends_where_nobody_answers_for_long(monkeypatch):
  monkeypatch.setattr(preemption, "NOTICE_SECONDS", 0.01)
  monkeypatch.setattr(heartbeat, "LOST_SECONDS", 0.05)
  store, ended, said = Store(), threading.Event(), []

  def end(sentence, lost):
    said.append((sentence, lost))
    ended.set()

  own = preemption.Signals()
  part = preemption.Agreement(store, index=1, count=2, signals=own, on_end=end)
  part.start()
  store.fails = lambda: True
  assert ended.wait(10)
  ((sentence, lost),) = said
  assert lost
  assert "process 0 is lost, it does not answer (UNAVAILABLE)" in sentence


@pytest.fixture
def clock(tmp_path):
  """A clock of 0.2 s, and the codes with which it has ended the process."""
  codes = []
  path = str(tmp_path / "stuck.txt")
  made = watchdog.Watchdog(
    0.2, path=path, label="process 1 of 2", exit=codes.append
  )
  made.start()
  yield made, codes
  made.stop()


def test_clock_runs_out_without_boundaries_and_says_where(
  clock, tmp_path, capfd
):
  made, codes = clock
  for step in range(1, 21):
    made.tick(step)
    time.sleep(0.02)
  assert not codes  # 0.4 s, but never 0.2 s without one
  end = time.monotonic() + 10
  while not codes and time.monotonic() < end:
    time.sleep(0.01)
  assert codes == [watchdog.STUCK]
  stacks = (tmp_path / "stuck.txt").read_text()
  assert "process 1 of 2: the stacks of all threads at" in stacks
  assert "test_preemption.py" in stacks  # where this thread is
  said = capfd.readouterr().err
  assert stacks in said
  assert "process 1 of 2: no step finished for 0.2 seconds" in said
  assert "last begun: step 20" in said.splitlines()[-1]


def test_clock_runs_out_before_the_first_boundary(clock, capfd):
  _, codes = clock
  end = time.monotonic() + 10
  while not codes and time.monotonic() < end:
    time.sleep(0.01)
  assert codes == [watchdog.STUCK]
  said = capfd.readouterr().err.splitlines()[-1]
  assert "no step finished for 0.2 seconds; the stacks" in said


def test_clock_rests_until_the_next_boundary(clock):
  made, codes = clock
  made.tick()
  made.rest()
  time.sleep(0.4)
  assert not codes


def test_clock_of_no_seconds_never_runs_out(tmp_path):
  before = {*threading.enumerate()}
  made = watchdog.Watchdog(0.0, path=str(tmp_path / "stuck.txt"), exit=os._exit)
  made.start()
  assert {*threading.enumerate()} <= before  # nothing counts
