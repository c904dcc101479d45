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


def test_partial_last_line_is_cut(tmp_path):
  path = tmp_path / "metrics.jsonl"
  assert report.cut_partial_line(str(path)) == 0
  for text, left in (("", ""), ("a\n", "a\n"), ("a\nbc", "a\n"), ("b", "")):
    path.write_text(text)
    assert report.cut_partial_line(str(path)) == len(text) - len(left)
    assert path.read_text() == left
