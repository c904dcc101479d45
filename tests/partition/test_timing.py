"""The speed of links is measured, and predicts the time of a step."""

import threading
import time

import pytest

from alexnet_jax.partition import catalog, mesh, timing
from tests import build


def test_speed_is_what_a_ring_sends_in_the_time_measured():
  # Of 1 MiB on each of 4 devices, a device sends 2 * 3/4 MiB.
  seconds = {4: 0.002, 2**20: 0.5, 2**23: 2.0}
  speed = timing.to_speed(seconds, devices=4)
  assert speed.latency_seconds == 0.002
  assert speed.rates == {2**20: 3 * 2**20, 2**23: 6 * 2**20}
  assert speed.rate == 6 * 2**20


def test_step_takes_a_latency_for_each_exchange_and_its_bytes_by_the_rate():
  exchanges = [
    build.make_collective(*arguments)
    for arguments in (
      (1_000, "sum", ("data",), 4),  # 1,500 elements, 6,000 bytes
      (2_000, "all_gather", ("data",), 4),  # as many
      (1_000, "all_gather", ("data", "column"), 8),  # 3,500 bytes
      (500, "sum", ("column",), 2),  # 2,000 bytes
    )
  ]
  rates = {2**20: 9.0, 2**23: 1e6}
  speed = timing.LinkSpeed(latency_seconds=0.001, rates=rates)
  data = timing.predict_seconds(exchanges, "data", speed)
  assert data == pytest.approx(3 * 0.001 + 15_500 / 1e6)
  column = timing.predict_seconds(exchanges, "column", speed)
  assert column == pytest.approx(2 * 0.001 + 5_500 / 1e6)
  assert timing.predict_seconds(exchanges, "model", speed) == 0


def test_every_axis_of_a_mesh_is_measured():
  made = mesh.make_mesh(catalog.TWO_COLUMN_DATA)
  for axis in made.axis_names:
    seconds = timing.time_sums(made, axis, timeout_seconds=60)
    assert seconds.keys() == timing.REPEATS.keys()
    assert all(value > 0 for value in seconds.values())


def test_call_that_does_not_end_is_left_in_time():
  end = threading.Event()
  start = time.monotonic()
  with pytest.raises(TimeoutError, match="did not end within 0.2 s"):
    timing.time_calls(lambda: end.wait, 3, timeout_seconds=0.2)
  assert time.monotonic() - start < 5
  end.set()


def test_call_that_fails_says_why():
  def fail():
    raise ValueError("no\n  route")

  with pytest.raises(RuntimeError, match="^no route$"):
    timing.time_calls(lambda: fail, 3, timeout_seconds=5)
