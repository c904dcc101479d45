"""One writer, one config, and no name that leads out of a folder."""

import json
import os
import shutil

import pytest

from tests import processes

pytestmark = pytest.mark.faults


def start(place, *arguments, **fields):
  fields = {name.replace("__", "."): value for name, value in fields.items()}
  given = [*processes.flags("two_device", place, fields), *arguments]
  return processes.start(place, 1, given, variables=lambda _: {})


def files(place) -> dict[str, bytes]:
  """All files of a run but its lock, by their names."""
  workdir = place / "workdir"
  return {
    str(path.relative_to(workdir)): path.read_bytes()
    for path in sorted(workdir.rglob("*"))
    if path.is_file() and path.name != "lock"
  }


@pytest.fixture(scope="module")
def finished(folder):
  """A run of nine steps."""
  place = folder("finished")
  ((code, _, errors),) = processes.finish(start(place))
  assert code == 0, errors
  return place


def test_second_run_is_refused_and_one_after_a_kill_is_not(folder):
  place = folder("twice")
  running = start(place, num_epochs=3000.0)
  processes.wait_for_step(place, 4, running)
  ((code, _, errors),) = processes.finish(start(place))
  assert code == 1 and errors.count("\n") == 1
  holder = f"in use by process {running[0].pid} on {os.uname().nodename}, since"
  assert holder in errors, errors
  assert running[0].poll() is None
  processes.kill(running[0])
  running[0].communicate()
  assert (place / "workdir" / "lock").exists()
  ((code, out, errors),) = processes.finish(start(place))
  assert code == 0, errors
  assert "goes on after step" in out or "finished already" in out


def test_workdir_that_does_not_fit_is_refused_and_stays_as_it_is(
  finished, folder
):
  places = {}
  for name in ("changed", "wider", "cut", "gone", "named"):
    places[name] = folder(name)
    shutil.copytree(finished / "workdir", places[name] / "workdir")
  config = places["cut"] / "workdir" / "config.json"
  config.write_bytes(config.read_bytes()[:100])
  (places["gone"] / "workdir" / "config.json").unlink()
  before = {name: files(place) for name, place in places.items()}
  running = {
    "changed": start(places["changed"], seed=1),
    "wider": start(
      places["wider"], "--allow_config_changes", network__width=0.25
    ),
    "cut": start(places["cut"]),
    "gone": start(places["gone"]),
    "named": start(places["named"], data__name="../x"),
  }
  expected = {
    "changed": "seed: 0 there, 1 here",
    "wider": "parameters.conv1.bias is float32[12] there, and float32[24] here",
    "cut": "config.json' is no JSON",
    "gone": "has a checkpoint of step 9, but no config.json",
    "named": "dataset '../x' cannot be opened",
  }
  for name, started in running.items():
    ((code, _, errors),) = processes.finish(started)
    assert code == 1 and errors.count("\n") == 1, errors
    assert expected[name] in errors
    assert files(places[name]) == before[name]
  # What can be gone on with, is, when it is asked for.
  (place,) = (places["cut"],)
  ((code, out, errors),) = processes.finish(
    start(place, "--allow_config_changes")
  )
  assert code == 0, errors
  assert "config.json' is no JSON" in out
  assert json.loads(config.read_text())["network.width"] == 0.125
  aside = place / "workdir" / "config.step_9.json"
  assert aside.read_bytes() == before["cut"]["config.json"]
