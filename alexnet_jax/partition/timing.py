"""How fast the links along each axis of a mesh are, and that they work at all.

Measured with a sum along the axis, in all its groups of devices at once, as a
step has it: of one number from each device, for the latency, and of more, for
the rate. A step's time on an axis is then told from its plan.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex_core
from jax.interpreters import mlir

from alexnet_jax.partition import exchange
from alexnet_jax.partition import plan as plan_lib

# Bytes that each device sums -> how often; all processes must agree on these.
LATENCY_BYTES = 4
REPEATS = {LATENCY_BYTES: 21, 2**20: 5, 2**23: 5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
  """Of the links along an axis.

  Attributes:
    latency_seconds: of a sum of one number from each device.
    rates: bytes that each device sums -> bytes that it sends in a second, as
      `plan.ring_elements` counts them.
  """

  latency_seconds: float
  rates: dict[int, float]

  @property
  def rate(self) -> float:
    """Of the largest sum that was measured."""
    return self.rates[max(self.rates)]


def measure(
  mesh: jax.sharding.Mesh, axis: str, *, timeout_seconds: float
) -> dict[int, float]:
  """Times sums along an axis; in all processes of the mesh at once.

  Where a sum does not end, the thread that waits for it stays: the process can
  then only be ended by `os._exit`.

  Args:
    mesh: of several devices along the axis.
    axis: the axis.
    timeout_seconds: for each sum; the first of each size includes compiling.

  Returns:
    Bytes that each device sums -> median seconds.

  Raises:
    TimeoutError: a sum did not end.
    RuntimeError: a sum ended with an error.
  """
  medians = {}
  for size, repeats in REPEATS.items():
    try:
      # The first compiles, and connects.
      _, *seconds = time_calls(
        lambda size=size: _make_sum(mesh, axis, size),
        repeats + 1,
        timeout_seconds=timeout_seconds,
      )
    except TimeoutError as error:
      raise TimeoutError(f"a sum of {size:,} bytes {error}") from error
    medians[size] = statistics.median(seconds)
  return medians


def time_calls(
  make: Callable[[], Callable[[], object]],
  count: int,
  *,
  timeout_seconds: float,
) -> list[float]:
  """Seconds of each of several calls, in a thread that need not end.

  Args:
    make: makes what is called; its time counts with the first call.
    count: of calls.
    timeout_seconds: for each.

  Raises:
    TimeoutError: a call did not end.
    RuntimeError: one ended with an error.
  """
  ended: queue.Queue[float | Exception] = queue.Queue()

  def work() -> None:
    try:
      start = time.perf_counter()
      call = make()
      for _ in range(count):
        call()
        now = time.perf_counter()
        ended.put(now - start)
        start = now
    except Exception as error:  # for the thread that waits
      ended.put(error)

  thread = threading.Thread(target=work, daemon=True, name="probe")
  thread.start()
  seconds = []
  for _ in range(count):
    try:
      found = ended.get(timeout=timeout_seconds)
    except queue.Empty:
      raise TimeoutError(f"did not end within {timeout_seconds:g} s") from None
    if isinstance(found, Exception):
      raise RuntimeError(" ".join(str(found).split())) from found
    seconds.append(found)
  thread.join()  # it still holds arrays
  return seconds


def to_speed(seconds: dict[int, float], *, devices: int) -> Speed:
  """The speed of an axis of so many devices, from `measure`."""
  return Speed(
    latency_seconds=seconds[LATENCY_BYTES],
    rates={
      size: plan_lib.ring_elements("sum", devices, size) / seconds[size]
      for size in seconds
      if size != LATENCY_BYTES
    },
  )


def count_exchanges(exchanges: Iterable[plan_lib.Collective], axis: str) -> int:
  """Exchanges of a step along an axis; see `plan.sent_along`."""
  return sum(axis in exchange.axes for exchange in exchanges)


def predict_seconds(
  exchanges: Iterable[plan_lib.Collective], axis: str, speed: Speed
) -> float:
  """How long a step sends along an axis: latencies, and bytes by the rate.

  An exchange along several axes counts for each of them. What a compiler
  combines or does meanwhile is left out.
  """
  exchanges = tuple(exchanges)
  sent = plan_lib.sent_along(exchanges).get(axis, 0)
  latencies = count_exchanges(exchanges, axis) * speed.latency_seconds
  return latencies + sent / speed.rate


def _make_sum(
  mesh: jax.sharding.Mesh, axis: str, size: int
) -> Callable[[], jax.Array]:
  """Sums f32[size / 4] of each device along an axis, when it is called."""
  elements = size // jnp.dtype(jnp.float32).itemsize
  call = make_collective(mesh, "sum", (axis,), elements)
  return lambda: jax.block_until_ready(call())


def make_collective(
  mesh: jax.sharding.Mesh,
  kind: str,
  axes: tuple[str, ...],
  elements: int,
  *,
  dtype: str = "float32",
) -> Callable[[], jax.Array]:
  """A collective by itself, along axes of a mesh, in all groups at once.

  Args:
    mesh: the devices.
    kind: of `plan.Collective`, as the next two.
    axes: several devices lie along them.
    elements: of the whole array of a group; its devices divide them, but for a
      sum.
    dtype: of what is sent.

  Returns:
    Starts it, on ones, when it is called.
  """
  names, devices = mesh.axis_names, math.prod(mesh.shape[a] for a in axes)
  on_device = {
    "all_gather": lambda x: lax.all_gather(x, axes, tiled=True),
    "reduce_scatter": lambda x: lax.psum_scatter(x, axes, tiled=True),
    "all_to_all": lambda x: lax.all_to_all(x, axes, 0, 0, tiled=True),
    "sum": lambda x: lax.psum(x, axes),
  }[kind]
  if kind in ("all_gather", "all_to_all"):  # of which each has a share
    elements //= devices
  summed = axes if kind == "sum" else ()
  split = jax.sharding.NamedSharding(mesh, jax.P(names))
  # Made there: a process cannot put arrays on the devices of another.
  ones = jax.jit(
    lambda: jnp.ones(elements * mesh.size, dtype), out_shardings=split
  )()
  call = jax.jit(
    jax.shard_map(
      on_device,
      mesh=mesh,
      in_specs=jax.P(names),
      out_specs=jax.P(tuple(a for a in names if a not in summed) or None),
    )
  )
  return lambda: call(ones)


# An exchange that sends nothing, for the time that exchanges take of a step.
#
# Every collective has something local in its place that leaves arrays of the
# same shapes and types, and so have their gradients. What comes out is wrong;
# what is computed between the exchanges takes the time it takes.


class SilentExchange(exchange.MeshExchange):
  """As `MeshExchange`, but every device keeps to itself."""

  @classmethod
  def instead_of(cls, other: exchange.MeshExchange) -> SilentExchange:
    """Around the same layers as another."""
    return cls(other._routes, other._specs, precision=other._precision)

  def _gather(
    self, x: jax.Array, axes: tuple[str, ...], dimension: int
  ) -> jax.Array:
    return _apart(jnp.concatenate([x] * lax.axis_size(axes), dimension))

  def _scatter(
    self, x: jax.Array, axes: tuple[str, ...], dimension: int
  ) -> jax.Array:
    share = x.shape[dimension] // lax.axis_size(axes)
    return _apart(lax.slice_in_dim(x, 0, share, axis=dimension))

  def _swap(
    self, x: jax.Array, axes: tuple[str, ...], split: int, join: int
  ) -> jax.Array:
    parts = jnp.split(x, lax.axis_size(axes), split)
    return _apart(jnp.concatenate(parts, join))

  def _sum(self, x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return _apart(_silent_sum(x, axes))

  def _spread(self, x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return _silent_spread(x, axes)


def _apart(x: jax.Array) -> jax.Array:
  """Keeps what is before from being computed with what is behind.

  Neither is it where something is sent between the two.
  """
  return lax.optimization_barrier(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _silent_sum(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  return _claim_sum(x, axes)


def _sum_forward(x, axes):
  return _silent_sum(x, axes), None


def _sum_backward(axes, _, gradient):
  return (lax.pcast(gradient, axes, to="varying"),)


_silent_sum.defvjp(_sum_forward, _sum_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _silent_spread(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  return lax.pcast(x, axes, to="varying")


def _spread_forward(x, axes):
  return _silent_spread(x, axes), None


def _spread_backward(axes, _, gradient):
  return (_apart(_claim_sum(gradient, axes)),)


_silent_spread.defvjp(_spread_forward, _spread_backward)


def _claim_sum(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """What a device has, with the type of the sum over all: a false claim."""
  summed = jax.make_jaxpr(lambda x: lax.psum(x, axes))(x)
  return _claim.bind(x, result=summed.out_avals[0])


# The type of an array says over which axes it differs, and only a collective
# takes an axis off. This does, and sends nothing.
_claim = jex_core.Primitive("claim")
_claim.def_abstract_eval(lambda _, *, result: result)
mlir.register_lowering(_claim, lambda _, x, *, result: [x])


# One device's work on every device of a mesh at once, each with its own data.
#
# Nothing is exchanged. Simulated devices share the cores of a machine, and
# those of a host its links and its power: what one device takes for its part of
# a step is measured while the others are busy with theirs.


def on_each(mesh: jax.sharding.Mesh, function: Callable) -> Callable:
  """A function of one device's blocks, as one of all devices'.

  Args:
    mesh: the devices.
    function: of pytrees of blocks, to a pytree of blocks.

  Returns:
    The same of arrays with a first dimension of devices.
  """
  split = jax.P(mesh.axis_names)

  def on_device(*blocks):
    result = function(*jax.tree.map(lambda x: x[0], blocks))
    return jax.tree.map(lambda x: x[None], result)

  return jax.shard_map(on_device, mesh=mesh, in_specs=split, out_specs=split)


def fill(mesh: jax.sharding.Mesh, blocks: Any, *, seed: int = 0) -> Any:
  """Noise for `on_each`, the same on every device.

  Args:
    mesh: the devices.
    blocks: a pytree of `jax.ShapeDtypeStruct`, of one device.
    seed: of the noise.

  Returns:
    The same with a first dimension of devices: normal, but for bool, where
    half is True, and whole numbers, which are 0.
  """
  rng = np.random.default_rng(seed)
  split = jax.sharding.NamedSharding(mesh, jax.P(mesh.axis_names))

  def place(block):
    noise = _draw(rng, block.shape, block.dtype)
    return jax.device_put(
      np.broadcast_to(noise, (mesh.size, *noise.shape)), split
    )

  return jax.tree.map(place, blocks)


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype):
  if dtype == jnp.bool:
    return rng.integers(0, 2, shape).astype(dtype)
  if jnp.issubdtype(dtype, jnp.integer):
    return np.zeros(shape, dtype)
  return rng.standard_normal(shape, np.float32).astype(dtype)
