"""An exchange that sends nothing, for the time that exchanges take of a step.

Every collective has something local in its place that leaves arrays of the same
shapes and types, and so have their gradients. What comes out is wrong; what is
computed between the exchanges takes the time it takes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex_core
from jax.interpreters import mlir

from alexnet_jax.partition import exchange


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
