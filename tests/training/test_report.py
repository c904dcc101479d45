import io
import json
import struct

import numpy as np
import pytest
import rich.console
from tensorboardX.proto import event_pb2

from alexnet_jax.training import report


def test_values_are_there_for_tensorboard(tmp_path):
  writer = report.Events(str(tmp_path), first_step=7)
  for step in (1, 2):
    writer.add("training_loss", step / 4, step)
  writer.close()
  (path,) = tmp_path.glob("events.out.tfevents.*")
  data, found = path.read_bytes(), []
  # Of TFRecord: the length, its checksum, the data, their checksum.
  while data:
    (length,) = struct.unpack("<Q", data[:8])
    found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
    data = data[16 + length :]
  assert found[0].file_version == "brain.Event:2"
  # TensorBoard drops the steps from there on that earlier files have.
  start = event_pb2.SessionLog.START
  assert (found[1].step, found[1].session_log.status) == (8, start)
  values = [(event.step, *event.summary.value) for event in found[2:]]
  assert [(step, one.tag, one.simple_value) for step, one in values] == [
    (1, "training_loss", 0.25),
    (2, "training_loss", 0.5),
  ]


@pytest.mark.parametrize(
  ("bad", "expected"),
  [
    ([np.nan, 8, 8, 8], "the loss of step 5 is nan"),
    ([[1.0, 0, 0, 8], [np.inf, 0, 0, 8]], "the loss of run 1 of step 5 is inf"),
  ],
)
def test_loss_that_is_not_finite_names_the_step(bad, expected, tmp_path):
  console = rich.console.Console(quiet=True)
  reporter = report.Reporter(str(tmp_path), console, first_step=0, num_steps=10)
  fine = np.ones_like(bad)
  assert reporter.read_totals(3, [fine, fine]).shape == (2, *fine.shape)
  reporter.training(5, [fine, bad], learning_rate=0.1, replaced=lambda: 0)
  # Before a save, and when the report is written.
  for read in (reporter.check, reporter.flush):
    with pytest.raises(report.LossNotFinite, match=expected):
      read()
  reporter.close()


def test_reports_that_are_removed_are_written_again(tmp_path):
  workdir = tmp_path / "a"
  workdir.mkdir()
  console = rich.console.Console(record=True, width=999, file=io.StringIO())
  reporter = report.Reporter(
    *(str(workdir), console), first_step=0, num_steps=9, top_k=(1,)
  )
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
  for events in workdir.glob("events*"):
    events.unlink()
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
