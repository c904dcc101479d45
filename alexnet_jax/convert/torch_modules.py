"""A network as modules of PyTorch, with the names that torchvision gives them.

`features` is a `torch.nn.Sequential` up to the last map, `classifier` one of
the units, and a name is the place of a module in it: features.0.weight. PyTorch
is not needed here: a module is the name of its class and its arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from alexnet_jax.convert import operations as operations_lib
from alexnet_jax.network import wiring

FEATURES, CLASSIFIER = "features", "classifier"
_ACTIVATIONS = {"relu": "ReLU", "tanh": "Tanh", "sigmoid": "Sigmoid"}
_POOLS = {"max": "MaxPool2d", "average": "AvgPool2d"}
# Name in `Operation.arrays` -> name in PyTorch.
_PRODUCT = {"kernel": "weight", "bias": "bias"}
_BATCH_NORM = {
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "variance": "running_var",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
  """A class of `torch.nn`, the arguments of its constructor, its arrays."""

  kind: str
  options: Mapping[str, Any]
  arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Modules:
  """A network for PyTorch.

  Attributes:
    modules: {`features` or `classifier`: [(class, arguments), ...]}.
    arrays: {name in the state dict: f32[...]}.
    sources: {name in the state dict: our name, as conv1.kernel}.
  """

  modules: dict[str, list[tuple[str, dict[str, Any]]]]
  arrays: dict[str, np.ndarray]
  sources: dict[str, str]


def make_modules(
  network: wiring.Network, variables: Mapping[str, Mapping[str, np.ndarray]]
) -> Modules:
  """Makes the modules of a network.

  Args: as of `operations.make_operations`.

  Raises:
    ValueError: no module of PyTorch computes what a layer does; names the
      layer.
  """
  modules = {FEATURES: [], CLASSIFIER: []}
  arrays, sources = {}, {}
  part = FEATURES
  for operation in operations_lib.make_operations(network, variables):
    if operation.kind == "flatten":
      part = CLASSIFIER
      continue
    for module in _to_modules(operation, is_map=part == FEATURES):
      names = _PRODUCT if "kernel" in module.arrays else _BATCH_NORM
      for ours, array in module.arrays.items():
        name = f"{part}.{len(modules[part])}.{names[ours]}"
        arrays[name] = array
        sources[name] = f"{operation.layer}.{ours}"
      modules[part].append((module.kind, dict(module.options)))
  return Modules(modules=modules, arrays=arrays, sources=sources)


def _to_modules(
  operation: operations_lib.Operation, *, is_map: bool
) -> Iterator[Module]:
  """Returns the modules of one operation, mostly one."""
  layer, options, arrays = operation.layer, operation.options, operation.arrays
  match operation.kind:
    case "conv":
      yield from _to_convolution(options, arrays)
    case "dense":
      outputs, inputs = arrays["kernel"].shape
      sizes = {"in_features": inputs, "out_features": outputs}
      bias = {"bias": "bias" in arrays}
      yield Module(kind="Linear", options=sizes | bias, arrays=arrays)
    case "batch_norm":
      yield Module(
        kind="BatchNorm2d" if is_map else "BatchNorm1d",
        options={
          "num_features": len(arrays["scale"]),
          "eps": options["epsilon"],
        },
        arrays=arrays,
      )
    case "activation":
      yield Module(kind=_ACTIVATIONS[options["name"]], options={})
    case "lrn":
      yield from _to_normalization(options)
    case "map_lrn":
      raise _refuse(layer, "normalizes over the neighbors in a map")
    case "pool":
      yield _to_pooling(layer, options)
    case "dropout":
      yield Module(kind="Dropout", options={"p": options["rate"]})


def _to_convolution(
  options: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> Iterator[Module]:
  before, after = options["padding"]
  if before != after:  # left, right, top, bottom
    sides = {"padding": (before, after, before, after)}
    yield Module(kind="ZeroPad2d", options=sides)
    before = 0
  outputs, channels, window, _ = arrays["kernel"].shape
  yield Module(
    kind="Conv2d",
    options={
      "in_channels": channels * options["groups"],
      "out_channels": outputs,
      "kernel_size": window,
      "stride": options["stride"],
      "padding": before,
      "groups": options["groups"],
      "bias": "bias" in arrays,
    },
    arrays=arrays,
  )


def _to_normalization(options: Mapping[str, Any]) -> Iterator[Module]:
  """Normalizes over maps; with columns, these become images meanwhile."""
  groups, size = options["groups"], options["size"]
  normalization = Module(
    kind="LocalResponseNorm",
    # PyTorch divides alpha by the size of the window.
    options={
      "size": size,
      "alpha": options["alpha"] * size,
      "beta": options["beta"],
      "k": options["k"],
    },
  )
  if groups == 1:
    yield normalization
    return
  flatten = Module(kind="Flatten", options={"start_dim": 0, "end_dim": 1})
  maps = options["maps"]
  for module, here in ((normalization, maps // groups), (None, maps)):
    yield flatten
    shape = {"dim": 0, "unflattened_size": (-1, here)}
    yield Module(kind="Unflatten", options=shape)
    if module is not None:
      yield module


def _to_pooling(layer: str, options: Mapping[str, Any]) -> Module:
  before, after = options["padding"]
  kind, window = options["kind"], options["window"]
  if kind not in _POOLS:
    raise _refuse(layer, f"has {kind} pooling")
  if before != after or before > window // 2:
    raise _refuse(
      layer,
      f"pools {window} x {window} pixels with a padding of {before, after}",
    )
  # Ours counts no padding.
  counted = {"count_include_pad": False} if kind == "average" else {}
  return Module(
    kind=_POOLS[kind],
    options={
      "kernel_size": window,
      "stride": options["stride"],
      "padding": before,
      **counted,
    },
  )


def _refuse(layer: str, what: str) -> ValueError:
  return ValueError(
    f"{layer} {what}, which no module of PyTorch does, expected a network of "
    "PyTorch's own modules. Leave out --names, or set --to to a file .onnx or "
    ".stablehlo."
  )
