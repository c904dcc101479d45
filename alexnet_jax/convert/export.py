"""Writes the weights of a run to a file that other programs read.

The ending of the file says what it becomes:

- `.safetensors`: the arrays by name, in our axes, or with torchvision's names
  in PyTorch's. A file .json beside it says what they mean.
- `.npz`: the arrays in our axes, and the files of the run that describe them.
- `.onnx`: the network with its arrays, for images that are prepared; a file
  .json beside it says how.
- `.stablehlo`: the function from stored pictures to logits, by `jax.export`.

The arrays are those that an evaluation uses: averages (EMA) where the run has
them, and the statistics of batch normalization. No file replaces another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.cli import command
from alexnet_jax.convert import torch_modules
from alexnet_jax.data import atomic, augment
from alexnet_jax.network import model, wiring
from alexnet_jax.training import loaded_run, run_data

ENDINGS = (".safetensors", ".npz", ".onnx", ".stablehlo")
# Values of --names.
NAMES = ("torchvision",)
MEAN_IMAGE, _DESCRIPTION = "mean_image", "description"
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# What the axes of an array are, by their number.
_AXES = {
  4: "height, width, channels that a map reads, maps",
  3: "positions row by row, maps that a unit reads, units",
  2: "units that a unit reads, units",
  1: "maps or units",
}
_TORCH_AXES = {
  4: "maps, channels that a map reads, height, width",
  2: "units, what a unit reads: of maps, one after the other, row by row",
  1: "maps or units",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
  """What is written of a run.

  Attributes:
    network: of the run.
    variables: {layer: {"kernel", "bias", ...}}, on the host, for an evaluation.
    augmentation: of the run, which prepares the images.
    class_names: by label.
    step: of the checkpoint.
    files: what a .npz has besides the arrays, {name: text or array}.
  """

  network: wiring.Network
  variables: Mapping[str, Mapping[str, np.ndarray]]
  augmentation: augment.Augment
  class_names: tuple[str, ...]
  step: int
  files: Mapping[str, str | np.ndarray]


def export(
  workdir: str,
  path: str,
  *,
  step: int | None = None,
  names: str | None = None,
) -> list[str]:
  """Writes the weights of a run to a file, and returns lines on that.

  Args:
    workdir: of the run, which may be training.
    path: of the new file, with one of `ENDINGS`.
    step: of the checkpoint; None: the newest.
    names: of the arrays, one of `NAMES`; None: our own.

  Raises:
    ValueError, TypeError, OSError: there is no such run, it cannot be written
      as this kind of file, or the file exists; says what to change.
  """
  check_path(path, names)
  run = loaded_run.load_by_flags(workdir, step, layout=None)
  weights = Weights(
    network=run.network,
    variables=run.parameters,
    augmentation=run.program.augmentation,
    class_names=run.class_names,
    step=run.step,
    files=_read_files(workdir),
  )
  lines = write(weights, path, names=names)
  sizes = [array.size for array in to_arrays(weights.variables).values()]
  is_average = run.config.optimizer.ema_decay is not None
  return [
    f"step {run.step} of {workdir}: {len(sizes)} arrays, {sum(sizes):,} values"
    + (", moving averages of the trained ones" if is_average else ""),
    *lines,
  ]


def _read_files(workdir: str) -> dict[str, str | np.ndarray]:
  """Reads the files that describe a run, which `load` has checked."""
  folder = pathlib.Path(workdir)
  files = {
    name: (folder / name).read_text()
    for name in (workdir_lib.CONFIG_FILE, run_data.FILE)
  }
  if (image := folder / run_data.IMAGE_FILE).exists():
    files[MEAN_IMAGE] = np.load(image, allow_pickle=False)
  return files


def check_path(path: str, names: str | None) -> None:
  """Refuses a file that cannot be written, before anything is read.

  Raises:
    ValueError: it has another ending or exists, its folder does not, or the
      names are not for this kind of file.
  """
  command.check_path(path, flag="to", endings=ENDINGS)
  if names not in (None, *NAMES):
    raise ValueError(
      f"--names is {names!r}, expected {' or '.join(NAMES)}, or none for our "
      "own. Set --names."
    )
  if names is not None and not path.endswith(".safetensors"):
    raise ValueError(
      f"--names is {names!r}, but the file {path!r} is no state dict, expected "
      "the ending .safetensors. Set --to, or leave out --names."
    )
  for file in (path, *_find_beside(path).values()):
    if os.path.lexists(file):
      raise ValueError(
        f"{file!r} exists already, expected a new file. Remove it, or set --to."
      )


def _find_beside(path: str) -> dict[str, str]:
  """Returns the files that belong to one: {what it is: path}."""
  if path.endswith(".npz"):
    return {}
  beside = {_DESCRIPTION: f"{path}.json"}
  if not path.endswith(".stablehlo"):  # a function that has it
    beside[MEAN_IMAGE] = f"{path}.{MEAN_IMAGE}.npy"
  return beside


def write(weights: Weights, path: str, *, names: str | None) -> list[str]:
  """Writes the file, and what belongs to it.

  Args:
    path, names: accepted by `check_path`.

  Returns:
    Lines on what was written.

  Raises:
    ValueError: this kind of file cannot have this network, or needs a package
      that is not installed.
    OSError: a file cannot be written.
  """
  facts: dict[str, Any] = {}
  if path.endswith(".npz"):
    content = _make_npz(weights)
  elif path.endswith(".onnx"):
    content, facts = _make_onnx(weights)
  elif path.endswith(".stablehlo"):
    content, facts = _make_stablehlo(weights)
  else:
    content, facts = _make_safetensors(weights, names)
  contents = {path: content} | _make_beside(weights, facts, _find_beside(path))
  try:
    # All are written before one gets its name, and the named one is last.
    with contextlib.ExitStack() as stack:
      for name, written in contents.items():
        partial = stack.enter_context(atomic.replace(name))
        pathlib.Path(partial).write_bytes(written)
  except OSError as error:
    raise OSError(
      f"the file {path!r} cannot be written: {error.strerror}. Set --to."
    ) from error
  return [
    f"wrote {name}, {len(written) / 1e6:,.3g} MB"
    for name, written in contents.items()
  ]


def _make_beside(
  weights: Weights, facts: Mapping[str, Any], beside: Mapping[str, str]
) -> dict[str, bytes]:
  """Makes the files that describe another: {path: content}.

  Args:
    facts: about the other file.
    beside: from `_find_beside`.
  """
  if not beside:
    return {}
  augmentation, contents = weights.augmentation, {}
  # A function of stored pictures does the rest itself.
  preprocessing = {"stored_size": augmentation.stored_size}
  if MEAN_IMAGE in beside:
    statistics, image = augmentation.statistics, None
    if augmentation.mean_from != "channel":
      file = io.BytesIO()
      np.save(file, np.asarray(statistics.mean_image, np.float32))
      contents[beside[MEAN_IMAGE]] = file.getvalue()
      image = os.path.basename(beside[MEAN_IMAGE])
    preprocessing |= {
      "image_size": augmentation.image_size,
      "mean": None if image else statistics.mean,
      "mean_image": image,
      "scale": augmentation.scale,
      "channel_scale": augmentation.channel_scale,
      "color_order": augmentation.color_order,
    }
  description = {
    **facts,
    "preprocessing": preprocessing,
    "class_names": weights.class_names,
    "network": dataclasses.asdict(weights.network),
    "step": weights.step,
  }
  text = json.dumps(description, indent=2)
  return {beside[_DESCRIPTION]: text.encode(), **contents}


def _make_safetensors(
  weights: Weights, names: str | None
) -> tuple[bytes, dict[str, Any]]:
  """Makes the file, and says what its arrays are."""
  network = weights.network
  side = network.image_size
  if names is None:
    arrays = to_arrays(weights.variables)
    facts = {
      "input": f"f32[n, {side}, {side}, 3], prepared",
      "axes": {name: _AXES[array.ndim] for name, array in arrays.items()},
      # Dropout of the paper scales in evaluation.
      "multiplied_after": {
        row.name: network.keep_rate(row.name)
        for row in network.layers
        if row.dropout and network.dropout_scaling == "test"
      },
    }
  else:
    made = torch_modules.make_modules(network, weights.variables)
    arrays = made.arrays
    facts = {
      "input": _channels_first(network),
      "axes": {
        name: f"{made.sources[name]}: {_TORCH_AXES[array.ndim]}"
        for name, array in arrays.items()
      },
      "modules": made.modules,
    }
  # Some readers refuse a file that does not say what wrote it.
  return safetensors.numpy.save(arrays, metadata={"format": "pt"}), facts


def _channels_first(network: wiring.Network) -> str:
  side = network.image_size
  return f"f32[n, 3, {side}, {side}], prepared"


def to_arrays(
  variables: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
  """Returns {name, as conv1.kernel: f32[...]}."""
  return {
    f"{layer}.{name}": np.ascontiguousarray(array, np.float32)
    for layer, arrays in variables.items()
    for name, array in arrays.items()
  }


def _make_npz(weights: Weights) -> bytes:
  file = io.BytesIO()
  np.savez(file, **to_arrays(weights.variables), **weights.files)
  return file.getvalue()


def _make_onnx(weights: Weights) -> tuple[bytes, dict[str, Any]]:
  try:
    from alexnet_jax.convert import onnx_graph
  except ImportError as error:
    raise ValueError(
      f"a file .onnx needs the package onnx: {error}. Run pip install onnx, or "
      "set --to to another kind of file."
    ) from error
  made = onnx_graph.make_model(weights.network, weights.variables)
  return made.SerializeToString(), {"input": _channels_first(weights.network)}


def _make_stablehlo(weights: Weights) -> tuple[bytes, dict[str, Any]]:
  """Makes u8[n, stored_size, stored_size, 3] -> f32[n, classes], for any n.

  The arrays are constants of the function: one file is all that is needed.
  """
  augmentation = weights.augmentation
  graphdef = model.make_graphdef(weights.network)
  variables = jax.tree.map(
    lambda array: np.asarray(array, np.float32), dict(weights.variables)
  )

  def compute_logits(pictures: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, variables)(augmentation.center(pictures))

  (n,) = jax.export.symbolic_shape("n")
  side = augmentation.stored_size
  exported = jax.export.export(jax.jit(compute_logits), platforms=_PLATFORMS)(
    jax.ShapeDtypeStruct((n, side, side, 3), np.uint8)
  )
  facts = {"input": f"u8[n, {side}, {side}, 3], pictures: R, G, B"}
  return bytes(exported.serialize()), facts
