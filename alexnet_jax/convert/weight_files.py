"""Reads a file of weights; its kind is recognized by what is in it.

Nothing in a file is run, nothing is unpacked to disk, and sizes are checked
before memory is taken. A reader for each format gives the arrays by name; names
and shapes say which network they are of.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from alexnet_jax.convert import archive, caffe, onnx_model, unpickle, wire
from alexnet_jax.convert import weights as weights_lib
from alexnet_jax.data import decode
from alexnet_jax.network import catalog

_ZIP, _NPY, _HDF5 = b"PK\x03\x04", b"\x93NUMPY", b"\x89HDF\r\n\x1a\n"
# The first pickle of `torch.save` before version 1.6: a number.
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LFS = b"version https://git-lfs"
# Layer of ours -> module of torchvision's; torchvision/models/alexnet.py
_TORCHVISION = {
  **{"conv1": "features.0", "conv2": "features.3", "conv3": "features.6"},
  **{"conv4": "features.8", "conv5": "features.10"},
  **{"fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6"},
}
_TYPES = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": jnp.bfloat16,
  "I64": np.int64,
  "I32": np.int32,
  "I16": np.int16,
  "I8": np.int8,
  "U8": np.uint8,
  "BOOL": np.bool_,
}
# Keys of an .npz of ours that are no parameters; see export.py.
_CONFIG, _DATA, _MEAN_IMAGE = "config.json", "data.json", "mean_image"
_STATISTICS = ("mean", "variance")


def read(path: str) -> weights_lib.Weights:
  """Reads a file of weights.

  Raises:
    OSError: it cannot be read.
    ImportError: the package that reads it is not installed.
    ValueError: it is of no known kind, is damaged, would run code, or its
      arrays are not those of a network; one line that names what it is.
  """
  contents = archive.read_file(path, flag="from")
  try:
    return _read(contents)
  except unpickle.RefusedError as error:
    raise ValueError(
      f"the file {path!r} is refused: its pickle asks for {error}, expected "
      "dicts, lists, text, numbers and arrays only, since anything else could "
      "run code. Set --from."
    ) from error
  except ValueError as error:
    reason = " ".join(str(error).split()).rstrip(".")
    raise ValueError(
      f"the file {path!r} cannot be imported: {reason}. Set --from."
    ) from error
  except ImportError as error:
    raise ImportError(f"the file {path!r}: {error}") from error


def _read(contents: bytes) -> weights_lib.Weights:
  if contents.startswith(_ZIP):
    return _read_zip(contents)
  if contents.startswith(_NPY):
    return _read_npy(contents)
  if contents.startswith(_OLD_TORCH):
    return _read_old_torch(contents)
  if contents.startswith(_HDF5):
    raise ValueError("it is HDF5, expected a .caffemodel of Protocol Buffers")
  if _is_safetensors(contents):
    return _read_safetensors(contents)
  if contents.startswith(_LFS):
    raise ValueError("it is a pointer of Git LFS. Run: git lfs pull")
  # A store answers in XML where it has no such file.
  is_page = decode.is_web_page(contents) or contents.startswith(b"<?xml")
  if is_page or not contents or contents.isspace():
    what = "a web page" if is_page else "empty"
    raise ValueError(f"it is {what}, no file of weights. Download it again")
  return _read_message(contents)


def _read_zip(contents: bytes) -> weights_lib.Weights:
  opened = archive.open_zip(contents)
  folder = archive.find_pickle(opened)
  if folder is not None:
    state = archive.read_torch(opened, folder)
    return _read_torchvision("PyTorch's .pth", state)
  arrays = archive.read_npz(opened)
  if _CONFIG in arrays:
    return _read_own(arrays)
  raise ValueError(
    "it is a zip file with neither the data.pkl of PyTorch nor the config.json "
    "of an .npz of `convert --to`"
  )


def _read_old_torch(contents: bytes) -> weights_lib.Weights:
  try:
    state = archive.read_old_torch(contents)
  except (struct.error, LookupError, TypeError) as error:
    raise ValueError(
      f"it is of PyTorch before 1.6, and damaged or ends early ({error})"
    ) from error
  return _read_torchvision("PyTorch's .pth of before 1.6", state)


def _read_message(contents: bytes) -> weights_lib.Weights:
  try:
    message = wire.parse(contents)
  except ValueError as error:
    raise ValueError(
      "it is none of .pth, .safetensors, .caffemodel, .npy, .npz and ONNX, or "
      f"it is damaged or ends early ({error})"
    ) from error
  if caffe.is_caffe(message):
    return caffe.read(message)
  return onnx_model.read(contents)


def _is_safetensors(contents: bytes) -> bool:
  if len(contents) < 10:
    return False
  (length,) = struct.unpack("<Q", contents[:8])
  return contents[8:9] == b"{" and length < 10**8


def _read_safetensors(contents: bytes) -> weights_lib.Weights:
  try:
    found = safetensors.deserialize(contents)
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"it is safetensors, and damaged or ends early ({error})"
    ) from error
  arrays = {}
  for name, one in found:
    if one["dtype"] not in _TYPES:
      raise ValueError(f"{name} has the type {one['dtype']}")
    values = np.frombuffer(one["data"], np.dtype(_TYPES[one["dtype"]]))
    arrays[name] = values.reshape(one["shape"])
  return _read_torchvision("safetensors", arrays)


def _read_torchvision(kind: str, state: Any) -> weights_lib.Weights:
  """Makes the weights of torchvision's AlexNet from its state dict."""
  notes = []
  for key in ("state_dict", "model"):
    if isinstance(state, dict) and isinstance(state.get(key), dict):
      others = [str(name)[:80] for name in state if name != key]
      state = state[key]
      notes.append(
        f"a checkpoint of training, of which {key} is taken"
        + (f", without {', '.join(others[:6])}" if others else "")
      )
  if not isinstance(state, dict):
    raise ValueError(
      f"it has {type(state).__name__}, expected a state dict of arrays by name"
    )
  # Of a network in (Distributed)DataParallel.
  named = {
    ".".join(part for part in str(name).split(".") if part != "module"): array
    for name, array in state.items()
  }
  if len(named) < len(state):
    raise ValueError("two of its arrays have the same name but for 'module.'")
  if any(name.endswith(".kernel") for name in named):
    raise ValueError(
      "its arrays have names of alexnet_jax, but it has no config. Import the "
      ".npz of convert --to, or export with --names=torchvision"
    )
  weights_lib.check_names(
    list(named),
    [
      f"{module}.{kind}"
      for module in _TORCHVISION.values()
      for kind in ("weight", "bias")
    ],
  )
  first, second = (named[f"features.{index}.weight"] for index in (0, 3))
  if (
    all(
      isinstance(one, np.ndarray) and one.ndim == 4 for one in (first, second)
    )
    and 2 * second.shape[1] == first.shape[0]
  ):
    raise ValueError(
      f"features.3.weight reads {second.shape[1]} of {first.shape[0]} maps, so "
      "that it is of a network of two groups, but torchvision's has one. "
      "Import the file that these arrays come from"
    )
  return weights_lib.make(
    f"{kind} with torchvision's names",
    catalog.TORCHVISION_ALEXNET,
    {
      layer: weights_lib.Arrays(
        kernel_name=f"{module}.weight",
        kernel=named[f"{module}.weight"],
        bias_name=f"{module}.bias",
        bias=named[f"{module}.bias"],
      )
      for layer, module in _TORCHVISION.items()
    },
    image_size=catalog.TORCHVISION_ALEXNET.published_size,
    preprocessing=weights_lib.torchvision_preprocessing(
      "torchvision's", side=catalog.TORCHVISION_ALEXNET.published_size
    ),
    channels_first=True,
    notes=notes,
  )


def _read_npy(contents: bytes) -> weights_lib.Weights:
  """Reads bvlc_alexnet.npy, a pickled dict {layer: [kernel, bias]}.

  Its kernels are [height, width, in, out] and [in, out], and fc6 reads maps
  position by position.
  """
  file = io.BytesIO(contents)
  formats = np.lib.format
  try:
    version = formats.read_magic(file)
    read = {
      (1, 0): formats.read_array_header_1_0,
      (2, 0): formats.read_array_header_2_0,
    }[version]
    shape, _, dtype = read(file)
  except Exception as error:  # of the parser of Python's literals, too
    raise ValueError(f"its header is damaged ({error})") from error
  if dtype.kind != "O" or shape != ():
    raise ValueError(
      f"it is an array of {dtype.name} with the shape {shape}, expected a dict "
      "{layer: [kernel, bias]} as in bvlc_alexnet.npy"
    )
  found = unpickle.load(file)
  table = catalog.BVLC_ALEXNET
  if not isinstance(found, dict):
    raise ValueError(f"it has {type(found).__name__}, expected a dict")
  found = {
    name.decode("latin1") if isinstance(name, bytes) else str(name): value
    for name, value in found.items()
  }
  weights_lib.check_names(list(found), [row.name for row in table.layers])
  arrays = {}
  for name, pair in found.items():
    if isinstance(pair, dict):  # of caffe-tensorflow
      keys = ("weights", "biases")
      weights_lib.check_names(
        [f"{name}.{key}" for key in pair], [f"{name}.{key}" for key in keys]
      )
      pair = [pair[key] for key in keys]
    if not isinstance(pair, list) or len(pair) != 2:
      raise ValueError(f"{name} is {type(pair).__name__}, expected two arrays")
    kernel, bias = pair
    arrays[name] = weights_lib.Arrays(
      kernel_name=f"{name}[0]",
      kernel=kernel,
      bias_name=f"{name}[1]",
      bias=bias,
    )
  return weights_lib.make(
    "NumPy's .npy, a dict of layers as bvlc_alexnet.npy",
    table,
    arrays,
    image_size=table.published_size,
    preprocessing=weights_lib.caffe_preprocessing(
      "of ImageNet's channels; the file has none", side=table.published_size
    ),
    channels_first=False,
  )


def _read_own(arrays: Mapping[str, np.ndarray]) -> weights_lib.Weights:
  """Reads an .npz of `convert --to`."""
  texts = {
    name: _to_text(name, arrays[name])
    for name in (_CONFIG, _DATA)
    if name in arrays
  }
  parameters: dict[str, dict[str, np.ndarray]] = {}
  statistics: dict[str, dict[str, np.ndarray]] = {}
  count = 0
  for name, array in arrays.items():
    if name in (_CONFIG, _DATA, _MEAN_IMAGE):
      continue
    layer, _, leaf = name.rpartition(".")
    tree = statistics if leaf in _STATISTICS else parameters
    tree.setdefault(layer, {})[leaf] = weights_lib.to_float32(name, array)
    count += 1
  return weights_lib.Weights(
    kind="an .npz of alexnet_jax",
    parameters=parameters,
    network=weights_lib.Exported(
      config=texts[_CONFIG],
      data=texts.get(_DATA),
      mean_image=arrays.get(_MEAN_IMAGE),
      statistics=statistics,
    ),
    num_arrays=count,
  )


def _to_text(name: str, array: np.ndarray) -> str:
  if array.dtype.kind != "U" or array.size != 1:
    raise ValueError(f"{name} is {array.dtype.name}, expected text")
  return str(array.reshape(())[()])
