"""Training that goes wrong: what a run says, and how it goes on."""

import re

import pytest

from tests import processes

pytestmark = pytest.mark.faults


def run(place, *arguments, count=1, **fields):
  """[(exit code, output, errors)] of a run in `place`."""
  fields = {name.replace("__", "."): value for name, value in fields.items()}
  given = [*processes.flags("two_device", place, fields), *arguments]
  variables = None if count > 1 else (lambda _: {})
  started = processes.start(place, count, given, variables=variables)
  return processes.finish(started)


def saved(place) -> dict[str, bytes]:
  """All files of the checkpoints, by their names."""
  folder = place / "workdir" / "checkpoints"
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def test_loss_that_overflows_names_step_and_layer_and_the_run_can_go_on(folder):
  place = folder("overflow")
  ((code, _, errors),) = run(place, num_epochs=1.0)
  assert code == 0, errors
  before = saved(place)
  assert {name.split("/")[0] for name in before} == {"3"}
  rate = {"optimizer__learning_rate": 1e6}
  ((code, out, errors),) = run(place, "--allow_config_changes", **rate)
  assert code == 1 and errors.count("\n") == 1, errors
  assert "optimizer.learning_rate: 0.01 there, 1000000.0 here" in out
  found = re.search(r"error: the loss of step (\d) is (nan|inf): ", errors)
  assert found and 4 <= int(found[1]) <= 6, errors
  # What the layer is, depends on how sums are added up; that it is named, not.
  assert re.search(
    r"(not in|first values .* in the output of) .*(conv\d|fc\d)", errors
  )
  assert "The last checkpoint is of step 3, and the command goes on" in errors
  # Nothing of the wrong steps is kept, but all that was reported before them.
  assert saved(place) == before
  steps = [line["step"] for line in processes.metrics(place)]
  assert steps[:2] == [2, 3] and max(steps) < int(found[1])
  ((code, out, errors),) = run(place, "--allow_config_changes")
  assert code == 0, errors
  assert "goes on after step 3 of 9" in out
  assert processes.metrics(place)[-1]["validation_images"] == 21
  kept = {path.name for path in (place / "workdir").glob("config*.json")}
  assert kept == {"config.json", "config.step_3.json"}


def test_processes_name_the_step_and_the_layer_together(folder):
  place = folder("together")
  ended = run(place, count=2, optimizer__learning_rate=1e6)
  said = [errors for _, _, errors in ended]
  assert [code for code, _, _ in ended] == [1, 1], said
  for errors in said:
    assert re.search(r"the loss of step [23] is (nan|inf): ", errors), errors
    assert re.search(
      r"(not in|first values .* in the output of) .*(conv\d|fc\d)", errors
    )
  assert "There is no checkpoint yet" in said[0]


def test_loss_that_stays_at_chance_is_pointed_out_once(folder):
  place = folder("chance")
  # 2012's weights on pixels of unit scale, as many a copy of them has it. Of
  # a low rate: with batches this small the loss goes up and down. Of images
  # enough: few of them have one class more often, which is soon known.
  ((code, out, errors),) = run(
    place,
    network__init="source",
    optimizer__learning_rate=0.001,
    data__train_split="train[:640]",
    log_every_steps=20,
    checkpoint_every_steps=1000,
  )
  assert code == 0, errors
  (line,) = [line for line in out.splitlines() if "Known causes" in line]
  assert "step 100/120: the loss stays at ln(10) = 2.303" in line
