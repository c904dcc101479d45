"""Speed of a step, and the peak that it is held against."""

import itertools
import time
import types

import jax
import numpy as np
import pytest

from alexnet_jax.bench import augmentation, peak, turns
from alexnet_jax.bench import step as step_lib
from alexnet_jax.partition import catalog
from alexnet_jax.settings import settings
from alexnet_jax.training import run as run_lib
from tests import build


@pytest.fixture
def seconds_pass(monkeypatch):
  """Whoever looks at the clock finds it a second later than before."""
  clock = itertools.count()
  monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))


def test_product_counts_the_multiplications_of_all_devices(
  seconds_pass, monkeypatch
):
  monkeypatch.setitem(peak._SIDES, "cpu", 32)
  product = peak.Product(jax.devices()[:2], "bfloat16")
  # Three products in a row, each of two devices: 32 x 32 sums of 32 products.
  assert product.measure() == 3 * 2 * (32 * 32 * 32 * 2)


def test_copy_counts_what_is_read_and_written(seconds_pass, monkeypatch):
  monkeypatch.setattr(peak, "_CPU_BYTES", 2**12)
  copy = peak.Copy(jax.devices()[:4])
  places = [x.unsafe_buffer_pointer() for x in copy._xs]
  assert copy.measure() == 2 * 2**12
  # Every element, twice by now, and where it was.
  assert all(np.array_equal(x, np.full(256, 2.0)) for x in copy._xs)
  assert [x.unsafe_buffer_pointer() for x in copy._xs] == places


def test_layout_does_not_change_what_a_step_computes():
  found, shares = {}, {}
  for name in ("one_device", "two_column", "tensor_parallel"):
    parts = build.make_program(catalog.find(name))
    found[name], shares[name] = step_lib.count_flops(parts), parts.device_loads
  assert found["two_column"] == found["tensor_parallel"] == found["one_device"]
  assert any(x.times_computed > 1 for x in shares["tensor_parallel"].values())
  # fc7 of an eighth of the width, 512 x 512: forward, and backward for kernel
  # and input, of 8 images.
  assert 2 * shares["two_column"]["fc7"].flops == 8 * 3 * 2 * 512 * 512


def test_steps_are_taken_one_after_the_other():
  taken, taken_at_call = [], []

  def take(state, key, images, labels):
    taken.append((state, key, images.shape, labels.dtype))
    return state + 1, jax.numpy.zeros(4)

  last = types.SimpleNamespace(features=10)
  program = types.SimpleNamespace(
    make_keys=lambda seed: ("init", "steps"),
    init=lambda key: {"init": 0}[key],
    batch_size=3,
    augmentation=types.SimpleNamespace(stored_size=5),
    network=types.SimpleNamespace(layers=[last]),
    batch_shardings=None,
  )
  steps = turns.StepRunner(program, take)
  assert steps.run() > 0
  assert steps.run(4, after_first=lambda: taken_at_call.append(len(taken))) > 0
  assert taken_at_call == [2]
  batch = ((3, 5, 5, 3), np.int32)
  assert taken == [(state, "steps", *batch) for state in range(5)]


def test_stretch_lasts_a_second_or_as_long_as_it_may():
  assert step_lib.choose_stretch(0.1) == 10
  assert step_lib.choose_stretch(30.0) == 4  # more than are started ahead
  assert step_lib.choose_stretch(1e-5) == 100


def test_shares_and_gaps_are_medians_of_rounds(program_facts):
  peaks = {"float32": [400.0, 100.0, 500.0], "bfloat16": [1.0, 1.0, 1.0]}
  work = {"flops": 100.0, "touched_bytes": 40.0, "repeated_share": 0.0}
  memory = {"peak_memory_bytes": 1, "peak_memory_of": "process", "memory": {}}
  found = step_lib.StepTime(
    **program_facts | {"batch_size": 10} | work | memory,
    seconds_single=[1.0, 4.0, 2.0],
    seconds_ahead=[0.5, 2.0, 2.0],
    steps_in_a_stretch=4,
    peak_flops_per_second=peaks,
    peak_bytes_per_second=[100.0, 100.0, 10.0],
  )
  assert found.images_per_second_single == 5.0
  assert found.flops_per_second == 50.0
  assert found.share_of_peak == 0.5  # of 0.5, 0.5, 0.1
  assert found.share_of_memory == 0.8  # of 0.8, 0.2, 2.0
  assert found.host_gap_seconds == 0.5  # of 0.5, 2.0, 0.0


@pytest.mark.slow
def test_step_is_measured_with_augmentation_and_without(tiny_config):
  tiny_config.layout.name = "two_column"
  network, layout = settings.check(tiny_config)
  program = run_lib.make_program(tiny_config, network, layout)
  found = augmentation.measure(program, {}, rounds=3)
  assert len(found.seconds_with) == len(found.seconds_without) == 3
  assert min(*found.seconds_with, *found.seconds_without) > 0
  assert found.batch_size == 16


def test_added_time_is_the_median_of_pairs(program_facts):
  found = augmentation.AugmentationTime(
    **program_facts,
    seconds_with=[1.1, 4.0, 2.4],
    seconds_without=[1.0, 2.0, 2.0],
  )
  assert found.added == pytest.approx(0.2)  # of 0.1, 1.0, 0.2
