"""What ran, and its curves, as the page shows them."""

import json
import re
import shlex

import numpy as np
import pytest

from alexnet_jax.figures import runs as runs_lib
from alexnet_jax.report import curves, facts
from alexnet_jax.report import section as section_lib
from tests import processes, reported_run

# Parses the flags of a command, and prints the config.
PARSE = """
import json, sys
from alexnet_jax.checkpoints import workdir
from alexnet_jax.cli import command
config = command.define_config()
command.parse_flags(sys.argv)
print(json.dumps(workdir.flatten_config(config.value.to_dict(), {})))
"""


def read(*paths):
  runs = runs_lib.sort([runs_lib.read(str(path)) for path in paths])
  return runs, runs_lib.make_legend(runs)


def find_facts(path):
  runs, legend = read(path)
  table = facts.make_section(
    runs, legend, shown=runs[0], folder=runs[0].workdir
  ).parts[0]
  return dict(table.rows)


def test_facts_of_a_run(tmp_path):
  lines = reported_run.make_lines(0.01)
  lines.insert(2, json.dumps({"step": 10, "session": 2}))
  later = {"validation_loss": 1.5, "validation_top1_error": 0.05}
  lines.append(json.dumps({"step": 50} | later))
  reported_run.write(tmp_path / "a", lines, **{"layout.name": "two_column"})
  found = find_facts(tmp_path / "a")
  assert found["workdir"] == str(tmp_path / "a")
  assert found["layout"] == "two_column (column=2)"
  assert (found["devices of a run"], found["columns"], found["layers"]) == (
    "2",
    "2",
    "8",
  )
  # 24 epochs of 1,498 images, in batches of 64.
  assert found["planned steps"] == f"{round(24 * 1498 / 64):,} (24 epochs)"
  assert found["steps"] == f"50 ({50 / 7:.4g} epochs)"
  assert found["starts"] == "2; resumed after step 10"
  error = found["validation top-1 error"]
  assert error == "5.00% (lowest: 2.50%, step 40)"
  assert found["validation loss"] == "1.5"
  # Neither a checkpoint nor a lock.
  assert "trained with" not in found and "last start" not in found


def test_facts_of_a_run_of_another_version(tmp_path):
  reported_run.write(tmp_path / "a")
  file = tmp_path / "a" / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | {"new.field": 1}))
  found = find_facts(tmp_path / "a")
  assert "new.field" in found["problem"]
  assert found["layout"] == "one_device"


@pytest.mark.parametrize("number", [2, 12])
def test_runs_are_side_by_side(number, tmp_path):
  seeds = [3, 1, 2, *range(4, number + 1)][:number]
  for seed in seeds:
    reported_run.write(tmp_path / str(seed), seed=seed)
  runs, legend = read(*(tmp_path / str(seed) for seed in seeds))
  shown = next(run for run in runs if run.workdir == str(tmp_path / "3"))
  section = facts.make_section(runs, legend, shown=shown, folder=shown.workdir)
  tables = [p for p in section.parts if isinstance(p, section_lib.Table)]
  same, differing, changed, _ = tables
  assert dict(same.rows)["layout"] == "one_device (device=1)"
  assert "data set" not in dict(same.rows)
  assert ["seed", "0", "3"] in changed.rows
  labels = [str(seed) for seed in sorted(seeds)]
  columns = [[row[0] for row in differing.rows], [*differing.header][1:]]
  # What there is more of is below each other.
  assert columns[number < 6] == labels
  assert "workdir" in columns[number > 6]
  cells = {cell for row in differing.rows for cell in row}
  assert {str(tmp_path / label) for label in labels} <= cells
  # The only field in which they differ.
  assert differing.header[0] == "seed"
  commands = [p for p in section.parts if isinstance(p, section_lib.Command)]
  assert f"--config={tmp_path / '3'}" in commands[0].line


@pytest.mark.slow
def test_commands_have_the_config_of_the_run(tmp_path):
  reported_run.write(
    tmp_path / "a b",
    **{
      "seed": 7,
      "network.pooling": (2, 2),
      "augment.mean": (1.5, 2.0, 3.0),
      "optimizer.drop_epochs": (3.0,),
      "data.name": "it's a 'set'",
      "layout.name": "data_parallel",
      "layout.mesh.data": 4,
      "optimizer.ema_decay": 0.9,
    },
  )
  runs, legend = read(tmp_path / "a b")
  section = facts.make_section(
    runs, legend, shown=runs[0], folder=runs[0].workdir
  )
  commands = [p for p in section.parts if isinstance(p, section_lib.Command)]
  assert len(commands) == 2
  for command in commands:
    line = shlex.split(command.line)
    assert line[:3] == ["python", "-m", "alexnet_jax.main"]
    flags = [flag for flag in line[3:] if not flag.startswith("--workdir=")]
    ended = processes.run(["python", "-c", PARSE, *flags], tmp_path)
    assert ended.code == 0, ended.errors
    expected = {
      name: value
      for name, value in runs[0].fields.items()
      if not name.startswith("found.")
    }
    assert json.loads(ended.out) == expected


def test_run_that_was_killed_and_resumed_has_one_curve(tmp_path):
  straight = reported_run.make_lines(0.01)
  # It is killed after step 30, and resumes after step 20.
  before = [line for line in straight if json.loads(line)["step"] <= 30]
  after = [line for line in straight if json.loads(line)["step"] > 20]
  session = json.dumps({"step": 20, "session": 2})
  reported_run.write(tmp_path / "straight", straight)
  reported_run.write(tmp_path / "resumed", [*before, session, *after])
  drawn = []
  for name in ("straight", "resumed"):
    runs, legend = read(tmp_path / name)
    section = curves.make_section(runs, legend, axis="step", smoothing=0.0)
    assert [part.name for part in section.parts] == [
      "curve_loss",
      "curve_top1_error",
      "curve_learning_rate",
    ]
    lines = [
      line.get_xydata()
      for part in section.parts
      for line in part.figure.axes[0].lines
    ]
    # Loss of validation and training; error of validation; rate.
    assert len(lines) == 4
    assert all((np.diff(line[:, 0]) > 0).all() for line in lines)
    drawn.append(lines)
  for one, other in zip(*drawn, strict=True):
    np.testing.assert_array_equal(one, other)


def test_runs_without_curves_get_a_line(tmp_path):
  reported_run.write(tmp_path / "new", [])
  old = [
    re.sub(r'"epoch": [^,]+, ', "", x) for x in reported_run.make_lines(1.0)
  ]
  reported_run.write(tmp_path / "old", old)
  for name, message in (
    ("new", "has no curves: its metrics.jsonl is missing, has no report yet"),
    ("old", "do not say at which epoch they are.* Set --x=step"),
  ):
    runs, legend = read(tmp_path / name)
    section = curves.make_section(runs, legend, axis="epoch", smoothing=0.0)
    assert not section.parts
    (text,) = section.text
    assert re.search(message, text)
