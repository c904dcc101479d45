import json
import sys

import pytest

from alexnet_jax import run as run_lib
from alexnet_jax import settings, step_speed
from alexnet_jax.data import speed
from tests import test_main


def bench(tmp_path, *flags):
  return test_main.start(
    [
      *(sys.executable, "-m", "alexnet_jax.bench"),
      *("--config=configs/two_device.py", f"--data_dir={tmp_path}"),
      *("--rounds=2", "--seconds=0.02", *flags),
    ]
  )


def test_every_stage_of_the_input_is_measured(tmp_path):
  process = bench(tmp_path, "--format=json", "--config.data.threads=3")
  assert process.returncode == 0, process.stderr
  found = json.loads(process.stdout)
  assert found["threads"] == 3
  assert found["rows"] == 64  # both columns read the whole batch
  assert found["pixel_bytes_per_image"] == 77 * 77 * 3
  assert 50 < found["stored_bytes_per_image"] < 500
  for stage in speed.STAGES:
    rates = found["images_per_second_of_rounds"][stage]
    assert len(rates) == 2 and min(rates) > 0
    assert min(rates) <= found["images_per_second"][stage] <= max(rates)
  assert found["slowest"] in speed.ALONE
  assert found["host_of_decoder"] > 0


def test_set_that_is_not_there_ends_in_one_line(tmp_path):
  process = bench(tmp_path, "--config.data.name=cifar10")
  assert process.returncode == 1
  (line,) = process.stderr.strip().splitlines()
  assert line.startswith("error: dataset 'cifar10' is not prepared")


@pytest.mark.slow
def test_table_says_what_bounds_the_input(tmp_path):
  process = bench(tmp_path)
  assert process.returncode == 0, process.stderr
  for text in (*speed.STAGES, "images/s", "per core", "the slowest is"):
    assert text in process.stdout


@pytest.mark.slow
def test_step_is_measured_with_augmentation_and_without(tiny_config):
  tiny_config.layout.name = "two_column"
  network, layout = settings.check(tiny_config)
  program = run_lib.make_program(tiny_config, network, layout)
  found = step_speed.measure(program, rounds=3)
  assert len(found.with_augmentation) == len(found.without) == 3
  assert min(*found.with_augmentation, *found.without) > 0
  assert found.batch_size == 16


def test_added_time_is_the_median_of_pairs():
  found = step_speed.Speed(
    with_augmentation=[1.1, 4.0, 2.4], without=[1.0, 2.0, 2.0], batch_size=1
  )
  assert found.added() == pytest.approx(0.2)  # of 0.1, 1.0, 0.2


def test_medians_and_ratios_are_those_of_the_rounds():
  rates = {
    "read": [100.0, 300.0, 200.0],
    "decode": [50.0, 40.0, 20.0],
    "batch": [500.0, 600.0, 700.0],
    "transfer": [900.0, 30.0, 31.0],
    "host": [40.0, 20.0, 18.0],
    "all": [30.0, 20.0, 10.0],
  }
  found = speed.Speed(
    rates=rates,
    stored_bytes=1e3,
    pixel_bytes=6_000,
    threads=2,
    cores=2,
    rows=8,
    platform="gpu",
  )
  assert found.median("read") == 200.0
  assert found.slowest() == "transfer"
  assert found.of_decoder() == pytest.approx(0.8)  # of 0.8, 0.5, 0.9
  assert found.bytes_per_image("read") == 1e3
  assert found.bytes_per_image("all") == 6_000
