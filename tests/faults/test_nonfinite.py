"""Training that goes wrong: what a run prints, and how it resumes."""

import re

import pytest

from tests import processes

pytestmark = pytest.mark.faults

# What the layer is depends on how sums are added up; that it is named does not.
LAYER = r"non-finite values (in|are in the output of) .*(conv\d|fc\d)"


def read_checkpoints(place) -> dict[str, bytes]:
  """All files of the checkpoints, by their names."""
  folder = place / "workdir" / "checkpoints"
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def test_loss_that_overflows_names_step_and_layer_and_the_run_can_go_on(folder):
  place = folder("overflow")
  processes.train(place, {"num_epochs": 1.0})
  before = read_checkpoints(place)
  assert {name.split("/")[0] for name in before} == {"3"}
  changes = "--allow_config_changes"
  _, out, errors = processes.train(
    place, {"optimizer.learning_rate": 1e6}, changes, code=1
  )
  assert "optimizer.learning_rate: 0.01 in the workdir, 1000000.0 now" in out
  found = re.search(r"error: the loss of step (\d) is (nan|inf): ", errors)
  assert found and 4 <= int(found[1]) <= 6, errors
  assert re.search(LAYER, errors)
  assert "checkpoint is of step 3, and the same command resumes" in errors
  # Nothing of the wrong steps is kept, but all that was reported before them.
  assert read_checkpoints(place) == before
  steps = [line["step"] for line in processes.metrics(place)]
  assert steps[:2] == [2, 3] and max(steps) < int(found[1])
  out = processes.train(place, {}, changes).out
  assert "resumes after step 3 of 9" in out
  assert processes.metrics(place)[-1]["validation_images"] == 21
  kept = {path.name for path in (place / "workdir").glob("config*.json")}
  assert kept == {"config.json", "config.step_3.json"}


def test_processes_name_the_step_and_the_layer_together(folder):
  place = folder("together")
  running = processes.start_training(
    place, {"optimizer.learning_rate": 1e6}, count=2
  )
  ends = processes.finish(running)
  for code, _, errors in ends:
    assert code == 1, ends
    assert re.search(r"the loss of step [23] is (nan|inf): ", errors), errors
    assert re.search(LAYER, errors)
  assert "There is no checkpoint yet" in ends[0].errors


def test_loss_that_stays_at_chance_is_pointed_out_once(folder):
  fields = {
    # 2012's weights on pixels of unit scale, as many a copy of them has it.
    "network.init": "source",
    # Low: with batches this small the loss goes up and down.
    "optimizer.learning_rate": 0.001,
    # Enough: few images have one class more often, which is soon known.
    "data.train_split": "train[:640]",
    "log_every_steps": 20,
    "checkpoint_every_steps": 1000,
  }
  out = processes.train(folder("chance"), fields).out
  (line,) = [line for line in out.splitlines() if "Known causes" in line]
  assert "step 100/120: the loss stays at ln(10) = 2.303" in line
