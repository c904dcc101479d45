"""What a run takes from its config and its set, and what it refuses."""

import dataclasses
import shutil

import numpy as np
import pytest

from alexnet_jax.data import sets, statistics
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.distributed import machine
from alexnet_jax.program import devices
from alexnet_jax.settings import build, settings
from alexnet_jax.training import run as run_lib
from configs import default


@pytest.fixture
def prepare(tmp_path):
  def prepare(config):
    return run_lib.prepare(
      config,
      group=group_lib.alone(),
      workdir=str(tmp_path / "workdir"),
      data_dir=str(tmp_path / "data"),
      simulate_devices=None,
    )

  return prepare


def with_mean_image(side):
  return dataclasses.replace(
    statistics.PUBLISHED,
    mean=(1.0, 2.0, 3.0),
    mean_image=np.ones((side, side, 3), np.float32),
  )


def test_set_without_statistics_is_refused_before_anything_is_written(
  tiny_config, tmp_path, prepare
):
  tiny_config.augment.statistics = "dataset"
  with pytest.raises(ValueError) as caught:
    prepare(tiny_config)
  assert str(caught.value) == (
    "dataset 'digits' keeps no statistics of its pixels; set "
    "config.augment.statistics=published and config.augment.mean=(R, G, B) to "
    "those of its training split."
  )
  assert not (tmp_path / "workdir").exists()


def test_mean_image_of_another_side_is_refused_before_anything_is_written(
  tiny_config, tmp_path, prepare, monkeypatch
):
  monkeypatch.setattr(sets, "find_statistics", lambda _: with_mean_image(76))
  tiny_config.augment.statistics = "dataset"
  tiny_config.augment.mean = None
  tiny_config.augment.mean_from = "image"
  with pytest.raises(ValueError, match="76 x 76 x 3, expected 77 x 77 x 3"):
    prepare(tiny_config)
  assert not (tmp_path / "workdir").exists()


def test_run_takes_the_statistics_of_its_set(tiny_config, prepare, monkeypatch):
  found = with_mean_image(77)
  monkeypatch.setattr(sets, "find_statistics", lambda _: found)
  tiny_config.augment.statistics = "dataset"
  tiny_config.augment.mean = None
  tiny_config.augment.mean_from = "image_center"
  tiny_config.augment.color_divisor = 1.1
  tiny_config.validation_views = 10
  program = prepare(tiny_config).program
  assert program.augmentation.statistics is found
  assert program.augmentation.mean_from == "image_center"
  assert program.augmentation.color_divisor == 1.1
  assert program.views == 10


def test_mean_of_a_config_takes_the_place_of_the_statistics(
  tiny_config, prepare
):
  found = prepare(tiny_config).program.augmentation.statistics
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


def test_split_that_is_none_does_not_claim_the_workdir(
  tiny_config, tmp_path, prepare
):
  tiny_config.data.validation_split = "test"
  with pytest.raises(ValueError, match="no split 'test'"):
    prepare(tiny_config)
  assert not (tmp_path / "workdir").exists()


def test_run_does_not_go_on_with_other_data(tiny_config, prepare, monkeypatch):
  tiny_config.augment.statistics = "dataset"
  tiny_config.augment.mean = None
  monkeypatch.setattr(sets, "find_statistics", lambda _: with_mean_image(77))
  prepare(tiny_config)
  prepare(tiny_config)
  other = dataclasses.replace(with_mean_image(77), mean=(1.0, 2.0, 3.5))
  monkeypatch.setattr(sets, "find_statistics", lambda _: other)
  with pytest.raises(ValueError, match="another config .found.statistics: "):
    prepare(tiny_config)


def test_run_that_memory_does_not_hold_is_refused_and_claims_nothing(
  tiny_config, tmp_path, prepare, monkeypatch
):
  program = prepare(tiny_config).program
  held = devices.find_held(program, batches_ahead=2)
  shutil.rmtree(tmp_path / "workdir")
  # 16 images of 77 x 77 x 3 bytes and their labels, four batches.
  assert held["batches"] == 4 * 16 * (77 * 77 * 3 + 4)
  whole = sum(held.values())
  monkeypatch.setattr(machine, "find_memory", lambda: (whole, whole))
  devices.check_memory(program, batches_ahead=2)
  monkeypatch.setattr(machine, "find_memory", lambda: (whole, whole - 1))
  with pytest.raises(ValueError, match=r"Set a lower config\.batch_size"):
    prepare(tiny_config)
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


@pytest.mark.parametrize("flags", ["none", "--xla_cpu_max_isa=AVX none"])
def test_xla_flags_that_xla_would_not_read_are_refused(flags, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", flags)
  with pytest.raises(ValueError, match="XLA_FLAGS has 'none', expected flags"):
    devices.check_start()
