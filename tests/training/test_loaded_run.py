"""A trained run as an object, against plain lax and loops over pixels."""

import collections
import dataclasses
import re
import shutil

import jax
import numpy as np
import pytest
from jax import lax
from PIL import Image

import alexnet_jax
from alexnet_jax.data import pictures as pictures_lib
from alexnet_jax.network import catalog as wirings
from alexnet_jax.partition import catalog, collectives
from alexnet_jax.partition import layout as layout_lib
from alexnet_jax.program import eval_step
from alexnet_jax.training import evaluation, loaded_run, trained_run
from configs import default
from tests import build, processes, reference, runs, small_sets, stored_run

# Of values of order 1, in float32, whose sums are in another order.
TOLERANCE = 1e-5
# It pools before it normalizes, across two columns.
SHORT = dataclasses.replace(
  wirings.CAFFENET,
  name="short",
  layers=tuple(
    row
    for row in wirings.CAFFENET.layers
    if row.name in ("conv1", "conv2", "fc6", "fc8")
  ),
)


def prepare(pictures):
  """The center crops of u8[n, 72, 72, 3], as the digits' config has them."""
  crops = pictures[:, 2:69, 2:69].astype(np.float64)
  return ((crops - 77.0) / 90.0).astype(np.float32)


def normalize(x, row, columns):
  """Loops over maps of each column, or of all; over pixels of a map."""
  if row.normalize in ("column", "across"):
    groups = columns if row.normalize == "column" else 1
    x = np.concatenate(
      [
        loop_over_maps(part, row.lrn)
        for part in np.split(np.asarray(x), groups, axis=-1)
      ],
      axis=-1,
    )
  if row.map_lrn is not None:
    x = loop_over_pixels(x, row.map_lrn)
  return x.astype(np.float32)


def loop_over_maps(x, lrn):
  return reference.local_response_norm(x, lrn.size, lrn.k, lrn.alpha, lrn.beta)


def loop_over_pixels(x, lrn):
  energy, half = np.zeros(x.shape, np.float64), lrn.size // 2
  padded = np.pad(
    np.float64(x) ** 2, ((0, 0), (half, half), (half, half), (0, 0))
  )
  for i in range(lrn.size):
    for j in range(lrn.size):
      energy += padded[:, i : i + x.shape[1], j : j + x.shape[2]]
  return x / (lrn.k + lrn.alpha * energy) ** lrn.beta


def compute_layers(network, parameters, x):
  """{layer: (before pooling, after it)}, one operation after the other."""
  found = {}
  for row in network.layers:
    own = parameters[row.name]
    kernel = own["kernel"]
    if row.window:
      x = lax.conv_general_dilated(
        *(x, kernel, (row.stride, row.stride), (row.padding, row.padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=network.columns if row.reads == "own" else 1,
      )
    else:
      x = x.reshape(len(x), -1) @ kernel.reshape(-1, kernel.shape[-1])
    x = np.asarray(x)
    if row.normalize == "batch":
      x = own["scale"] * (x - own["mean"]) / np.sqrt(own["variance"] + 1e-5)
    x = x + own["bias"]
    before = None
    for part in row.order:
      if part == "activation" and row.activation == "relu":
        x = np.maximum(x, 0)
      elif part == "normalization":
        x = normalize(x, row, network.columns)
      elif part == "pooling" and row.pool:
        before = x
        x = reference.max_pool(x, row.pool.window, row.pool.stride)
    if row.dropout and network.dropout_scaling == "test":
      x = x * np.float32(network.keep_rate(row.name))
    found[row.name] = (x if before is None else before, x)
  return found


def check_layers(run, parameters, pictures, layers):
  expected = compute_layers(run.network, parameters, prepare(pictures))
  for pooled in (False, True):
    several = run.activations_of_layers(pictures, layers, pooled=pooled)
    assert [*several] == [*layers]
    for layer, found in several.items():
      one = expected[layer][pooled]
      assert found.dtype == np.float32
      np.testing.assert_allclose(
        found, one, rtol=0, atol=TOLERANCE * max(1, np.abs(one).max())
      )
      assert one.std() > 0.01


@pytest.fixture(scope="module")
def pictures():
  return small_sets.tiles(5, side=72)


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
  """A workdir, and its parameters."""
  path = tmp_path_factory.mktemp("runs") / "short"
  return path, stored_run.write(path, stored_run.make_config(SHORT))


@pytest.fixture(scope="module")
def loaded(short_run):
  return alexnet_jax.load(short_run[0])


def test_activations_are_those_of_plain_operations(short_run, pictures):
  path, parameters = short_run
  run = alexnet_jax.load(path, layout="two_column")
  assert run.program.mesh.size == 2
  check_layers(run, parameters, pictures, ["conv2", "fc8"])


def test_layer_alone_is_that_of_several(loaded, pictures):
  several = loaded.activations_of_layers(pictures, ["fc6", "conv1", "fc6"])
  assert [*several] == ["fc6", "conv1"]
  alone = loaded.activations(pictures, "conv1")
  # Two programs: a fused operation may round otherwise.
  np.testing.assert_allclose(
    several["conv1"], alone, rtol=0, atol=TOLERANCE * np.abs(alone).max()
  )


def test_activations_send_what_the_layers_until_there_send(layout):
  program = build.make_program(layout)
  variables = program.abstract_state.variables
  images, _ = program.abstract_batch
  names = [row.name for row in program.network.layers]
  planned = [one for one in program.plan if one.direction == "forward"]
  for wanted in (["conv2"], ["fc7", "conv2"], [names[-1]]):
    layer = wanted[0]
    step = eval_step.make_activations_step(
      program.forward, layers=wanted, pooled=True
    )
    with jax.set_mesh(program.mesh):
      jaxpr = step.trace(variables, images).jaxpr
    found = collectives.read_traced(jaxpr, names, dict(program.mesh.shape))
    until = names[: names.index(layer) + 1]
    assert collections.Counter(found.collectives) == collections.Counter(
      one for one in planned if one.layer in until
    )
    assert not found.refused


def test_predictions_are_ordered_and_named(loaded, pictures, tmp_path):
  probabilities = loaded.probabilities(pictures)
  logits = loaded.logits(pictures).astype(np.float64)
  expected = np.exp(logits - logits.max(axis=1, keepdims=True))
  expected /= expected.sum(axis=1, keepdims=True)
  # float32.
  np.testing.assert_allclose(probabilities, expected, atol=1e-6)
  Image.fromarray(pictures[3]).save(tmp_path / "ü b.png")
  for images, rows in (
    (pictures, range(5)),  # padded to a batch of eight
    ([pictures[2], tmp_path / "ü b.png"], (2, 3)),
    (pictures[4], (4,)),
    (tmp_path, (3,)),
  ):
    found = loaded.predict(images, top=3)
    assert len(found) == len(rows)
    for one, row in zip(found, rows, strict=True):
      falling = np.argsort(-expected[row])[:3]
      names = [stored_run.CLASSES[label] for label in falling]
      assert [name for name, _ in one.classes] == names
      np.testing.assert_allclose(
        [share for _, share in one.classes], expected[row][falling], atol=1e-6
      )
  assert found[0].name == str(tmp_path / "ü b.png")
  first, share = found[0].classes[0]
  assert repr(found[0]).startswith(f"<{found[0].name}: {first} {share:.1%}, ")
  assert len(loaded.predict(pictures, top=np.int64(99))[0].classes) == 10


def test_run_shows_what_it_is(loaded, short_run, pictures):
  path, parameters = short_run
  assert (loaded.workdir, loaded.step) == (str(path), 3)
  assert loaded.class_names == stored_run.CLASSES
  assert loaded.config.layout.name == "one_device"
  assert [row.name for row in loaded.network.layers] == [*parameters]
  jax.tree.map(np.testing.assert_array_equal, loaded.parameters, parameters)
  before = loaded.logits(pictures)
  loaded.parameters["fc8"]["bias"][:] += 1  # a copy
  np.testing.assert_array_equal(loaded.logits(pictures), before)
  assert loaded.metrics == {}
  assert repr(loaded) == (
    f"<run '{path}', step 3: own_short, 67 pixels, 10 classes, layout "
    "one_device (device=1)>"
  )


@pytest.mark.parametrize(
  ("call", "expected"),
  [
    (
      lambda run: run.activations(0, "conv9"),
      "has no layer 'conv9', but conv1, conv2, fc6, fc8. Set layer",
    ),
    (
      lambda run: run.activations_of_layers(0, ()),
      r"layers is \(\), expected some of conv1, conv2, fc6, fc8. Set layers.",
    ),
    (
      lambda run: run.logits(
        pictures_lib.read_pictures(np.zeros((9, 9), np.uint8), side=67)
      ),
      "the pictures are 67 x 67 x 3, expected 72 x 72 x 3. Read them with",
    ),
    (lambda run: run.predict(0, top=0), "top is 0, expected an integer >= 1"),
    (lambda run: run.predict(0, top=True), "top is True, expected an integer"),
    (lambda run: run.probabilities(0, views=5), "views is 5, expected 1 or 10"),
    (
      lambda run: run.probabilities(0, views=True),
      "views is True, expected 1 or 10",
    ),
  ],
)
def test_wrong_argument_is_named(call, expected, loaded):
  with pytest.raises(ValueError, match=expected):
    call(loaded)


@pytest.mark.parametrize("workdir", [3, None, b"runs/demo"])
def test_workdir_that_is_no_path_is_named(workdir):
  expected = f"workdir is {workdir!r}, expected the path of a run. Set workdir."
  with pytest.raises(TypeError, match=re.escape(expected)):
    alexnet_jax.load(workdir)


def test_picture_that_cannot_be_read_is_named(loaded, pictures, tmp_path):
  (tmp_path / "a.png").write_bytes(b"<html>")
  Image.fromarray(pictures[0]).save(tmp_path / "b.png")
  with pytest.raises(ValueError, match="a.png' .*Leave it out"):
    loaded.predict(tmp_path)


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    ({"step": 4}, "no checkpoint of step 4, but of 3. Set step."),
    ({"layout": "two_colum"}, "unknown layout 'two_colum'.* Set layout."),
    (
      {"layout": dataclasses.replace(catalog.DATA_PARALLEL, mesh={"data": 9})},
      r"needs 9 devices \(data=9\), but JAX has started with 8 \(cpu\).* "
      "JAX_NUM_CPU_DEVICES=9",
    ),
  ],
)
def test_run_that_cannot_be_loaded_so_is_refused(options, expected, short_run):
  with pytest.raises(ValueError, match=expected) as caught:
    alexnet_jax.load(short_run[0], **options)
  assert "\n" not in str(caught.value)


def test_run_without_facts_of_its_data_is_refused(short_run, tmp_path):
  path = tmp_path / "copy"
  shutil.copytree(short_run[0], path)
  (path / "data.json").unlink()
  with pytest.raises(FileNotFoundError, match="earlier version .* Resume it"):
    alexnet_jax.load(path)
  with pytest.raises(ValueError, match="has no config.json. Set workdir."):
    alexnet_jax.load(tmp_path)
  with pytest.raises(TypeError, match="layout is 2, expected the name of one"):
    alexnet_jax.load(path, layout=2)
  above = tmp_path / "several"
  above.mkdir()
  shutil.copy(path / "config.json", above)
  path.rename(above / "member_0")
  with pytest.raises(ValueError, match="runs in it: .*several/member_0"):
    alexnet_jax.load(above)


@pytest.mark.parametrize(
  "layout",
  [catalog.TWO_COLUMN, catalog.TENSOR_PARALLEL],
  ids=lambda layout: layout.name,
)
@pytest.mark.parametrize(
  "table",
  [wirings.ALEXNET_2012, wirings.CAFFENET, wirings.SOURCE_145],
  ids=lambda table: table.name,
)
@pytest.mark.slow
def test_activations_of_every_layer(table, layout, pictures, tmp_path):
  parameters = stored_run.write(tmp_path, stored_run.make_config(table))
  run = alexnet_jax.load(tmp_path, layout=layout)
  assert run.program.mesh.size == 2
  check_layers(run, parameters, pictures, [row.name for row in table.layers])


@pytest.mark.slow
def test_layout_of_a_user_and_any_batch(short_run, pictures):
  path, parameters = short_run
  rows = layout_lib.Placement(batch=("row",))
  layout = layout_lib.Layout(name="mine", mesh={"row": 3}, conv=rows, fc=rows)
  run = alexnet_jax.load(path, layout=layout)
  check_layers(run, parameters, pictures, ["fc8"])
  config = default.get_config()
  default.use_layout(config, layout)
  same = alexnet_jax.load(path, layout=config.layout)
  np.testing.assert_array_equal(same.logits(pictures), run.logits(pictures))
  many = small_sets.tiles(70, side=72)  # three batches
  found = run.logits(many)
  for start in range(0, 70, 7):
    part = run.logits(many[start : start + 7])
    # The same sums in another order.
    np.testing.assert_allclose(
      found[start : start + 7], part, atol=TOLERANCE * np.abs(part).max()
    )


@pytest.mark.slow
def test_averages_and_batch_normalization(pictures, tmp_path):
  """The averages differ from the parameters, the statistics from 0 and 1."""

  def change(state):
    state = stored_run.add_noise(state)
    rng = np.random.default_rng(2)
    statistics = {
      layer: {
        "mean": rng.normal(size=one["mean"].shape).astype(np.float32),
        "variance": rng.uniform(1, 2, one["mean"].shape).astype(np.float32),
      }
      for layer, one in state.statistics.items()
    }
    return state._replace(statistics=jax.device_put(statistics))

  config = stored_run.make_config(
    SHORT, **{"network.normalization": "batch", "optimizer.ema_decay": 0.5}
  )
  parameters = stored_run.write(tmp_path, config, change=change)
  run = alexnet_jax.load(tmp_path, layout="two_column")
  # Those of the first state, whose biases are 0.
  assert not np.any(run.parameters["conv1"]["bias"])
  assert np.any(parameters["conv1"]["bias"])
  assert {*run.parameters["conv1"]} == {
    *("kernel", "bias", "scale", "mean", "variance")
  }
  check_layers(run, run.parameters, pictures, ["conv1", "conv2", "fc8"])


@pytest.mark.slow
def test_probabilities_are_those_of_an_evaluation(short_run, tmp_path):
  path, _ = short_run
  images = small_sets.tiles(21, side=72)
  records = small_sets.make_records(
    tmp_path,
    [small_sets.encode(image) for image in images],
    labels=np.arange(21) % 10,
    num_classes=10,
    stored_size=72,
  )
  run = trained_run.read(
    str(path), fields=default.get_config(), layout="two_column"
  )
  loaded = alexnet_jax.load(path, layout="two_column")
  statistics = loaded.program.augmentation.statistics
  program = loaded_run.make_program(run, statistics)
  (one, five), _ = evaluation.predict_split(
    program,
    loaded_run.load_variables(run, program),
    records,
    **{"name": "a", "views": [1, 5], "threads": 1, "batches_ahead": 1},
  )
  for evaluated, views in ((one, 1), (five, 10)):  # digits are not mirrored
    found = loaded.probabilities(images, views=views)
    # Batches of other sizes: sums in another order, in float32.
    np.testing.assert_allclose(found, evaluated.probabilities, atol=1e-6)
  logits = loaded.logits(images)
  shifted = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  np.testing.assert_allclose(shifted, one.log_probabilities, atol=TOLERANCE)


FRESH = """
import sys, time
import alexnet_jax
assert not {"jax", "numpy", "absl"} & {*sys.modules}
first = sys.argv[2] == "first"
import jax
jax.config.update("jax_enable_x64", True)
if not first:
  jax.numpy.zeros(1)
before = dict(jax.config.values)
try:
  run = alexnet_jax.load(sys.argv[1], layout="two_column")
except ValueError as error:
  sys.exit(str(error))
run.predict(sys.argv[3])
after = dict(jax.config.values)
changed = [name for name in after if after[name] != before[name]]
assert changed == ["jax_num_cpu_devices"], changed
names = ("tensorflow_datasets", "configs", "absl.app", "tensorboardX")
assert not {*names} & {*sys.modules}
print(run.program.mesh.size, len(jax.devices()), run.logits(sys.argv[3]).dtype)
"""


@pytest.mark.slow
def test_fresh_process_simulates_devices_and_keeps_its_settings(
  short_run, pictures, tmp_path
):
  picture = tmp_path / "a.png"
  Image.fromarray(pictures[0]).save(picture)
  # A folder of the user's, which has nothing to do with ours.
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "default.py").write_text("raise SystemExit('mine')")
  (tmp_path / "script.py").write_text(FRESH)

  def run(when):
    return processes.run(
      ["python", "script.py", short_run[0], when, picture],
      tmp_path / "cache",
      cwd=tmp_path,
      variables={"PYTHONPATH": str(processes.ROOT), "JAX_PLATFORMS": "cpu"},
    )

  assert run("first") == (0, "2 2 float32\n", "")
  late = run("late")
  assert late.code == 1
  assert re.fullmatch(
    r"layout 'two_column' needs 2 devices \(column=2\), but JAX has started "
    r"with 1 \(cpu\)\. .*JAX_NUM_CPU_DEVICES=2.*\n",
    late.errors,
  )


@pytest.mark.slow
def test_script_of_the_documentation_runs_without_the_data_set(
  tiny_config, tmp_path
):
  page = (processes.ROOT / "docs/using_a_run.md").read_text()
  (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  data_dir, trained = tmp_path / "data", tmp_path / "trained"
  tiny_config.layout.name = "two_column"
  runs.train(tiny_config, trained, data_dir)
  place = tmp_path / "elsewhere"
  (place / "runs").mkdir(parents=True)
  shutil.copytree(trained, place / "runs" / "demo")
  shutil.rmtree(data_dir)
  shutil.rmtree(trained)
  (place / "photos").mkdir()
  for number, image in enumerate(small_sets.tiles(3, side=90)):
    Image.fromarray(image).save(place / "photos" / f"{number}.png")
  ended = processes.run(
    ["python", "-c", script],
    tmp_path / "cache",
    cwd=place,
    variables={"PYTHONPATH": str(processes.ROOT), "JAX_PLATFORMS": "cpu"},
  )
  assert (ended.code, ended.errors) == (0, ""), ended.errors
  assert "photos/0.png" in ended.out
