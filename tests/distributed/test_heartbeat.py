"""Lost processes are found, and the others are told."""

import signal
import socket
import threading
import time

import pytest

from alexnet_jax.distributed import heartbeat
from tests import fake_group, processes

LABELS = ("process 0 of 3 (a)", "process 1 of 3 (b)", "process 2 of 3 (c)")


class Ended:
  """The calls of `on_end` in one process."""

  def __init__(self):
    self.calls = []
    self.called = threading.Event()

  def __call__(self, sentence, lost):
    self.calls.append((sentence, lost))
    self.called.set()

  def wait(self):
    """Waits for the only call; returns its arguments."""
    assert self.called.wait(5)
    (call,) = self.calls
    return call


def never_answers(*_, **__):
  threading.Event().wait()


@pytest.fixture
def group(monkeypatch):
  """Three heartbeats on one store, a hundred times faster."""
  seconds = {"BEAT_SECONDS": 0.02, "LOST_SECONDS": 0.4}
  seconds |= {"_SUSPECT_SECONDS": 0.1, "_PAUSE_SECONDS": 0.2}
  for name, value in (seconds | {"_LINGER_SECONDS": 1.0}).items():
    monkeypatch.setattr(heartbeat, name, value)
  store, ended = fake_group.Store(), [Ended() for _ in LABELS]
  with socket.create_server(("", 0)) as service:
    address = f"localhost:{service.getsockname()[1]}"
    heartbeats = [
      heartbeat.Heartbeat(
        store, index=index, labels=LABELS, address=address, on_end=on_end
      )
      for index, on_end in enumerate(ended)
    ]
    yield store, service, heartbeats, ended
    for each in heartbeats:
      each.stop()


def start(heartbeats):
  for each in heartbeats:
    each.start()


def test_nothing_is_said_while_all_live(group):
  _, _, heartbeats, ended = group
  start(heartbeats)
  assert not ended[0].called.wait(1.0)
  assert [each.calls for each in ended] == [[], [], []]


def test_process_that_falls_silent_is_named_to_all_others(group):
  _, _, heartbeats, ended = group
  start(heartbeats[:2])
  for each in ended[:2]:
    sentence, lost = each.wait()
    assert lost
    assert sentence.startswith("process 2 of 3 (c) is lost: nothing was heard")


def test_process_that_comes_back_learns_that_it_was_given_up(group):
  _, _, heartbeats, ended = group
  start(heartbeats[:2])
  ended[0].wait()
  heartbeats[2].start()
  assert "process 2 of 3 (c) is lost" in ended[2].wait()[0]


def test_process_0_that_is_gone_is_named_soon(group, monkeypatch):
  store, service, heartbeats, ended = group
  monkeypatch.setattr(heartbeat, "LOST_SECONDS", 60.0)
  start(heartbeats[1:])
  store.key_value_set = store.key_value_dir_get = never_answers
  service.close()
  for each in ended[1:]:
    said = "process 0 of 3 (a) is lost: it no longer runs"
    assert each.wait() == (said, True)


def test_process_0_that_hangs_is_named_when_its_time_is_over(group):
  store, _, heartbeats, ended = group
  store.key_value_set = store.key_value_dir_get = never_answers
  heartbeats[1].start()
  sentence, lost = ended[1].wait()
  assert lost
  assert sentence.startswith("process 0 of 3 (a) is lost: nothing was heard")


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    ({}, ("process 1 of 3 (b) ended: the reason", False)),
    ({"lost": True}, ("process 1 of 3 (b) the reason", True)),
  ],
  ids=["error", "stopped early"],
)
def test_end_of_one_process_ends_the_others_with_its_reason(
  options, expected, group
):
  _, _, heartbeats, ended = group
  start(heartbeats)
  heartbeats[1].announce_end("the reason", **options)
  assert ended[0].wait() == ended[2].wait() == expected
  assert ended[1].calls == []


def test_process_0_stays_until_its_error_is_read(group):
  store, _, heartbeats, ended = group
  start(heartbeats)
  heartbeats[0].announce_end("the disk is full")
  store.fails = lambda: True  # as its service is, once it has left
  for each in ended[1:]:
    said = "process 0 of 3 (a) ended: the disk is full"
    assert each.wait() == (said, False)


def test_first_verdict_stands(group):
  _, _, heartbeats, ended = group
  heartbeats[1].announce_end("one")
  heartbeats[2].announce_end("two")
  heartbeats[0].start()
  assert ended[0].wait() == ("process 1 of 3 (b) ended: one", False)


def test_pause_of_all_processes_is_no_loss(group, monkeypatch):
  _, _, heartbeats, ended = group
  ahead = [0.0]
  clock = time.monotonic
  monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock() + ahead[0])
  start(heartbeats)
  time.sleep(0.2)
  ahead[0] = 100.0  # as after a job was suspended, for all threads at once
  assert not ended[0].called.wait(0.3)
  assert [each.calls for each in ended] == [[], [], []]


ABORTS = """
import ctypes, os
from alexnet_jax.distributed import heartbeat

class Store:
  def key_value_set(self, *_, **__): pass
  def key_value_dir_get(self, _): return []

def end(sentence, lost):
  print(sentence, lost, flush=True)
  os._exit(69)

heartbeat.BEAT_SECONDS, heartbeat._ABORT_SECONDS = 0.2, 0.3
heartbeat.delay_abort()
heartbeat.Heartbeat(
  Store(), index=0, labels=("0", "1"), address="localhost:1", on_end=end
).start()
ctypes.CDLL(None).abort()  # without Python's lock, as threads of JAX do it
"""


def test_process_that_a_library_aborts_ends_as_lost(tmp_path):
  ended = processes.run(["python", "-c", ABORTS], tmp_path)
  assert ended.code == 69, ended.errors
  assert ended.out.startswith("JAX aborts it for the reason above")
  assert ended.out.endswith(" True\n")


# All: a thread that starts, or forks. All but faults: threads of libraries.
@pytest.mark.parametrize("open", [set(), {signal.SIGSEGV, signal.SIGBUS}])
def test_thread_that_blocks_other_signals_is_no_abort(open):
  blocked, done = threading.Event(), threading.Event()

  def block():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - open)
    blocked.set()
    done.wait()

  thread = threading.Thread(target=block)
  thread.start()
  try:
    assert blocked.wait(10)
    assert not heartbeat._find_aborting_threads()
  finally:
    done.set()
    thread.join()
