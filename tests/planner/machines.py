"""Machines of round numbers."""

from alexnet_jax.planner import machine as machine_lib


def make_machine(*links, **fields):
  return machine_lib.Machine(
    **{
      "name": "round",
      "description": "round numbers",
      "platform": "gpu",
      "devices": 4,
      "memory_bytes": 1e9,
      "peak_flops_per_second": {"float32": 1e12, "bfloat16": 2e12},
      "utilization": {"conv": 0.5, "fc": 0.8},
      "memory_bytes_per_second": 1e11,
      "launch_seconds": 1e-6,
      "links": links,
      **fields,
    }
  )


def make_link(name="bus", unit=1, joins=None, speed=1e9, shared=1, **fields):
  return machine_lib.Link(
    **{
      "name": name,
      "unit_devices": unit,
      "joins_devices": joins,
      "bytes_per_second": speed,
      "shared_by": shared,
      "latency_seconds": 1e-6,
      "software": {},
      **fields,
    }
  )


FLAT = make_machine(make_link())
# Hosts of two devices, which share a link that is ten times slower.
TWO_HOSTS = make_machine(
  make_link("bus", joins=2),
  make_link("network", unit=2, speed=1e8, shared=2, latency_seconds=1e-5),
)
