"""A worker of `benchmarks.links`: one of two processes, with one device each.

    python -m benchmarks.links_worker INDEX CORE

It is started as a run of `main` is: pinned to its core, with the settings of
malloc, the process group and the XLA options of a run. Each line of its input
is a request, {"do": NAME, **arguments}, which both workers get; each answers it
with one line of JSON.
"""

from __future__ import annotations

import os
import sys

from alexnet_jax.distributed import malloc

if __name__ == "__main__":  # before threads start
  os.sched_setaffinity(0, {int(sys.argv[2])})
  malloc.keep_freed_memory(["configs/two_device.py:imagenet"])

import functools
import gc
import json
import pathlib
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from alexnet_jax.bench import parts as parts_lib
from alexnet_jax.bench import turns
from alexnet_jax.distributed import cluster
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.partition import audit as audit_lib
from alexnet_jax.partition import catalog, timing
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.program import compiled_step, compiler_options
from alexnet_jax.program import devices as devices_lib
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from benchmarks import links_cases, links_network

_RAW_PORT = 5001
_CHUNK = 2**20
_START_SECONDS = 120
_ROUNDS = 3
_SENT = pathlib.Path(
  "/sys/class/net", links_network.INTERFACE, "statistics", "tx_bytes"
)
_AXES = tuple(catalog.DATA_PARALLEL.mesh)


class Worker:
  """What a worker does; all methods in both workers at once."""

  def __init__(self, index: int, group: group_lib.Group):
    self._index, self._group = index, group
    self._mesh = mesh_lib.make_mesh(catalog.DATA_PARALLEL)
    self._steps: turns.StepRunner | None = None
    self._timer: parts_lib.Timer | None = None  # its keys are used up
    self._make_collective = functools.cache(
      functools.partial(timing.make_collective, self._mesh)
    )

  def describe(self) -> dict[str, Any]:
    """Facts about the process."""
    device = jax.local_devices()[0]
    return {
      "jax": jax.__version__,
      "device": device.device_kind,
      "devices": jax.device_count(),
      "cores": sorted(os.sched_getaffinity(0)),
      "kept_heap": malloc.keeps_freed_memory(),
    }

  def send_raw(self, size: int) -> dict[str, Any]:
    """Times a stream of TCP from worker 0 to worker 1, and one back.

    Returns:
      "seconds": of the stream that this worker has sent, until the last byte
      has arrived.
    """
    with self._connect() as connection:
      self._wait()
      for sender in range(2):
        if sender == self._index:
          begin = time.perf_counter()
          connection.sendall(bytes(size))
          connection.recv(1)
          seconds = time.perf_counter() - begin
        else:
          left = size
          while left:
            left -= len(connection.recv(min(left, _CHUNK)))
          connection.sendall(b".")
    return {"seconds": seconds}

  def _connect(self) -> socket.socket:
    address = (links_network.ADDRESSES[0], _RAW_PORT)
    if self._index:
      self._wait()
      connection = socket.create_connection(address)
    else:
      with socket.create_server(address) as server:
        self._wait()
        connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection

  def time_collective(
    self, kind: str, elements: int, calls: int, late_seconds: float
  ) -> dict[str, Any]:
    """Times calls of a collective of float32, each after a barrier.

    Args:
      kind, elements: see `timing.make_collective`.
      late_seconds: worker 1 starts so much later.

    Returns:
      "begin" and "end" of each call, by the clock of the machine; "sent": bytes
      of a call over the link, with those of its barrier.
    """
    call = self._make_collective(kind, _AXES, elements)
    jax.block_until_ready(call())
    return self._time(
      lambda: jax.block_until_ready(call()), calls, late_seconds=late_seconds
    )

  def compile(
    self, network: str, batch_size: int, layout: Mapping[str, Any]
  ) -> dict[str, Any]:
    """Compiles the training step of a case as `main` does, and initializes.

    Args:
      layout: of `layout.to_fields`.

    Raises:
      ValueError: the layout does not fit the network, or memory is short.
      PlanMismatch: the step does not communicate as planned.
    """
    begin = time.perf_counter()
    config = links_cases.make_config(network, batch_size)
    wired = settings.make_network(config)
    placed = links_cases.from_fields(layout, wired)
    program = run_lib.make_program(config, wired, placed)
    devices_lib.check_memory(program, batches_ahead=config.data.batches_ahead)
    options = compiler_options.choose(jax.devices(), mode="auto").used
    compiled, audit = compiled_step.compile_step(program, options=options)
    audit_lib.check(audit)
    self._steps = turns.StepRunner(program, compiled)
    return {
      "compile_seconds": time.perf_counter() - begin,
      "memory": compiled_step.find_memory(compiled),
      "planned_bytes": sum(planned.sent_bytes for planned in audit.plan),
      "compiled_bytes": sum(found.sent_bytes for found in audit.compiled),
      "notes": list(audit.notes),
    }

  def measure_parts(self, network: str, batch_size: int) -> dict[str, Any]:
    """Measures the parts of a step, as `bench --what=machine` does."""
    config = links_cases.make_config(network, batch_size)
    program = run_lib.make_program(
      config, settings.check(config)[0], catalog.DATA_PARALLEL
    )
    options = compiler_options.choose(jax.devices(), mode="auto").used
    if self._timer is None:
      self._timer = parts_lib.Timer(
        program, options, self._group, rounds=_ROUNDS
      )
    timer = self._timer
    return {
      "measured": [
        timer.measure(part) for part in parts_lib.find_parts(program)
      ],
      "flops_per_second": timer.flops_per_second,
      "bytes_per_second": timer.bytes_per_second,
    }

  def time_steps(self, count: int) -> dict[str, Any]:
    """Times steps of the compiled case, as `time_collective` does calls."""
    return self._time(self._steps.run, count)

  def free(self) -> dict[str, Any]:
    """Frees the case and the arrays of collectives."""
    self._steps = None
    self._make_collective.cache_clear()
    jax.clear_caches()
    gc.collect()
    return {}

  def _time(
    self, call: Callable[[], object], count: int, *, late_seconds: float = 0.0
  ) -> dict[str, Any]:
    begin, end, before = [], [], int(_SENT.read_text())
    for _ in range(count):
      self._wait()
      if self._index:
        time.sleep(late_seconds)
      begin.append(time.monotonic())
      call()
      end.append(time.monotonic())
    sent = int(_SENT.read_text()) - before
    return {"begin": begin, "end": end, "sent": sent / count}

  def _wait(self) -> None:
    """Waits for the other worker: a sum of one number."""
    jax.block_until_ready(self._make_collective("sum", _AXES, 1)())


def main() -> None:
  index = int(sys.argv[1])
  # Output of libraries must not mix with the answers.
  answers = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)
  process = cluster.find_process("env")
  with group_lib.start(process, timeout_seconds=_START_SECONDS) as group:
    mesh_lib.simulate_devices(1, only_cpu=True)
    worker = Worker(index, group)
    actions = {
      action.__name__: action
      for action in (
        *(worker.describe, worker.send_raw, worker.time_collective),
        *(worker.measure_parts, worker.compile, worker.time_steps, worker.free),
      )
    }
    for line in sys.stdin:
      request = json.loads(line)
      try:
        answer = actions[request.pop("do")](**request)
      except ValueError as error:  # a PlanMismatch, too
        answer = {"error": " ".join(str(error).split())}
      print(json.dumps(answer), file=answers)


if __name__ == "__main__":
  main()
