"""Signals, and the boundary at which all processes stop after one."""

import itertools
import queue
import signal
import threading
import time

import pytest

from alexnet_jax.distributed import heartbeat, preemption
from tests import fake_group


class Exited(Exception):
  """Stands for the end of the process."""


def test_first_signal_ends_at_once_while_nothing_can_be_lost():
  def exit_early(name):
    raise Exited(name)

  signals = preemption.Signals()
  signals.set_exit_early(exit_early)
  with pytest.raises(Exited, match="SIGTERM"):
    signals.receive(signal.SIGTERM)
  assert not signals.received.is_set()
  signals.start_deferring()
  signals.receive(signal.SIGINT)
  assert signals.received.is_set() and signals.name == "SIGINT"


def test_processes_stop_before_the_same_boundary(monkeypatch):
  monkeypatch.setattr(preemption, "NOTICE_SECONDS", 0.02)
  store, answers = fake_group.Store(), itertools.count()
  store.fails = lambda: next(answers) % 3 == 1  # now and then, also after a set
  own = [preemption.Signals() for _ in range(3)]
  parts = [
    preemption.StopAgreement(
      store, index=i, count=3, signals=own[i], on_end=pytest.fail
    )
    for i in range(3)
  ]
  stopped = [0, 0, 0]

  def run(index):
    parts[index].start()
    while not parts[index].should_stop():
      stopped[index] += 1
      time.sleep(0.001 * (index + 1))  # each as fast as it is

  threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
  for thread in threads:
    thread.start()
  time.sleep(0.1)
  own[1].start_deferring()
  own[1].receive(signal.SIGINT)
  for thread in threads:
    thread.join(10)
  assert stopped[0] == stopped[1] == stopped[2] > 0
  assert {part.name for part in parts} == {"SIGINT"}


def test_process_ends_if_the_store_does_not_answer(monkeypatch):
  monkeypatch.setattr(preemption, "NOTICE_SECONDS", 0.01)
  monkeypatch.setattr(heartbeat, "LOST_SECONDS", 0.05)
  store, own, said = fake_group.Store(), preemption.Signals(), queue.Queue()
  part = preemption.StopAgreement(
    store, index=1, count=2, signals=own, on_end=lambda *end: said.put(end)
  )
  part.start()
  store.fails = lambda: True
  sentence, lost = said.get(timeout=10)
  assert lost and said.empty()
  assert "process 0 is lost, it does not answer (UNAVAILABLE)" in sentence
