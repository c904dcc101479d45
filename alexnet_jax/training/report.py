"""What a run says while it trains: metrics.jsonl, TensorBoard, progress."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
import rich.console
import rich.progress
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from alexnet_jax.checkpoints import writer
from alexnet_jax.program import metrics
from alexnet_jax.training import loss_monitor


class LossNotFinite(FloatingPointError):
  """The loss of a step is not finite.

  Attributes:
    step: the first such, from 1.
    member: of an ensemble; None: a single run.
    loss: what it is instead.
  """

  def __init__(self, step: int, member: int | None, loss: float):
    self.step, self.member, self.loss = step, member, loss
    super().__init__(f"{self.where} is {loss}, expected a finite number.")

  @property
  def where(self) -> str:
    of_member = "" if self.member is None else f" of member {self.member}"
    return f"the loss{of_member} of step {self.step}"


class Reporter:
  """Reports of one run, to its workdir and to whoever watches it.

  Values of the training are read from the devices one report late, so that no
  step waits for the host.

  Args:
    workdir: `metrics.jsonl` and TensorBoard events go there; None: nowhere, for
      all processes of a run but the first.
    console: of the watcher. A terminal gets a progress bar, anything else
      plain lines.
    first_step: where this start of the run begins.
    num_steps: where the run ends.
    watch: points out a loss that stays where it was; None: nothing does.
  """

  def __init__(
    self,
    workdir: str | None,
    console: rich.console.Console,
    *,
    first_step: int,
    num_steps: int,
    watch: loss_monitor.LossMonitor | None = None,
  ):
    self._console = console
    self._watch = watch
    self._num_steps = num_steps
    self._file = self._events = None
    self._workdir = workdir
    if workdir is not None:
      with self._writing():
        self._open(os.path.join(workdir, "metrics.jsonl"))
        self._events = Events(workdir)
    self._due: tuple | None = None  # the arguments of `training`, and seconds
    self._began = self._since = time.monotonic()
    self._saved: list[writer.Saved] = []
    self._progress = rich.progress.Progress(
      rich.progress.TextColumn("step"),
      rich.progress.MofNCompleteColumn(),
      rich.progress.BarColumn(),
      rich.progress.TimeRemainingColumn(),
      rich.progress.TextColumn("left {task.fields[shown]}"),
      console=console,
      disable=not console.is_terminal or console.quiet,
      transient=True,
    )
    self._task = self._progress.add_task(
      "train", total=num_steps, completed=first_step, shown=""
    )
    self._progress.start()

  def _open(self, path: str) -> None:
    if cut := repair(path):
      self._console.print(
        f"the last line of {path} was cut off; its {cut:,} bytes are removed",
        highlight=False,
        soft_wrap=True,
      )
    self._file = open(path, "a")

  def advance(self, step: int) -> None:
    """Moves the progress bar."""
    self._progress.update(self._task, completed=step)

  def training(
    self,
    step: int,
    totals: Sequence[jax.Array],
    *,
    learning_rate: float,
    replaced: Callable[[], int],
  ) -> None:
    """Reports on the steps since the last report.

    Args:
      step: steps taken so far.
      totals: f32[4] of each step since the last report, or f32[members, 4],
        still on the devices.
      learning_rate: of the last of them.
      replaced: says how many images there were whose own record could not be
        read; asked one report late.

    Raises:
      LossNotFinite: of one of the last report.
    """
    self.flush()
    now = time.monotonic()
    seconds = now - self._since
    self._due = (step, list(totals), learning_rate, replaced, seconds)
    self._since = now

  def check(self) -> None:
    """Looks at the losses of the report that is due; waits for its last step.

    Raises:
      LossNotFinite: of one of its steps.
    """
    if self._due is not None:
      step, totals, *_ = self._due
      check_losses(step, totals)

  def flush(self) -> None:
    """Writes the report that is due; waits for its last step.

    Raises:
      LossNotFinite: of one of its steps.
    """
    if self._due is None:
      return
    step, totals, learning_rate, replaced, seconds = self._due
    self._due = None
    sums = check_losses(step, totals)
    if self._file is None:
      return
    replaced = replaced()
    totals = sums.sum(axis=0)
    means = _to_means(totals)
    rate = means.pop("images") / seconds
    values = {f"training_{name}": value for name, value in means.items()}
    values |= {"learning_rate": learning_rate, "images_per_second": rate}
    values["training_replaced_images"] = replaced
    values |= (of_members := _of_members("training", totals))
    shown = f"{rate:,.0f} images/s, loss {means['loss']:.3f}"
    self._progress.update(self._task, shown=shown)
    self._write(step, values)
    if not self._console.is_terminal:
      self._line(
        step,
        f"{_whose(totals)}loss {means['loss']:.4g}, {_errors(means)}, "
        f"{rate:,.0f} images/s, "
        f"learning rate {learning_rate:g}{_replaced(replaced)}",
      )
    if self._watch is not None:
      losses = of_members.get("training_member_loss", [means["loss"]])
      for line in self._watch.look(step, losses):
        self._line(step, line)

  def validation(
    self, step: int, totals: np.ndarray, replaced: Callable[[], int]
  ) -> None:
    """Reports on a validation.

    Args:
      step: steps taken so far.
      totals: f32[4], over the whole split, or f32[members, 4].
      replaced: as for `training`.
    """
    if self._file is None:
      return
    replaced = replaced()
    means = _to_means(totals)
    values = {f"validation_{name}": value for name, value in means.items()}
    values["validation_replaced_images"] = replaced
    values |= (of_members := _of_members("validation", totals))
    self._write(step, values)
    self._line(
      step,
      f"validation {_whose(totals)}loss {means['loss']:.4g}, "
      f"{_errors(means)}, "
      f"{means['images']:,} images{_replaced(replaced)}",
    )
    for name, what in (("top1", "top-1"), ("top5", "top-5")):
      if of_members:
        errors = of_members[f"validation_member_{name}_error"]
        listed = ", ".join(f"{error:.2%}" for error in errors)
        self._line(step, f"validation {what} error of each member: {listed}")

  def saved(self, saved: Sequence[writer.Saved]) -> None:
    """Reports on checkpoints that are on disk now."""
    if self._file is None:
      return
    for one in saved:
      self._saved.append(one)
      self._write(
        one.step,
        {
          "checkpoint_blocked_seconds": one.blocked_seconds,
          "checkpoint_seconds": one.seconds,
          "checkpoint_bytes": one.num_bytes,
        },
      )

  def resume_clock(self) -> None:
    """Leaves what was done since the last report out of the next rate."""
    self._since = time.monotonic()

  def close(self) -> None:
    """Says what the checkpoints have cost, and writes what is left."""
    self._progress.stop()
    if self._saved:
      taken = sum(one.blocked_seconds for one in self._saved)
      self._console.print(
        f"checkpoints: {len(self._saved)} saved, {taken:.1f} s of "
        f"{time.monotonic() - self._began:.0f} s taken from training",
        highlight=False,
      )
    with self._writing(), contextlib.ExitStack() as closed:
      for opened in (self._events, self._file):
        if opened is not None:
          closed.callback(opened.close)

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Says of errors what could not be written."""
    try:
      yield
    except OSError as error:
      raise OSError(
        f"the reports in {self._workdir!r} cannot be written: "
        f"{error.strerror}. Make room there or set --workdir; the same command "
        "goes on from the last checkpoint."
      ) from error

  def _write(
    self, step: int, values: Mapping[str, float | list[float]]
  ) -> None:
    with self._writing():
      self._file.write(json.dumps({"step": step, **values}) + "\n")
      self._file.flush()
      for name, value in values.items():
        if isinstance(value, list):
          for member, of_member in enumerate(value):
            self._events.add(f"{name}/{member}", of_member, step)
        else:
          self._events.add(name, value, step)

  def _line(self, step: int, text: str) -> None:
    width = len(str(self._num_steps))
    self._console.print(
      f"step {step:{width}}/{self._num_steps}: {text}",
      highlight=False,
      soft_wrap=True,
    )


def check_losses(step: int, totals: Sequence[jax.Array]) -> np.ndarray:
  """Reads the totals of the last steps; waits for them.

  Args:
    step: the last of these steps.
    totals: f32[4] of each, or f32[members, 4]; one or more.

  Returns:
    f32[steps, 4], or f32[steps, members, 4].

  Raises:
    LossNotFinite: names the first.
  """
  sums = np.stack(jax.device_get(totals))
  for (index, *member), loss in np.ndenumerate(sums[..., 0]):
    if not math.isfinite(loss):
      number = step - len(totals) + index + 1
      raise LossNotFinite(number, member[0] if member else None, float(loss))
  return sums


def _to_means(totals: np.ndarray) -> dict[str, float]:
  """As `metrics.to_means`; of several members the mean, images counted once."""
  members = np.atleast_2d(totals)
  return metrics.to_means(members.mean(axis=0, dtype=np.float64))


def _of_members(prefix: str, totals: np.ndarray) -> dict[str, list[float]]:
  """What each member of an ensemble has; nothing for a single run.

  Args:
    prefix: of the names.
    totals: f32[4], or f32[members, 4].
  """
  if totals.ndim == 1:
    return {}
  means = list(map(metrics.to_means, totals))
  return {
    f"{prefix}_member_{name}": [of_member[name] for of_member in means]
    for name in metrics.NAMES
    if name != "images"
  }


def _whose(totals: np.ndarray) -> str:
  return f"mean of {len(totals)} members: " if totals.ndim > 1 else ""


def _errors(means: Mapping[str, float]) -> str:
  top1, top5 = means["top1_error"], means["top5_error"]
  return f"top-1 error {top1:.2%}, top-5 error {top5:.2%}"


def _replaced(images: int) -> str:
  return f", {images:,} replaced" if images else ""


# Scalars for TensorBoard, written by the thread that reports them.
#
# tensorboardX's own writer has a thread for that. Where the disk is full it
# ends with a traceback, and the run then waits for it for ever.

# Between two times that all is synced to disk.
_FLUSH_SECONDS = 10.0


class Events:
  """An event file of its own.

  Args:
    folder: in which it lies.

  Raises:
    OSError: it cannot be written; as every method.
  """

  def __init__(self, folder: str):
    # Without the process, two starts within a second would share a name.
    self._writer = event_file_writer.EventsWriter(
      os.path.join(folder, "events"), f".{os.getpid()}"
    )
    self._flushed = time.monotonic()

  def add(self, name: str, value: float, step: int) -> None:
    """Adds one value of a curve."""
    self._writer.write_event(
      event_pb2.Event(
        wall_time=time.time(), step=step, summary=summary.scalar(name, value)
      )
    )
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self._writer.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    """Writes what is left."""
    self._writer.close()


# A file of one JSON value per line, to which a run appends.
#
# A process that is killed, or a disk that is full, can leave the last line cut.


def repair(path: str) -> int:
  """Takes a last line that is cut off a file, so that another can follow.

  Returns:
    The bytes that were taken off; 0 where the file is whole or not there.
  """
  if not os.path.isfile(path):
    return 0
  with open(path, "rb+") as file:
    content = file.read()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
      file.truncate(whole)
  return len(content) - whole
