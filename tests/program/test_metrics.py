import math

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.data import host_batches
from alexnet_jax.program import metrics

totals = jax.jit(metrics.totals, static_argnames="smoothing")


def test_totals_match_a_loop():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(50, 20)).astype(np.float32)
  labels = rng.integers(0, 20, 50, dtype=np.int32)
  loss = top1 = top5 = 0
  for row, label in zip(logits.astype(np.float64), labels, strict=True):
    loss += np.log(np.exp(row).sum()) - row[label]
    order = np.argsort(-row)
    top1 += label != order[0]
    top5 += label not in order[:5]
  found = totals(jnp.asarray(logits), jnp.asarray(labels))
  np.testing.assert_allclose(found, [loss, top1, top5, 50], rtol=1e-6)


def test_padding_counts_for_nothing():
  logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
  labels = jnp.array([0, 1, host_batches.PADDING, host_batches.PADDING])
  np.testing.assert_allclose(
    totals(logits, labels), totals(logits[:2], labels[:2])
  )


def test_missing_numbers_are_errors():
  labels, logits = jnp.array([0]), np.zeros((3, 1, 10), np.float32)
  logits[0], logits[1, 0, 0], logits[2, 0, 1:] = np.nan, np.nan, np.nan
  for each in logits:
    assert totals(jnp.asarray(each), labels)[1:3].tolist() == [1, 1]


def test_ties_rank_as_in_numpy():
  rng = np.random.default_rng(0)
  logits = rng.integers(0, 4, (200, 20)).astype(np.float32)  # many ties
  labels = rng.integers(0, 20, 200, dtype=np.int32)
  order = np.argsort(-logits, axis=1, kind="stable")
  _, expected = np.nonzero(order == labels[:, None])
  found = jax.jit(metrics.ranks)(jnp.asarray(logits), jnp.asarray(labels))
  np.testing.assert_array_equal(found, expected)


def test_ties_are_errors_as_often_as_chance_has_it():
  equal = jnp.zeros((10, 10)), jnp.arange(10)  # each class once
  assert totals(*equal)[1:].tolist() == [9, 5, 10]


def test_smoothed_loss_is_that_of_spread_labels_and_errors_stay():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(6, 5)).astype(np.float32)
  labels = np.array([0, 1, 2, 3, 4, host_batches.PADDING], np.int32)
  plain = totals(logits, labels)
  found = totals(logits, labels, smoothing=0.1)
  loss = 0.0
  for row, label in zip(logits[:5].astype(np.float64), labels, strict=False):
    log_p = row - np.log(np.exp(row).sum())
    loss -= 0.9 * log_p[label] + 0.1 * np.mean(log_p)
  np.testing.assert_allclose(found[0], loss, rtol=1e-6)
  np.testing.assert_array_equal(found[1:], plain[1:])


def test_no_loss_of_minus_zero_and_no_top_k_error_that_is_always_zero():
  assert math.copysign(1, metrics.to_means([-0.0, 0, 0, 8])["loss"]) == 1
  chosen = {count: metrics.choose_top_k(count) for count in (1, 5, 6)}
  assert chosen == {1: (1,), 5: (1,), 6: (1, 5)}
