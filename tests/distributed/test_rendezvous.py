"""The call before the start: who is there, and do they belong together."""

import concurrent.futures
import json
import socket
import time

import pytest

from alexnet_jax.distributed import cluster, rendezvous


def free_port():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


def facts(host, **same):
  return {"host": host, "same": same}


def call(*processes, seconds=5.0):
  """Calls the processes (index, count, facts); their results or errors."""
  address = f"localhost:{free_port()}"

  def one(process):
    index, count, said = process
    place = cluster.Place(index=index, count=count, address=address)
    try:
      return rendezvous.call(place, said, timeout_seconds=seconds)
    except (ValueError, ConnectionError) as error:
      return error

  with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
    return list(pool.map(one, processes))


def test_every_process_learns_of_all():
  said = [facts(f"host{index}", version="1") for index in range(3)]
  found = call(*((index, 3, said[index]) for index in (2, 0, 1)))
  assert found == [said] * 3


def test_one_process_asks_nobody():
  place = cluster.Place()
  assert rendezvous.call(place, facts("a"), timeout_seconds=0) == [facts("a")]


def test_missing_processes_are_named_to_all_that_are_there():
  start = time.monotonic()
  found = call((0, 4, facts("a")), (2, 4, facts("c")), seconds=1.0)
  assert time.monotonic() - start < 5
  for error in found:
    assert isinstance(error, ConnectionError)
    assert str(error).startswith(
      "processes 1, 3 of 4 did not call at localhost"
    )


def test_process_0_that_is_not_there_is_named():
  (error,) = call((1, 2, facts("b")), seconds=1.0)
  assert str(error).startswith("process 0 of 2 cannot be reached at localhost:")
  assert "(Connection refused)" in str(error)


def test_two_processes_of_one_number_are_refused():
  found = call((0, 3, facts("a")), (1, 3, facts("b")), (1, 3, facts("c")))
  for error in found:
    assert isinstance(error, ValueError)
    assert "two processes say that they are process 1 of 3" in str(error)


def test_counts_that_differ_are_refused():
  found = call((0, 2, facts("a")), (1, 3, facts("b")))
  for error in found:
    assert "process 1 (b) says there are 3 processes, process 0 says 2" in str(
      error
    )


def test_what_must_be_alike_is_named_where_it_differs():
  found = call(
    (0, 2, facts("a", seed="0", rate="1")),
    (1, 2, facts("b", seed="0", rate="2")),
  )
  for error in found:
    assert str(error).startswith("rate is '2' in process 1 (b), and '1' in")


def test_port_in_use_is_named():
  with socket.create_server(("", 0)) as taken:
    port = taken.getsockname()[1]
    place = cluster.Place(index=0, count=2, address=f"localhost:{port}")
    with pytest.raises(
      ConnectionError, match=f"listen on port {port} .*in use"
    ):
      rendezvous.call(place, facts("a"), timeout_seconds=1)


@pytest.mark.parametrize(
  "text", [b"", b"GET / HTTP/1.1\r\n\r\n", b'{"hello": 1}\n', b"[1]\n"]
)
def test_strangers_are_not_counted(text):
  port = free_port()
  place = cluster.Place(index=0, count=2, address=f"localhost:{port}")
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(rendezvous.call, place, facts("a"), timeout_seconds=5)
    while True:
      try:
        stranger = socket.create_connection(("localhost", port))
        break
      except ConnectionRefusedError:
        time.sleep(0.01)
    with stranger:
      stranger.sendall(text)
    second = cluster.Place(index=1, count=2, address=place.address)
    found = rendezvous.call(second, facts("b"), timeout_seconds=5)
    assert found == first.result() == [facts("a"), facts("b")]


def test_process_0_may_start_last():
  address = f"localhost:{free_port()}"
  places = [
    cluster.Place(index=index, count=3, address=address) for index in range(3)
  ]
  starts = {1: 0.0, 0: 0.5, 2: 1.2}  # seconds; each alone is in its time

  def one(place):
    time.sleep(starts[place.index])
    return rendezvous.call(place, facts(str(place.index)), timeout_seconds=1.0)

  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    found = list(pool.map(one, places))
  assert found == [[facts("0"), facts("1"), facts("2")]] * 3


def test_process_that_called_and_died_is_missing():
  port = free_port()
  place = cluster.Place(index=0, count=3, address=f"localhost:{port}")
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(rendezvous.call, place, facts("a"), timeout_seconds=2)
    while True:
      try:
        dead = socket.create_connection(("localhost", port))
        break
      except ConnectionRefusedError:
        time.sleep(0.01)
    call = {"hello": "alexnet_jax", "count": 3, "index": 1, "facts": facts("b")}
    dead.sendall(json.dumps(call).encode() + b"\n")
    dead.close()
    third = cluster.Place(index=2, count=3, address=place.address)
    for answer in (
      lambda: rendezvous.call(third, facts("c"), timeout_seconds=2),
      first.result,
    ):
      with pytest.raises(ConnectionError, match="^process 1 of 3 did not call"):
        answer()


def test_port_is_free_again_at_once():
  port = free_port()
  places = [
    cluster.Place(index=index, count=2, address=f"localhost:{port}")
    for index in range(2)
  ]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for _ in range(3):
      list(
        pool.map(
          lambda place: rendezvous.call(place, facts("a"), timeout_seconds=5),
          places,
        )
      )
      socket.create_server(("", port)).close()
