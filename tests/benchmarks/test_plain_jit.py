"""The compiler's program and ours compute the same network and update."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from alexnet_jax.network import model
from alexnet_jax.partition import catalog
from benchmarks import plain_jit
from tests import build

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ours(tiny_network):
  """Our program, a batch with masks, and its loss, state and updates."""
  parts = build.make_program(catalog.TWO_COLUMN_DATA)
  key = jax.random.key(0)
  keys = jax.random.split(key, 3)
  images = np.asarray(jax.random.normal(keys[0], (8, 67, 67, 3)))
  labels = np.arange(8, dtype=np.int32)
  masks = {
    name: np.asarray(jax.random.bernoulli(mask_key, 0.5, (8, 512)))
    for name, mask_key in zip(("fc6", "fc7"), keys[1:], strict=True)
  }
  state = jax.device_get(parts.init(key))
  graphdef = model.make_graphdef(tiny_network)
  cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels

  @jax.jit
  @jax.value_and_grad
  def mean_loss(parameters):
    logits = nnx.merge(graphdef, parameters)(images, masks=masks)
    return cross_entropy(logits, labels).mean()

  before = state.parameters
  loss, gradients = mean_loss(before)
  updates, _ = parts.optimizer.update(gradients, state.optimizer, before)
  return parts, (state, images, labels, masks), loss, updates


@pytest.mark.parametrize("variant", ["plain jit", "constrained"])
def test_plain_step_trains_the_same_network(variant, ours):
  parts, given, expected_loss, updates = ours
  before = given[0].parameters
  step, arguments = plain_jit.make_step(parts, **plain_jit.VARIANTS[variant])
  placed = jax.tree.map(
    lambda value, argument: jax.device_put(value, argument.sharding),
    given,
    arguments,
  )
  after, totals = step(*placed)
  # Sums of float32 products in another order.
  assert totals[0] / 8 == pytest.approx(float(expected_loss), rel=1e-5)
  for layer, arrays in updates.items():
    for name, update in arrays.items():
      found = after.parameters[layer][name] - before[layer][name]
      difference = np.linalg.norm(found - update) / np.linalg.norm(update)
      assert difference <= 1e-4, (layer, name)


def test_plain_jit_gathers_the_batch_for_a_grouped_convolution():
  parts = build.make_program(catalog.DATA_PARALLEL)
  plain = plain_jit.find_sent(parts)
  # openxla/xla issue 47945: all images of what conv2 reads, or since jax 0.12
  # of the gradient of what it writes, from all devices to each.
  sizes = parts.network.sizes()
  read = 8 * sizes["conv1"].out_side ** 2 * sizes["conv2"].channels
  written = 8 * sizes["conv2"].outputs
  conv2 = [exchange for exchange in plain if exchange.layer == "conv2"]
  gathered = {e.elements for e in conv2 if e.kind == "all_gather"}
  assert gathered & {read, written}
  assert {e.kind for e in parts.plan if e.layer == "conv2"} == {"sum"}
  extra = plain_jit.find_unplanned(plain, parts.plan)
  assert ("conv2", "all_gather") in {(e.layer, e.kind) for e in extra}


def test_tables_show_what_is_not_planned():
  planned = build.make_program(catalog.DATA_PARALLEL).plan
  extra = dataclasses.replace(
    planned[-1], layer="conv2", kind="all_gather", elements=4_000
  )
  found = {plain_jit.PLAN: planned, "plain jit": (*planned, extra)}
  ours, plain = plain_jit.summarize("data_parallel", found)
  sent = sum(exchange.sent_bytes for exchange in planned)
  count = len(planned)
  assert ours[2:] == (str(count), f"{sent:,}", "1.00", "-")
  assert plain[2:4] == (str(count + 1), f"{sent + 8_000:,}")
  assert plain[-1] == "conv2 backward: all_gather of 4,000 elements"
  *rows, total = plain_jit.list_layers(found)
  assert total[2:] == (ours[3], plain[3])
  assert {row[2] == row[3] for row in rows if row[0] != "conv2"} == {True}
