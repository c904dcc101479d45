"""What is computed and what is sent in bfloat16."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend import core as jex_core

from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import model, ops, wiring
from alexnet_jax.optim import schedules
from alexnet_jax.partition import catalog, collectives
from alexnet_jax.program import compiled_step
from tests import build, reference
from tests.partition.test_placement import run

PRECISIONS = ("float32", "bfloat16")


def test_activations_are_bfloat16_and_parameters_and_logits_float32(
  tiny_network, key
):
  parameters = jax.eval_shape(lambda: model.init_parameters(tiny_network, key))
  images = jax.ShapeDtypeStruct((2, 67, 67, 3), jnp.bfloat16)
  graphdef = model.make_graphdef(tiny_network)
  logits = jax.eval_shape(
    lambda p, x: nnx.merge(graphdef, p)(x), parameters, images
  )
  # Rounded to bfloat16, those of many classes would be equal.
  assert logits.dtype == jnp.float32

  def total(parameters, images):
    return nnx.merge(graphdef, parameters)(images).sum()

  jaxpr = jax.make_jaxpr(total)(parameters, images)
  products = [
    equation.outvars[0].aval.dtype
    for equation in jaxpr.eqns
    if equation.primitive.name in ("conv_general_dilated", "dot_general")
  ]
  # conv2, conv4 and conv5 twice, fc6 to fc8 once: the logits.
  assert products == [jnp.bfloat16] * 10 + [jnp.float32]
  gradients = jax.eval_shape(jax.grad(total), parameters, images)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(gradients)} == {"float32"}


def test_normalization_of_bfloat16_is_computed_in_float32(key):
  x = np.array(60 * jax.random.normal(key, (1, 2, 2, 16))).astype(jnp.bfloat16)
  found = ops.local_response_norm(x, groups=1)
  expected = reference.local_response_norm(np.asarray(x, np.float32))
  assert found.dtype == jnp.bfloat16
  # Rounded once, at the end: half of the last of eight bits.
  np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=2**-8)


def find_narrow(jaxpr) -> list[str]:
  """Equations whose results are floats of less than 64 bits, but draws."""
  found = []
  for equation in jaxpr.eqns:
    name = equation.params.get("name", equation.primitive.name)
    # Draws are in float32 in every program, then converted; a reshard has the
    # type of what it reads.
    if name in ("_uniform", "_bernoulli", "reshard"):
      continue
    for inner in jex_core.jaxprs_in_params(equation.params):
      found += find_narrow(inner)
    found += [
      str(equation)
      for result in equation.outvars
      if jnp.issubdtype(getattr(result.aval, "dtype", jnp.int32), jnp.floating)
      and result.aval.dtype != jnp.float64
    ]
  return found


# Stochastic pooling, normalizations of both kinds, dropout after a convolution.
EVERYTHING = wirings.rewire(
  wirings.DROPOUT_AFTER_CONV4,
  "everything",
  conv2={"pool": wiring.Pool(kind="stochastic")},
  conv3={"normalize": "batch"},
)


def test_float64_is_nowhere_narrower():
  parts = build.make_program(
    *(catalog.TWO_COLUMN_DATA, build.make_network(EVERYTHING)),
    compute_dtype="float64",
    label_smoothing=0.1,
    trust_coefficient=0.01,
    ema_decay=0.5,
    accumulate=2,
    plateau=schedules.Plateau(
      factor=0.1, patience=1, min_change=0.1, max_drops=1
    ),
    views=10,
  )
  state = parts.abstract_state
  assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} <= {
    *("float64", "int32", "bool")
  }
  assert find_narrow(parts.trace().jaxpr.jaxpr) == []
  evaluation = parts.trace_part(
    parts._eval_step, state.variables, *parts.abstract_batch
  )
  assert find_narrow(evaluation.jaxpr.jaxpr) == []


@pytest.mark.slow
@pytest.mark.parametrize(
  "layout",
  [catalog.TWO_COLUMN, catalog.DATA_PARALLEL],
  ids=lambda layout: layout.name,
)
def test_precision_of_the_exchange_is_its_own(layout, tiny_network):
  sent = {}
  for computed, crossing in itertools.product(PRECISIONS, repeat=2):
    parts = build.make_program(
      layout, exchange_dtype=crossing, compute_dtype=computed
    )
    found = collectives.read_traced(
      parts.trace().jaxpr, [*tiny_network.sizes(), "loss"], layout.mesh
    )
    assert sorted(found.collectives) == sorted(parts.plan)
    sent[computed, crossing] = sum(e.sent_bytes for e in parts.plan if e.images)
  for computed in PRECISIONS:
    assert sent[computed, "float32"] == sent["float32", "float32"]
    assert 2 * sent[computed, "bfloat16"] == sent["float32", "float32"]


@pytest.mark.slow
def test_step_in_bfloat16_communicates_as_planned_and_changes_little(
  program, tiny_batch
):
  parts = build.make_program(
    catalog.TWO_COLUMN, exchange_dtype="bfloat16", compute_dtype="bfloat16"
  )
  compiled, found = compiled_step.compile_step(parts)
  assert found.agrees and sorted(found.traced) == sorted(found.plan)
  losses, state, _ = run((parts, None, compiled), tiny_batch, steps=2)
  expected, _, _ = run(program(catalog.TWO_COLUMN), tiny_batch, steps=2)
  assert {leaf.dtype for leaf in jax.tree.leaves(state.parameters)} == {
    np.dtype("float32")
  }
  # Eight bits of mantissa: a relative error of 2^-9 for each value.
  assert not np.array_equal(losses, expected)
  np.testing.assert_allclose(losses, expected, rtol=0.02)
