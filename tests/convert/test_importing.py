"""Runs with imported weights: logits of pictures, proofs, what is refused.

Expected logits come from the published networks in plain lax, in the axes of
their files (tests/network/test_published.py), of pictures that NumPy prepares
as the users of these files do.
"""

import errno
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import alexnet_jax
from alexnet_jax.checkpoints import checkpoint
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.convert import (
  checking,
  conversion,
  export,
  importing,
  weight_files,
)
from alexnet_jax.data import atomic, pipeline
from alexnet_jax.network import catalog as wirings
from alexnet_jax.partition import catalog
from alexnet_jax.training import evaluation, loaded_run, trained_run
from configs import default
from tests import build, processes, runs, small_sets, stored_run
from tests import weight_writers as writers
from tests.convert import test_weight_files as files
from tests.network import test_published

# float32, sums of up to 2,304 products in another order.
TOLERANCE = 1e-5
# The Python of an environment with PyTorch, which is not a requirement.
TORCH_PYTHON = os.environ.get("TORCH_PYTHON", sys.executable)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make(tmp_path, contents, **options) -> importing.Imported:
  path = tmp_path / "weights"
  path.write_bytes(contents)
  base = default.get_config("imagenet")
  return importing.make(weight_files.read(str(path)), base, **options)


def write(tmp_path, contents, **options) -> str:
  new = str(tmp_path / "new")
  importing.write(make(tmp_path, contents, **options), new)
  return new


def crop(pictures, side):
  start = (256 - side) // 2
  return pictures[:, start : start + side, start : start + side].astype("f4")


def caffe_inputs(pictures, side):
  """BGR, minus the means, maps before pixels."""
  blue_first = crop(pictures, side)[..., ::-1]
  means = np.array([104, 117, 123], np.float32)
  return (blue_first - means).transpose(0, 3, 1, 2)


def torch_inputs(pictures, side):
  """As torchvision's ToTensor and Normalize."""
  pixels = crop(pictures, side) / np.float32(255)
  values = (pixels - np.float32(MEAN)) / np.float32(DEVIATION)
  return values.transpose(0, 3, 1, 2)


def torch_layers(state):
  return {
    name: {kind: state[f"{module}.{kind}"] for kind in ("weight", "bias")}
    for name, module in files.MODULES.items()
  }


def make_case(kind):
  """The contents of a file, and a function from pictures to its logits."""
  if kind == "torchvision":
    state = files.torch_arrays()
    contents, side = writers.write_pth(state), 224
    layers, inputs = torch_layers(state), torch_inputs
    reference = test_published.torchvision_alexnet
  else:
    layers, inputs = files.caffe_arrays(), caffe_inputs
    side, reference = files.CROP, test_published.bvlc_alexnet
    if kind == "npy":
      layers, side = files.caffe_arrays(positions=36), 227
      contents = writers.write_npy(files.to_npy_arrays(layers))
    elif kind == "caffenet":
      contents = files.caffemodel("old", pools_first=True)
      reference = test_published.caffenet
    else:
      contents = files.caffemodel("new")

  def expect(pictures):
    run = jax.jit(lambda x: reference(x, layers))
    return np.asarray(run(inputs(pictures, side)))

  return contents, expect


@pytest.fixture(scope="module")
def pictures():
  return small_sets.tiles(2, side=256)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
  """kind -> a loaded run with such weights, and its expected logits."""
  made = {}

  def make(kind):
    if kind not in made:
      contents, expect = make_case(kind)
      workdir = write(tmp_path_factory.mktemp(kind), contents)
      made[kind] = alexnet_jax.load(workdir), expect
    return made[kind]

  return make


@pytest.mark.parametrize(
  "kind",
  [
    *("caffenet", "torchvision"),
    *build.slow("bvlc_alexnet", "npy"),
  ],
)
def test_logits_of_pictures_are_those_of_the_published_network(
  kind, pictures, load
):
  run, expect = load(kind)
  found, expected = run.logits(pictures), expect(pictures)
  assert found.shape == (2, files.CLASSES)
  assert test_published.difference(found, expected) <= TOLERANCE
  # Another order of colors, or mean, would show.
  swapped = expect(pictures[..., ::-1])
  assert test_published.difference(swapped, expected) > 100 * TOLERANCE
  assert run.step == 0 and run.class_names == tuple("0123456")
  place = pathlib.Path(run.workdir).parent
  assert {path.name for path in place.iterdir()} == {"weights", "new"}


def test_reference_tells_equal_from_other_preprocessing(
  pictures, load, tmp_path
):
  run, expect = load("caffenet")
  logits = expect(pictures)
  lines, is_equal = checking.check_reference(
    run, {"images": pictures, "logits": logits}
  )
  assert is_equal and lines[0].startswith("logits of 2 images: the largest")
  inputs = caffe_inputs(pictures, files.CROP).transpose(0, 2, 3, 1)
  probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  _, is_equal = checking.check_reference(
    run, {"images": inputs, "probabilities": probabilities}
  )
  assert is_equal
  _, is_equal = checking.check_reference(
    run, {"images": pictures[..., ::-1], "logits": logits}
  )
  assert not is_equal
  with pytest.raises(ValueError, match=r"network inputs of \(50, 50, 3\), exp"):
    checking.check_reference(
      run, {"images": inputs[:, :50, :50], "logits": logits}
    )

  # Labeled by what the network says: no errors; or by another class.
  first = logits.argmax(axis=1)
  for index, (picture, label) in enumerate(zip(pictures, first, strict=True)):
    place = tmp_path / "labeled" / str(label)
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{index}.png").write_bytes(small_sets.encode(picture))
  labels = checking.find_labels(str(tmp_path / "labeled"), run.class_names)
  (line,) = checking.check_pictures(run, labels)
  assert "errors on 2 pictures" in line
  assert "top-1 0.00%, top-5 0.00% (by chance top-1 85.71%)" in line
  last = int(logits.sum(axis=0).argmin())
  (line,) = checking.check_pictures(
    run, {path: last for path in labels if labels[path] != last}
  )
  assert "top-1 100.00%" in line
  with pytest.raises(ValueError, match="called like no class, expected one of"):
    checking.find_labels(run.workdir, run.class_names)


def make_npz(path, **arrays) -> str:
  np.savez(path, **arrays)
  return str(path)


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"images": np.zeros((2, 9, 9, 3), "u1")}, "expected images and either"),
    (
      {"images": np.zeros((2, 9, 9), "u1"), "logits": np.zeros((2, 7))},
      "expected uint8",
    ),
    (
      {
        "images": np.zeros((2, 9, 9, 3), "u1"),
        "logits": np.full((2, 7), np.nan),
      },
      "and finite",
    ),
    ({"images": np.array([{}], dtype=object)}, "no .npz of arrays"),
  ],
)
def test_reference_of_other_arrays_is_refused(arrays, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    checking.read_reference(make_npz(tmp_path / "r.npz", **arrays))


def test_run_says_what_is_known_of_it_and_what_is_not(tmp_path):
  names = tuple("abcdefg")
  imported = make(tmp_path, files.caffemodel(), class_names=names)
  lines = "\n".join(imported.describe())
  for part in (
    "the file is Caffe's .caffemodel in the new form, network 'AlexNet'",
    "arrays: 16 read",
    "network: bvlc_alexnet, 8 layers, ",
    "99 pixels, 7 classes",
    "normalizes (across, 5, k 1, alpha 2e-05, beta 0.75), max pooling 3/2",
    "in the order BGR, mean 123, 117, 104 of R, G, B",
  ):
    assert part in lines
  assert imported.config.network.dropout_scaling == "train"
  assert imported.found["dataset"] is None
  assert imported.data.class_names == names
  with pytest.raises(ValueError, match="there are 3 class names, but the netw"):
    make(tmp_path, files.caffemodel(), class_names=("a", "b", "c"))


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (b"a\n\nb\n", "line 2 of"),
    (b"a\nb\na\n", "line 3 of"),
    (b"\xff\xfe\x00", "no text in UTF-8"),
  ],
)
def test_wrong_class_names_are_refused(text, message, tmp_path):
  path = tmp_path / "names.txt"
  path.write_bytes(text)
  with pytest.raises(ValueError, match=message):
    importing.read_class_names(str(path))


def test_workdir_of_imported_weights_is_not_trained(tmp_path):
  imported = make(tmp_path, files.caffemodel())
  path = tmp_path / "new"
  fields = imported.config.to_dict()
  acquired = workdir_lib.acquire(
    {str(path): fields}, imported.found, may_change=()
  )
  for lock in acquired.locks:
    lock.release()
  before = (path / "config.json").read_bytes()
  with pytest.raises(ValueError, match=r"imported weights .*init_from.workdir"):
    runs.prepare(imported.config, path, tmp_path / "data")
  assert {one.name for one in path.iterdir()} == {"config.json", "lock"}
  assert (path / "config.json").read_bytes() == before


@pytest.fixture(scope="module")
def writers_of_runs(tmp_path_factory):
  """kind -> a function that writes a run to a workdir."""
  place = tmp_path_factory.mktemp("runs")
  config = stored_run.make_config(wirings.LENET5)
  config.network.width, config.network.image_size = 1.0, 28
  stored_run.write(place / "old", config)
  imported = make(place, files.caffemodel())
  return {
    "import": lambda new: importing.write(imported, new),
    "conversion": lambda new: conversion.convert(
      config, workdir=str(place / "old"), new_workdir=new
    ),
  }


@pytest.mark.parametrize("kind", ["import", "conversion"])
def test_failed_write_leaves_nothing(
  kind, writers_of_runs, monkeypatch, tmp_path
):
  def fail(*_, **__):
    raise OSError(errno.ENOSPC, "no space left")

  write, new = writers_of_runs[kind], str(tmp_path / "new")
  for place, name in (
    *((atomic, "replace"), (checkpoint.Checkpoints, "save")),
    (workdir_lib, "write_config"),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(place, name, fail)
      with pytest.raises(OSError, match="no space left") as caught:
        write(new)
    # The command has no such flag for the new run.
    assert "--workdir" not in str(caught.value)
    assert not [*tmp_path.iterdir()]
  with pytest.raises(OSError, match="has .*Set --new_workdir.$") as caught:
    write(str(tmp_path / "a*"))
  assert "--workdir" not in str(caught.value)
  (tmp_path / "new.unfinished").mkdir()
  with pytest.raises(ValueError, match="exists already.*set --new_workdir"):
    write(new)
  assert [path.name for path in tmp_path.iterdir()] == ["new.unfinished"]


@pytest.mark.slow
def test_imported_run_is_evaluated_on_a_prepared_set(tmp_path, data_dir):
  arrays = files.caffe_arrays(classes=10)
  path = tmp_path / "weights"
  path.write_bytes(files.caffemodel(arrays=arrays))
  base = default.get_config("imagenet")
  base.data.name = "digits"
  base.data.validation_split = "validation[:21]"
  new = str(tmp_path / "new")
  importing.write(importing.make(weight_files.read(str(path)), base), new)
  run = trained_run.read(new, fields=default.get_config(), batch_size=8)
  opened = evaluation.open_run(run, data_dir=data_dir)
  (found,), _ = evaluation.predict_split(
    opened.program,
    loaded_run.load_variables(run, opened.program),
    opened.validation_records,
    name="new",
    views=[1],
    threads=1,
    batches_ahead=1,
  )
  batches = pipeline.validation_batches(
    opened.validation_records,
    batch_size=8,
    shardings=opened.program.batch_shardings,
    threads=1,
    batches_ahead=1,
  )
  images = np.concatenate([np.asarray(batch.images) for batch in batches])
  logits = jax.jit(lambda x: test_published.bvlc_alexnet(x, arrays))(
    caffe_inputs(images[:21], files.CROP)
  )
  expected = jax.nn.log_softmax(logits)
  difference = test_published.difference(found.log_probabilities, expected)
  assert difference <= TOLERANCE


LAYOUTS = (
  catalog.ONE_DEVICE,
  catalog.TWO_COLUMN,
  catalog.TWO_COLUMN_DATA,
  build.with_mesh(catalog.ONE_WEIRD_TRICK, data=1, model=2),
  catalog.ONE_WEIRD_TRICK,
)


@pytest.mark.slow
@pytest.mark.parametrize("divisor", [16, 1])
def test_published_columns_give_the_same_logits_on_1_2_and_4_devices(
  divisor, tmp_path
):
  arrays = files.caffe_arrays(
    positions=36, divisor=divisor, classes=1000 // divisor
  )
  layers = writers.caffe_layers(arrays, pools_first=False, crop=227)
  workdir = write(tmp_path, writers.write_caffemodel(layers, form="old"))
  pictures = small_sets.tiles(4, side=256)
  run = jax.jit(lambda x: test_published.bvlc_alexnet(x, arrays))
  expected = np.asarray(run(caffe_inputs(pictures, 227)))
  # At full size one of each number of devices: a minute for all.
  layouts = (*LAYOUTS[:2], LAYOUTS[-1]) if divisor == 1 else LAYOUTS
  assert {layout.devices for layout in layouts} == {1, 2, 4}
  for layout in layouts:
    found = alexnet_jax.load(workdir, layout=layout).logits(pictures)
    # float32, sums of up to 9,216 products in another order.
    assert test_published.difference(found, expected) <= TOLERANCE, layout.name


@pytest.mark.slow
def test_state_dict_of_pytorch_gives_its_logits(tmp_path):
  found = subprocess.run([TORCH_PYTHON, "-c", "import torch"], check=False)
  if found.returncode:
    pytest.skip(f"no PyTorch in {TORCH_PYTHON}; set TORCH_PYTHON")
  np.save(tmp_path / "pictures.npy", small_sets.tiles(3, side=256))
  command = [TORCH_PYTHON, "-m", "tests.convert.torchvision_in_torch"]
  subprocess.run([*command, tmp_path], cwd=processes.ROOT, check=True)
  base = default.get_config("imagenet")
  for name, reference in (
    *(("new", "reference"), ("old", "reference"), ("half", "half")),
  ):
    weights = weight_files.read(str(tmp_path / f"{name}.pth"))
    new = str(tmp_path / name)
    importing.write(importing.make(weights, base), new)
    run = alexnet_jax.load(new)
    arrays = checking.read_reference(str(tmp_path / f"{reference}.npz"))
    logits = run.logits(arrays["images"])
    difference = test_published.difference(logits, arrays["logits"])
    assert difference <= TOLERANCE, name


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """Parameters of a run of ours, with averages and batch normalization.

  Returns:
    The workdir, and an .npz as `convert --to` writes it.
  """
  place = tmp_path_factory.mktemp("exported")
  config = stored_run.make_config(wirings.LENET5)
  config.network.width, config.network.image_size = 1.0, 28
  config.network.normalization = "batch"
  config.data.stored_size = 72
  config.augment.mean_from, config.augment.mean = "image", None
  config.optimizer.ema_decay = 0.5
  stored_run.write(place / "run", config)
  run = alexnet_jax.load(place / "run")
  arrays = {
    f"{layer}.{name}": array
    for layer, of_layer in run.parameters.items()
    for name, array in of_layer.items()
  }
  files = {
    "config.json": (place / "run" / "config.json").read_text(),
    "data.json": (place / "run" / "data.json").read_text(),
    "mean_image": np.load(place / "run" / "mean_image.npy"),
  }
  return place / "run", arrays, files


@pytest.mark.slow
def test_npz_of_a_run_gives_the_same_run(exported, pictures, tmp_path):
  workdir, arrays, files_of_run = exported
  path = make_npz(tmp_path / "a.npz", **arrays, **files_of_run)
  imported = importing.make(weight_files.read(path), default.get_config())
  importing.write(imported, str(tmp_path / "new"))
  old, new = map(alexnet_jax.load, (workdir, tmp_path / "new"))
  jax.tree.map(np.testing.assert_array_equal, old.parameters, new.parameters)
  assert new.class_names == old.class_names == stored_run.CLASSES
  np.testing.assert_array_equal(new.logits(pictures), old.logits(pictures))


@pytest.mark.slow
def test_what_is_exported_is_imported(exported, load, pictures, tmp_path):
  workdir, _, _ = exported
  torchvision, _ = load("torchvision")
  bvlc, _ = load("bvlc_alexnet")
  for index, (run, name, names) in enumerate(
    (
      (alexnet_jax.load(workdir), "a.npz", None),
      (bvlc, "b.npz", None),
      (torchvision, "c.safetensors", "torchvision"),
      (torchvision, "d.onnx", None),
      (bvlc, "e.onnx", None),
    )
  ):
    path = str(tmp_path / name)
    if name.endswith(".onnx"):
      pytest.importorskip("onnx")
    export.export(run.workdir, path, names=names)
    new = str(tmp_path / f"new_{index}")
    weights = weight_files.read(path)
    importing.write(
      importing.make(weights, default.get_config("imagenet")), new
    )
    again = alexnet_jax.load(new)
    assert again.network.layers == run.network.layers, name
    np.testing.assert_array_equal(again.logits(pictures), run.logits(pictures))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"conv1.kernel": None}, "it lacks conv1.kernel; expected"),
    ({"conv9.kernel": np.zeros(3, "f4")}, "it also has conv9.kernel; expected"),
    (
      {"conv1.bias": np.zeros(3, "f4")},
      r"conv1.bias has the shape \(3,\), exp",
    ),
    ({"data.json": None}, "has no data.json"),
    ({"data.json": "{}"}, "'data.json' is damaged: it lacks class_names"),
    ({"config.json": "{"}, "config.json' is no JSON"),
    ({"config.json": "{}"}, "does not say what data it was trained on"),
    (
      {"mean_image": np.zeros((72, 72, 3), "f4")},
      "'mean_image.npy' is damaged",
    ),
    ({"config.json": np.zeros(3)}, "config.json is float64, expected text"),
  ],
)
@pytest.mark.slow
def test_npz_of_other_content_is_refused(change, message, exported, tmp_path):
  _, arrays, files_of_run = exported
  made = arrays | files_of_run | change
  made = {name: value for name, value in made.items() if value is not None}
  path = make_npz(tmp_path / "a.npz", **made)
  with pytest.raises((ValueError, OSError), match=message) as caught:
    importing.make(weight_files.read(path), default.get_config())
  said = str(caught.value)
  assert "\n" not in said and "/tmp/tmp" not in said
  # Advice for a run that was trained here.
  assert "--workdir" not in said and "again" not in said


@pytest.mark.slow
def test_command_imports_proves_and_refuses(pictures, tmp_path):
  contents, expect = make_case("torchvision")
  (tmp_path / "a.pth").write_bytes(contents)
  logits = expect(pictures)
  reference = make_npz(tmp_path / "r.npz", images=pictures, logits=logits)
  wrong = make_npz(tmp_path / "w.npz", images=pictures, logits=2 * logits)
  place = tmp_path / "labeled" / "3"
  place.mkdir(parents=True)
  (place / "a.png").write_bytes(small_sets.encode(pictures[0]))
  command = ["python", "-m", "alexnet_jax.convert"]
  new = tmp_path / "new"

  def run(*flags):
    done = processes.run([*command, *map(str, flags)], tmp_path)
    assert len(done.errors.splitlines()) == (done.code != 0), done.errors
    return done

  done = run(
    *(f"--from={tmp_path}/a.pth", f"--new_workdir={new}"),
    *(f"--check={tmp_path}/labeled", f"--reference={reference}"),
  )
  assert done.code == 0, done.errors
  for part in (
    "the file is PyTorch's .pth with torchvision's names",
    "arrays: 16 read",
    "errors on 1 pictures of 1 classes",
    "the largest difference from the reference",
    # Noise that loads without an error is the fault to find.
    "the network looks random",
  ):
    assert part in done.out, done.out
  kept = json.loads((new / "config.json").read_text())
  assert kept["network.wiring"] == "torchvision_alexnet"

  done = run(f"--from={tmp_path}/a.pth", f"--new_workdir={new}")
  assert "exists already" in done.errors
  done = run(
    *(f"--from={tmp_path}/a.pth", f"--new_workdir={tmp_path}/other"),
    f"--reference={wrong}",
  )
  assert done.code == 1 and "The run stays in" in done.errors
  assert (tmp_path / "other" / "config.json").exists()
  refused = (
    ([f"--from={tmp_path}/a.pth"], "--new_workdir is not set: --from imports"),
    (
      [f"--from={tmp_path}/a.pth", f"--new_workdir={tmp_path}/b", "--to=x.npz"],
      "--to is set, but --from imports weights",
    ),
    (
      [f"--workdir={new}", "--to=x.npz", f"--check={tmp_path}"],
      "--check is set, but --to exports weights",
    ),
    ([f"--workdir={new}"], "--new_workdir is not set: without --from and --to"),
    ([f"--from={reference}", f"--new_workdir={tmp_path}/b"], "neither the dat"),
  )
  cases = []
  for index, (flags, _) in enumerate(refused):
    (tmp_path / f"refused_{index}").mkdir()
    cases.append(("convert", flags, tmp_path / f"refused_{index}"))
  for done, (_, message) in zip(
    processes.run_forked(cases, tmp_path), refused, strict=True
  ):
    assert done.code == 1 and message in done.errors, done.errors
    assert len(done.errors.splitlines()) == 1, done.errors
  assert not (tmp_path / "b").exists()
