"""All processes of a run are there and fit together, or the others say so."""

import concurrent.futures
import json
import socket
import time

import pytest

from alexnet_jax.distributed import cluster, rendezvous
from tests import processes


def facts(host, **same):
  return {"host": host, "same": same}


def connect(port):
  """Connects as soon as a server listens."""
  while True:
    try:
      return socket.create_connection(("localhost", port))
    except ConnectionRefusedError:
      time.sleep(0.01)


def join_at(port, index, count, said, seconds=5.0):
  place = cluster.Process(index=index, count=count, address=f"localhost:{port}")
  return rendezvous.join(place, said, timeout_seconds=seconds)


def join(*joining, seconds=5.0):
  """Joins processes (index, count, facts); returns results or errors."""
  port = processes.free_port()

  def one(process):
    try:
      return join_at(port, *process, seconds)
    except (ValueError, ConnectionError) as error:
      return error

  with concurrent.futures.ThreadPoolExecutor(len(joining)) as pool:
    return list(pool.map(one, joining))


def test_every_process_learns_of_all():
  said = [facts(f"host{index}", version="1") for index in range(3)]
  found = join(*((index, 3, said[index]) for index in (2, 0, 1)))
  assert found == [said] * 3


def test_one_process_asks_nobody():
  place = cluster.Process()
  assert rendezvous.join(place, facts("a"), timeout_seconds=0) == [facts("a")]


def test_missing_processes_are_named_to_all_that_are_there():
  start = time.monotonic()
  found = join((0, 4, facts("a")), (2, 4, facts("c")), seconds=1.0)
  assert time.monotonic() - start < 5
  missing = "processes 1, 3 of 4 did not connect to localhost"
  for error in found:
    assert isinstance(error, ConnectionError)
    assert str(error).startswith(missing)


def test_process_0_that_is_not_there_is_named():
  (error,) = join((1, 2, facts("b")), seconds=1.0)
  assert str(error).startswith("process 0 of 2 cannot be reached at localhost:")
  assert "(Connection refused)" in str(error)


@pytest.mark.parametrize(
  ("joining", "expected"),
  [
    (
      [(0, 3, facts("a")), (1, 3, facts("b")), (1, 3, facts("c"))],
      "two processes are process 1 of 3",
    ),
    (
      [(0, 2, facts("a", seed="0")), (1, 3, facts("b", seed="1"))],
      "process 1 (b) expects 3 processes, process 0 expects 2",
    ),
    (
      [
        (0, 2, facts("a", seed="0", rate="1")),
        (1, 2, facts("b", seed="0", rate="2")),
      ],
      "rate is '2' in process 1 (b), and '1' in process 0",
    ),
  ],
)
def test_processes_that_do_not_fit_are_refused_in_all(joining, expected):
  for error in join(*joining):
    assert isinstance(error, ValueError)
    assert str(error).startswith(expected)


def test_port_in_use_is_named():
  with socket.create_server(("", 0)) as taken:
    port = taken.getsockname()[1]
    said = f"listen on port {port} .*in use"
    with pytest.raises(ConnectionError, match=said):
      join_at(port, 0, 2, facts("a"), 1.0)


@pytest.mark.parametrize(
  "text", [b"", b"GET / HTTP/1.1\r\n\r\n", b'{"hello": 1}\n', b"[1]\n"]
)
def test_strangers_are_not_counted(text):
  port = processes.free_port()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(join_at, port, 0, 2, facts("a"))
    with connect(port) as stranger:
      stranger.sendall(text)
    found = join_at(port, 1, 2, facts("b"))
    assert found == first.result() == [facts("a"), facts("b")]


def test_process_0_may_start_last():
  port = processes.free_port()
  starts = (0.5, 0.0, 1.2)  # seconds; each alone is in its time

  def one(index):
    time.sleep(starts[index])
    return join_at(port, index, 3, facts(str(index)), 1.0)

  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    found = list(pool.map(one, range(3)))
  assert found == [[facts("0"), facts("1"), facts("2")]] * 3


def test_process_that_called_and_died_is_missing():
  port = processes.free_port()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(join_at, port, 0, 3, facts("a"), 2.0)
    dead = connect(port)
    said = {"hello": "alexnet_jax", "count": 3, "index": 1, "facts": facts("b")}
    dead.sendall(json.dumps(said).encode() + b"\n")
    dead.close()
    missing = "^process 1 of 3 did not connect"
    with pytest.raises(ConnectionError, match=missing):
      join_at(port, 2, 3, facts("c"), 2.0)
    with pytest.raises(ConnectionError, match=missing):
      first.result()


def test_port_is_free_again_at_once():
  port = processes.free_port()
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for _ in range(3):
      list(
        pool.map(lambda index: join_at(port, index, 2, facts("a")), range(2))
      )
      socket.create_server(("", port)).close()
