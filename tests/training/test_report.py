import io
import json

import numpy as np
import pytest
import rich.console
from tensorboardX.proto import event_pb2, layout_pb2, plugin_hparams_pb2

from alexnet_jax.checkpoints import reports
from alexnet_jax.training import events, report
from tests import event_files


def make_reporter(workdir, console=None, *, first_step=0, **options):
  """Makes a reporter of steps of 8 images, 16 of which are an epoch."""
  return report.Reporter(
    str(workdir),
    console or rich.console.Console(quiet=True),
    first_step=first_step,
    **{"num_steps": 99, "batch_size": 8, "num_images": 16} | options,
  )


def test_values_are_there_for_tensorboard(tmp_path):
  writer = events.Events(str(tmp_path), first_step=7)
  for step in (1, 2):
    writer.add("training_loss", step / 4, step)
  writer.add("validation_member_loss/0", 1.0, 2)
  writer.add("validation_member_loss/1", 2.0, 2)
  writer.add("checkpoint_seconds", 3.0, 2)
  writer.add("learning_rate", 0.5, 2)
  writer.close()
  found = event_files.read(tmp_path)
  assert found[0].file_version == "brain.Event:2"
  # TensorBoard drops the steps from there on that earlier files have.
  start = event_pb2.SessionLog.START
  assert (found[1].step, found[1].session_log.status) == (8, start)
  # TensorBoard groups tags by what stands before the slash.
  assert event_files.read_scalars(tmp_path) == {
    "loss/training": [(1, 0.25), (2, 0.5)],
    "member_loss/validation/0": [(2, 1.0)],
    "member_loss/validation/1": [(2, 2.0)],
    "checkpoint/seconds": [(2, 3.0)],
    "learning_rate": [(2, 0.5)],
  }


def test_fields_and_charts_are_there_for_tensorboard(tmp_path):
  fields = {"seed": 3, "name": "a", "mirror": True, "mean": [1, 2], "no": None}
  events.Events(
    str(tmp_path), fields=fields, compared=("loss", "top1_error")
  ).close()
  # One file in one folder, so that TensorBoard has one run.
  assert [path.is_file() for path in tmp_path.rglob("*")] == [True]
  contents = {
    value.tag: value
    for event in event_files.read(tmp_path)
    for value in event.summary.value
  }
  start = plugin_hparams_pb2.HParamsPluginData.FromString(
    contents["_hparams_/session_start_info"].metadata.plugin_data.content
  ).session_start_info
  assert {
    name: getattr(value, value.WhichOneof("kind"))
    for name, value in start.hparams.items()
  } == {"seed": 3.0, "name": "a", "mirror": True, "mean": "[1, 2]"}
  experiment = plugin_hparams_pb2.HParamsPluginData.FromString(
    contents["_hparams_/experiment"].metadata.plugin_data.content
  ).experiment
  assert [one.name.tag for one in experiment.metric_infos] == [
    *("loss/validation", "top1_error/validation")
  ]
  (content,) = contents["custom_scalars__config__"].tensor.string_val
  (category,) = layout_pb2.Layout.FromString(content).category
  assert [list(chart.multiline.tag) for chart in category.chart] == [
    ["loss/training", "loss/validation"],
    ["top1_error/training", "top1_error/validation"],
  ]


def report_steps(reporter, steps, *, loss=1.0):
  """Reports a training step and a validation for each of some steps."""
  for step in steps:
    totals = np.array([8 * loss, 4, 2, 8], np.float32)
    reporter.training(step, [totals], learning_rate=0.1, replaced=lambda: 0)
    reporter.flush()
    reporter.validation(step, totals, lambda: 0)


def test_resumed_run_has_one_curve(tmp_path, monkeypatch):
  now = iter(range(1000))
  monkeypatch.setattr(report.time, "monotonic", lambda: float(next(now)))
  for first_step, steps, loss in ((0, (2, 4, 6, 8), 1.0), (4, (7, 9), 2.0)):
    reporter = make_reporter(tmp_path, first_step=first_step)
    report_steps(reporter, steps, loss=loss)
    reporter.close()
    monkeypatch.setattr(events.os, "getpid", lambda: 999_999_999)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  lines = list(map(json.loads, lines))
  assert lines[8] == {"step": 4, "session": 2}
  for line in lines[:8] + lines[9:]:
    assert line["images_seen"] == 8 * line["step"]
    assert line["epoch"] == line["step"] / 2
  curves = reports.read_curves(str(tmp_path))
  for kind in ("training", "validation"):
    assert curves[f"{kind}_step"].tolist() == [2, 4, 7, 9]
    assert curves[f"{kind}_loss"].tolist() == [1, 1, 2, 2]
    assert curves[f"{kind}_epoch"].tolist() == [1, 2, 3.5, 4.5]
    assert curves[f"{kind}_images_seen"].tolist() == [16, 32, 56, 72]
    shown = event_files.read_scalars(tmp_path)[f"loss/{kind}"]
    assert shown == [(2, 1), (4, 1), (7, 2), (9, 2)]
  # Seconds continue after those of step 4, not after those of the lost steps.
  seconds = curves["validation_elapsed_seconds"]
  assert (np.diff(seconds) > 0).all()
  assert lines[7]["elapsed_seconds"] > seconds[2]
  start = lines[3]["elapsed_seconds"]
  assert seconds[1] == start < curves["training_elapsed_seconds"][2]
  # The third start is marked; one that writes nothing is not.
  make_reporter(tmp_path, first_step=9).close()
  reporter = make_reporter(tmp_path, first_step=9)
  report_steps(reporter, (11,))
  reporter.close()
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert json.loads(lines[13]) == {"step": 9, "session": 3}
  assert len(lines) == 16


@pytest.mark.parametrize(
  ("bad", "expected"),
  [
    ([np.nan, 8, 8, 8], "the loss of step 5 is nan"),
    ([[1.0, 0, 0, 8], [np.inf, 0, 0, 8]], "the loss of run 1 of step 5 is inf"),
  ],
)
def test_loss_that_is_not_finite_names_the_step(bad, expected, tmp_path):
  console = rich.console.Console(quiet=True)
  reporter = make_reporter(tmp_path, console, num_steps=10)
  fine = np.ones_like(bad)
  assert reporter.read_totals(3, [fine, fine]).shape == (2, *fine.shape)
  reporter.training(5, [fine, bad], learning_rate=0.1, replaced=lambda: 0)
  # Before a save, and when the report is written.
  for read in (reporter.check, reporter.flush):
    with pytest.raises(report.LossNotFinite, match=expected):
      read()
  reporter.close()


def test_run_of_an_earlier_version_continues_with_its_images(tmp_path):
  file = tmp_path / "metrics.jsonl"
  file.write_text('{"step": 4, "training_loss": 1.0}\n[damaged\n')
  reporter = make_reporter(tmp_path, first_step=4)
  report_steps(reporter, (6,))
  reporter.close()
  *_, line = map(json.loads, file.read_text().splitlines()[2:])
  assert (line["epoch"], line["images_seen"]) == (3.0, 48)
  file.write_text(file.read_text().replace("[damaged\n", ""))
  curves = reports.read_curves(str(tmp_path))
  assert curves["training_step"].tolist() == [4, 6]
  np.testing.assert_array_equal(curves["training_epoch"], [np.nan, 3.0])


def test_reports_that_are_removed_are_written_again(tmp_path):
  workdir = tmp_path / "a"
  workdir.mkdir()
  console = rich.console.Console(record=True, width=999, file=io.StringIO())
  reporter = make_reporter(workdir, console, num_steps=9, top_k=(1,))
  path = workdir / "metrics.jsonl"

  def write(step):
    reporter.validation(step, np.array([-0.0, 1, 0, 8]), lambda: 0)
    lines = path.read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]

  assert write(1) == [1]
  path.unlink()
  assert write(2) == [1, 2]
  path.rename(workdir / "kept")
  assert write(3) == [3]
  path.unlink()
  path.write_text('{"step": 7}\n{"ste')
  assert write(4) == [7, 4]
  for file in workdir.glob("events*"):
    file.unlink()
  assert write(5) == [7, 4, 5]
  assert len([*workdir.glob("events*")]) == 1
  printed = console.export_text()
  assert printed.count("metrics.jsonl has been removed or replaced") == 3
  assert printed.count("it is written again") == 1
  assert printed.count("TensorBoard events in") == 1
  # What is shown: no top-5 error where that is always 0, and no loss of -0.
  assert "validation loss 0, top-1 error 12.50%, 8 images" in printed
  # A workdir that is renamed or replaced is named; the lines are in it.
  assert reporter.is_in_place
  workdir.rename(tmp_path / "b")
  reporter.validation(6, np.array([1, 1, 0, 8]), lambda: 0)
  assert "It is now" in str(reporter.error)
  assert reporter.find_workdir() == str(tmp_path / "b")
  workdir.mkdir()
  assert not reporter.is_in_place
  reporter.close()
  assert not [*workdir.iterdir()]
  assert '"step": 6' in (tmp_path / "b" / "metrics.jsonl").read_text()


def test_partial_last_line_is_cut(tmp_path):
  path = tmp_path / "metrics.jsonl"
  assert report.cut_partial_line(str(path)) == 0
  for text, left in (("", ""), ("a\n", "a\n"), ("a\nbc", "a\n"), ("b", "")):
    path.write_text(text)
    assert report.cut_partial_line(str(path)) == len(text) - len(left)
    assert path.read_text() == left


def test_curves_after_a_kill_have_each_step_once(tmp_path):
  lines = [
    {"step": 2, "training_loss": 2.0, "learning_rate": 0.1},
    {"step": 4, "training_loss": 1.5, "learning_rate": 0.1},
    {"step": 3, "checkpoint_seconds": 0.5, "checkpoint_bytes": 8},
    {"step": 4, "validation_loss": 1.0, "validation_top1_error": 0.5},
    {"step": 6, "training_loss": 1.25, "learning_rate": 0.1},
    # Killed; resumed after step 3, and with other reports.
    {"step": 4, "validation_loss": 1.0, "validation_top1_error": 0.25},
    {"step": 5, "training_loss": 1.0, "learning_rate": 0.01},
    {"step": 8, "training_loss": 0.5},
  ]
  text = "".join(f"{json.dumps(line)}\n" for line in lines)
  file = tmp_path / "metrics.jsonl"
  file.write_text(text + '{"step": 10, "trai')  # it is training
  curves = reports.read_curves(str(tmp_path))
  expected = {
    "training_step": [2, 4, 5, 8],
    "training_loss": [2.0, 1.5, 1.0, 0.5],
    "learning_rate": [0.1, 0.1, 0.01, np.nan],
    "checkpoint_step": [3],
    "checkpoint_seconds": [0.5],
    "checkpoint_bytes": [8],
    "validation_step": [4],
    "validation_loss": [1.0],
    "validation_top1_error": [0.25],
  }
  assert curves.keys() == expected.keys()
  for name, values in expected.items():
    np.testing.assert_array_equal(curves[name], values)
  file.write_text(text.replace('{"step": 3, ', '{"step": ', 1))
  with pytest.raises(ValueError, match="^line 3 of .* is damaged"):
    reports.read_curves(str(tmp_path))
  file.unlink()
  assert reports.read_curves(str(tmp_path)) == {}


@pytest.mark.parametrize(
  ("name", "values"),
  [
    ("training_loss", ["low", 1.0]),
    ("training_loss", [{"a": 1}, 1.0]),
    ("training_loss", [[1.0, 2.0], [1.0, 2.0, 3.0]]),
    ("training_loss", [10**400, 1]),
    ("step", [10**30, 10**31]),
  ],
)
def test_values_that_are_no_curve_are_refused_in_one_line(
  name, values, tmp_path
):
  lines = [
    json.dumps({"step": step, "training_loss": 1.0} | {name: value})
    for step, value in enumerate(values)
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(f"{x}\n" for x in lines))
  with pytest.raises(ValueError, match=f"is damaged: the values of '{name}'"):
    reports.read_curves(str(tmp_path))


def test_curves_of_several_runs_have_a_column_for_each(tmp_path):
  lines = [
    {"step": step, "training_loss": 1.0, "training_member_loss": [step, 2.0]}
    for step in (1, 2)
  ]
  text = "".join(f"{json.dumps(line)}\n" for line in lines)
  (tmp_path / "metrics.jsonl").write_text(text)
  found = reports.read_curves(str(tmp_path))["training_member_loss"]
  np.testing.assert_array_equal(found, [[1, 2], [2, 2]])
  # The folder of one of them has no file, and a run beside it no column.
  for name, expected in (("member_0", [1, 2]), ("member_1", [2, 2])):
    (tmp_path / name).mkdir()
    own = reports.read_curves(str(tmp_path / name))
    np.testing.assert_array_equal(own["training_loss"], expected)
    np.testing.assert_array_equal(own["training_step"], [1, 2])
    assert "training_member_loss" not in own
  for name in ("member_2", "other"):
    (tmp_path / name).mkdir()
    assert reports.read_curves(str(tmp_path / name)) == {}
