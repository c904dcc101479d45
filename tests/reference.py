"""AlexNet of 2012 as two explicit halves, written from the specification.

Plain jnp and lax, no mesh, no table, no code of the package: every size and
constant below is typed in from the paper and the released code's layer files.
Half `a` stands for the first GPU, half `b` for the second.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

PUBLISHED_PARAMETERS = {
  "conv1": 34_944,
  "conv2": 307_456,
  "conv3": 885_120,
  "conv4": 663_936,
  "conv5": 442_624,
  "fc6": 37_752_832,
  "fc7": 16_781_312,
  "fc8": 4_097_000,
}


def forward(parameters, images, keep_masks=None):
  """Logits of two halves that meet before conv3, fc6, fc7 and fc8.

  Args:
    parameters: {layer: {"kernel", "bias"}}, global shapes.
    images: f32[n, h, w, 3].
    keep_masks: {"fc6", "fc7": bool[n, units]}; None halves the outputs.
  """
  halves = {
    name: (_half(layer, 0), _half(layer, 1))
    for name, layer in parameters.items()
  }
  a = b = images
  a = _block1(halves["conv1"][0], a)
  b = _block1(halves["conv1"][1], b)
  a = _block2(halves["conv2"][0], a)
  b = _block2(halves["conv2"][1], b)
  both = jnp.concatenate([a, b], -1)
  a = jax.nn.relu(_conv(halves["conv3"][0], both, pad=1))
  b = jax.nn.relu(_conv(halves["conv3"][1], both, pad=1))
  a = jax.nn.relu(_conv(halves["conv4"][0], a, pad=1))
  b = jax.nn.relu(_conv(halves["conv4"][1], b, pad=1))
  a = _pool(jax.nn.relu(_conv(halves["conv5"][0], a, pad=1)))
  b = _pool(jax.nn.relu(_conv(halves["conv5"][1], b, pad=1)))
  both = jnp.concatenate([a, b], -1)
  both = both.reshape(both.shape[0], -1)  # position by position, maps last
  for name in ("fc6", "fc7"):
    a = jax.nn.relu(_dense(halves[name][0], both))
    b = jax.nn.relu(_dense(halves[name][1], both))
    both = jnp.concatenate([a, b], -1)
    keep = 0.5 if keep_masks is None else keep_masks[name].astype(jnp.float32)
    both = both * keep
  return both @ parameters["fc8"]["kernel"] + parameters["fc8"]["bias"][None]


def independent_columns(parameters, images):
  """Logits of two columns that meet there only; outputs halved after fc6, fc7.

  Args:
    parameters: {layer: {"kernel", "bias"}}, global shapes.
    images: f32[n, h, w, 3].
  """
  columns = []
  for which in range(2):
    own = {name: _half(layer, which) for name, layer in parameters.items()}
    x = _block2(own["conv2"], _block1(own["conv1"], images))
    for name in ("conv3", "conv4", "conv5"):
      x = jax.nn.relu(_conv(own[name], x, pad=1))
    x = _pool(x)
    x = x.reshape(x.shape[0], -1)
    for name in ("fc6", "fc7"):
      x = 0.5 * jax.nn.relu(_dense(own[name], x))
    columns.append(x)
  return _dense(parameters["fc8"], jnp.concatenate(columns, -1))


def mean_cross_entropy(logits, labels):
  log_normalizer = jnp.log(jnp.sum(jnp.exp(logits), -1))
  of_label = logits[jnp.arange(len(labels)), labels]
  return jnp.mean(log_normalizer - of_label)


def local_response_norm(x, size=5, k=2.0, alpha=2e-5, beta=0.75):
  """Loop over channels; x: np [n, h, w, c], one column."""
  y = np.zeros(x.shape, np.float64)
  channels = x.shape[-1]
  for i in range(channels):
    energy = 0.0
    for j in range(max(0, i - size // 2), min(channels, i + size // 2 + 1)):
      energy = energy + x[..., j].astype(np.float64) ** 2
    y[..., i] = x[..., i] / (k + alpha * energy) ** beta
  return y


def max_pool(x, size=3, stride=2):
  """Loop over windows; x: np [n, h, w, c]."""
  n, h, w, c = x.shape
  rows, columns = (h - size) // stride + 1, (w - size) // stride + 1
  y = np.zeros((n, rows, columns, c), x.dtype)
  for i in range(rows):
    for j in range(columns):
      top, left = i * stride, j * stride
      window = x[:, top : top + size, left : left + size]
      y[:, i, j] = window.max(axis=(1, 2))
  return y


def _half(layer, which):
  return {name: jnp.split(array, 2, -1)[which] for name, array in layer.items()}


def _conv(layer, x, *, stride=1, pad):
  pads = pad if isinstance(pad, tuple) else (pad, pad)
  y = lax.conv_general_dilated(
    x,
    layer["kernel"],
    (stride, stride),
    (pads, pads),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return y + layer["bias"][None, None, None]


def _dense(layer, x):
  kernel = layer["kernel"].reshape(-1, layer["kernel"].shape[-1])
  return x @ kernel + layer["bias"][None]


def _lrn(x):
  padded = jnp.pad(x, ((0, 0),) * 3 + ((2, 2),)) ** 2
  channels = x.shape[-1]
  energy = sum(padded[..., i : i + channels] for i in range(5))
  return x * (2.0 + 2e-5 * energy) ** -0.75


def _pool(x):
  return lax.reduce_window(
    x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID"
  )


def _block1(layer, x):
  return _pool(_lrn(jax.nn.relu(_conv(layer, x, stride=4, pad=(0, 3)))))


def _block2(layer, x):
  return _pool(_lrn(jax.nn.relu(_conv(layer, x, pad=2))))
