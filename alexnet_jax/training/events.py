"""TensorBoard events of a run, written in the thread that reports.

TensorBoard groups curves by what stands before the first slash of their tag.
`training_loss` of metrics.jsonl is `loss/training` there, beside
`loss/validation`; the tab "Custom Scalars" has both in one chart. All of it,
with the table of hyper-parameters, is one run of TensorBoard in one folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2, summary_pb2

# What a curve belongs to: the first word of its name in metrics.jsonl.
_KINDS = ("training", "validation", "checkpoint")
# Seconds between two times that events are synced to disk.
_FLUSH_SECONDS = 10.0


def to_tag(name: str) -> str:
  """Returns the tag for a name in metrics.jsonl.

  `training_loss` becomes `loss/training`, `checkpoint_seconds` becomes
  `checkpoint/seconds`; `learning_rate`, of no kind, stays. An index stays last:
  `training_run_loss/1` becomes `run_loss/training/1`.
  """
  name, *index = name.split("/")
  kind, _, rest = name.partition("_")
  parts = [name]
  if kind in _KINDS and rest:
    parts = [kind, rest] if kind == "checkpoint" else [rest, kind]
  return "/".join(parts + index)


class Events:
  """A TensorBoard event file.

  tensorboardX's own writer has a thread for that. On a full disk that thread
  ends with a traceback, and the run then waits for it forever. Here every
  method raises OSError.

  Args:
    folder: for the file.
    first_step: after which this start resumes. TensorBoard drops what earlier
      files have of later steps, as after a kill.
    fields: of the config, by full name, for TensorBoard's table of
      hyper-parameters; lists are shown as text, None is left out.
    compared: names of values that training and validation both have, such as
      "loss"; each gets a chart with both curves, and its validation a column
      beside the hyper-parameters.

  Attributes:
    path: of the file.
  """

  def __init__(
    self,
    folder: str,
    *,
    first_step: int = 0,
    fields: Mapping[str, Any] | None = None,
    compared: Sequence[str] = (),
  ):
    # With the process id: two starts within a second would share a name.
    self._writer = event_file_writer.EventsWriter(
      os.path.join(folder, "events"), f".{os.getpid()}"
    )
    self.path = self._writer._file_name  # it has no public name
    self._flushed = time.monotonic()
    self._writer.write_event(
      event_pb2.Event(
        wall_time=time.time(),
        step=first_step + 1,
        session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START),
      )
    )
    # Not SummaryWriter.add_hparams, which makes a run of its own for them.
    # Their third part says that the run has succeeded, which no one knows yet.
    experiment, start, _ = summary.hparams(
      {
        name: value
        if isinstance(value, bool | int | float | str)
        else f"{value}"
        for name, value in (fields or {}).items()
        if value is not None
      },
      {f"{name}/validation": None for name in compared},
    )
    charts = {
      name: ["Multiline", [f"{name}/training", f"{name}/validation"]]
      for name in compared
    }
    layout = summary.custom_scalars({"training and validation": charts})
    # Before any step, so that no later start drops them.
    for one in (experiment, start, layout):
      self._write(one, 0)

  def add(self, name: str, value: float, step: int) -> None:
    """Adds a value of a curve.

    Args:
      name: in metrics.jsonl; of a value of a list, with a slash and its index.
    """
    self._add(summary.scalar(to_tag(name), value), step)

  def add_image(self, name: str, pixels: np.ndarray, step: int) -> None:
    """Adds an image, which TensorBoard shows with a slider over the steps.

    Args:
      name: its tag; images are grouped by what is before the first slash.
      pixels: u8[height, width, channels] of 1, 3 or 4 channels; the fourth is
        the opacity.
    """
    self._add(summary.image(name, pixels, dataformats="HWC"), step)

  def _add(self, values: summary_pb2.Summary, step: int) -> None:
    """Writes values of a step, and syncs them to disk now and then."""
    self._write(values, step)
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self._writer.flush()
      self._flushed = time.monotonic()

  def _write(self, values: summary_pb2.Summary, step: int) -> None:
    self._writer.write_event(
      event_pb2.Event(wall_time=time.time(), step=step, summary=values)
    )

  def close(self) -> None:
    """Writes what is left."""
    self._writer.close()
