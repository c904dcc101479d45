"""Who is lost, who says so, and to whom."""

import socket
import threading
import time

import pytest

from alexnet_jax.distributed import heartbeat

LABELS = ("process 0 of 3 (a)", "process 1 of 3 (b)", "process 2 of 3 (c)")


class Store:
  """Keys and values in the memory of the test."""

  def __init__(self):
    self.values = {}
    self.lock = threading.Lock()
    self.down = threading.Event()

  def key_value_set(self, key, value, allow_overwrite=False):
    with self.lock:
      if self.down.is_set():
        raise RuntimeError("UNAVAILABLE")
      if key in self.values and not allow_overwrite:
        raise RuntimeError("ALREADY_EXISTS")
      self.values[key] = value

  def key_value_dir_get(self, key):
    with self.lock:
      if self.down.is_set():
        raise RuntimeError("UNAVAILABLE")
      return [item for item in self.values.items() if item[0].startswith(key)]


class Heard:
  """What a watch has said, once."""

  def __init__(self):
    self.words = []
    self.spoken = threading.Event()

  def __call__(self, sentence, lost):
    self.words.append((sentence, lost))
    self.spoken.set()


@pytest.fixture
def group(monkeypatch):
  """Three watches on one store, a hundred times faster."""
  monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.02)
  monkeypatch.setattr(heartbeat, "LOST_SECONDS", 0.4)
  monkeypatch.setattr(heartbeat, "_SUSPECT_SECONDS", 0.1)
  monkeypatch.setattr(heartbeat, "_PAUSE_SECONDS", 0.2)
  monkeypatch.setattr(heartbeat, "_LINGER_SECONDS", 1.0)
  store, heard = Store(), [Heard() for _ in LABELS]
  with socket.create_server(("", 0)) as service:
    watches = [
      heartbeat.Heartbeat(
        store,
        index=index,
        labels=LABELS,
        address=f"localhost:{service.getsockname()[1]}",
        on_end=heard[index],
      )
      for index in range(3)
    ]
    yield store, service, watches, heard
    for each in watches:
      each.stop()


def test_nothing_is_said_while_all_live(group):
  _, _, watches, heard = group
  for each in watches:
    each.start()
  assert not heard[0].spoken.wait(1.0)
  assert [each.words for each in heard] == [[], [], []]


def test_process_that_falls_silent_is_named_to_all_others(group):
  _, _, watches, heard = group
  for each in watches[:2]:
    each.start()
  for each in heard[:2]:
    assert each.spoken.wait(5)
    ((sentence, lost),) = each.words
    assert lost
    assert sentence.startswith("process 2 of 3 (c) is lost: nothing was heard")


def test_process_that_comes_back_learns_that_it_was_given_up(group):
  _, _, watches, heard = group
  for each in watches[:2]:
    each.start()
  assert heard[0].spoken.wait(5)
  watches[2].start()
  assert heard[2].spoken.wait(5)
  assert "process 2 of 3 (c) is lost" in heard[2].words[0][0]


def test_process_0_that_is_gone_is_named_soon(group, monkeypatch):
  store, service, watches, heard = group
  monkeypatch.setattr(heartbeat, "LOST_SECONDS", 60.0)

  def never_answers(*_, **__):
    threading.Event().wait()

  for each in watches[1:]:
    each.start()
  store.key_value_set = store.key_value_dir_get = never_answers
  service.close()
  for each in heard[1:]:
    assert each.spoken.wait(5)
    assert each.words == [
      ("process 0 of 3 (a) is lost: it no longer runs", True)
    ]


def test_process_0_that_hangs_is_named_when_its_time_is_over(group):
  store, _, watches, heard = group

  def never_answers(*_, **__):
    threading.Event().wait()

  store.key_value_set = store.key_value_dir_get = never_answers
  watches[1].start()
  assert heard[1].spoken.wait(5)
  ((sentence, lost),) = heard[1].words
  assert lost
  assert sentence.startswith("process 0 of 3 (a) is lost: nothing was heard")


def test_error_of_one_process_ends_the_others_with_its_reason(group):
  _, _, watches, heard = group
  for each in watches:
    each.start()
  watches[1].announce("record 7 cannot be read")
  for each in (heard[0], heard[2]):
    assert each.spoken.wait(5)
    assert each.words == [
      ("process 1 of 3 (b) ended: record 7 cannot be read", False)
    ]
  assert heard[1].words == []


def test_process_that_is_stopped_early_is_lost_to_the_others(group):
  _, _, watches, heard = group
  for each in watches:
    each.start()
  watches[2].announce("was stopped", lost=True)
  for each in heard[:2]:
    assert each.spoken.wait(5)
    assert each.words == [("process 2 of 3 (c) was stopped", True)]


def test_process_0_stays_until_its_error_is_read(group):
  store, _, watches, heard = group
  for each in watches:
    each.start()
  watches[0].announce("the disk is full")
  store.down.set()  # as its service is, once it has left
  for each in heard[1:]:
    assert each.spoken.wait(5)
    assert each.words == [("process 0 of 3 (a) ended: the disk is full", False)]


def test_first_verdict_stands(group):
  _, _, watches, heard = group
  watches[1].announce("one")
  watches[2].announce("two")
  watches[0].start()
  assert heard[0].spoken.wait(5)
  assert heard[0].words == [("process 1 of 3 (b) ended: one", False)]


def test_pause_of_all_processes_is_no_loss(group, monkeypatch):
  _, _, watches, heard = group
  ahead = [0.0]
  clock = time.monotonic
  monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock() + ahead[0])
  for each in watches:
    each.start()
  time.sleep(0.2)
  ahead[0] = 100.0  # as after a job was suspended, for all threads at once
  assert not heard[0].spoken.wait(0.3)
  assert [each.words for each in heard] == [[], [], []]
