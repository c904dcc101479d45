"""What a step measures of its logits: loss and errors, as sums over images.

Sums, not means: they can be added over devices, batches and a last batch that
is not full, and every image counts exactly once.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

# The order of the sums in the array that `totals` returns.
NAMES = ("loss", "top1_error", "top5_error", "images")


def totals(
  logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0
) -> jax.Array:
  """Sums over the images of a block.

  Args:
    logits: f32[n, classes].
    labels: i32[n], 0..classes-1, or negative for a row that is no image.
    smoothing: share of each label's weight that is spread evenly over all
      classes, 0 <= smoothing < 1; changes the loss only (Szegedy et al. 2016,
      "Rethinking the Inception architecture", section 7).

  Returns:
    f32[4]: the sum of the cross-entropies in nats, the images whose label is
    not the first, not among the first five of the classes, and the images.
  """
  real = labels >= 0
  label = jnp.where(real, labels, 0)
  if smoothing:
    wanted = jax.nn.one_hot(label, logits.shape[1], dtype=logits.dtype)
    wanted = optax.smooth_labels(wanted, smoothing)
    loss = optax.softmax_cross_entropy(logits, wanted)
  else:
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
  rank = ranks(logits, label)
  per_image = jnp.stack(
    [loss, rank >= 1, rank >= 5, jnp.ones_like(loss)], dtype=jnp.float32
  )
  return jnp.sum(jnp.where(real, per_image, 0.0), axis=1)


def ranks(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """The place of each label among the classes: i32[n], 0 is first.

  A class that ties with the label ranks before it, and so does every class
  where a logit is not a number.

  Args:
    logits: f32[n, classes], or anything that rises with them.
    labels: i32[n], 0..classes-1.
  """
  of_label = jnp.take_along_axis(logits, labels[:, None], axis=1)
  return jnp.sum(~(logits < of_label), axis=1) - 1


def to_means(sums: jax.Array) -> dict[str, float]:
  """Divides the sums by the number of images; errors are fractions, 0..1.

  Args:
    sums: f32[4], as `totals` returns.

  Returns:
    {"loss": nats, "top1_error": 0..1, "top5_error": 0..1, "images": count}.
  """
  means = {
    name: float(value) / float(sums[-1])
    for name, value in zip(NAMES, sums, strict=True)
  }
  return means | {"images": int(sums[-1])}


def to_errors(sums: np.ndarray) -> float | list[float]:
  """The top-1 error, 0..1; a list of that of each member of an ensemble.

  Args:
    sums: f32[4], as `totals` returns, or f32[members, 4].
  """
  if np.ndim(sums) > 1:
    return [to_means(of_member)["top1_error"] for of_member in sums]
  return to_means(sums)["top1_error"]
