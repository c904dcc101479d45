"""Times communication and computation separately.

- Links: sums along one axis of a mesh, in all its groups of devices at once, as
  in a step; of one number from each device for the latency, of more for the
  rate. These and the plan predict how long a step communicates.
- A step without communication: `SilentExchange` computes and sends nothing.
- One device's work: `on_each_device` runs it on all devices at once. Simulated
  devices share the cores of a machine, and those of a host its links and its
  power, so each is measured while the others are busy too.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex_core
from jax.interpreters import mlir

from alexnet_jax.partition import exchange as exchange_lib
from alexnet_jax.partition import plan as plan_lib

# Bytes that each device sums -> repeats; the same in all processes.
LATENCY_BYTES = 4
REPEATS = {LATENCY_BYTES: 21, 2**20: 5, 2**23: 5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinkSpeed:
  """The speed of the links along an axis.

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


def time_sums(
  mesh: jax.sharding.Mesh, axis: str, *, timeout_seconds: float
) -> dict[int, float]:
  """Times sums along an axis; in all processes of the mesh at once.

  If a sum does not end, the thread that waits for it stays: the process can
  then only be ended by `os._exit`.

  Args:
    mesh: of several devices along the axis.
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
        lambda elements=size // 4: make_collective(
          mesh, "sum", (axis,), elements
        ),
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
  """Times several calls, in a thread that need not end; seconds of each.

  Args:
    make: makes the call, whose result is waited for; its own time counts with
      the first call.
    timeout_seconds: for each call.

  Raises:
    TimeoutError: a call did not end.
    RuntimeError: a call ended with an error.
  """
  ended: queue.Queue[float | Exception] = queue.Queue()

  def work() -> None:
    try:
      start = time.perf_counter()
      call = make()
      for _ in range(count):
        jax.block_until_ready(call())
        now = time.perf_counter()
        ended.put(now - start)
        start = now
    except Exception as error:  # raised in the waiting thread
      ended.put(error)

  thread = threading.Thread(target=work, daemon=True, name="probe")
  thread.start()
  seconds = []
  for _ in range(count):
    try:
      result = ended.get(timeout=timeout_seconds)
    except queue.Empty:
      raise TimeoutError(f"did not end within {timeout_seconds:g} s") from None
    if isinstance(result, Exception):
      raise RuntimeError(" ".join(str(result).split())) from result
    seconds.append(result)
  thread.join()  # it still holds arrays
  return seconds


def to_speed(seconds: dict[int, float], *, devices: int) -> LinkSpeed:
  """Converts the result of `time_sums` along an axis of so many devices."""
  return LinkSpeed(
    latency_seconds=seconds[LATENCY_BYTES],
    rates={
      size: plan_lib.ring_elements("sum", devices, size) / seconds[size]
      for size in seconds
      if size != LATENCY_BYTES
    },
  )


def count_collectives(plan: Iterable[plan_lib.Collective], axis: str) -> int:
  """Counts the collectives of a step along an axis; see `plan.sent_along`."""
  return sum(axis in collective.axes for collective in plan)


def predict_seconds(
  plan: Sequence[plan_lib.Collective], axis: str, speed: LinkSpeed
) -> float:
  """Predicts how long a step communicates along an axis: latencies and bytes.

  A collective along several axes counts for each of them. What a compiler
  combines or overlaps is ignored.
  """
  latencies = count_collectives(plan, axis) * speed.latency_seconds
  return latencies + plan_lib.sent_along(plan).get(axis, 0) / speed.rate


def make_collective(
  mesh: jax.sharding.Mesh,
  kind: str,
  axes: tuple[str, ...],
  elements: int,
  *,
  dtype: str = "float32",
) -> Callable[[], jax.Array]:
  """Makes a call of one collective alone, on ones, in all groups at once.

  Args:
    kind, axes: as in `plan.Collective`; with several devices.
    elements: of the complete array of a group; except for a sum, its devices
      divide them.
  """
  names, devices = mesh.axis_names, math.prod(mesh.shape[a] for a in axes)
  on_device = {
    "all_gather": lambda x: lax.all_gather(x, axes, tiled=True),
    "reduce_scatter": lambda x: lax.psum_scatter(x, axes, tiled=True),
    "all_to_all": lambda x: lax.all_to_all(x, axes, 0, 0, tiled=True),
    "sum": lambda x: lax.psum(x, axes),
  }[kind]
  if kind in ("all_gather", "all_to_all"):  # each device holds a shard
    elements //= devices
  summed = axes if kind == "sum" else ()
  split = jax.sharding.NamedSharding(mesh, jax.P(names))
  # Made on the devices: a process cannot put arrays on the devices of another.
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


class SilentExchange(exchange_lib.MeshExchange):
  """A `MeshExchange` that sends nothing, to time the rest of a step.

  Every collective, in the gradients too, is replaced by a local operation with
  a result of the same shape and type. The results of the step are wrong, but
  what is computed between the exchanges takes the same time.
  """

  def _gather(
    self, x: jax.Array, axes: tuple[str, ...], dimension: int
  ) -> jax.Array:
    return _no_fusion(jnp.concatenate([x] * lax.axis_size(axes), dimension))

  def _scatter(
    self, x: jax.Array, axes: tuple[str, ...], dimension: int
  ) -> jax.Array:
    size = x.shape[dimension] // lax.axis_size(axes)
    return _no_fusion(lax.slice_in_dim(x, 0, size, axis=dimension))

  def _all_to_all(
    self, x: jax.Array, axes: tuple[str, ...], split: int, join: int
  ) -> jax.Array:
    parts = jnp.split(x, lax.axis_size(axes), split)
    return _no_fusion(jnp.concatenate(parts, join))

  def _sum(self, x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return _no_fusion(_silent_sum(x, axes))

  def _pvary(self, x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return _silent_pvary(x, axes)


def _no_fusion(x: jax.Array) -> jax.Array:
  """Keeps XLA from fusing across this place, as a collective would."""
  return lax.optimization_barrier(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _silent_sum(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  return _as_if_summed(x, axes)


_silent_sum.defvjp(
  lambda x, axes: (_silent_sum(x, axes), None),
  lambda axes, _, gradient: (lax.pcast(gradient, axes, to="varying"),),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _silent_pvary(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  return lax.pcast(x, axes, to="varying")


_silent_pvary.defvjp(
  lambda x, axes: (_silent_pvary(x, axes), None),
  lambda axes, _, gradient: (_no_fusion(_as_if_summed(gradient, axes)),),
)


def _as_if_summed(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """Gives a local array the type of the sum over all devices."""
  summed = jax.make_jaxpr(lambda x: lax.psum(x, axes))(x)
  return _retype.bind(x, result=summed.out_avals[0])


# The type of an array lists the axes along which it varies, and only a
# collective removes one. This primitive does too, and sends nothing.
_retype = jex_core.Primitive("retype")
_retype.def_abstract_eval(lambda _, *, result: result)
mlir.register_lowering(_retype, lambda _, x, *, result: [x])


def on_each_device(mesh: jax.sharding.Mesh, function: Callable) -> Callable:
  """Maps a function of pytrees of one device's arrays over all devices.

  The result takes and returns arrays with a first dimension of devices. Nothing
  is sent.
  """
  split = jax.P(mesh.axis_names)

  def on_device(*arguments):
    result = function(*jax.tree.map(lambda x: x[0], arguments))
    return jax.tree.map(lambda x: x[None], result)

  return jax.shard_map(on_device, mesh=mesh, in_specs=split, out_specs=split)


def make_noise(mesh: jax.sharding.Mesh, arrays: Any, *, seed: int = 0) -> Any:
  """Makes arguments for `on_each_device`, the same noise on every device.

  Args:
    arrays: a pytree of `jax.ShapeDtypeStruct`, of one device.

  Returns:
    The same with a first dimension of devices: normal, except that half of a
    bool array is True, and integers are 0.
  """
  rng = np.random.default_rng(seed)
  split = jax.sharding.NamedSharding(mesh, jax.P(mesh.axis_names))

  def make(array):
    shape, dtype = array.shape, array.dtype
    if dtype == jnp.bool:
      noise = rng.integers(0, 2, shape).astype(dtype)
    elif jnp.issubdtype(dtype, jnp.integer):
      noise = np.zeros(shape, dtype)
    else:
      noise = rng.standard_normal(shape, np.float32).astype(dtype)
    return jax.device_put(np.broadcast_to(noise, (mesh.size, *shape)), split)

  return jax.tree.map(make, arrays)
