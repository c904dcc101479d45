"""The devices of this process before a run: that they start, and hold it."""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Iterator

import jax
import numpy as np

from alexnet_jax.distributed import machine
from alexnet_jax.program import program as program_lib

_SHORTAGE = "RESOURCE_EXHAUSTED"
_REMEDY = (
  "Set a lower config.batch_size, config.data.batches_ahead, "
  "config.data.stored_size, config.network.width, config.network.image_size, "
  "config.network.num_classes or config.ensemble, or config.layout.mesh to "
  "split more."
)


def check_start() -> None:
  """Starts the devices of this process.

  Raises:
    OSError: they cannot be used.
    ValueError: XLA would not read the flags that it is given.
  """
  _check_xla_flags(os.environ.get("XLA_FLAGS", ""))
  try:
    jax.devices()
  except RuntimeError as error:
    host = socket.gethostname()
    # Processes on CPUs meet at the addresses of their host names.
    reason = (
      ""
      if machine.find_address()
      else (
        f"; the host name {host!r} has no address. Give it that of its network "
        "interface in /etc/hosts of that host"
      )
    )
    raise OSError(f"JAX cannot start its devices ({error}){reason}.") from error


def _check_xla_flags(given: str) -> None:
  """Refuses words that are no flags, behind which XLA reads nothing.

  A flag that it does not know, XLA names itself, and ends the process.
  """
  words = [word for word in given.split() if not word.startswith("-")]
  # It also takes the name of a file, and flags in quotes.
  if words and not os.path.exists(given) and not {*given} & {*"'\""}:
    raise ValueError(
      f"XLA_FLAGS has {words[0]!r}, expected flags as --xla_NAME=VALUE. Set "
      "XLA_FLAGS."
    )


def find_held(
  program: program_lib.Program, *, batches_ahead: int
) -> dict[str, int]:
  """Bytes that one device holds between steps, by what they are of.

  Args:
    program: the program.
    batches_ahead: of the config; one more is in use, and one on its way.
  """
  side = program.augmentation.stored_size
  shapes = (program.batch_size, side, side, 3), (program.batch_size,)
  batch = sum(
    math.prod(sharding.shard_shape(shape)) * np.dtype(dtype).itemsize
    for sharding, shape, dtype in zip(
      program.batch_shardings, shapes, (np.uint8, np.int32), strict=True
    )
  )
  shares = program.shares.values()
  return {
    "parameters": sum(share.parameter_bytes for share in shares),
    "optimizer": sum(program.optimizer_bytes.values()),
    "batches": batch * (batches_ahead + 2),
  }


def find_memory(device: jax.Device) -> dict[str, int | None]:
  """Bytes that a device of this process may use; None: it does not say."""
  stats = device.memory_stats() or {}
  return {
    "id": device.id,
    "limit": stats.get("bytes_limit"),
    "used": stats.get("bytes_in_use"),
  }


def check_memory(program: program_lib.Program, *, batches_ahead: int) -> None:
  """Refuses a run that the memory here does not hold between two steps.

  What a step needs besides, activations above all, is not known before it is
  compiled. Devices of a CPU share the memory that is free on this host.

  Args:
    program: the program.
    batches_ahead: of the config.

  Raises:
    ValueError: names the fields that say how much is held.
  """
  held = sum(find_held(program, batches_ahead=batches_ahead).values())
  own = [
    device
    for device in program.mesh.devices.flat
    if device.process_index == jax.process_index()
  ]
  limits = [find_memory(device)["limit"] for device in own]
  where, limit = "a device may use", min(filter(None, limits), default=None)
  if limit is None and own[0].platform == "cpu":
    held *= len(own)
    where, limit = "this host has free", machine.find_memory()[1]
  if limit is not None and held > limit:
    raise ValueError(
      f"parameters, optimizer and batches take {machine.to_size(held)}, but "
      f"{where} {machine.to_size(limit)}. {_REMEDY}"
    )


@contextlib.contextmanager
def name_shortage() -> Iterator[None]:
  """Says what to change where memory does not suffice within.

  Raises:
    OSError: in the place of the error of JAX or NumPy.
  """
  try:
    yield
  except (jax.errors.JaxRuntimeError, MemoryError) as error:
    is_shortage = isinstance(error, MemoryError) or _SHORTAGE in str(error)
    if not is_shortage:
      raise
    reason = str(error).partition("\n")[0] or "of this host"
    raise OSError(f"memory does not suffice ({reason}). {_REMEDY}") from error
