import json
import sys

import pytest

from alexnet_jax.bench import gaps, input, startup
from tests import test_main

SMALL = (
  *("--config.network.width=0.125", "--config.batch_size=16"),
  "--config.data.train_split=train[:160]",
)


def bench(tmp_path, *flags):
  return test_main.start(
    [
      *(sys.executable, "-m", "alexnet_jax.bench"),
      *("--config=configs/two_device.py", f"--data_dir={tmp_path}"),
      *("--rounds=2", "--seconds=0.02", *flags),
    ]
  )


def test_every_stage_of_the_input_is_measured(tmp_path):
  process = bench(
    tmp_path, "--what=input", "--format=json", "--config.data.threads=3"
  )
  assert process.returncode == 0, process.stderr
  found = json.loads(process.stdout)
  assert found["threads"] == 3
  assert found["rows"] == 64  # both columns read the whole batch
  assert found["pixel_bytes_per_image"] == 77 * 77 * 3
  assert 50 < found["stored_bytes_per_image"] < 500
  for stage in input.STAGES:
    rates = found["images_per_second_of_rounds"][stage]
    assert len(rates) == 2 and min(rates) > 0
    assert min(rates) <= found["images_per_second"][stage] <= max(rates)
  assert found["slowest"] in input.ALONE
  assert found["host_of_decoder"] > 0


def test_set_that_is_not_there_ends_in_one_line(tmp_path):
  process = bench(tmp_path, "--what=input", "--config.data.name=cifar10")
  assert process.returncode == 1
  (line,) = process.stderr.strip().splitlines()
  assert line.startswith("error: dataset 'cifar10' is not prepared")


@pytest.mark.slow
def test_table_says_what_bounds_the_input(tmp_path):
  process = bench(tmp_path, "--what=input")
  assert process.returncode == 0, process.stderr
  for text in (*input.STAGES, "images/s", "per core", "the slowest is"):
    assert text in process.stdout


@pytest.mark.slow
def test_step_is_what_is_measured_first(tmp_path):
  flags = (*SMALL, "--compilation_cache=off")
  process = bench(tmp_path, *flags, "--format=json")
  assert process.returncode == 0, process.stderr
  found = json.loads(process.stdout)
  assert found["batch_size"] == 16 and found["devices"] == 2
  for way in ("single", "ahead"):
    seconds = found[f"seconds_{way}"]
    assert len(seconds["rounds"]) == 2
    assert found[f"images_per_second_{way}"] == pytest.approx(
      16 / seconds["median"]
    )
  assert found["flops_per_second"] == pytest.approx(
    found["flops"] / found["seconds_ahead"]["median"]
  )
  # Of less work than a product of the size that is best for the machine.
  assert 0 < found["share_of_peak"] < 1
  # State and batch of one device at least: half of all parameters and
  # velocities, as f32.
  assert found["memory"]["peak"] > 1e6
  assert found["peak_memory_bytes"] > found["memory"]["peak"]
  shown = bench(tmp_path, *flags)
  for text in ("each waited for", "large product, float32", "of the peak of"):
    assert text in shown.stdout


@pytest.mark.slow
def test_run_is_split_by_what_the_host_does(tmp_path):
  flags = (*SMALL, "--what=run", "--steps=20", "--format=json")
  process = bench(tmp_path, *flags)
  assert process.returncode == 0, process.stderr
  found = json.loads(process.stdout)
  assert found["steps"] == 18  # without the first two
  assert found["checkpoints"] == 1 and found["reports"] == 3
  assert {*found["gap_seconds"]} == {*gaps.ACTIVITIES}
  assert found["gap_seconds"]["checkpoint"] > 0
  assert 0 < found["gap_share_at_own_cadence"] < found["gap_share"] < 1


@pytest.mark.slow
def test_warm_start_finds_in_the_cache_what_the_cold_one_has_left(tmp_path):
  flags = (*SMALL, "--what=startup", "--rounds=1")
  process = bench(tmp_path, *flags, "--format=json")
  assert process.returncode == 0, process.stderr
  found = json.loads(process.stdout)
  for start in startup.STARTS:
    medians = {
      phase: seconds["median"]
      for phase, seconds in found[start]["seconds"].items()
    }
    assert [*medians] == [*startup.PHASES] and min(medians.values()) >= 0
    assert sum(medians.values()) == pytest.approx(
      found[start]["total_seconds"]["median"]
    )
  assert found["cold"]["step_from_cache"] == [False]
  assert found["warm"]["step_from_cache"] == [True]
  cold, warm = (
    found[start]["seconds"][startup.COMPILE]["median"]
    for start in startup.STARTS
  )
  assert warm < cold / 2


@pytest.mark.slow
def test_start_that_fails_ends_in_the_line_of_its_own(tmp_path):
  process = bench(tmp_path, "--what=startup", "--implementations=none")
  assert process.returncode == 1
  (line,) = process.stderr.strip().splitlines()
  assert "ended with code 1: implementations are 'none'" in line


def test_medians_and_ratios_are_those_of_the_rounds():
  rates = {
    "read": [100.0, 300.0, 200.0],
    "decode": [50.0, 40.0, 20.0],
    "batch": [500.0, 600.0, 700.0],
    "transfer": [900.0, 30.0, 31.0],
    "host": [40.0, 20.0, 18.0],
    "all": [30.0, 20.0, 10.0],
  }
  found = input.Speed(
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
