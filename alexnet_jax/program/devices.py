"""Checks before a run: do the devices start, and is their memory enough?"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import jax

from alexnet_jax.distributed import machine
from alexnet_jax.partition import mesh as mesh_lib
from alexnet_jax.program import program as program_lib

_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
_REMEDY = (
  "Set a lower config.batch_size, config.data.batches_ahead, "
  "config.data.stored_size, config.network.width, config.network.image_size, "
  "config.network.num_classes or config.ensemble, or config.layout.mesh to "
  "split more."
)


def check_start() -> None:
  """Starts the devices of this process.

  Raises:
    OSError: JAX cannot use them.
  """
  try:
    mesh_lib.start_devices()
  except OSError as error:
    # Processes on CPUs connect to the addresses of their host names.
    if machine.find_address():
      raise
    raise OSError(
      f"{error} The host name {socket.gethostname()!r} has no address. Give it "
      "that of its network interface in /etc/hosts of that host."
    ) from error


def count_held_bytes(
  program: program_lib.Program, *, batches_ahead: int
) -> dict[str, int]:
  """Counts the bytes that one device holds between steps, by kind.

  One batch more than `batches_ahead` is in use, and one is being copied.
  """
  loads = program.device_loads.values()
  batch = sum(map(program_lib.count_shard_bytes, program.abstract_batch))
  return {
    "parameters": sum(load.parameter_bytes for load in loads),
    "optimizer": sum(program.optimizer_bytes.values()),
    "batches": batch * (batches_ahead + 2),
  }


def find_memory(device: jax.Device) -> dict[str, int | None]:
  """Returns bytes of a device of this process; None if it does not say."""
  stats = device.memory_stats() or {}
  return {
    "id": device.id,
    "limit": stats.get("bytes_limit"),
    "used": stats.get("bytes_in_use"),
  }


def check_memory(program: program_lib.Program, *, batches_ahead: int) -> None:
  """Refuses a run whose arrays between two steps do not fit in memory.

  What a step needs besides, above all activations, is known only once it is
  compiled. The devices of a CPU share the free memory of this host.

  Raises:
    ValueError: names the fields that determine the size.
  """
  held = sum(count_held_bytes(program, batches_ahead=batches_ahead).values())
  own = [
    device
    for device in program.mesh.devices.flat
    if device.process_index == jax.process_index()
  ]
  limits = [find_memory(device)["limit"] for device in own]
  available, limit = "a device may use", min(filter(None, limits), default=None)
  if limit is None and own[0].platform == "cpu":
    held *= len(own)
    available, limit = "this host has free", machine.find_memory()[1]
  if limit is not None and held > limit:
    raise ValueError(
      f"parameters, optimizer and batches take {machine.format_bytes(held)}, "
      f"but {available} {machine.format_bytes(limit)}. {_REMEDY}"
    )


@contextlib.contextmanager
def explain_out_of_memory() -> Iterator[None]:
  """Turns an out-of-memory error into one that says what to change.

  Raises:
    OSError: instead of the error of JAX or NumPy.
  """
  try:
    yield
  except (jax.errors.JaxRuntimeError, MemoryError) as error:
    if not isinstance(error, MemoryError) and _OUT_OF_MEMORY not in str(error):
      raise
    reason = str(error).partition("\n")[0] or "of this host"
    raise OSError(f"out of memory ({reason}). {_REMEDY}") from error
