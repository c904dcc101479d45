"""A run starts with the layers of another one, or is refused in one line."""

import dataclasses
import os
import shutil
import types

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from alexnet_jax.checkpoints import checkpoint
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.network import model
from alexnet_jax.optim import ema
from alexnet_jax.program import step as step_lib
from alexnet_jax.settings import build, settings
from alexnet_jax.training import run as run_lib
from alexnet_jax.training import warm_start
from configs import default
from tests import runs, short_network

FOUND = {"dataset": "digits/1.0.0", "statistics": "s", "training_images": 48}


def make_config(**fields):
  """conv1, conv3, conv4, fc6 and fc8 for images of 35 pixels."""
  config = default.get_config("digits")
  short_network.shorten(config)
  config.network.width = 1 / 8
  config.batch_size = 16
  config.data.train_split = "train[:48]"
  config.data.validation_split = "validation[:21]"
  config.num_epochs = 2.0
  config.update_from_flattened_dict(fields)
  return config


def from_run(workdir, **fields):
  """The fields of `config.init_from`."""
  values = {"workdir": str(workdir)} | fields
  return {f"init_from.{name}": value for name, value in values.items()}


def write_run(path, config, *, steps=(6,), found=FOUND) -> step_lib.TrainState:
  """Writes a run whose arrays are noise; returns the state of its last step."""
  network, _ = settings.check(config)
  optimizer = build.make_optimizer(config, config.batch_size)
  like = step_lib.make_abstract_state(network, optimizer)
  acquired = workdir_lib.acquire(
    {str(path): config.to_dict()}, found, may_change=()
  )
  for lock in acquired.locks:
    lock.release()
  for step in steps:
    rng = np.random.default_rng(step)
    state = jax.tree.map(
      lambda leaf, rng=rng: np.asarray(rng.normal(size=leaf.shape), leaf.dtype),
      like,
    )
    state = state._replace(step=np.int32(step), is_finite=np.bool_(True))
    save(path, step, state)
  return state


def save(path, step, state):
  checkpoints = checkpoint.Checkpoints(str(path), keep=3)
  checkpoints.save(step, jax.device_put(state))
  checkpoints.close()


def read(config, workdir="new", *, group=None, origin=None):
  network, _ = settings.check(config)
  return warm_start.read(
    config,
    network,
    group=group or group_lib.alone(),
    workdir=str(workdir),
    origin=origin or {},
  )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A run of five classes, with averages of its parameters: path, state."""
  path = tmp_path_factory.mktemp("source") / "run"
  config = make_config(**{"network.num_classes": 5, "optimizer.ema_decay": 0.9})
  return path, write_run(path, config, steps=(3, 6))


FC8 = {"init_from.leave_out": ("fc8",)}


def test_layers_are_taken_by_name_and_the_others_drawn(source):
  path, there = source
  config = make_config(
    **from_run(path, optimizer="keep"),
    **FC8,
    **{"optimizer.ema_decay": 0.5, "layout.name": "two_column"},
  )
  network, layout = settings.check(config)
  program = run_lib.make_program(config, network, layout)
  first = program.init(jax.random.key(1))
  before = jax.device_get(first)
  start = read(config)
  state = start.apply(first)
  for one, abstract in zip(
    jax.tree.leaves(state), jax.tree.leaves(program.abstract_state), strict=True
  ):
    assert one.sharding == abstract.sharding
  state = jax.device_get(state)
  averages = ema.find_ema(there.optimizer).average
  velocities, drawn, taken = (
    optax.tree.get(one.optimizer, "trace") for one in (state, before, there)
  )
  for name in ("conv1", "conv3", "conv4", "fc6", "fc8"):
    expected = before.parameters if name == "fc8" else averages
    velocity = (drawn if name == "fc8" else taken)[name]
    for array in ("kernel", "bias"):
      value = expected[name][array]
      average = ema.find_ema(state.optimizer).average
      np.testing.assert_array_equal(state.parameters[name][array], value)
      np.testing.assert_array_equal(average[name][array], value)
      np.testing.assert_array_equal(velocities[name][array], velocity[array])
  assert state.step == 0 and before.parameters["fc8"]["bias"].shape == (10,)
  counts = [leaf for leaf in jax.tree.leaves(state.optimizer) if not leaf.ndim]
  assert counts and not any(counts)
  assert "averaged parameters of step 6" in start.describe()
  rows = list(
    zip(*(one.cells for one in start.make_table().columns), strict=True)
  )
  assert [row[:2] for row in rows] == [
    *((name, "taken") for name in ("conv1", "conv3", "conv4", "fc6")),
    ("fc8", "drawn anew"),
  ]
  assert rows[-1][2:] == ("512x5", "512x10")


def test_new_optimizer_and_an_earlier_step(source, tmp_path):
  path, _ = source
  start = read(make_config(**from_run(path, step=3), **FC8))
  assert start.arrays.keys() == {"variables"}
  assert start.origin["init_from_step"] == 3
  # A second start, before a checkpoint, takes what the first one took.
  config = make_config(**from_run(path), **FC8)
  new = tmp_path / "new"
  workdir_lib.write_config(
    str(new.mkdir() or new),
    workdir_lib.flatten_config(config.to_dict(), FOUND | start.origin),
  )
  origin = warm_start.find_origin(config, str(new))
  assert origin == start.origin
  assert read(config, new, origin=origin).origin == origin
  config.init_from.workdir = f"{path}/../run"
  assert warm_start.find_origin(config, str(new)) == {}


def test_columns_become_one_and_two_again(tmp_path):
  """conv4 reads its own column, or all maps with zeros in between."""
  two = {"network.normalization": "none", "network.num_classes": 4}
  # As an imported run is: of step 0, and of unknown data.
  there = write_run(
    *(tmp_path / "two", make_config(**two)),
    steps=(0,),
    found=dict.fromkeys(FOUND),
  )
  one = make_config(
    **two, **{"network.columns": 1}, **from_run(tmp_path / "two")
  )
  start = read(one)
  assert [*start.make_table().columns[1].cells][2:4] == [
    "taken, zeros between columns added",
    "taken",
  ]
  found = start.arrays["variables"]
  kernel = there.parameters["conv4"]["kernel"]
  _, _, read_maps, maps = kernel.shape
  for y, x, channel, feature in np.ndindex(found["conv4"]["kernel"].shape):
    column = feature // (maps // 2)
    inside = channel // read_maps == column
    expected = kernel[y, x, channel % read_maps, feature] if inside else 0
    assert found["conv4"]["kernel"][y, x, channel, feature] == expected
  for name, arrays in there.parameters.items():
    for array, value in arrays.items():
      if (name, array) != ("conv4", "kernel"):
        np.testing.assert_array_equal(found[name][array], value)
  # And back, from a run of one column, if the zeros are zeros.
  dense = write_run(tmp_path / "one", one)
  back = make_config(**two, **from_run(tmp_path / "one"))
  with pytest.raises(ValueError, match=r"conv4 .* columns of .*leave_out\.$"):
    read(back)
  save(tmp_path / "one", 7, dense._replace(step=np.int32(7), parameters=found))
  jax.tree.map(
    np.testing.assert_array_equal,
    dict(read(back).arrays["variables"]),
    dict(there.parameters),
  )


@pytest.mark.slow
def test_one_column_computes_what_two_did(tmp_path):
  two = make_config(**{"network.normalization": "none"})
  there = write_run(tmp_path / "two", two)
  one = make_config(
    **{"network.normalization": "none", "network.columns": 1},
    **from_run(tmp_path / "two"),
  )
  images = np.random.default_rng(0).normal(size=(2, 35, 35, 3)).astype("f4")
  logits = []
  for config, parameters in (
    (two, there.parameters),
    (one, read(one).arrays["variables"]),
  ):
    graphdef = model.make_graphdef(settings.check(config)[0])
    run = jax.jit(lambda tree, x, g=graphdef: nnx.merge(g, tree)(x))
    logits.append(np.asarray(run(parameters, images)))
  # Zeros are added in between: the same sums in another order, in float32.
  scale = np.abs(logits[0]).max()
  np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=1e-5 * scale)


@pytest.mark.slow
def test_statistics_of_batch_normalization_go_with_their_layer(tmp_path):
  fields = {"network.normalization": "batch", "network.num_classes": 4}
  there = write_run(tmp_path / "run", make_config(**fields))
  start = read(make_config(**fields, **from_run(tmp_path / "run")))
  for name in ("conv1", "fc6"):
    arrays = start.arrays["variables"][name]
    assert arrays.keys() == {"kernel", "bias", "scale", "mean", "variance"}
    np.testing.assert_array_equal(
      arrays["mean"], there.statistics[name]["mean"]
    )
  problem = r"conv1 \(no scale there, scale 12 here\), .*leave_out="
  with pytest.raises(ValueError, match=problem):
    write_run(tmp_path / "plain", make_config())
    read(make_config(**fields | from_run(tmp_path / "plain")))


def test_images_of_another_size_keep_the_convolutions(source):
  path, there = source
  larger = {"network.image_size": 67, "data.stored_size": 77}
  problem = (
    r"fc6 \(kernel 9x48x512 there, kernel 49x48x512 here\), fc8 .*"
    r"leave_out=\('fc6', 'fc8'\)"
  )
  with pytest.raises(ValueError, match=problem):
    read(make_config(**from_run(path), **larger))
  left = from_run(path, leave_out=("fc6", "fc8"))
  found = read(make_config(**left, **larger)).arrays["variables"]
  assert found.keys() == {"conv1", "conv3", "conv4"}
  expected = ema.find_ema(there.optimizer).average
  for name, arrays in found.items():
    jax.tree.map(np.testing.assert_array_equal, arrays, expected[name])


def test_what_else_differs_is_said(source):
  path, _ = source
  config = make_config(
    **from_run(path),
    **FC8,
    **{"augment.scale": 2.0, "augment.flip": True},
    **{"network.activation": "tanh", "network.dropout_scaling": "train"},
  )
  lines = read(config).describe_differences(config)
  layers = ("conv1", "conv3", "conv4", "fc6")
  assert lines == [
    "augment.scale is 2.0 here, but 90.0 in that run",
    "network.dropout_scaling is train here, but test in that run",
    *(
      f"{one}: activation is tanh here, but relu in that run" for one in layers
    ),
  ]


def add_layer(config):
  """Adds a layer fc7 before the last one, with dropout."""
  *others, last = short_network.WIRING.layers
  row = dataclasses.replace(others[-1], name="fc7", reads="all")
  table = dataclasses.replace(
    short_network.WIRING, name="longer", layers=(*others, row, last)
  )
  default.use_wiring(config, table)
  config.network.width = 1 / 8


@pytest.mark.parametrize(
  ("fields", "expected"),
  [
    ({"init_from.workdir": "none"}, r"no run in .*'none'.* Set config\.init_f"),
    ({"init_from.step": 4}, r"no checkpoint of step 4, but of 3, 6\. Set conf"),
    ({}, r"fit this network: fc8 \(kernel 512x5 and bias 5 there, kernel 512x"),
    ({"network.columns": 1}, r"leave_out=\('fc8',\)|conv4 .* in 2 columns"),
    (
      FC8 | {"init_from.optimizer": "keep", "optimizer.trust_coefficient": 0.1},
      "trust_coefficient is 0.1 here and None in",
    ),
    ({"init_from.leave_out": ("fc9",)}, "leave_out has 'fc9', but the network"),
    (
      {"init_from.leave_out": ("conv1", "conv3", "conv4", "fc6", "fc8")},
      "leave_out has all layers",
    ),
    (
      {"init_from.workdir": None, "init_from.step": 0},
      r"init_from\.step is 0, but init_from\.workdir is None",
    ),
    (
      FC8 | {"init_from.workdir": None},
      r"leave_out is \('fc8',\), but init_fr",
    ),
  ],
)
def test_wrong_fields_are_refused_in_one_line(fields, expected, source):
  config = make_config(**from_run(source[0]) | fields)
  with pytest.raises(ValueError, match=expected) as caught:
    read(config)
  assert "\n" not in str(caught.value)
  assert "--workdir" not in str(caught.value)


def test_all_layers_that_do_not_fit_are_named(source):
  config = make_config(**from_run(source[0]))
  add_layer(config)
  problem = r"fc7 \(missing there\), fc8 .*leave_out=\('fc7', 'fc8'\)"
  with pytest.raises(ValueError, match=problem):
    read(config)
  config.init_from.leave_out = ("fc7", "fc8")
  assert "fc7" not in read(config).arrays["variables"]


def test_own_workdir_is_no_source(source):
  path, _ = source
  config = make_config(**from_run(f"{path}/../run"), **FC8)
  for own in (path, path.parent):
    with pytest.raises(ValueError, match="own workdir or in it"):
      read(config, own)


def test_folder_of_several_runs_is_no_run(source):
  config = make_config(**from_run(source[0].parent), **FC8)
  problem = r"Set config\.init_from\.workdir to one of the runs in it: .*/run\."
  with pytest.raises(ValueError, match=problem):
    read(config)


def test_damaged_source_is_refused(source, tmp_path):
  path = tmp_path / "copy"
  shutil.copytree(source[0], path)
  for step, hint in (
    (6, r"init_from\.step=3, which is intact"),
    (3, r"No earlier one is intact\. Set config\.init_from\.workdir"),
  ):
    files = (path / "checkpoints" / str(step) / "state").rglob("*")
    largest = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 255
    largest.write_bytes(content)
    with pytest.raises(OSError, match=f"is damaged: .*{hint}") as caught:
      read(make_config(**from_run(path), **FC8))
    assert "\n" not in str(caught.value)


def test_processes_that_read_something_else_are_refused(source):
  group = types.SimpleNamespace(
    run_in_first=lambda _, act: act(),
    gather=lambda _, value: [value, "0123abcd"],
    label=lambda index: f"process {index} of 2 (b)",
  )
  problem = "is another one in process 1 of 2 .b. than here: .* 0123abcd and"
  with pytest.raises(OSError, match=problem):
    read(make_config(**from_run(source[0]), **FC8), group=group)


def test_nothing_is_written_before_the_layers_are_checked(
  source, tmp_path, data_dir
):
  config = make_config(**from_run(source[0]))
  with pytest.raises(ValueError, match="does not fit this network: fc8"):
    runs.prepare(config, tmp_path / "new", data_dir)
  assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_interrupted_run_needs_its_source_only_once(tmp_path, data_dir):
  first = make_config(**{"num_epochs": 1.0, "optimizer.ema_decay": 0.5})
  trained = runs.train(first, tmp_path / "first", data_dir)
  config = make_config(
    **from_run(tmp_path / "first", leave_out=("fc8",)), seed=3
  )
  straight = runs.train(config, tmp_path / "straight", data_dir)
  assert "starts with the averaged parameters of step 3" in straight.output
  assert "conv1  taken " in straight.output
  config.num_epochs = 1.0
  halfway = runs.train(config, tmp_path / "halves", data_dir)
  assert not runs.same_bits(halfway.state.parameters, trained.state.parameters)
  os.rename(tmp_path / "first", tmp_path / "gone")
  config.num_epochs = 2.0
  resumed = runs.train(config, tmp_path / "halves", data_dir)
  assert "resumes after step 3 of 6" in resumed.output
  assert "starts with" not in resumed.output
  assert runs.same_bits(resumed.state, straight.state)
  kept = workdir_lib.read_config(str(tmp_path / "halves"))
  assert kept["init_from.workdir"] == str(tmp_path / "first")
  assert kept["found.init_from_step"] == 3
  # Its origin belongs to a run, as its other fields.
  config.init_from.leave_out = ()
  with pytest.raises(ValueError, match=r"init_from\.leave_out: \['fc8'\] in"):
    runs.prepare(config, tmp_path / "halves", data_dir)


@pytest.mark.slow
def test_members_start_alike_but_for_the_layers_that_are_drawn(
  source, tmp_path, data_dir
):
  path, there = source
  config = make_config(**from_run(path), **FC8, ensemble=2)
  run = runs.prepare(config, tmp_path / "both", data_dir)
  init_key, _ = run.program.make_keys(0)
  state = jax.device_get(run.start.apply(run.program.init(init_key)))
  expected = ema.find_ema(there.optimizer).average
  for member in range(2):
    for name in ("conv1", "conv3", "conv4", "fc6"):
      for array, value in expected[name].items():
        np.testing.assert_array_equal(
          state.parameters[name][array][member], value
        )
  one, other = state.parameters["fc8"]["kernel"]
  assert not np.array_equal(one, other)
