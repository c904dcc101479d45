"""Waits until all processes of a run have started and fit together.

JAX does not name processes that are missing, and starts with some that do not
fit together. So before JAX starts, process 0 listens at its address, and every
other process connects and sends one line of JSON. When all have done so,
process 0 sends each of them one line back: the facts of all, or what is wrong.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping

from alexnet_jax.distributed import cluster

_HELLO = "alexnet_jax"
_KEYS = {"hello", "count", "index", "facts"}
_LONGEST_LINE = 2**20
# For one line to arrive once there is a connection.
_LINE_SECONDS = 5.0
_RETRY_SECONDS = 0.2
_ELSE = (
  "--start_timeout_seconds waits longer, and --distributed=off starts this "
  "process alone."
)

# What a process sends about itself: "host", "address", and "same": values that
# must be the same in all processes, by their names.
Facts = Mapping[str, object]


def join(
  process: cluster.Process, facts: Facts, *, timeout_seconds: float
) -> list[Facts]:
  """Waits for all processes; returns the facts of each, in their order.

  Args:
    process: this process.
    facts: of this process.
    timeout_seconds: to wait.

  Raises:
    ValueError: two processes have one number, or values that must be the same
      differ.
    ConnectionError: processes are missing, or process 0 cannot be reached.
  """
  if process.count == 1:
    return [facts]
  deadline = time.monotonic() + timeout_seconds
  own = {"count": process.count, "index": process.index, "facts": facts}
  if process.index == 0:
    return _serve(process, own, deadline, timeout_seconds)
  return _connect(process, own, deadline, timeout_seconds)


def _serve(
  process: cluster.Process, own: dict, deadline: float, timeout_seconds: float
) -> list[Facts]:
  """Collects the facts of all in process 0, and answers."""
  port = int(process.address.rpartition(":")[2])
  try:
    server = _open_server(port)
  except OSError as error:
    raise ConnectionError(
      f"process 0 cannot listen on port {port} ({error.strerror}). Set another "
      f"port in {cluster.ADDRESS}, or in JAX_COORDINATOR_PORT."
    ) from error
  with contextlib.ExitStack() as opened:
    opened.enter_context(server)
    present, connections, problem, kind = {0: own}, {}, None, ValueError
    while problem is None:
      _drop_disconnected(present, connections)
      if len(present) == process.count:
        break
      server.settimeout(max(deadline - time.monotonic(), 0.01))
      try:
        connection, _ = server.accept()
      except TimeoutError:
        problem = _describe_missing(process, present, timeout_seconds)
        kind = ConnectionError
        break
      opened.enter_context(connection)
      message = _receive(connection, _LINE_SECONDS)
      if message is None or not _KEYS <= message.keys():
        continue  # not a process of a run
      _drop_disconnected(present, connections)  # it may be its second try
      problem = _find_conflict(present, message)
      present.setdefault(message["index"], message)
      connections.setdefault(message["index"], connection)
      if connections[message["index"]] is not connection:
        connections[-1] = connection  # of the same number: gets the answer too
    # All that come get this answer, so it waits until all are there.
    if problem is None or kind is ConnectionError:
      if difference := _find_difference(present):
        problem, kind = difference, ValueError
    server.close()  # JAX takes the port over
    answer = {"hello": _HELLO, "problem": problem, "kind": kind.__name__}
    if problem is None:
      answer["facts"] = [present[i]["facts"] for i in range(process.count)]
    for connection in connections.values():
      with contextlib.suppress(OSError):
        _send(connection, answer)
    if problem is not None:
      raise kind(problem)
    # Lets the others close first: the port of the side that closes first is not
    # free at once.
    for connection in connections.values():
      _receive(connection, _LINE_SECONDS)
    return answer["facts"]


def _drop_disconnected(
  present: dict[int, dict], connections: dict[int, socket.socket]
) -> None:
  """Removes processes that have closed their connection since."""
  for index, connection in list(connections.items()):
    connection.settimeout(0)
    try:
      is_closed = connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
      is_closed = False  # it waits for the answer
    except OSError:
      is_closed = True
    connection.settimeout(_LINE_SECONDS)
    if is_closed:
      del present[index], connections[index]


def _connect(
  process: cluster.Process, own: dict, deadline: float, timeout_seconds: float
) -> list[Facts]:
  """Connects to process 0, from any other process, until that answers."""
  host, _, port = process.address.rpartition(":")
  reason = "no answer"
  while (left := deadline - time.monotonic()) > 0:
    answer, begun = None, time.monotonic()
    try:
      with socket.create_connection(
        (host.strip("[]"), int(port)), timeout=left
      ) as connection:
        _send(connection, {"hello": _HELLO, **own})
        # Process 0 may have started just now, and wait as long as this one.
        patience = timeout_seconds + 2 * _LINE_SECONDS
        answer = _receive(connection, patience)
      reason = "another program than process 0 of this run answers"
      if time.monotonic() - begun >= patience:
        reason = "it accepts the connection, but does not answer"
    except OSError as error:
      reason = error.strerror or "no answer"
    if answer is not None and answer.get("hello") == _HELLO:
      if answer["problem"] is not None:
        is_value = answer["kind"] == "ValueError"
        raise (ValueError if is_value else ConnectionError)(answer["problem"])
      return answer["facts"]
    time.sleep(_RETRY_SECONDS)
  raise ConnectionError(
    f"process 0 of {process.count} cannot be reached at {process.address} "
    f"within {timeout_seconds:g} s ({reason}). Start it there, or set "
    f"{cluster.ADDRESS}; {_ELSE}"
  )


def _describe_missing(
  process: cluster.Process, present: Mapping[int, dict], timeout_seconds: float
) -> str:
  missing = [i for i in range(process.count) if i not in present]
  noun = "process" if len(missing) == 1 else "processes"
  listed = ", ".join(map(str, missing[:20]))
  more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
  return (
    f"{noun} {listed}{more} of {process.count} did not connect to "
    f"{process.address} within {timeout_seconds:g} s. Start them, or set "
    f"JAX_NUM_PROCESSES; {_ELSE}"
  )


def _find_conflict(present: Mapping[int, dict], message: dict) -> str | None:
  """Returns why a process cannot be one of this run; None if it can."""
  first, index = present[0], message["index"]
  host = message["facts"]["host"]
  if message["count"] != first["count"]:
    return (
      f"process {index} ({host}) expects {message['count']} processes, "
      f"process 0 expects {first['count']}. Set JAX_NUM_PROCESSES to the same "
      "number."
    )
  if index in present:
    other = present[index]["facts"]["host"]
    return (
      f"two processes are process {index} of {message['count']} (on {other} "
      f"and on {host}). Set JAX_PROCESS_ID to another number in each."
    )
  return None


def _find_difference(present: Mapping[int, dict]) -> str | None:
  """Returns the first value in which a process differs from process 0."""
  expected = present[0]["facts"]["same"]
  for index in sorted(present):
    facts = present[index]["facts"]
    for name in sorted(expected.keys() | facts["same"].keys()):
      own, first = (
        repr(same[name]) if name in same else "not set"
        for same in (facts["same"], expected)
      )
      if own != first:
        return (
          f"{name} is {own} in process {index} ({facts['host']}), and {first} "
          "in process 0. Start all processes alike."
        )
  return None


def _open_server(port: int) -> socket.socket:
  """Listens on all addresses of this host."""
  if socket.has_dualstack_ipv6():
    return socket.create_server(
      ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
    )
  return socket.create_server(("", port), backlog=1024)


def _send(connection: socket.socket, message: Mapping) -> None:
  connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket, seconds: float) -> dict | None:
  """Returns one line of JSON; None if something else or nothing comes."""
  connection.settimeout(seconds)
  try:
    with connection.makefile("rb") as file:
      text = file.readline(_LONGEST_LINE)
    message = json.loads(text)
  except (OSError, ValueError):
    return None
  return message if isinstance(message, dict) else None
