"""Files of weights as they circulate: equal arrays, the network, and damage.

Files are written by other libraries and by `weight_writers`, in the axes of
their source; arrays are compared value by value, by loops over indices.
"""

import codecs
import collections
import dataclasses
import importlib.util
import io
import os
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from alexnet_jax.convert import weight_files, weights
from alexnet_jax.network import catalog, wiring
from tests import weight_writers as writers

# A sixteenth of the maps; fc6 reads 2 x 2 maps of a 99-pixel image.
CROP, CLASSES = 99, 7
MODULES = {
  **{"conv1": "features.0", "conv2": "features.3", "conv3": "features.6"},
  **{"conv4": "features.8", "conv5": "features.10"},
  **{"fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6"},
}


def draw(shapes, *, seed=0):
  """{layer: {"weight", "bias"}} of about the size that keeps activations."""
  rng = np.random.default_rng(seed)
  return {
    name: {
      "weight": (
        rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
      ).astype(np.float32),
      "bias": rng.normal(size=shape[0]).astype(np.float32),
    }
    for name, shape in shapes.items()
  }


def caffe_arrays(*, positions=4, classes=CLASSES, divisor=16):
  """Arrays of bvlc_alexnet: OIHW and (out, in), maps before pixels."""
  d = divisor
  return draw(
    {
      "conv1": (96 // d, 3, 11, 11),
      "conv2": (256 // d, 48 // d, 5, 5),
      "conv3": (384 // d, 256 // d, 3, 3),
      "conv4": (384 // d, 192 // d, 3, 3),
      "conv5": (256 // d, 192 // d, 3, 3),
      "fc6": (4096 // d, 256 // d * positions),
      "fc7": (4096 // d, 4096 // d),
      "fc8": (classes, 4096 // d),
    }
  )


def torch_arrays(*, classes=CLASSES, divisor=16):
  """A state dict of torchvision's AlexNet, as NumPy arrays."""
  d = divisor
  arrays = draw(
    {
      "conv1": (64 // d, 3, 11, 11),
      "conv2": (192 // d, 64 // d, 5, 5),
      "conv3": (384 // d, 192 // d, 3, 3),
      "conv4": (256 // d, 384 // d, 3, 3),
      "conv5": (256 // d, 256 // d, 3, 3),
      "fc6": (4096 // d, 256 // d * 36),
      "fc7": (4096 // d, 4096 // d),
      "fc8": (classes, 4096 // d),
    }
  )
  return {
    f"{MODULES[name]}.{kind}": array
    for name, layer in arrays.items()
    for kind, array in layer.items()
  }


def caffemodel(form="new", *, pools_first=False, change=None, arrays=None):
  arrays = caffe_arrays() if arrays is None else arrays
  layers = writers.caffe_layers(arrays, pools_first=pools_first, crop=CROP)
  if change:
    change({layer["name"]: layer for layer in layers}, layers)
  return writers.write_caffemodel(layers, form=form)


def to_npy_arrays(arrays, positions=36):
  """{layer: [HWIO or (in, out), bias]}, fc6 with pixels before maps."""
  made = {}
  for name, layer in arrays.items():
    weight = layer["weight"]
    if weight.ndim == 4:
      kernel = np.moveaxis(weight, (0, 1), (3, 2))
    elif name == "fc6":
      maps = weight.reshape(len(weight), -1, positions)
      kernel = np.concatenate([maps[:, :, p].T for p in range(positions)])
    else:
      kernel = weight.T
    made[name] = [kernel, layer["bias"]]
  return made


def read(tmp_path, contents) -> weights.Weights:
  path = tmp_path / "file"
  path.write_bytes(contents)
  return weight_files.read(str(path))


def refuse(tmp_path, contents) -> str:
  """Returns the one line with which a file is refused."""
  before = sorted(tmp_path.iterdir())
  with pytest.raises((ValueError, ImportError)) as caught:
    read(tmp_path, contents)
  message = str(caught.value)
  assert "\n" not in message and repr(str(tmp_path / "file")) in message
  assert {*tmp_path.iterdir()} <= {*before, tmp_path / "file"}
  return message


def assert_same(found, arrays):
  """Compares with arrays OIHW and (out, in), at every index of some outputs."""
  assert found.keys() == arrays.keys()
  for name, layer in arrays.items():
    kernel, weight = found[name]["kernel"], layer["weight"]
    assert kernel.dtype == np.float32 and kernel.size == weight.size
    np.testing.assert_array_equal(found[name]["bias"], layer["bias"])
    for out in {0, len(weight) // 2, len(weight) - 1}:
      if weight.ndim == 4:
        for i, y, x in np.ndindex(weight.shape[1:]):
          assert kernel[y, x, i, out] == weight[out, i, y, x]
      elif kernel.ndim == 3:
        positions, maps, _ = kernel.shape
        for p, m in np.ndindex(positions, maps):
          assert kernel[p, m, out] == weight[out, m * positions + p]
      else:
        np.testing.assert_array_equal(kernel[:, out], weight[out])


@pytest.mark.parametrize("form", ["new", "old"])
@pytest.mark.parametrize("pools_first", [False, True])
def test_caffemodel_has_its_arrays_and_its_network(form, pools_first, tmp_path):
  found = read(tmp_path, caffemodel(form, pools_first=pools_first))
  assert_same(found.parameters, caffe_arrays())
  assert f"in the {form} form" in found.kind and found.num_arrays == 16
  network = found.network
  table = catalog.CAFFENET if pools_first else catalog.BVLC_ALEXNET
  assert network.table.name == table.name
  assert [row.features for row in network.table.layers] == [
    *(6, 16, 24, 24, 16, 256, 256, CLASSES)
  ]
  without = [
    dataclasses.replace(row, features=1) for row in network.table.layers
  ]
  # LRN's k = 1 over all maps, order, groups, padding, dropout: all of a row.
  assert without == [
    dataclasses.replace(row, features=1) for row in table.layers
  ]
  assert (network.image_size, network.dropout_rate) == (CROP, 0.5)
  preprocessing = network.preprocessing
  assert preprocessing.color_order == "bgr"
  assert preprocessing.mean == (123.0, 117.0, 104.0)  # R, G, B
  assert "imagenet_mean.binaryproto" in preprocessing.source


def test_caffemodel_parameters_win_over_those_of_the_kind(tmp_path):
  def change(layer, layers):
    layer["data"]["transform_param"] = {
      **{"crop_size": CROP, "scale": 0.25, "mean_value": [10.0, 20.0, 30.0]},
    }
    layer["norm1"]["lrn_param"] = {"local_size": 3, "alpha": 3e-4, "k": 2.0}
    layer["norm2"]["lrn_param"] = {
      **{"local_size": 3, "alpha": 9e-4, "norm_region": 1},
    }
    layer["pool1"]["pooling_param"]["pool"] = 1
    layer["relu3"]["type"] = "Sigmoid"
    for name in ("drop6", "drop7"):
      layer[name]["dropout_param"] = {"dropout_ratio": 0.25}
    layer["fc7"]["blobs"] = layer["fc7"]["blobs"][:1]
    layer["fc8"]["name"] = "fc8-mine"

  found = read(tmp_path, caffemodel(change=change))
  network, rows = found.network, {}
  for row in network.table.layers:
    rows[row.name] = row
  assert network.table.name == "imported"
  # Caffe's alpha is divided by the maps, or pixels, of a window.
  assert rows["conv1"].lrn == wiring.Lrn(size=3, k=2.0, alpha=3e-4 / 3)
  assert rows["conv2"].lrn == wiring.Lrn(size=3, k=1.0, alpha=9e-4 / 9)
  assert rows["conv1"].normalize == "across"
  assert rows["conv2"].normalize == "map"
  assert rows["conv1"].pool.kind == "average"
  assert rows["conv3"].activation == "sigmoid"
  assert network.dropout_rate == 0.25
  assert not found.parameters["fc7"]["bias"].any()
  assert any("'fc7' has no bias" in note for note in found.notes)
  assert any("'fc8-mine' of the file" in note for note in found.notes)
  assert "fc8_mine" in rows
  assert network.preprocessing.mean == (30.0, 20.0, 10.0)
  assert network.preprocessing.scale == 4.0


def test_pooling_that_rounds_up_has_the_windows_of_caffe(tmp_path):
  def change(layer, layers):
    # Maps of 23 pixels: 11 windows, and a twelfth over the edge.
    layer["pool1"]["pooling_param"] |= {"kernel_size": 2}

  arrays = caffe_arrays(positions=9)
  network = read(tmp_path, caffemodel(change=change, arrays=arrays)).network
  sizes = wiring.make_network(
    network.table, image_size=CROP, num_classes=CLASSES
  ).sizes()
  # ceil((23 - 2) / 2) + 1, and so on; caffe/src/caffe/layers/pooling_layer.cpp.
  assert [size.out_side for size in sizes.values()][:5] == [12, 6, 6, 6, 3]


@pytest.mark.parametrize("form", ["new", "old"])
def test_caffemodel_of_a_net_that_predicts_or_is_tested(form, tmp_path):
  layers = writers.caffe_layers(caffe_arrays(), pools_first=False, crop=CROP)
  data, *layers, loss = layers
  # As in deploy.prototxt, where the image is an input of the net.
  deployed = writers.write_caffemodel(
    layers, form=form, input=["data"], input_dim=[10, 3, CROP, CROP]
  )
  # With the layers that Caffe adds where two layers read one blob.
  splits = [
    {"name": f"{top}_split", "type": "Split", "bottom": [top]}
    | {"top": [f"{top}_0", f"{top}_1"]}
    for top in ("label", "fc8")
  ]
  accuracy = {"name": "accuracy", "type": "Accuracy", "top": ["accuracy"]}
  tested = writers.write_caffemodel(
    [
      *(data, splits[0], *layers, splits[1]),
      accuracy | {"bottom": ["fc8_0", "label_0"]},
      loss | {"bottom": ["fc8_1", "label_1"]},
    ],
    form=form,
  )
  for contents in (deployed, tested):
    found = read(tmp_path, contents)
    assert_same(found.parameters, caffe_arrays())
    assert found.network.table.name == "bvlc_alexnet"
    assert found.network.image_size == CROP


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda layer, _: layer["conv3"]["convolution_param"].update(group=3),
      "layer 'conv3' has 3 groups, expected 1 or 2, as others have",
    ),
    (
      lambda layer, _: layer["conv3"]["convolution_param"].update(dilation=[2]),
      r"layer 'conv3' \(Convolution\) has dilation 2, expected 1",
    ),
    (
      lambda layer, _: layer["conv2"]["convolution_param"].update(
        pad=[], pad_h=2
      ),
      r"layer 'conv2' \(Convolution\) has pad 0 and 2, expected one number",
    ),
    (
      lambda layer, _: layer["relu2"].update(
        relu_param={"negative_slope": 0.125}
      ),
      "layer 'relu2' .* has negative_slope 0.125, expected 0.0",
    ),
    (
      lambda layer, _: layer["relu2"].update(type="PReLU"),
      "layer 'relu2' has the type PReLU, which has no counterpart",
    ),
    (
      lambda layer, _: layer["conv5"].update(bottom=["conv3"]),
      "layer 'conv5' .* has the inputs conv3, expected conv4: a chain",
    ),
    (
      lambda layer, _: layer["pool1"]["pooling_param"].update(pool=2),
      r"layer 'pool1' \(Pooling\) has pool 2, expected 0",
    ),
    (
      lambda layer, _: layer["pool1"]["pooling_param"].update(stride=0),
      "layer 'pool1' .* has stride 0, expected 1 or more",
    ),
    (
      lambda layer, _: layer["fc7"].update(blobs=[]),
      "layer 'fc7' .* has 0 arrays",
    ),
    (
      lambda _, layers: layers[1:] and layers.__delitem__(slice(1, None)),
      "has no layer with weights",
    ),
  ],
)
def test_caffemodel_without_counterpart_is_refused(change, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    read(tmp_path, caffemodel(change=change))


@pytest.mark.parametrize("python", [2, 3])
def test_npy_has_its_arrays(python, tmp_path):
  arrays = caffe_arrays(positions=36)
  contents = writers.write_npy(to_npy_arrays(arrays), python=python)
  found = read(tmp_path, contents)
  assert_same(found.parameters, arrays)
  assert found.network.table.name == "bvlc_alexnet"
  assert found.network.image_size == 227
  assert found.network.preprocessing.color_order == "bgr"


WRAPS = {
  "plain": lambda state: state,
  "training": lambda state: {
    **{"epoch": 90, "arch": "alexnet", "best_acc1": 56.5},
    "state_dict": {
      name.replace("features.", "features.module."): tensor
      for name, tensor in state.items()
    },
  },
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("old", [False, True])
def test_pth_has_its_arrays(wrap, old, tmp_path):
  state = torch_arrays()
  contents = writers.write_pth(state, wrap=WRAPS[wrap], old=old)
  found = read(tmp_path, contents)
  check_torchvision(found, state)
  assert "PyTorch's .pth" in found.kind
  assert ("before 1.6" in found.kind) == old
  if wrap == "training":
    assert "state_dict is taken, without epoch, arch" in found.notes[0]


def check_torchvision(found, state):
  layers = {
    name: {kind: state[f"{module}.{kind}"] for kind in ("weight", "bias")}
    for name, module in MODULES.items()
  }
  assert_same(found.parameters, layers)
  network = found.network
  assert network.table.name == "torchvision_alexnet"
  assert network.image_size == 224
  preprocessing = network.preprocessing
  assert preprocessing.color_order == "rgb"
  # (x / 255 - mean) / deviation.
  assert preprocessing.mean == (123.675, 116.28, 103.53)
  assert preprocessing.channel_scale == (58.395, 57.12, 57.375)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_safetensors_has_its_arrays(dtype, tmp_path):
  made = {
    name: array.astype(jnp.dtype(dtype))
    for name, array in torch_arrays().items()
  }
  found = read(tmp_path, safetensors.numpy.save(made))
  # All values of these are float32 too, but for those of float64.
  check_torchvision(
    found, {name: array.astype(np.float32) for name, array in made.items()}
  )
  notes = [f"arrays of {dtype} are stored as float32"]
  assert list(found.notes) == ([] if dtype == "float32" else notes)


def test_tensor_of_pytorch_is_the_view_that_it_says(tmp_path):
  state = torch_arrays()
  bias = state["features.0.bias"]
  kept = np.stack([bias, bias + 1], axis=1)
  made = state | {"features.0.bias": np.ravel(kept)}
  views = {"features.0.bias": (1, bias.shape, (2,))}
  found = read(tmp_path, writers.write_pth(made, strides=views))
  np.testing.assert_array_equal(found.parameters["conv1"]["bias"], bias + 1)


class Attack:
  """Runs a command when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.system, (f"touch {self.path}",)


def test_pickle_that_would_run_code_runs_none(tmp_path):
  target = tmp_path / "attacked"
  attack = Attack(target)
  files = {
    "pth": writers.write_pth(torch_arrays(), wrap=lambda state: attack),
    "old": writers.write_pth(
      torch_arrays(), wrap=lambda state: attack, old=True
    ),
    "value": writers.write_pth(
      torch_arrays(), wrap=lambda state: state | {"x": attack}
    ),
    "npy": writers.write_npy({"conv1": [attack, attack]}, python=3),
  }
  for contents in files.values():
    message = refuse(tmp_path, contents)
    assert "asks for 'posix.system', expected" in message
  assert not target.exists()


@pytest.mark.parametrize(
  ("code", "message"),
  [
    (b"cbuiltins\neval\n(V1\ntR.", "asks for 'builtins.eval', expected"),
    (b"cnumpy\nload\n(Vx\ntR.", "asks for 'numpy.load', expected"),
    (b"ctorch\nload\n.", "asks for 'torch.load', expected"),
    (
      b"ccollections\nOrderedDict\n.",
      "asks for 'collections.OrderedDict' as a value",
    ),
    (b"(ios\nsystem\n.", "asks for the operation INST"),
    (b"Pos.system\n.", "asks for the operation PERSID"),
    (
      b"\x80\x02ccollections\nOrderedDict\n)\x81.",
      "asks for the operation NEWOBJ",
    ),
    (
      b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(tVb\ntR.",
      "asks for an array of class 'numpy.dtype'",
    ),
    (b"cnumpy\ndtype\n(VO\ntR.", "asks for Dtype as a value"),
    (
      b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
      "asks for 'os.system', expected",
    ),
    (b"(lp0\ng0\na(tg0\nt0d.", "is damaged (pop from empty list)"),
    (b"(t" + b"\x85" * 5000 + b".", "asks for values in values, too deep"),
    (b"]}(I1\nI2\n", "is damaged (pickle exhausted before seeing STOP)"),
    (b"", "is damaged (pickle exhausted before seeing STOP)"),
    # A frame of 2^63 - 1 bytes, with nothing in it.
    (
      b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
      "is damaged (not enough values to unpack",
    ),
    (
      b"B\xff\xff\xff\x7f.",
      "is damaged (expected 2147483647 bytes in a bytes4",
    ),
    (b"r\xff\xff\xff\xff.", "is damaged (list index out of range)"),
    (b"0.", "asks for the operation POP"),
  ],
)
def test_pickle_of_anything_else_is_refused(code, message, tmp_path):
  header = writers.write_npy({}, python=3)[:128]
  assert message in refuse(tmp_path, header + code)


class Bomb:
  """Asks for a call with 10^40 lists, each of which is there ten times."""

  def __init__(self, *call):
    self.call = call

  def __reduce__(self):
    lists = []
    for _ in range(40):
      lists = [lists] * 10
    return self.call[0], (*self.call[1:], lists)


@pytest.mark.parametrize(
  "call", [(np.dtype,), (codecs.encode, "x"), (collections.OrderedDict,)]
)
def test_lists_in_lists_are_never_written_out(call, tmp_path):
  arrays = {"conv1": [Bomb(*call), 1]}
  message = refuse(tmp_path, writers.write_npy(arrays, python=3))
  assert len(message) < 400


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ((0, (2**40, 2**20), (0, 0)), "a tensor of"),
    ((2**40, (4,), (1,)), "damaged"),
    ((0, (4,), (2**40,)), "damaged"),
    ((0, (4,), (-1,)), "-1 where a size belongs"),
    ((-8, (4,), (1,)), "-8 where a size belongs"),
  ],
)
def test_tensor_outside_of_its_storage_is_refused(sizes, message, tmp_path):
  views = {"features.0.bias": sizes}
  contents = writers.write_pth(torch_arrays(), strides=views)
  assert message in refuse(tmp_path, contents)


def test_pipe_and_device_are_refused_unread(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  for path in (str(tmp_path / "pipe"), "/dev/zero"):
    with pytest.raises(ValueError, match=f"'{path}' is a pipe .*Set --from."):
      weight_files.read(path)


@pytest.mark.parametrize(
  "name",
  ["../outside", "a/../../outside", "/tmp/outside", "C:\\x", "a\\..\\b", ".."],
)
def test_zip_with_a_path_outside_is_refused(name, tmp_path):
  contents = writers.write_pth(torch_arrays(), extra={name: b"x"})
  assert "has a path outside of it" in refuse(tmp_path, contents)


def test_zip_that_unpacks_to_too_much_is_refused(tmp_path):
  contents = writers.write_zip(
    {"archive/data.pkl": bytes(2**20)}, compression=zipfile.ZIP_DEFLATED
  )
  assert "is compressed" in refuse(tmp_path, contents)
  made = bytearray(writers.write_zip({"config.json.npy": b"x"}))
  at = made.rindex(b"PK\x01\x02")
  made[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")
  assert "expected at most 2,147,483,648" in refuse(tmp_path, bytes(made))


def test_zip_is_opened_once(monkeypatch, tmp_path):
  opened = []
  original = zipfile.ZipFile

  def count(*arguments, **options):
    opened.append(arguments)
    return original(*arguments, **options)

  contents = writers.write_pth(torch_arrays())
  monkeypatch.setattr(zipfile, "ZipFile", count)
  assert read(tmp_path, contents).num_arrays == 16 and len(opened) == 1


def all_kinds():
  return {
    "pth": writers.write_pth(torch_arrays()),
    "old pth": writers.write_pth(torch_arrays(), old=True),
    "safetensors": safetensors.numpy.save(torch_arrays()),
    "caffe": caffemodel("new"),
    "old caffe": caffemodel("old"),
    "npy": writers.write_npy(to_npy_arrays(caffe_arrays(positions=36))),
  }


@pytest.mark.parametrize(
  "kind", ["pth", "old pth", "safetensors", "caffe", "old caffe", "npy"]
)
def test_truncated_file_is_refused(kind, tmp_path):
  contents = all_kinds()[kind]
  for part in (0.0, 1e-5, 1e-3, 0.3, 0.7, 0.999, 1 - 1e-6):
    length = min(int(part * len(contents)), len(contents) - 1)
    refuse(tmp_path, contents[:length])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"features.6.bias": None}, "it lacks features.6.bias; expected"),
    (
      {"features.12.weight": np.zeros(3, np.float32)},
      "it also has features.12.weight; expected",
    ),
    (
      {"features.6.weight": np.zeros((24, 12, 5, 5), np.float32)},
      "features.6.weight has the shape 24 x 12 x 5 x 5, expected 24 x 12 x 3",
    ),
    (
      {"features.6.bias": np.zeros(23, np.float32)},
      "features.6.bias has the shape 23, expected 24",
    ),
    (
      {"features.6.bias": np.zeros(24, np.int64)},
      "features.6.bias has the type int64, expected float32",
    ),
    (
      {"features.6.bias": np.full(24, np.nan, np.float32)},
      "features.6.bias has values that are not finite",
    ),
    (
      {"features.6.bias": np.full(24, 1e300)},
      "features.6.bias has values that are not finite in float32",
    ),
    (
      {"features.3.weight": np.zeros((12, 2, 5, 5), np.float32)},
      "features.3.weight reads 2 of 4 maps, so that it is of a network of two",
    ),
    (
      {"classifier.1.weight": np.zeros((256, 16 * 25), np.float32)},
      "classifier.1.weight has the shape 256 x 400, expected 256 x 576",
    ),
    (
      {"features.0.weight": np.zeros(3, np.float32)},
      "features.0.weight has the shape 3, expected 4 dimensions",
    ),
  ],
)
def test_other_arrays_are_refused(change, message, tmp_path):
  state = torch_arrays() | change
  state = {name: array for name, array in state.items() if array is not None}
  for contents in (writers.write_pth(state), safetensors.numpy.save(state)):
    assert message in refuse(tmp_path, contents)


def test_array_of_objects_is_refused(tmp_path):
  arrays = to_npy_arrays(caffe_arrays(positions=36))
  arrays["conv2"] = [np.array([{}, 1], dtype=object), arrays["conv2"][1]]
  message = refuse(tmp_path, writers.write_npy(arrays, python=3))
  assert "asks for an array of objects" in message


@pytest.mark.parametrize("name", ["none", "folder"])
def test_file_that_cannot_be_read_is_named(name, tmp_path):
  (tmp_path / "folder").mkdir()
  with pytest.raises(OSError, match="cannot be read: .*. Set --from."):
    weight_files.read(str(tmp_path / name))


def test_npy_of_dicts_has_its_arrays(tmp_path):
  arrays = caffe_arrays(positions=36)
  made = {
    name: {"biases": bias, "weights": kernel}
    for name, (kernel, bias) in to_npy_arrays(arrays).items()
  }
  file = io.BytesIO()
  np.save(file, np.array(made, dtype=object), allow_pickle=True)
  assert_same(read(tmp_path, file.getvalue()).parameters, arrays)


@pytest.mark.parametrize(
  ("pair", "message"),
  [
    (lambda kernel, _: [kernel, None], "conv2[1] is NoneType, expected an arr"),
    (lambda kernel, _: [kernel, 0.5], "conv2[1] is float, expected an array"),
    (
      lambda kernel, bias: [kernel, list(bias)],
      "conv2[1] is list, expected an",
    ),
    (
      lambda kernel, bias: [kernel, bias[:3]],
      "conv2[1] has the shape 3, expected 16",
    ),
    (
      lambda kernel, bias: {"weights": kernel, "biases": bias, "scale": bias},
      "it also has conv2.scale; expected conv2.weights, conv2.biases, and no",
    ),
    (lambda kernel, _: {"weights": kernel}, "it lacks conv2.biases; expected"),
  ],
)
def test_npy_of_other_biases_is_refused(pair, message, tmp_path):
  arrays = to_npy_arrays(caffe_arrays(positions=36))
  arrays["conv2"] = pair(*arrays["conv2"])
  file = io.BytesIO()
  np.save(file, np.array(arrays, dtype=object), allow_pickle=True)
  assert message in refuse(tmp_path, file.getvalue())


def test_bias_of_a_state_dict_that_is_none_is_refused(tmp_path):
  contents = writers.write_pth(
    torch_arrays(), wrap=lambda state: state | {"features.6.bias": None}
  )
  message = refuse(tmp_path, contents)
  assert "features.6.bias is NoneType, expected an array" in message


def make_npz(**arrays) -> bytes:
  file = io.BytesIO()
  np.savez(file, **arrays)
  return file.getvalue()


@pytest.mark.parametrize(
  ("contents", "message"),
  [
    (b"", "it is empty"),
    (b" \n", "it is empty"),
    (b"<!DOCTYPE html><html>", "it is a web page"),
    (b"<?xml version='1.0'?><Error>", "it is a web page"),
    # As a .stablehlo begins.
    (b"<\0\0\0 \0d\0", "none of .pth, .safetensors"),
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    (b"\x89HDF\r\n\x1a\n" + bytes(100), "it is HDF5"),
    (b"hello, these are no weights", "none of .pth, .safetensors"),
    (
      pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2),
      "is damaged (pickle exhausted before seeing STOP)",
    ),
    (make_npz(a=np.zeros(3)), "neither the data.pkl of PyTorch nor"),
    (make_npz(a=np.array([{}], dtype=object)), "is no array of numbers"),
  ],
)
def test_file_of_another_kind_is_named(contents, message, tmp_path):
  assert message in refuse(tmp_path, contents)


def make_onnx(*, lrn: bool, side: int | None = None, positions: int = 36):
  """A model of torchvision's or Caffe's layers, by the package `onnx`.

  Args:
    side: of the image; None: as published.
    positions: of the maps that fc6 of Caffe's reads.
  """
  import onnx
  from onnx import helper, numpy_helper

  arrays = caffe_arrays(positions=positions) if lrn else None
  if arrays is None:
    state = torch_arrays()
    arrays = {
      name: {kind: state[f"{module}.{kind}"] for kind in ("weight", "bias")}
      for name, module in MODULES.items()
    }
  nodes, tensors, value = [], [], "data_0"

  def add(kind, *inputs, **attributes):
    nonlocal value
    output = f"v{len(nodes)}"
    nodes.append(
      helper.make_node(kind, [value, *inputs], [output], **attributes)
    )
    value = output

  def give(name):
    names = []
    for kind, short in (("weight", "w"), ("bias", "b")):
      tensors.append(
        numpy_helper.from_array(arrays[name][kind], f"{name}_{short}_0")
      )
      names.append(tensors[-1].name)
    return names

  first = 0 if lrn else 2
  for number, stride, padding, group in (
    *((1, 4, first, 1), (2, 1, 2, 2), (3, 1, 1, 1), (4, 1, 1, 2)),
    (5, 1, 1, 2),
  ):
    name = f"conv{number}"
    add(
      *("Conv", *give(name)),
      kernel_shape=arrays[name]["weight"].shape[2:],
      strides=[stride, stride],
      pads=[padding] * 4,
      group=group if lrn else 1,
    )
    add("Relu")
    if lrn and number in (1, 2):
      add("LRN", size=5, alpha=1e-4, beta=0.75, bias=1.0)
    if number in (1, 2, 5):
      add("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0] * 4)
  if not lrn:
    add("AveragePool", kernel_shape=[1, 1], strides=[1, 1])
  add("Flatten", axis=1)
  for name in ("fc6", "fc7", "fc8"):
    add("Gemm", *give(name), transB=1)
    if name != "fc8":
      add("Relu")
  add("Softmax")
  side = side or (227 if lrn else 224)
  graph = helper.make_graph(
    nodes,
    "net",
    [helper.make_tensor_value_info("data_0", 1, [1, 3, side, side])],
    [helper.make_tensor_value_info(value, 1, [1, CLASSES])],
    tensors,
  )
  model = helper.make_model(graph, producer_name="tests")
  onnx.checker.check_model(model)
  return arrays, model


@pytest.mark.skipif(
  importlib.util.find_spec("onnx") is None, reason="no package onnx"
)
@pytest.mark.parametrize("lrn", [False, True])
def test_onnx_has_its_arrays_and_its_network(lrn, tmp_path):
  arrays, model = make_onnx(lrn=lrn)
  found = read(tmp_path, model.SerializeToString())
  assert_same(found.parameters, arrays)
  network = found.network
  name = "bvlc_alexnet" if lrn else "torchvision_alexnet"
  assert network.table.name == name
  assert network.image_size == (227 if lrn else 224)
  assert network.preprocessing.color_order == ("bgr" if lrn else "rgb")
  assert any("the file has no dropout" in note for note in found.notes)


@pytest.mark.skipif(
  importlib.util.find_spec("onnx") is None, reason="no package onnx"
)
@pytest.mark.parametrize(("side", "positions"), [(227, 36), (299, 64)])
def test_pictures_are_stored_no_smaller_than_the_input(
  side, positions, tmp_path
):
  _, model = make_onnx(lrn=True, side=side, positions=positions)
  network = read(tmp_path, model.SerializeToString()).network
  assert network.image_size == side
  assert network.preprocessing.stored_size == max(256, side)
  torchvision = weights.torchvision_preprocessing("here", side=side)
  assert torchvision.stored_size == max(256, side)


@pytest.mark.skipif(
  importlib.util.find_spec("onnx") is None, reason="no package onnx"
)
def test_onnx_without_counterpart_is_refused(tmp_path):
  _, model = make_onnx(lrn=False)
  _, activation, pooling, *_ = model.graph.node
  for kind, message in (
    ("Elu", "node 'v1' is Elu, which has no counterpart here"),
    ("Dropout", "layer 'v2' (pooling) follows product, dropout, expected"),
  ):
    activation.op_type = kind
    assert message in refuse(tmp_path, model.SerializeToString())
  activation.op_type = "Relu"
  pooling.input[0] = "data_0"
  message = refuse(tmp_path, model.SerializeToString())
  assert "'v2' (MaxPool) reads data_0, expected 'v1': a chain of la" in message


@pytest.mark.skipif(
  importlib.util.find_spec("onnx") is not None, reason="onnx is installed"
)
def test_onnx_without_the_package_says_what_to_install(tmp_path):
  # A ModelProto with a version, and a graph with nothing in it.
  message = refuse(tmp_path, b"\x08\x08\x3a\x00")
  assert "python -m pip install onnx" in message
