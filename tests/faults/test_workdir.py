"""One writer, one config, and no name that leads out of a folder."""

import json
import os
import shutil

import pytest

from tests import processes

pytestmark = pytest.mark.faults


def read_files(place) -> dict[str, bytes]:
  """All files of a run except its lock, by their names."""
  workdir = place / "workdir"
  return {
    str(path.relative_to(workdir)): path.read_bytes()
    for path in sorted(workdir.rglob("*"))
    if path.is_file() and path.name != "lock"
  }


def test_second_run_is_refused_and_one_after_a_kill_is_not(folder):
  place = folder("twice")
  (running,) = processes.start_training(place, {"num_epochs": 3000.0})
  processes.wait_for_step(place, 4, [running])
  errors = processes.train(place, code=1).errors
  holder = f"in use by process {running.pid} on {os.uname().nodename}, since"
  assert holder in errors, errors
  assert running.poll() is None
  running.kill()
  running.communicate()
  assert (place / "workdir" / "lock").exists()
  out = processes.train(place).out
  assert "resumes after step" in out or "finished already" in out


def test_workdir_that_does_not_fit_is_refused_and_stays_as_it_is(folder):
  finished = folder("finished")
  processes.train(finished)
  places = {}
  for name in ("changed", "wider", "cut", "gone", "named"):
    places[name] = folder(name)
    shutil.copytree(finished / "workdir", places[name] / "workdir")
  config = places["cut"] / "workdir" / "config.json"
  config.write_bytes(config.read_bytes()[:100])
  (places["gone"] / "workdir" / "config.json").unlink()
  before = {name: read_files(place) for name, place in places.items()}
  changes = "--allow_config_changes"
  for name, fields, flags, expected in (
    ("changed", {"seed": 1}, (), "seed: 0 in the workdir, 1 now"),
    (
      *("wider", {"network.width": 0.25}, (changes,)),
      "parameters.conv1.bias is float32[12] in it, and float32[24] with",
    ),
    ("cut", {}, (), "config.json' is no JSON"),
    ("gone", {}, (), "has a checkpoint of step 9, but no config.json"),
    ("named", {"data.name": "../x"}, (), "dataset '../x' cannot be opened"),
  ):
    errors = processes.train(places[name], fields, *flags, code=1).errors
    assert expected in errors
    assert read_files(places[name]) == before[name]
  # A run that can be resumed is, when that is asked for.
  out = processes.train(places["cut"], {}, changes).out
  assert "config.json' is no JSON" in out
  assert json.loads(config.read_text())["network.width"] == 0.125
  aside = config.with_name("config.step_9.json")
  assert aside.read_bytes() == before["cut"]["config.json"]
