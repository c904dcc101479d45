import itertools
import subprocess

import pytest

from alexnet_jax.bench import startup


def test_phases_are_the_times_between_marks():
  times = itertools.accumulate((100.0, *range(1, 10)))
  marks = dict(zip(("start", *startup.PHASES), times, strict=True))
  found = startup.to_phases(marks)
  assert [*found.values()] == [float(number) for number in range(1, 10)]


def test_only_flags_that_a_start_knows_are_passed_on():
  known = ["--config=configs/one_device.py:imagenet", "--config.batch_size=32"]
  known += ["--config.data.name", "digits", "-implementations=plain"]
  known += ["--data_dir", "/d"]
  others = ["--what=startup", "--rounds", "3", "--format=json"]
  others += ["--configure=1", "--compilation_cache=/c", "--steps=3"]
  mixed = [*others[:2], *known[:4], *others[2:], *known[4:]]
  assert startup.select_flags(mixed) == known


def test_totals_are_of_rounds():
  seconds = {phase: [1.0, 2.0] for phase in startup.PHASES}
  found = startup.StartTime(seconds=seconds, step_from_cache=[False, False])
  assert found.total_seconds == [9.0, 18.0]
  both = startup.StartupTimes(cold=found, warm=found)
  assert list(both.tables()[0].columns[2].cells)[-2:] == ["1.50", "13.50"]
  said = "the warm start has NOT found its step in the cache"
  assert both.lines()[-1] == said


def test_start_that_fails_says_its_last_line(monkeypatch):
  def fail(command, **_):
    return subprocess.CompletedProcess(command, 1, "", "a\nerror: no set\n")

  monkeypatch.setattr(subprocess, "run", fail)
  with pytest.raises(ChildProcessError, match="with code 1: no set$"):
    startup.measure([], rounds=1)
