import json
import re
import sys
import types

import numpy as np
import pytest
import rich.console

from alexnet_jax.training import report, tracker
from tests import processes

CONFIG = {"seed": 0, "optimizer.learning_rate": 0.01}


class Recorder:
  """A tracker that keeps what it gets, and fails at some steps."""

  def __init__(self, failing=()):
    self.logged, self.failing, self.closed = [], failing, False

  def log(self, values, step):
    if step in self.failing:
      raise ConnectionError("no route\n to host.")
    self.logged.append((step, values))

  def close(self):
    self.closed = True


def report_to(made, workdir, steps=(2, 4)):
  """Reports validations to a tracker; returns what the console shows."""
  started = []

  def make(config, path):
    started.append((config, path))
    return made

  console = rich.console.Console(record=True, width=200, quiet=False)
  tracking = tracker.Tracking(make, CONFIG, str(workdir))
  reporter = report.Reporter(
    *(str(workdir), console),
    first_step=0,
    num_steps=9,
    batch_size=8,
    num_images=16,
    tracker=tracking,
    run_name="member",
  )
  for step in steps:
    totals = np.array([[8.0, 4, 2, 8], [24.0, 8, 4, 8]], np.float32)
    reporter.validation(step, totals, lambda: 0)
  reporter.close()
  report.print_lines(console, *tracking.close())
  assert reporter.error is None
  assert started == [(CONFIG, str(workdir))]
  return console.export_text()


def read_values(workdir):
  """Reads {step: values} of metrics.jsonl, lists by name and index."""
  found = {}
  for line in (workdir / "metrics.jsonl").read_text().splitlines():
    values = json.loads(line)
    step = values.pop("step")
    for name, value in [*values.items()]:
      if isinstance(value, list):
        del values[name]
        values |= {f"{name}/{index}": one for index, one in enumerate(value)}
    found[step] = values
  return found


def test_tracker_gets_every_number_of_the_reports(tmp_path):
  made = Recorder()
  report_to(made, tmp_path)
  assert dict(made.logged) == read_values(tmp_path)
  assert made.logged[0][1]["validation_member_loss/1"] == 3.0
  assert made.closed


def test_tracker_that_fails_later_does_not_end_the_run(tmp_path):
  made = Recorder(failing=(2, 6))
  said = report_to(made, tmp_path, steps=(2, 4, 6))
  assert [step for step, _ in made.logged] == [4]
  assert [*read_values(tmp_path)] == [2, 4, 6]
  assert said.count("ConnectionError: no route to host; training") == 1
  assert "has not taken step 2" in said
  assert "the tracker lacks 2 reports that failed" in said
  made.close = {}.popitem
  assert "could not be closed: KeyError" in report_to(made, tmp_path)


def test_tracker_that_cannot_start_is_refused_in_one_line(
  tmp_path, monkeypatch
):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / "broken_tracker.py").write_text("import no_such_module_here")
  for name, message in (
    ("json", "the tracker is 'json', expected MODULE:FUNCTION"),
    ("json:", "expected MODULE:FUNCTION"),
    ("json:make.it", "expected MODULE:FUNCTION"),
    ("json:make_it", "'json' has no function 'make_it'. Set --tracker"),
    ("json:__name__", "has no function"),
    ("broken_tracker:make", "imported: ModuleNotFoundError: No module named"),
  ):
    with pytest.raises((ValueError, tracker.TrackerError), match=message):
      tracker.find(name)
  assert tracker.find("json:dumps") is json.dumps
  for make, message in (
    (json.loads, "cannot start: TypeError: "),
    (lambda config, workdir: 3, "is a int without a method log"),
  ):
    with pytest.raises(tracker.TrackerError, match=message):
      tracker.Tracking(make, CONFIG, "runs/a")


class Calls(types.ModuleType):
  """A stand-in for a module: notes calls of all its functions."""

  def __init__(self, name):
    super().__init__(name)
    self.calls = []

  def __getattr__(self, name):
    def note(*arguments, **options):
      self.calls.append((name, arguments, options))
      return self

    return note


@pytest.mark.parametrize(
  ("module", "function", "expected"),
  [
    (
      "wandb",
      "Wandb",
      [
        (
          *("init", ()),
          {
            **{"project": "alexnet", "id": "runs-a", "resume": "allow"},
            "config": CONFIG,
          },
        ),
        ("log", ({"training_loss": 0.5},), {"step": 2}),
        ("finish", (), {}),
      ],
    ),
    (
      "mlflow",
      "make_mlflow",
      [
        ("set_experiment", ("alexnet",), {}),
        ("start_run", (), {"run_name": "runs/a"}),
        ("log_params", (CONFIG,), {}),
        ("log_metrics", ({"training_loss": 0.5},), {"step": 2}),
        ("end_run", (), {}),
      ],
    ),
  ],
)
def test_examples_of_the_page_are_trackers(
  module, function, expected, tmp_path, monkeypatch
):
  page = (processes.ROOT / "docs" / "training.md").read_text()
  blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  (block,) = [one for one in blocks if f"import {module}" in one]
  name = f"trackers_with_{module}"
  (tmp_path / f"{name}.py").write_text(block)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setitem(sys.modules, module, stand_in := Calls(module))
  assert f"--tracker=trackers:{function}" in block
  make = tracker.find(f"{name}:{function}")
  tracking = tracker.Tracking(make, CONFIG, "runs/a")
  assert tracking.log(2, {"training_loss": 0.5}) is None
  assert tracking.close() == []
  assert stand_in.calls == expected
