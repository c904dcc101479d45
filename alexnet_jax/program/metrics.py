"""Loss and errors of logits, as sums over images.

Sums, unlike means, can be added over devices, over batches and over a last
batch that is not full, so that every image counts exactly once.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

# The k of each top-k error; reports and evaluations follow from it.
TOP_K = (1, 5)
# The order of the sums that `totals` returns.
NAMES = ("loss", *(f"top{k}_error" for k in TOP_K), "images")


def totals(
  logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0
) -> jax.Array:
  """Sums loss and errors over the images on a device.

  Args:
    logits: f32[n, classes].
    labels: i32[n], 0..classes-1, or negative for a row that is no image.
    smoothing: part of each label's weight that is spread evenly over all
      classes, 0 <= smoothing < 1; changes the loss only (Szegedy et al. 2016,
      "Rethinking the Inception architecture", section 7).

  Returns:
    f32[4]: the cross-entropy in nats; the number of images whose label is not
    the most probable class, and not among the five most probable; the number
    of images.
  """
  is_image = labels >= 0
  label = jnp.where(is_image, labels, 0)
  if smoothing:
    target = jax.nn.one_hot(label, logits.shape[1], dtype=logits.dtype)
    target = optax.smooth_labels(target, smoothing)
    loss = optax.softmax_cross_entropy(logits, target)
  else:
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
  rank = ranks(logits, label)
  per_image = jnp.stack(
    [loss, *(rank >= k for k in TOP_K), jnp.ones_like(loss)],
    dtype=float,  # the program's
  )
  return jnp.sum(jnp.where(is_image, per_image, 0.0), axis=1)


def choose_top_k(num_classes: int) -> tuple[int, ...]:
  """Returns the k of `TOP_K` to show: the top-5 error of five classes is 0."""
  return tuple(k for k in TOP_K if k == 1 or k < num_classes)


def ranks(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Ranks each label among the classes: i32[n], 0 is the most probable.

  Of classes with equal logits the lower one ranks first, as in `argmax`: a tie
  is neither always an error nor never one. A class ranks before the label where
  either logit is NaN.

  Args:
    logits: f32[n, classes], or any increasing function of them.
    labels: i32[n], 0..classes-1.
  """
  of_label = jnp.take_along_axis(logits, labels[:, None], axis=1)
  label = labels[:, None]
  classes = jnp.arange(logits.shape[1], dtype=label.dtype)[None]
  follows = (logits < of_label) | ((logits == of_label) & (classes > label))
  return jnp.sum(~(follows | (classes == label)), axis=1)


def to_means(sums: jax.Array) -> dict[str, float]:
  """Divides the sums that `totals` returns by the number of images.

  Returns:
    {"loss": nats, "top1_error": 0..1, "top5_error": 0..1, "images": count}.
  """
  means = {
    name: float(value) / float(sums[-1]) + 0.0  # 0 in place of -0
    for name, value in zip(NAMES, sums, strict=True)
  }
  return means | {"images": int(sums[-1])}


def to_errors(sums: np.ndarray) -> float | list[float]:
  """Returns the top-1 error, 0..1, or of f32[runs, 4] a list of them."""
  if np.ndim(sums) > 1:
    return [to_means(row)["top1_error"] for row in sums]
  return to_means(sums)["top1_error"]
