import json

import pytest

from alexnet_jax.bench import gaps, input, startup
from tests import processes

SMALL = (
  *("--config.network.width=0.125", "--config.batch_size=16"),
  "--config.data.train_split=train[:160]",
)


SHORT = "--config=tests/short_network.py:two_device"


def bench(tmp_path, *flags, config="--config=configs/two_device.py"):
  command = [
    *("python", "-m", "alexnet_jax.bench", config, f"--data_dir={tmp_path}"),
    *("--rounds=2", "--seconds=0.02", *flags),
  ]
  return processes.run(command, tmp_path / "cache")


def bench_data(tmp_path, *flags, **options):
  process = bench(tmp_path, *flags, "--format=json", **options)
  assert process.code == 0, process.errors
  return json.loads(process.out)


def test_every_stage_of_the_input_is_measured(tmp_path):
  found = bench_data(tmp_path, "--what=input", "--config.data.threads=3")
  assert found["threads"] == 3
  assert found["rows"] == 64  # both columns read the whole batch
  assert found["pixel_bytes_per_image"] == 77 * 77 * 3
  assert 50 < found["stored_bytes_per_image"] < 500
  for stage in input.STAGES:
    rates = found["images_per_second"][stage]
    assert len(rates["rounds"]) == 2 and rates["lowest"] > 0
    assert rates["lowest"] <= rates["median"] <= rates["highest"]
  assert found["slowest"] in input.ALONE
  assert found["host_of_decoder"] > 0


# A start that fails: test_startup.py.
@pytest.mark.slow
def test_benchmark_that_fails_ends_in_one_line(tmp_path):
  process = bench(tmp_path, "--what=input", "--config.data.name=cifar10")
  assert process.code == 1
  (line,) = process.errors.strip().splitlines()
  assert line.startswith("error: dataset 'cifar10' is not prepared")


@pytest.mark.slow
def test_table_says_what_bounds_the_input(tmp_path):
  process = bench(tmp_path, "--what=input")
  assert process.code == 0, process.errors
  for text in (*input.STAGES, "images/s", "per core", "the slowest is"):
    assert text in process.out


@pytest.mark.slow
def test_step_is_what_is_measured_first(tmp_path):
  found = bench_data(tmp_path, *SMALL)
  assert found["batch_size"] == 16 and found["devices"] == 2
  for way in ("single", "ahead"):
    seconds, rate = found[f"seconds_{way}"], found[f"images_per_second_{way}"]
    assert len(seconds["rounds"]) == 2
    assert rate == pytest.approx(16 / seconds["median"])
  assert found["flops_per_second"] == pytest.approx(
    found["flops"] / found["seconds_ahead"]["median"]
  )
  # Of less work than a product of the size that is best for the machine.
  assert 0 < found["share_of_peak"] < 1
  # State and batch of one device at least: half of all parameters and
  # velocities, as f32.
  assert found["memory"]["peak"] > 1e6
  assert found["peak_memory_bytes"] > found["memory"]["peak"]
  shown = bench(tmp_path, *SMALL, "--rounds=1")
  for text in ("each waited for", "large product, float32", "of the peak of"):
    assert text in shown.out


@pytest.mark.slow
def test_run_is_split_by_what_the_host_does(tmp_path):
  found = bench_data(tmp_path, *SMALL, "--what=run", "--steps=20", config=SHORT)
  in_run = found["gaps"]
  assert in_run["steps"] == 18  # without the first two
  assert in_run["checkpoints"] == 1 and in_run["reports"] == 3
  assert {*in_run["gap_seconds"]} == {*gaps.ACTIVITIES}
  assert in_run["gap_seconds"]["checkpoint"] > 0
  assert 0 < found["gap_share_of_config"] < in_run["gap_share"] < 1


@pytest.mark.slow
def test_warm_start_finds_in_the_cache_what_the_cold_one_has_left(tmp_path):
  flags = (*SMALL, "--what=startup", "--rounds=1")
  found = bench_data(tmp_path, *flags, config=SHORT)
  for start in startup.STARTS:
    phases = found[start]["seconds"]
    medians = [seconds["median"] for seconds in phases.values()]
    assert [*phases] == [*startup.PHASES] and min(medians) >= 0
    total = found[start]["total_seconds"]["median"]
    assert sum(medians) == pytest.approx(total)
  assert found["cold"]["step_from_cache"] == [False]
  assert found["warm"]["step_from_cache"] == [True]
  cold, warm = (
    found[start]["seconds"][startup.COMPILE]["median"]
    for start in startup.STARTS
  )
  assert warm < cold / 2


def test_medians_and_ratios_are_those_of_the_rounds():
  rates = {"read": [100.0, 300.0, 200.0], "decode": [50.0, 40.0, 20.0]}
  rates |= {"batch": [500.0, 600.0, 700.0], "transfer": [900.0, 30.0, 31.0]}
  rates |= {"host": [40.0, 20.0, 18.0], "all": [30.0, 20.0, 10.0]}
  sizes = {"stored_bytes_per_image": 1e6, "pixel_bytes_per_image": 6_000_000}
  machine = {"threads": 2, "cores": 2, "rows": 8, "platform": "gpu"}
  found = input.InputRates(images_per_second=rates, **sizes, **machine)
  assert found.median("read") == 200.0
  assert found.slowest == "transfer"
  assert found.host_of_decoder == pytest.approx(0.8)  # of 0.8, 0.5, 0.9
  (table,) = found.tables()
  # MB/s: of 200 stored images, and of 20 images as pixels.
  megabytes = dict(zip(input.STAGES, table.columns[3].cells, strict=True))
  assert (megabytes["read"], megabytes["all"]) == ("200", "120")


@pytest.mark.slow
def test_step_is_traced(tmp_path):
  trace = tmp_path / "trace"
  flags = (*SMALL[:2], f"--profile={trace}")
  found = bench_data(tmp_path, *flags, config=SHORT)
  assert found["trace_folder"] == str(trace) and "timeline" not in found
  assert "steps 1 to 5" in (trace / "process0.txt").read_text()
  again = bench(tmp_path, *flags, config=SHORT)
  assert again.code == 1 and "exists already" in again.errors
  other = bench(tmp_path, "--what=layers", "--profile=new", config=SHORT)
  assert other.code == 1 and "does not use it" in other.errors
