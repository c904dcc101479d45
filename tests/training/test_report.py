import struct

from tensorboardX.proto import event_pb2

from alexnet_jax.training import report


def test_values_are_there_for_tensorboard(tmp_path):
  writer = report.Events(str(tmp_path))
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
  values = [(event.step, *event.summary.value) for event in found[1:]]
  assert [(step, one.tag, one.simple_value) for step, one in values] == [
    (1, "training_loss", 0.25),
    (2, "training_loss", 0.5),
  ]
