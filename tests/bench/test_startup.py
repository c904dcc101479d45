import subprocess

import pytest

from alexnet_jax.bench import startup


def test_phases_are_the_times_between_marks():
  marks = {"start": 100.0}
  marks |= {
    phase: 100.0 + number * (number + 1) / 2
    for number, phase in enumerate(startup.PHASES, start=1)
  }
  found = startup.find_phases(marks)
  assert [*found.values()] == [float(number) for number in range(1, 10)]


def test_only_flags_that_a_start_knows_are_passed_on():
  kept = ["--config=configs/one_device.py:imagenet", "--config.batch_size=32"]
  kept += [
    "--config.data.name",
    "digits",
    "-implementations=plain",
    "--data_dir",
    "/d",
  ]
  others = ["--what=startup", "--rounds", "3", "--format=json"]
  others += ["--configure=1", "--compilation_cache=/c", "--steps=3"]
  mixed = [*others[:2], *kept[:3], kept[3], *others[2:], *kept[4:]]
  assert startup.keep_flags(mixed) == kept


def test_totals_are_of_rounds():
  seconds = {phase: [1.0, 2.0] for phase in startup.PHASES}
  found = startup.Speed(
    seconds={"cold": seconds, "warm": seconds},
    from_cache={"cold": [], "warm": []},
  )
  assert found.totals("cold") == [9.0, 18.0]
  assert found.median("warm", startup.STEP) == 1.5


def test_start_that_fails_says_its_last_line(monkeypatch):
  def fail(command, **_):
    return subprocess.CompletedProcess(command, 1, "", "a\nerror: no set\n")

  monkeypatch.setattr(subprocess, "run", fail)
  with pytest.raises(ChildProcessError, match="with code 1: no set$"):
    startup.measure([], rounds=1)
