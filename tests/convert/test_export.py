"""Weights that leave: what other libraries compute with them."""

import dataclasses
import errno
import functools
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from alexnet_jax.convert import export, operations, torch_modules
from alexnet_jax.data import statistics
from alexnet_jax.network import catalog as wirings
from alexnet_jax.network import model, wiring
from alexnet_jax.training import loaded_run
from tests import build, processes, runs
from tests.convert import numpy_modules

# The Python of an environment with PyTorch, which is not a requirement.
TORCH_PYTHON = os.environ.get("TORCH_PYTHON", sys.executable)
# What PyTorch has no module for: cuda-convnet's second normalization, sampled
# pooling, and more padding after a map than before.
STRANGE = wirings.rewire(
  wirings.SOURCE_145,
  "strange",
  conv1={"pool": wiring.Pool(padding=(0, 1))},
  conv2={"pool": wiring.Pool(kind="stochastic", padding=(1, 0))},
  conv4={"normalize": "map"},
  conv5={"pool": wiring.Pool(kind="average", padding=(0, 1))},
)
# Units that read their own column; one channel is the mean of three.
GRAY_COLUMNS = dataclasses.replace(
  wirings.INDEPENDENT_COLUMNS, name="gray_columns", image_channels=1
)
NETWORKS = {
  # Two columns that normalize by themselves, padding on one side, dropout that
  # scales in evaluation.
  "2012": {"table": wirings.ALEXNET_2012},
  "batch_norm": {"table": GRAY_COLUMNS, "normalization": "batch"},
  "lenet5": {"table": wirings.LENET5, "width": 1, "image_size": 28},
  "torchvision": {
    "table": wirings.TORCHVISION_ALEXNET,
    "dropout_scaling": "train",
  },
  # Over all maps, after pooling.
  "caffenet": {"table": wirings.CAFFENET},
  "vgg11": {"table": wirings.VGG_11, "image_size": 32},
  "tanh": {"table": wirings.FOUR_COLUMN, "activation": "tanh", "width": 1 / 8},
}
STRANGE_NETWORK = {"table": STRANGE}


@dataclasses.dataclass(frozen=True)
class Made:
  """A network with weights, and inputs f32[n, side, side, 3]."""

  network: wiring.Network
  variables: dict
  images: np.ndarray

  @functools.cached_property
  def logits(self) -> np.ndarray:
    """Our own: f32[n, classes]."""
    graphdef = model.make_graphdef(self.network)
    run = jax.jit(lambda tree, x: nnx.merge(graphdef, tree)(x))
    return np.asarray(run(self.variables, self.images))


def make(table, **options) -> Made:
  """Makes a network whose biases and statistics matter."""
  network = build.make_network(table, **{"width": 1 / 16} | options)
  rng = np.random.default_rng(0)
  variables = {}
  for name, size in network.sizes().items():
    shapes = dict(size.shapes)
    kernel = rng.standard_normal(shapes.pop("kernel"), np.float32)
    kernel *= math.sqrt(2 / math.prod(kernel.shape[:-1]))
    if size.scales:
      shapes |= dict.fromkeys(("mean", "variance"), shapes["scale"])
    variables[name] = {"kernel": kernel} | {
      key: rng.uniform(0.5, 1.5, shape).astype(np.float32)
      for key, shape in shapes.items()
    }
  side = network.image_size
  # So large that normalization divides by something else than a constant.
  images = 50.0 * rng.standard_normal((2, side, side, 3), np.float32)
  return Made(network, variables, images.astype(np.float32))


def make_weights(made: Made, **options) -> export.Weights:
  side = made.network.image_size
  return export.Weights(
    network=made.network,
    variables=made.variables,
    augmentation=dataclasses.replace(
      build.TINY_AUGMENTATION,
      **{"image_size": side, "stored_size": side + 5} | options,
    ),
    class_names=tuple(f"class {label}" for label in range(10)),
    step=3,
    files={"config.json": '{"batch_size": 8}'},
  )


def write(weights, path, names=None) -> None:
  export.check_path(str(path), names)
  export.write(weights, str(path), names=names)


def channels_first(images: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def check(logits: np.ndarray, expected: np.ndarray) -> None:
  # Sums of float32 in another order; the largest logit sets the scale.
  scale = np.abs(expected).max()
  assert scale > 0.1
  np.testing.assert_allclose(logits / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_modules_compute_the_logits_in_numpy(name):
  made = make(**NETWORKS[name])
  modules = torch_modules.make_modules(made.network, made.variables)
  images = channels_first(made.images)
  check(numpy_modules.run(modules.modules, modules.arrays, images), made.logits)


@pytest.mark.parametrize(
  ("table", "places"),
  [
    # torchvision/models/alexnet.py and vgg.py
    (wirings.TORCHVISION_ALEXNET, ((0, 3, 6, 8, 10), (1, 4, 6))),
    (wirings.VGG_11, ((0, 3, 6, 8, 11, 13, 16, 18), (0, 3, 6))),
  ],
  ids=["alexnet", "vgg11"],
)
def test_names_and_shapes_are_those_of_torchvision(table, places):
  made = make(table, image_size=224, width=1 / 64)
  modules = torch_modules.make_modules(made.network, made.variables)
  names = [
    f"{part}.{place}.{name}"
    for part, of_part in zip(("features", "classifier"), places, strict=True)
    for place in of_part
    for name in ("weight", "bias")
  ]
  assert list(modules.arrays) == names
  for name, size in zip(names[::2], made.network.sizes().values(), strict=True):
    *window, inputs, outputs = size.kernel
    expected = (outputs, inputs, *window)
    if "classifier" in name:
      expected = (outputs, inputs * (window[0] if window else 1))
    assert modules.arrays[name].shape == expected
    assert modules.arrays[name.replace("weight", "bias")].shape == (outputs,)


def test_units_read_maps_one_after_the_other():
  made = make(wirings.FOUR_LAYER, image_size=32)
  kernel = made.variables["fc8"]["kernel"]
  positions, maps, _ = kernel.shape
  assert (positions, maps) == (9, 4)
  *_, last = operations.make_operations(made.network, made.variables)
  for position, channel, unit in np.ndindex(kernel.shape):
    found = last.arrays["kernel"][unit, channel * positions + position]
    assert found == kernel[position, channel, unit]


@pytest.mark.parametrize(
  ("table", "message"),
  [
    (wirings.STOCHASTIC_POOL2, "conv2 has stochastic pooling, "),
    (wirings.SOURCE_145, "conv2 normalizes over the neighbors in a map, "),
    (wirings.ZFNET, r"conv1 pools 3 x 3 pixels with a padding of \(0, 1\), "),
  ],
  ids=lambda value: getattr(value, "name", ""),
)
def test_what_pytorch_lacks_is_refused(table, message):
  made = make(table)
  with pytest.raises(ValueError, match=f"^{message}.*--to to a file .onnx"):
    torch_modules.make_modules(made.network, made.variables)


def test_arrays_are_read_back_as_they_are(tmp_path):
  made = make(wirings.FOUR_LAYER, image_size=32)
  side = made.network.image_size + 5
  image = np.random.default_rng(0).uniform(0, 255, (side, side, 3))
  weights = make_weights(
    made,
    mean_from="image",
    statistics=dataclasses.replace(
      statistics.PUBLISHED, mean_image=image.astype(np.float32)
    ),
  )
  write(weights, tmp_path / "a.npz")
  write(weights, tmp_path / "a.safetensors")
  with np.load(tmp_path / "a.npz", allow_pickle=False) as opened:
    found = dict(opened)
  assert str(found.pop("config.json")) == weights.files["config.json"]
  stored = safetensors.numpy.load_file(tmp_path / "a.safetensors")
  for arrays in (found, stored):
    assert arrays.keys() == {
      f"{layer}.{name}"
      for layer, leaves in made.variables.items()
      for name in leaves
    }
    for name, array in arrays.items():
      layer, _, kind = name.partition(".")
      assert array.dtype == np.float32
      np.testing.assert_array_equal(array, made.variables[layer][kind])
  with safetensors.safe_open(tmp_path / "a.safetensors", "np") as opened:
    assert opened.metadata() == {"format": "pt"}  # which others ask for
  described = json.loads((tmp_path / "a.safetensors.json").read_text())
  assert described["axes"].keys() == stored.keys()
  assert described["class_names"] == list(weights.class_names)
  preparation = described["preprocessing"]
  assert preparation["mean"] is None
  found = np.load(tmp_path / preparation["mean_image"], allow_pickle=False)
  np.testing.assert_array_equal(found, image.astype(np.float32))
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    "a.npz",
    "a.safetensors",
    "a.safetensors.json",
    "a.safetensors.mean_image.npy",
  ]


@pytest.mark.parametrize("mean_from", ["channel", "image"])
def test_description_prepares_pictures_as_an_evaluation(mean_from, tmp_path):
  made = make(wirings.FOUR_LAYER, image_size=32)
  image = np.random.default_rng(1).uniform(0, 255, (37, 37, 3))
  weights = make_weights(
    made,
    mean_from=mean_from,
    statistics=dataclasses.replace(
      statistics.PUBLISHED, mean_image=image.astype(np.float32)
    ),
    scale=2.0,
    channel_scale=(1.0, 2.0, 4.0),
    color_order="bgr",
  )
  write(weights, tmp_path / "a.safetensors")
  # As docs/weights.md says.
  told = json.loads((tmp_path / "a.safetensors.json").read_text())[
    "preprocessing"
  ]
  pictures, _ = build.make_batch(told["stored_size"], size=3)
  start = (told["stored_size"] - told["image_size"]) // 2
  crop = slice(start, start + told["image_size"])
  mean = told["mean"]
  if told["mean_image"]:
    mean = np.load(tmp_path / told["mean_image"])[crop, crop]
  x = (pictures[:, crop, crop] - np.array(mean)) / told["scale"]
  x /= np.array(told["channel_scale"] or (1, 1, 1))
  if told["color_order"] == "bgr":
    x = x[..., ::-1]
  expected = jax.jit(weights.augmentation.center)(pictures)
  # Values of some hundreds in float32.
  np.testing.assert_allclose(x, expected, atol=1e-4)


def test_function_computes_the_logits_of_pictures(tmp_path):
  made = make(wirings.FOUR_LAYER, image_size=32)
  mean = (100.0, 110.0, 120.0)
  weights = make_weights(
    made,
    statistics=dataclasses.replace(statistics.PUBLISHED, mean=mean),
    scale=2.0,
    channel_scale=(1.0, 2.0, 4.0),
    color_order="bgr",
  )
  write(weights, tmp_path / "a.stablehlo")
  content = bytearray((tmp_path / "a.stablehlo").read_bytes())
  function = jax.export.deserialize(content)
  pictures, _ = build.make_batch(37, size=3)
  # The center from (2, 2), then B, G, R.
  x = (pictures[:, 2:34, 2:34] - np.array(mean)) / (2.0 * np.array([1, 2, 4]))
  made = dataclasses.replace(made, images=x[..., ::-1].astype(np.float32))
  check(np.asarray(function.call(pictures)), made.logits)
  assert function.platforms == ("cpu", "cuda", "rocm", "tpu")


@pytest.mark.parametrize("name", ["strange", *build.slow(*NETWORKS)])
def test_onnx_runtime_computes_the_logits(name, tmp_path):
  pytest.importorskip("onnx")
  # The evaluator of `onnx` itself normalizes as many maps as there are images.
  onnxruntime = pytest.importorskip("onnxruntime")
  made = make(**NETWORKS.get(name, STRANGE_NETWORK))
  write(make_weights(made), tmp_path / "a.onnx")
  session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
  for images in (made.images, made.images[:1]):
    (logits,) = session.run(["logits"], {"images": channels_first(images)})
    check(logits, made.logits[: len(images)])


@pytest.mark.slow
def test_pytorch_computes_the_logits(tmp_path):
  made = {name: make(**options) for name, options in NETWORKS.items()}
  for name, one in made.items():
    (tmp_path / name).mkdir()
    path = tmp_path / name / "alexnet.safetensors"
    write(make_weights(one), path, "torchvision")
  logits = run_in_pytorch(
    {tmp_path / name: one.images for name, one in made.items()}
  )
  for found, one in zip(logits, made.values(), strict=True):
    check(found, one.logits)


def run_in_pytorch(inputs: dict[pathlib.Path, np.ndarray]) -> list[np.ndarray]:
  """Loads alexnet.safetensors in folders as the documentation says.

  Args:
    inputs: {folder: f32[n, side, side, 3]}.

  Returns:
    The logits of each.
  """
  probe = [TORCH_PYTHON, "-c", "import torch, safetensors"]
  if subprocess.run(probe, capture_output=True, check=False).returncode:
    pytest.skip(
      f"no PyTorch with safetensors in {TORCH_PYTHON}; set TORCH_PYTHON"
    )
  for folder, images in inputs.items():
    np.save(folder / "images.npy", channels_first(images))
  script = f"""
import os, numpy
example = {find_example("load_state_dict")!r}
for folder in {[str(folder) for folder in inputs]!r}:
  os.chdir(folder)
  names = {{}}
  exec(example, names)
  torch = names["torch"]
  with torch.no_grad():
    logits = names["network"](torch.from_numpy(numpy.load("images.npy")))
  numpy.save("logits.npy", logits.numpy())
"""
  subprocess.run([TORCH_PYTHON, "-c", script], check=True)
  return [np.load(folder / "logits.npy") for folder in inputs]


def find_example(word: str) -> str:
  """Returns the example of docs/weights.md that has a word in it."""
  texts = (processes.ROOT / "docs").glob("weights*.md")
  blocks = [
    block
    for path in sorted(texts)
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    if word in block
  ]
  assert len(blocks) == 1
  return blocks[0]


@pytest.mark.parametrize(
  ("name", "names", "message"),
  [
    ("a.txt", None, r"'.*a.txt' does not end in .safetensors or .*Set --to"),
    ("none/a.npz", None, "'.*/none' is not a folder .*Set --to"),
    ("a.npz", "torchvision", "is no state dict, .*Set --to, or leave out"),
    ("a.safetensors", "caffe", "'caffe', expected torchvision, .*Set --names"),
    ("old.npz", None, "'.*old.npz' exists already, .*set --to"),
    # Not even a file beside it.
    ("old.onnx", None, "'.*old.onnx.json' exists already, .*set --to"),
  ],
)
def test_paths_that_cannot_be_written_are_refused(
  name, names, message, tmp_path
):
  for old in ("old.npz", "old.onnx.json"):
    (tmp_path / old).touch()
  with pytest.raises(ValueError, match=message):
    export.export("no run", str(tmp_path / name), names=names)
  assert len(list(tmp_path.iterdir())) == 2


def test_run_that_is_not_there_is_named_with_the_flag(tmp_path):
  with pytest.raises(ValueError, match="there is no run .*Set --workdir."):
    export.export("no run", str(tmp_path / "a.npz"))


def test_full_disk_leaves_no_file(tmp_path, monkeypatch):
  made = make(wirings.FOUR_LAYER, image_size=32)
  write_bytes = pathlib.Path.write_bytes

  def fail_later(path, content):
    if path.name.startswith("a.safetensors.json"):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write_bytes(path, content)

  monkeypatch.setattr(pathlib.Path, "write_bytes", fail_later)
  with pytest.raises(OSError, match="a.safetensors' cannot be written: No sp"):
    write(make_weights(made), tmp_path / "a.safetensors")
  names = [path.name for path in tmp_path.iterdir()]
  assert names == ["a.safetensors.partial"]  # which a later write replaces


@pytest.mark.slow
def test_run_leaves_as_what_it_evaluates(tiny_config, data_dir, tmp_path):
  tiny_config.network.normalization = "batch"
  tiny_config.optimizer.ema_decay = 0.5
  workdir = tmp_path / "run"
  runs.train(tiny_config, workdir, data_dir)
  loaded = loaded_run.load(str(workdir))
  pixels = np.random.default_rng(0).integers(0, 256, (2, 90, 80, 3), np.uint8)
  images = list(pixels)
  expected = loaded.logits(images)
  stored = loaded.read_pictures(images).pixels
  lines = export.export(
    str(workdir), str(tmp_path / "alexnet.safetensors"), names="torchvision"
  )
  assert "moving averages" in lines[0]
  export.export(str(workdir), str(tmp_path / "alexnet.stablehlo"))
  export.export(str(workdir), str(tmp_path / "alexnet.npz"))
  # In a process that knows nothing of ours.
  np.save(tmp_path / "pictures.npy", stored)
  script = find_example("jax.export").replace(
    "np.zeros((2, *network.in_avals[0].shape[1:]), np.uint8)",
    "np.load('pictures.npy')",
  )
  script += "\nimport sys; assert 'alexnet_jax' not in sys.modules\n"
  script += "np.save('logits.npy', logits)\n"
  subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
  check(np.load(tmp_path / "logits.npy"), expected)
  prepared = np.asarray(loaded.program.augmentation.center(stored))
  check(*run_in_pytorch({tmp_path: prepared}), expected)
  with np.load(tmp_path / "alexnet.npz", allow_pickle=False) as opened:
    assert json.loads(str(opened["config.json"]))["batch_size"] == 16
    assert json.loads(str(opened["data.json"]))["class_names"]
    found = {name: opened[name] for name in opened if "." in name[1:]}
  for layer, arrays in loaded.parameters.items():
    for name, array in arrays.items():
      np.testing.assert_array_equal(found[f"{layer}.{name}"], array)
