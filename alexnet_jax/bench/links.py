"""The links between devices: collectives of several sizes, level by level."""

from __future__ import annotations

import collections
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from alexnet_jax.bench import parts as parts_lib
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.partition import per_device, timing
from alexnet_jax.partition import plan as plan_lib
from alexnet_jax.planner import machine as machine_lib

# Axes of the mesh on which links are measured: hosts, their processes, and the
# devices of these.
LEVELS = ("hosts", "processes", "devices")
# Bytes that a device sends -> calls.
SENT_BYTES = {4: 21, 2**16: 11, 2**20: 7, 2**23: 5, 2**25: 5}
_CALLS = f"median of {min(SENT_BYTES.values())} or more calls"
# From here on the size of a collective determines its time.
LARGE_BYTES = 2**20
# A size that is expected to take longer is left out.
MOST_SECONDS = 2.0


def measure(
  timer: parts_lib.Timer,
  devices: Sequence[jax.Device],
  link_gbits: float | None,
  number: Callable[[float, str], dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[str]]:
  """Measures collectives along each level of links.

  Args:
    link_gbits: nominal rate of the outermost link in one direction, Gbit/s;
      None: the best that a collective reaches.
    number: makes a number with its source from a value and a note.

  Returns:
    Links of a machine file, and remarks to print.

  Raises:
    ValueError: there is no link that `link_gbits` could be of, or processes or
      hosts hold unequal numbers; see `make_level_mesh`.
  """
  hosts = timer.group.hosts
  mesh = make_level_mesh(devices, hosts)
  names = mesh_lib.find_links(mesh, dict(enumerate(hosts)))
  levels = [axis for axis in reversed(LEVELS) if mesh.shape[axis] > 1]
  links, remarks, unit = [], [], 1
  if link_gbits is not None and set(levels) <= {"devices"}:
    raise ValueError(
      f"link_gbits is {link_gbits:g}, but all devices are in one process, "
      "without a link between them. Leave --link_gbits out."
    )
  for axis in levels:
    count, is_last = mesh.shape[axis], axis == levels[-1]
    first, slopes = _time_collectives(timer, mesh, axis)
    rate = unit / min(slopes.values())
    note = f"{_CALLS}, the best kind of collective"
    if axis == "devices":
      note += ", through the memory or the bus of one host"
    wire = number(rate, note)
    if link_gbits is not None and is_last:
      best, rate = rate, link_gbits * 1e9 / 8
      wire = {"value": rate, "source": "nominal, as --link_gbits says"}
      if best > rate:
        remarks.append(
          f"{names[axis]}: collectives send {8e-9 * best:,.2f} Gbit/s, more "
          f"than --link_gbits={link_gbits:g}"
        )
    links.append(
      {
        "name": names[axis],
        "unit_devices": unit,
        "joins_devices": None if axis == "hosts" else unit * count,
        "bytes_per_second": wire,
        "shared_by": unit,
        "latency_seconds": {
          "value": 0,
          "source": "in the seconds of each collective",
        },
        "software": {
          kind: {
            "seconds": number(first[kind] / (count - 1), _CALLS),
            "seconds_per_byte": number(
              max(slope - unit / rate, 0.0), f"{_CALLS}, besides the link's"
            ),
            "link_times": {
              "value": 1,
              "source": "assumed: both directions at once",
            },
          }
          for kind, slope in slopes.items()
        },
      }
    )
    unit *= count
  if not links:
    links.append(
      {
        "name": mesh_lib.IN_PROCESS,
        "unit_devices": 1,
        "joins_devices": 1,
        "bytes_per_second": number(
          timer.bytes_per_second, "one device sends nothing; its memory instead"
        ),
        "shared_by": 1,
        "latency_seconds": number(0, "one device sends nothing"),
      }
    )
  return links, remarks


def make_level_mesh(
  devices: Sequence[jax.Device], hosts: Sequence[str]
) -> jax.sharding.Mesh:
  """Makes a mesh with the axes `LEVELS`.

  Args:
    hosts: of each process.

  Raises:
    ValueError: processes hold unequal numbers of devices, or hosts of
      processes.
  """
  used = [hosts[index] for index in {d.process_index for d in devices}]
  by_process = collections.Counter(device.process_index for device in devices)
  by_host = collections.Counter(used)
  for what, counts in (("process", by_process), ("host", by_host)):
    if len(set(counts.values())) > 1:
      raise ValueError(
        f"{what} {max(counts, key=counts.get)} holds {max(counts.values())} "
        f"and {what} {min(counts, key=counts.get)} {min(counts.values())} "
        f"{'devices' if what == 'process' else 'processes'}, expected equal "
        "numbers. Set config.layout.mesh, or start other processes."
      )
  ordered = sorted(
    devices,
    key=lambda d: (hosts.index(hosts[d.process_index]), d.process_index),
  )
  shape = (len(by_host), len(by_process) // len(by_host), -1)
  return jax.sharding.Mesh(
    np.reshape(np.array(ordered, object), shape),
    LEVELS,
    axis_types=(jax.sharding.AxisType.Explicit,) * len(LEVELS),
  )


def _time_collectives(
  timer: parts_lib.Timer, mesh: jax.sharding.Mesh, axis: str
) -> tuple[dict[str, float], dict[str, float]]:
  """Times all kinds of collectives along an axis, in all groups at once.

  Returns:
    {kind: seconds of one of few bytes}; {kind: seconds for each byte more that
    a device sends}: the median of the large sizes.
  """
  first, slopes = {}, {}
  devices = mesh.shape[axis]
  for kind in machine_lib.COLLECTIVES:
    times: dict[int, float] = {}
    for size, repeats in SENT_BYTES.items():
      elements, sent = size_collective(kind, devices, size)
      if times and (largest := max(times)) >= 2**16:
        if times[largest] * sent / largest > MOST_SECONDS:
          break
      call = timing.make_collective(mesh, kind, (axis,), elements)
      jax.block_until_ready(call())  # compiles, and connects
      timer.find_slowest([])
      seconds = []
      for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
      (slowest,) = timer.find_slowest([statistics.median(seconds)])
      times[sent] = timer.subtract_call(slowest)
    least, *larger = sorted(times)
    first[kind] = times[least]
    large = [sent for sent in larger if sent >= 0.9 * LARGE_BYTES] or larger[
      -1:
    ]
    slope = statistics.median(
      (times[sent] - times[least]) / (sent - least) for sent in large
    )
    slopes[kind] = slope if slope > 0 else times[large[-1]] / large[-1]
  return first, slopes


def size_collective(kind: str, devices: int, sent: int) -> tuple[int, int]:
  """Sizes a collective of float32 by what a device is to send.

  Returns:
    Elements of the complete array, which a group of devices can divide twice;
    bytes that a device sends, the given ones or somewhat more.
  """
  step = devices**2
  each = plan_lib.ring_elements(kind, devices, step)
  itemsize = per_device.FLOAT32
  elements = step * math.ceil(sent / (each * itemsize))
  return elements, itemsize * plan_lib.ring_elements(kind, devices, elements)
