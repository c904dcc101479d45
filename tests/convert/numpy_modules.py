"""PyTorch's modules in NumPy, as its documentation describes them.

Loops over windows, in float64; for tests where PyTorch is not installed.
"""

import numpy as np


def run(modules, arrays, x):
  """Computes the outputs of modules.

  Args:
    modules: {"features" or "classifier": [(class, arguments), ...]}.
    arrays: the state dict.
    x: [n, channels, height, width].
  """
  x = x.astype(np.float64)
  for part in ("features", "classifier"):
    if part == "classifier":
      x = x.reshape(len(x), -1)
    for index, (kind, options) in enumerate(modules[part]):
      prefix = f"{part}.{index}."
      own = {
        name.removeprefix(prefix): np.float64(array)
        for name, array in arrays.items()
        if name.startswith(prefix)
      }
      x = _MODULES[kind](x, own, **options)
  return x


def _pad(x, left, right, top, bottom, value=0.0):
  sides = ((0, 0), (0, 0), (top, bottom), (left, right))
  return np.pad(x, sides, constant_values=value)


def _zero_pad(x, _, padding):
  return _pad(x, *padding)


def _windows(x, size, stride):
  """[n, channels, h, w, size, size]."""
  windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
  return windows[:, :, ::stride, ::stride]


def _convolve(
  x,
  own,
  *,
  in_channels,
  out_channels,
  kernel_size,
  stride,
  padding,
  groups,
  bias,
):
  assert x.shape[1] == in_channels and ("bias" in own) == bias
  assert own["weight"].shape == (
    *(out_channels, in_channels // groups, kernel_size, kernel_size),
  )
  windows = _windows(_pad(x, *[padding] * 4), kernel_size, stride)
  outputs = [
    np.einsum("nchwyx,ocyx->nohw", part, kernels, optimize=True)
    for part, kernels in zip(
      np.split(windows, groups, axis=1),
      np.split(own["weight"], groups),
      strict=True,
    )
  ]
  shift = own["bias"] if bias else np.zeros(out_channels)
  return np.concatenate(outputs, axis=1) + shift[:, None, None]


def _multiply(x, own, *, in_features, out_features, bias):
  assert own["weight"].shape == (out_features, in_features)
  return x @ own["weight"].T + (own["bias"] if bias else 0.0)


def _normalize_batch(x, own, *, num_features, eps):
  shape = (1, num_features, *[1] * (x.ndim - 2))
  mean, variance, scale, shift = (
    own[name].reshape(shape)
    for name in ("running_mean", "running_var", "weight", "bias")
  )
  return (x - mean) / np.sqrt(variance + eps) * scale + shift


def _normalize_response(x, _, *, size, alpha, beta, k):
  y = np.empty_like(x)
  for channel in range(x.shape[1]):
    first, last = max(0, channel - size // 2), channel + (size - 1) // 2
    energy = np.square(x[:, first : last + 1]).sum(axis=1)
    y[:, channel] = x[:, channel] / (k + alpha / size * energy) ** beta
  return y


def _pool_max(x, _, *, kernel_size, stride, padding):
  padded = _pad(x, *[padding] * 4, value=-np.inf)
  return _windows(padded, kernel_size, stride).max(axis=(-2, -1))


def _pool_average(x, _, *, kernel_size, stride, padding, count_include_pad):
  assert not count_include_pad
  sums, counts = (
    _windows(_pad(one, *[padding] * 4), kernel_size, stride).sum(axis=(-2, -1))
    for one in (x, np.ones_like(x))
  )
  return sums / counts


def _flatten(x, _, *, start_dim, end_dim):
  shape = x.shape
  return x.reshape(*shape[:start_dim], -1, *shape[end_dim + 1 :])


def _unflatten(x, _, *, dim, unflattened_size):
  return x.reshape(*x.shape[:dim], *unflattened_size, *x.shape[dim + 1 :])


_MODULES = {
  "ZeroPad2d": _zero_pad,
  "Conv2d": _convolve,
  "Linear": _multiply,
  "BatchNorm2d": _normalize_batch,
  "BatchNorm1d": _normalize_batch,
  "LocalResponseNorm": _normalize_response,
  "MaxPool2d": _pool_max,
  "AvgPool2d": _pool_average,
  "Flatten": _flatten,
  "Unflatten": _unflatten,
  "ReLU": lambda x, _: np.maximum(x, 0.0),
  "Tanh": lambda x, _: np.tanh(x),
  "Sigmoid": lambda x, _: 1.0 / (1.0 + np.exp(-x)),
  "Dropout": lambda x, _, p: x,  # in evaluation
}
