"""Runs of several processes of which one is killed around its saves."""

import concurrent.futures
import random
import time

import pytest

from alexnet_jax.checkpoints import reader
from tests import processes, saves

pytestmark = pytest.mark.hosts


def kill_around_saves(workdir, count, rng, kills):
  """Kills one of `count` processes again and again; returns what was wrong."""
  faults = []
  for kill in range(kills):
    before = reader.find_latest_step(str(workdir)) or 0
    running = processes.start_saves(workdir, count, 1_000_000)
    processes.wait_until(
      lambda before=before: (
        (reader.find_latest_step(str(workdir)) or 0) > before + 1
      ),
      running,
      seconds=300,
    )
    time.sleep(rng.uniform(0, 0.1))  # a save takes about as long
    # The loss of process 0, which runs the service of all, is known sooner.
    lost = rng.randrange(1, count) if kill % 2 else 0
    running[lost].kill()
    for index, ended in enumerate(processes.finish(running)):
      if index != lost and (
        ended.code != 69 or f"process {lost} of" not in ended.errors
      ):
        faults.append((count, index, lost, ended))
  newest = reader.find_latest_step(str(workdir))
  last = newest + 2
  for ended in processes.finish(processes.start_saves(workdir, count, last)):
    # An old one whose deletion was cut short is moved aside; the newest is not.
    if ended.code or f"broken-{newest}'" in ended.out:
      faults.append(ended)
  if not faults and not saves.has_right_numbers(workdir, count, last):
    faults.append((count, "other numbers"))
  return faults


def test_twelve_kills_around_saves_end_all_with_69_and_lose_nothing(tmp_path):
  with concurrent.futures.ThreadPoolExecutor() as pool:
    found = [
      pool.submit(
        kill_around_saves,
        *(tmp_path / str(count), count, random.Random(count), 6),
      )
      for count in (2, 3)
    ]
    assert [one.result() for one in found] == [[]] * 2
