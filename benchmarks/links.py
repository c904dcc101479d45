"""Measures steps of two processes over links of known rates.

    python -m benchmarks.links --json=links.jsonl
    python -m benchmarks.links --list

Needs root, two cores and iproute2. Two processes with one device each, pinned
to one core each, run in two network namespaces; a token bucket at both ends of
the link between them sets its rate (`links_network.py`). The cores are kept
from halting. It measures

1. each rate, with a stream of TCP;
2. each kind of collective alone, of several sizes;
3. the parts of a step on one device, at one batch size, as `bench
   --what=machine` does;
4. training steps, of each network, batch and layout: those of the catalog on
   two devices, and random ones. A step is compiled as `main` does, audited, and
   runs on noise, at one rate after the other; the next case has them in the
   reverse order.

Every result is a line of --json as soon as it is there. A line has a `kind`:

    session     facts about the machine, for each start; kept_awake: whether
                no core halts
    rate        rate, burst, bytes_per_second of each process
    collective  rate, collective, bytes (of the complete array), late_seconds
                (of one process), planned_bytes and sent_bytes of a device,
                seconds of each call
    parts       network, batch_size, measured (as in a machine file),
                flops_per_second, bytes_per_second
    case        case, network, batch_size, layout (of `layout.to_fields`),
                planned_bytes, compile_seconds, memory; or error
    step        case, rate, sent_bytes, seconds of each step

Seconds are from the start of the process that starts last, after a barrier, to
the end of the one that ends last. sent_bytes are those of the link, with what
frames them and with the barrier.

The same command resumes: it skips what the file has.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import platform
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import app, flags

from alexnet_jax.cli import command
from alexnet_jax.distributed import cluster
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.planner import machine as machine_lib
from benchmarks import links_cases, links_network

RATES = ("100mbit", "300mbit", "1gbit", "3gbit", "10gbit", "unshaped")
# Bytes of the complete array.
SIZES = (2**10, 2**14, 2**18, 2**22, 2**25)
# One process starts so much later than the other, as in a step. If it finds the
# other ready to receive, gloo sends the late one's data at once, and behind it
# the message that this one is ready to receive as well. So an all-to-all uses
# one direction of the link at a time and takes twice as long, and an
# all-gather, which goes in two halves, 1.5 times. Sums and reduce-scatters do
# not. Source: gloo, transport/tcp/pair.cc and allgather.cc; XLA,
# gloo_communicator.cc.
LATE_SECONDS = (0.0, 0.003)
_FLOAT32 = plan_lib.DTYPE_BYTES["float32"]
# A stream of TCP takes so long, and has so many bytes at most.
_RAW_SECONDS, _MOST_RAW = 0.4, 2**28
_LONGEST_COLLECTIVE, _COLLECTIVE_SECONDS = 3.0, 1.0
_FEWEST_CALLS, _MOST_CALLS = 3, 21
# Seconds of the warm-up step, and the number of steps after a shorter one.
_COUNTS = ((0.5, 5), (4.0, 3), (float("inf"), 1))
_PORT = 7778
_WAKE_LATENCY = pathlib.Path("/dev/cpu_dma_latency")
# Fields of a line that are not printed.
_NOT_SHOWN = ("layout", "memory", "workers", "notes", "measured")
_HANG_SECONDS, _STOP_SECONDS = 1200.0, 20.0
# For the estimates of --list: one core, the link without a rate, and to compile
# and initialize. Seen on two cores of an EPYC of 2023.
_FLOPS_PER_SECOND, _UNSHAPED, _COMPILE_SECONDS = 9e10, 5e8, 20.0

Line = dict[str, Any]


@contextlib.contextmanager
def keep_awake() -> Iterator[bool]:
  """Lets no core halt while it waits, where the kernel can do that.

  A virtual core that has halted on a busy host is late when a message comes:
  steps took up to twice as long, without more time of their cores. Source:
  Linux, Documentation/power/pm_qos_interface.rst.
  """
  try:
    file = _WAKE_LATENCY.open("wb", buffering=0)
  except OSError:
    yield False
    return
  with file:  # holds until it is closed
    file.write(struct.pack("i", 0))
    yield True


class Workers:
  """The two processes of `links_worker`, until they are closed."""

  def __init__(self, link: links_network.Link, cores: Sequence[int]):
    self._logs = [tempfile.TemporaryFile() for _ in cores]
    self._processes = [
      subprocess.Popen(
        [
          *("ip", "netns", "exec", link.names[index], sys.executable, "-m"),
          *("benchmarks.links_worker", str(index), str(core)),
        ],
        env=os.environ
        | {
          cluster.ADDRESS: f"{links_network.ADDRESSES[0]}:{_PORT}",
          "JAX_NUM_PROCESSES": str(len(cores)),
          "JAX_PROCESS_ID": str(index),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._logs[index],
        text=True,
      )
      for index, core in enumerate(cores)
    ]

  def ask(self, do: str, **arguments: Any) -> list[Line]:
    """Has both do something; returns their answers.

    Raises:
      OSError: one has ended, or hangs.
    """
    with contextlib.suppress(BrokenPipeError):  # reading says why
      for process in self._processes:
        process.stdin.write(f"{json.dumps({'do': do, **arguments})}\n")
        process.stdin.flush()
    return [self._read(index, do) for index in range(len(self._processes))]

  def _read(self, index: int, do: str) -> Line:
    stdout = self._processes[index].stdout
    is_there, _, _ = select.select([stdout], [], [], _HANG_SECONDS)
    if line := stdout.readline() if is_there else "":
      return json.loads(line)
    self._logs[index].seek(0)
    log = self._logs[index].read().decode(errors="replace").strip()
    what = "has ended" if is_there else f"hangs for {_HANG_SECONDS:g} s"
    last = log.splitlines()[-1] if log else "nothing"
    raise OSError(f"worker {index} {what} in {do}; its last output: {last}")

  def close(self) -> None:
    """Lets them end, or kills them."""
    for process in self._processes:
      with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    for process, log in zip(self._processes, self._logs, strict=True):
      try:
        process.wait(_STOP_SECONDS)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
      process.stdout.close()
      log.close()


class Results:
  """The lines of a file, to which each new one is appended at once."""

  def __init__(self, path: str):
    self._path = pathlib.Path(path)
    text = self._path.read_text() if self._path.exists() else ""
    if not text.endswith("\n"):  # a line that was cut off
      text = text[: text.rfind("\n") + 1]
      self._path.write_text(text)
    self.lines: list[Line] = [json.loads(line) for line in text.splitlines()]

  def has(self, **values: Any) -> bool:
    """Whether a line has these values."""
    return any(values.items() <= line.items() for line in self.lines)

  def find(self, **values: Any) -> Line:
    """The last line that has these values."""
    return [it for it in self.lines if values.items() <= it.items()][-1]

  def add(self, **line: Any) -> None:
    self.lines.append(line)
    with self._path.open("a") as file:
      file.write(f"{json.dumps(line)}\n")
    shown = {k: v for k, v in line.items() if k not in _NOT_SHOWN}
    if "seconds" in line:
      shown["seconds"] = f"median {statistics.median(line['seconds']):.6f}"
    print(json.dumps(shown), flush=True)


def measure_rate(
  link: links_network.Link, workers: Workers, results: Results, rate: str
) -> None:
  """Measures a rate with a stream of TCP in each direction."""
  if results.has(kind="rate", rate=rate):
    return
  link.shape(rate)
  expected = links_network.to_bytes_per_second(rate)
  size = int(min(_MOST_RAW, expected * _RAW_SECONDS))
  workers.ask("send_raw", size=size // 4)
  answers = workers.ask("send_raw", size=size)
  results.add(
    kind="rate",
    rate=rate,
    burst=links_network.to_burst(rate),
    bytes_per_second=[size / answer["seconds"] for answer in answers],
  )


def measure_collectives(
  link: links_network.Link, workers: Workers, results: Results, rate: str
) -> None:
  """Measures each kind of collective at a rate, but for the longest."""
  link.shape(rate)
  achieved = results.find(kind="rate", rate=rate)["bytes_per_second"]
  for kind, size, late in itertools.product(
    machine_lib.COLLECTIVES, SIZES, LATE_SECONDS
  ):
    key = {"kind": "collective", "rate": rate, "collective": kind}
    key |= {"bytes": size, "late_seconds": late}
    elements = size // _FLOAT32
    planned = _FLOAT32 * plan_lib.ring_elements(
      kind, links_cases.DEVICES, elements
    )
    expected = planned / min(achieved)
    if results.has(**key) or expected > _LONGEST_COLLECTIVE:
      continue
    calls = int(_COLLECTIVE_SECONDS / expected)
    answers = workers.ask(
      "time_collective",
      kind=kind,
      elements=elements,
      calls=max(_FEWEST_CALLS, min(calls, _MOST_CALLS)),
      late_seconds=late,
    )
    results.add(**key, planned_bytes=planned, **_join(answers))


def measure_parts(
  workers: Workers, results: Results, network: str, batch_size: int
) -> None:
  """Measures the parts of a step, in the shapes that layouts give them."""
  key = {"kind": "parts", "network": network, "batch_size": batch_size}
  if not results.has(**key):
    answers = workers.ask(
      "measure_parts", network=network, batch_size=batch_size
    )
    results.add(**key, **answers[0])
    workers.ask("free")


def measure_case(
  link: links_network.Link,
  workers: Workers,
  results: Results,
  case: links_cases.Case,
  rates: Iterable[str],
) -> None:
  """Measures steps of a case at each rate that the file lacks."""
  rates = [r for r in rates if not results.has(**_key(case), rate=r)]
  if not rates or results.has(**_key(case, "case"), failed=True):
    return
  link.shape(links_network.UNSHAPED)
  arguments = {
    "network": case.network,
    "batch_size": case.batch_size,
    "layout": layout_lib.to_fields(case.layout),
  }
  answers = workers.ask("compile", **arguments)
  errors = [answer["error"] for answer in answers if "error" in answer]
  facts = {"error": errors[0]} if errors else answers[0]
  results.add(**_key(case, "case"), failed=bool(errors), **arguments, **facts)
  if not errors:  # the first step also connects, and touches new memory
    workers.ask("time_steps", count=1)
  for rate in rates if not errors else ():
    link.shape(rate)
    warm = workers.ask("time_steps", count=1)
    last = _join(warm)["seconds"][-1]
    count = next(count for limit, count in _COUNTS if last < limit)
    answers = workers.ask("time_steps", count=count)
    results.add(**_key(case), rate=rate, **_join(answers))
  workers.ask("free")


def _key(case: links_cases.Case, kind: str = "step") -> dict[str, str]:
  return {"kind": kind, "case": case.name}


def _join(answers: Sequence[Line]) -> dict[str, Any]:
  """From the start of the last worker to the end of the last one."""
  begins, ends = (
    map(max, zip(*(answer[name] for answer in answers), strict=True))
    for name in ("begin", "end")
  )
  return {
    "sent_bytes": max(answer["sent"] for answer in answers),
    "seconds": [
      round(end - begin, 7) for begin, end in zip(begins, ends, strict=True)
    ],
  }


def measure(
  cases: Sequence[links_cases.Case],
  rates: Sequence[str],
  results: Results,
  *,
  parts_batch_size: int,
) -> None:
  """Measures rates, collectives, parts and cases, but for what the file has.

  Args:
    parts_batch_size: the one batch at which the parts of a step are measured.

  Raises:
    OSError: not root, too few cores, or a worker fails.
  """
  cores = sorted(os.sched_getaffinity(0))[: links_cases.DEVICES]
  if len(cores) < links_cases.DEVICES:
    raise OSError("there is one core, expected two: a core for each process.")
  with contextlib.ExitStack() as stack:
    link = stack.enter_context(contextlib.closing(links_network.Link()))
    workers = stack.enter_context(contextlib.closing(Workers(link, cores)))
    awake = stack.enter_context(keep_awake())
    results.add(
      kind="session",
      time=time.strftime("%Y-%m-%d %H:%M:%S"),
      processor=_find_processor(),
      kernel=platform.release(),
      load=os.getloadavg()[0],
      kept_awake=awake,
      workers=workers.ask("describe"),
    )
    for rate in rates:
      measure_rate(link, workers, results, rate)
    for rate in rates:
      measure_collectives(link, workers, results, rate)
    workers.ask("free")
    link.shape(links_network.UNSHAPED)
    for network in dict.fromkeys(case.network for case in cases):
      measure_parts(workers, results, network, parts_batch_size)
    for number, case in enumerate(cases):
      measure_case(
        link, workers, results, case, rates[:: -1 if number % 2 else 1]
      )


def _find_processor() -> str:
  lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  names = [line for line in lines if line.startswith("model name")]
  return names[0].partition(":")[2].strip() if names else platform.machine()


def estimate_seconds(case: links_cases.Case, rates: Iterable[str]) -> float:
  """Estimates how long a case takes, roughly."""
  flops = sum(load.flops for load in case.find_loads().values())
  sent = sum(planned.sent_bytes for planned in case.make_plan())
  seconds = _COMPILE_SECONDS
  for rate in rates:
    link = min(links_network.to_bytes_per_second(rate), _UNSHAPED)
    step = flops / _FLOPS_PER_SECOND + sent / link
    count = next(count for limit, count in _COUNTS if step < limit)
    seconds += (1 + count) * step
  return seconds


def list_cases(cases: Iterable[links_cases.Case], rates: Sequence[str]) -> None:
  """Prints the cases, what they send, and how long they may take."""
  total = 0.0
  for case in cases:
    sent = sum(planned.sent_bytes for planned in case.make_plan())
    seconds = estimate_seconds(case, rates)
    total += seconds
    print(f"{case.name:60} {sent / 1e6:8.1f} MB {seconds:6.0f} s")
  print(f"about {total / 3600:.1f} hours, and some minutes of collectives")


def define_flags() -> None:
  command.define_list("networks", ["full", "half"], "full, half, small.")
  command.define_list("batch_sizes", ["16", "32", "64"], "Images in a step.")
  command.define_list("rates", list(RATES), "Rates as tc writes them.")
  command.define_list("layouts", [], "Names of layouts; empty: all.")
  flags.DEFINE_integer("random", 20, "Random layouts.", lower_bound=0)
  flags.DEFINE_integer(
    "parts_batch_size", 32, "Images in a step of which parts are measured."
  )
  flags.DEFINE_integer("seed", 0, "Seed of the random layouts.")
  command.define_path("json", "The file of the results.")
  flags.DEFINE_boolean("list", False, "Only list the cases.")


def main(argv: list[str]) -> None:
  command.check_no_arguments(argv)
  values = flags.FLAGS
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # removes the link
  with command.exit_on_error(ValueError, OSError):
    for rate in values.rates:
      links_network.to_bytes_per_second(rate)
    for name in values.networks:
      if name not in links_cases.NETWORKS:
        raise ValueError(
          f"unknown network {name!r}, expected full, half or small. Set "
          "--networks."
        )
    cases = list(
      links_cases.make_cases(
        values.networks,
        command.parse_counts("batch_sizes", values.batch_sizes),
        random_layouts=values.random,
        seed=values.seed,
        names=values.layouts,
      )
    )
    if values.list:
      list_cases(cases, values.rates)
      return
    if not values.json:
      raise ValueError("--json is not set. Set it to the file of the results.")
    command.check_path(values.json, flag="json", endings=(".jsonl",))
    measure(
      cases,
      values.rates,
      Results(values.json),
      parts_batch_size=values.parts_batch_size,
    )


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command.parse_flags)
