"""What a run takes from its config and its set, and what it refuses."""

import dataclasses
import os
import shutil

import jax
import numpy as np
import pytest

from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.data import records, sets, source, statistics
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.distributed import machine
from alexnet_jax.program import devices
from alexnet_jax.settings import build, settings
from alexnet_jax.training import run as run_lib
from alexnet_jax.training import run_data
from configs import default
from tests import runs


@pytest.fixture
def prepare(tiny_config, tmp_path):
  """Prepares a run of `tiny_config` with some fields changed."""

  def prepare(fields=None):
    tiny_config.update_from_flattened_dict(fields or {})
    return runs.prepare(tiny_config, tmp_path / "workdir", tmp_path / "data")

  return prepare


@pytest.fixture
def set_statistics(monkeypatch):
  """Gives the set of a run a mean image, and returns its statistics."""

  def set_statistics(side, mean=(1.0, 2.0, 3.0)):
    image = np.ones((side, side, 3), np.float32)
    found = dataclasses.replace(
      statistics.PUBLISHED, mean=mean, mean_image=image
    )
    monkeypatch.setattr(sets, "find_statistics", lambda _: found)
    return found

  return set_statistics


OF_DATASET = {"augment.statistics": "dataset", "augment.mean": None}


@pytest.mark.parametrize(
  ("fields", "side", "expected"),
  [
    (
      {"augment.statistics": "dataset"},
      None,
      "^dataset 'digits' has no statistics of its pixels; set "
      r"config\.augment\.statistics=published and config\.augment\.mean="
      r"\(R, G, B\) to the mean of its training split\.$",
    ),
    (
      OF_DATASET | {"augment.mean_from": "image"},
      76,
      "76 x 76 x 3, expected 77 x 77 x 3",
    ),
    ({"data.validation_split": "test"}, None, "no split 'test'"),
    ({"data.stored_size": 60}, None, "67 pixels .* config.data.stored_size"),
  ],
  ids=["no statistics", "side of the mean image", "no split", "stored_size"],
)
def test_data_that_do_not_fit_are_refused_before_anything_is_written(
  fields, side, expected, tmp_path, prepare, set_statistics
):
  if side:
    set_statistics(side)
  with pytest.raises(ValueError, match=expected):
    prepare(fields)
  assert not (tmp_path / "workdir").exists()


def test_network_takes_the_classes_of_the_set(prepare, tmp_path):
  run = prepare({"network.num_classes": None})
  assert run.program.network.layers[-1].features == 10
  assert run.config.network.num_classes == 10
  kept = workdir_lib.read_config(str(tmp_path / "workdir"))
  assert kept["network.num_classes"] == 10
  for lock in run.locks:
    lock.release()
  # The number itself is the same run.
  prepare({"network.num_classes": 10})


def test_classes_of_a_set_need_the_set(tiny_config, tmp_path):
  tiny_config.network.num_classes = None
  with pytest.raises(
    ValueError,
    match=r"num_classes is None, .* Set config\.network\.num_classes",
  ):
    settings.check(tiny_config)
  tiny_config.data.name = "birds"
  folder = str(tmp_path / "typo")
  with pytest.raises(ValueError, match=f"'birds' is not in {folder}, which do"):
    run_lib.check(tiny_config, data_dir=folder)
  # Fields are checked before one of them names the set.
  tiny_config.data.name = ""
  with pytest.raises(ValueError, match=r"Set config\.data\.name"):
    run_lib.check(tiny_config, data_dir=folder)


def test_label_of_the_validation_is_checked_before_the_first_step(
  prepare, tmp_path, monkeypatch
):
  read = records.Records.read_encoded

  def read_wrong(self, index):
    if self.source.name.startswith("digits/validation") and index == 17:
      raise source.RecordError("record 17 has label -1, expected 0..9.")
    return read(self, index)

  monkeypatch.setattr(records.Records, "read_encoded", read_wrong)
  with pytest.raises(ValueError, match="record 17 has label -1"):
    prepare()
  assert not (tmp_path / "workdir").exists()


def test_run_takes_the_statistics_of_its_set(prepare, set_statistics):
  found = set_statistics(77)
  options = {"mean_from": "image_center", "color_divisor": 1.1}
  fields = {f"augment.{name}": value for name, value in options.items()}
  program = prepare(OF_DATASET | fields | {"validation_views": 10}).program
  assert program.augmentation.statistics is found
  for name, value in options.items():
    assert getattr(program.augmentation, name) == value
  # Without flips, no view is mirrored.
  assert (program.views, program.augmentation.num_views) == (5, 5)


def test_views_are_mirrored_where_training_images_are(prepare):
  fields = {"augment.flip": True, "validation_views": 10}
  assert prepare(fields).program.views == 10


def test_mean_of_a_config_takes_the_place_of_the_statistics(prepare):
  found = prepare().program.augmentation.statistics
  assert found.mean == (77.0, 77.0, 77.0)
  assert found.stds == statistics.PUBLISHED.stds


@pytest.mark.parametrize("mean_from", ["channel", "image"])
def test_program_without_data_has_statistics_of_the_same_sizes(mean_from):
  config = default.get_config("imagenet")
  config.augment.mean_from = mean_from
  network, layout = settings.check(config)
  program = run_lib.make_program(config, network, layout)
  found = program.augmentation.statistics
  assert found.mean == (127.30, 119.72, 104.91)
  assert found.mean_image.shape == (256, 256, 3)


def test_mean_that_would_not_be_read_is_refused(tiny_config):
  tiny_config.augment.mean_from = "image"
  with pytest.raises(ValueError, match="which does not read it"):
    settings.check(tiny_config)


def test_run_does_not_resume_with_other_data(prepare, set_statistics):
  set_statistics(77)
  prepare(OF_DATASET)
  prepare()
  set_statistics(77, mean=(1.0, 2.0, 3.5))
  with pytest.raises(ValueError, match="another config .found.statistics: "):
    prepare()


def test_run_does_not_resume_with_other_labels(prepare, monkeypatch):
  prepare()
  read = records.Records.read_encoded
  with monkeypatch.context() as rebuilt:

    def read_relabeled(self, index):
      image, label = read(self, index)
      return image, 9 - label

    rebuilt.setattr(records.Records, "read_encoded", read_relabeled)
    with pytest.raises(ValueError, match=r"found\.training_records: \w{16} in"):
      prepare()

  def read_damaged(self, index):
    if index == 40:
      raise source.UnreadableError("cannot be read")
    return read(self, index)

  # A file that was damaged since is no other data set: training names it.
  monkeypatch.setattr(records.Records, "read_encoded", read_damaged)
  prepare()


def test_run_does_not_resume_with_other_settings_of_jax_or_xla(
  prepare, monkeypatch
):
  prepare()
  problem = r"found\.environment: .* in the workdir, .*{} now"
  setting = "JAX_DEFAULT_MATMUL_PRECISION=bfloat16.*"
  with (
    jax.default_matmul_precision("bfloat16"),
    pytest.raises(ValueError, match=problem.format(setting)),
  ):
    prepare()
  for name, value in (
    ("XLA_FLAGS", "--xla_cpu_enable_fast_math=true"),
    ("NVIDIA_TF32_OVERRIDE", "0"),
  ):
    with monkeypatch.context() as shell:
      shell.setenv(name, f"{os.environ.get(name, '')} {value}".strip())
      with pytest.raises(ValueError, match=problem.format(f"{name}={value}")):
        prepare()


def test_run_that_memory_does_not_hold_is_refused_and_claims_nothing(
  tmp_path, prepare, monkeypatch
):
  program = prepare().program
  held = devices.count_held_bytes(program, batches_ahead=2)
  shutil.rmtree(tmp_path / "workdir")
  # 16 images of 77 x 77 x 3 bytes and their labels, four batches.
  assert held["batches"] == 4 * 16 * (77 * 77 * 3 + 4)
  total = sum(held.values())
  monkeypatch.setattr(machine, "find_memory", lambda: (total, total))
  devices.check_memory(program, batches_ahead=2)
  monkeypatch.setattr(machine, "find_memory", lambda: (total, total - 1))
  with pytest.raises(ValueError, match=r"Set a lower config\.batch_size"):
    prepare()
  assert not (tmp_path / "workdir").exists()


def test_more_steps_than_an_int32_counts_are_refused(tiny_config):
  tiny_config.num_epochs = 1e6
  assert run_lib.find_num_steps(tiny_config, 16) == 10**6
  with pytest.raises(ValueError, match=r"62,500,000,000 .* config\.num_epochs"):
    run_lib.find_num_steps(tiny_config, 10**6)
  tiny_config.optimizer.drop_epochs = (0.5, 1e6)
  kernels, _ = build.make_schedules(tiny_config, 10**6)
  # 0.5 epochs are 31,250 steps; the second drop is never reached.
  assert [float(kernels(step)) for step in (31249, 2**31 - 2)] == [
    pytest.approx(rate, rel=1e-6)
    for rate in (0.01, 0.001)  # float32
  ]


def test_platform_without_its_plug_in_is_named(tiny_config, monkeypatch):
  def fail():  # as JAX does
    raise AssertionError

  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  monkeypatch.setattr(jax, "devices", fail)
  _, layout = settings.check(tiny_config)
  problem = "plug-in is not installed.* Correct or unset JAX_PLATFORMS=cuda"
  with pytest.raises(OSError, match=problem):
    run_lib.start_devices(tiny_config, layout, group_lib.alone(), None)


def test_run_keeps_the_facts_of_its_set_in_every_workdir(
  prepare, set_statistics, tmp_path
):
  found = set_statistics(77)
  workdir = tmp_path / "workdir"
  folders = [workdir, workdir / "member_0", workdir / "member_1"]
  for missing in ((), folders[1:]):  # as a run of an earlier version has none
    for folder in missing:
      (folder / "data.json").unlink()
    run = prepare({**OF_DATASET, "ensemble": 2})
    for lock in run.locks:
      lock.release()
    for folder in folders:
      fields = workdir_lib.read_config(str(folder))
      facts = {"statistics": fields["found.statistics"]}
      data = run_data.read(str(folder), facts, num_classes=10)
      assert data.class_names == tuple("0123456789")
      np.testing.assert_array_equal(
        data.statistics.mean_image, found.mean_image
      )
