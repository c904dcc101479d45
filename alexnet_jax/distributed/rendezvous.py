"""All processes of a run are there and belong together, before JAX starts.

JAX waits for processes that are missing without a name for them, and starts
with some that do not fit. So process 0 first listens at its address, the others
call there, and when all have called it tells them to go on: one line of JSON
from each, one back. If not, every process learns why.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping, Sequence

from alexnet_jax.distributed import cluster

_HELLO = "alexnet_jax"
_CALL = {"hello", "count", "index", "facts"}
_LONGEST_LINE = 2**20
# For one line to arrive once a connection stands.
_LINE_SECONDS = 5.0
_RETRY_SECONDS = 0.2

# What a process says of itself: "host" and "address", and "same", which all
# must say alike.
Facts = Mapping[str, object]


def call(
  place: cluster.Place, facts: Facts, *, timeout_seconds: float
) -> list[Facts]:
  """Waits until all processes are there.

  Args:
    place: of this process.
    facts: `host`: the name of its host. `same`: {what: value} that must be the
      same in all processes.
    timeout_seconds: to wait.

  Returns:
    The facts of all processes, in their order.

  Raises:
    ValueError: two processes have one number, or differ in what must be alike.
    ConnectionError: processes are missing, or process 0 cannot be reached.
  """
  if place.count == 1:
    return [facts]
  deadline = time.monotonic() + timeout_seconds
  said = {"count": place.count, "index": place.index, "facts": facts}
  if place.index == 0:
    return _listen(place, said, deadline, timeout_seconds)
  return _ask(place, said, deadline, timeout_seconds)


def _listen(
  place: cluster.Place, own: dict, deadline: float, timeout_seconds: float
) -> list[Facts]:
  """Process 0: collects what the others say, and answers."""
  port = int(place.address.rpartition(":")[2])
  try:
    server = _open_server(port)
  except OSError as error:
    raise ConnectionError(
      f"process 0 cannot listen on port {port} ({error.strerror}). Set another "
      f"port in {cluster.ADDRESS}, or in JAX_COORDINATOR_PORT."
    ) from error
  with contextlib.ExitStack() as opened:
    opened.enter_context(server)
    present, lines, problem = {0: own}, {}, None
    while problem is None:
      _drop_gone(present, lines)
      if len(present) == place.count:
        break
      server.settimeout(max(deadline - time.monotonic(), 0.01))
      try:
        line, _ = server.accept()
      except TimeoutError:
        problem = _missing(place, present, timeout_seconds)
        break
      opened.enter_context(line)
      said = _receive(line, _LINE_SECONDS)
      if said is None or not _CALL <= said.keys():
        continue  # not a process of a run
      _drop_gone(present, lines)  # maybe it calls again
      problem = _compare(present, said)
      present.setdefault(said["index"], said)
      lines.setdefault(said["index"], line)
      if lines[said["index"]] is not line:
        lines[-1] = line  # of the same number: is to learn of it too
    server.close()  # JAX takes the port over
    answer = {"hello": _HELLO, "problem": problem}
    if problem is None:
      answer["facts"] = [present[i]["facts"] for i in range(place.count)]
    for line in lines.values():
      with contextlib.suppress(OSError):
        _send(line, answer)
    if problem is not None:
      raise _to_error(problem)
    # The others hang up first: a port is not free at once for who does.
    for line in lines.values():
      _receive(line, _LINE_SECONDS)
    return answer["facts"]


def _drop_gone(
  present: dict[int, dict], lines: dict[int, socket.socket]
) -> None:
  """Forgets processes that have hung up since they called."""
  for index, line in list(lines.items()):
    line.settimeout(0)
    try:
      is_gone = line.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
      is_gone = False  # it waits
    except OSError:
      is_gone = True
    line.settimeout(_LINE_SECONDS)
    if is_gone:
      del present[index], lines[index]


def _ask(
  place: cluster.Place, own: dict, deadline: float, timeout_seconds: float
) -> list[Facts]:
  """Any other process: calls process 0 until it answers."""
  host, _, port = place.address.rpartition(":")
  reason = "no answer"
  while (left := deadline - time.monotonic()) > 0:
    answer, begun = None, time.monotonic()
    try:
      with socket.create_connection(
        (host.strip("[]"), int(port)), timeout=left
      ) as line:
        _send(line, {"hello": _HELLO, **own})
        # Process 0 may have started just now, and waits as long as this one.
        patience = timeout_seconds + 2 * _LINE_SECONDS
        answer = _receive(line, patience)
      reason = "what answers there is not process 0 of this run"
      if time.monotonic() - begun >= patience:
        reason = "it has heard the call, and does not answer"
    except OSError as error:
      reason = error.strerror or "no answer"
    if answer is not None and answer.get("hello") == _HELLO:
      if answer["problem"] is not None:
        raise _to_error(answer["problem"])
      return answer["facts"]
    time.sleep(_RETRY_SECONDS)
  raise ConnectionError(
    f"process 0 of {place.count} cannot be reached at {place.address} within "
    f"{timeout_seconds:g} s ({reason}). Start it there, or set "
    f"{cluster.ADDRESS}; --start_timeout_seconds waits longer, and "
    "--distributed=off starts this process alone."
  )


def _to_error(problem: Sequence[str]) -> Exception:
  kind, text = problem
  return ValueError(text) if kind == "value" else ConnectionError(text)


def _missing(
  place: cluster.Place, present: Mapping[int, dict], timeout_seconds: float
) -> tuple[str, str]:
  missing = [i for i in range(place.count) if i not in present]
  noun = "process" if len(missing) == 1 else "processes"
  listed = ", ".join(map(str, missing[:20]))
  more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
  return (
    "missing",
    f"{noun} {listed}{more} of {place.count} did not call at "
    f"{place.address} within {timeout_seconds:g} s. Start them, or set "
    "JAX_NUM_PROCESSES; --start_timeout_seconds waits longer, and "
    "--distributed=off starts this process alone.",
  )


def _compare(present: Mapping[int, dict], said: dict) -> tuple[str, str] | None:
  """What is wrong with a process that has called; None if it fits."""
  first, index = present[0], said["index"]
  host = said["facts"]["host"]
  if said["count"] != first["count"]:
    return (
      "value",
      f"process {index} ({host}) says there are {said['count']} processes, "
      f"process 0 says {first['count']}. Set JAX_NUM_PROCESSES alike in all.",
    )
  if index in present:
    other = present[index]["facts"]["host"]
    return (
      "value",
      f"two processes say that they are process {index} of {said['count']} "
      f"(on {other} and on {host}). Set JAX_PROCESS_ID to a number of its own "
      "in each.",
    )
  here, there = first["facts"]["same"], said["facts"]["same"]
  for what in sorted(here.keys() | there.keys()):
    if here.get(what) != there.get(what):
      return (
        "value",
        f"{what} is {there.get(what)!r} in process {index} ({host}), and "
        f"{here.get(what)!r} in process 0. Start all processes alike.",
      )
  return None


def _open_server(port: int) -> socket.socket:
  """Listens on all addresses of this host."""
  if socket.has_dualstack_ipv6():
    return socket.create_server(
      ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
    )
  return socket.create_server(("", port), backlog=1024)


def _send(line: socket.socket, said: Mapping) -> None:
  line.sendall(json.dumps(said).encode() + b"\n")


def _receive(line: socket.socket, seconds: float) -> dict | None:
  """One line of JSON; None where something else comes, or nothing."""
  line.settimeout(seconds)
  try:
    with line.makefile("rb") as file:
      text = file.readline(_LONGEST_LINE)
    said = json.loads(text)
  except (OSError, ValueError):
    return None
  return said if isinstance(said, dict) else None
