"""Reports of a run: metrics.jsonl, TensorBoard events, progress lines.

`checkpoints/reports.py` has what is in metrics.jsonl, and reads it.

Totals are f32[4], the sums of `metrics.NAMES`. If the program trains several
runs at once they are f32[runs, 4]; the reports then have the mean, and a list
with the value of each run.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress

from alexnet_jax.checkpoints import reports, writer
from alexnet_jax.program import metrics
from alexnet_jax.training import events, loss_monitor
from alexnet_jax.training import tracker as tracker_lib


def print_lines(console: rich.console.Console, *lines: str) -> None:
  """Prints lines as they are: neither wrapped nor highlighted."""
  for line in lines:
    console.print(line, soft_wrap=True, highlight=False)


class _Progress:
  """The place of a step in the run, as metrics.jsonl has it.

  Args:
    path: of metrics.jsonl, which may have reports of earlier starts.
    first_step: the step that this start resumes after.
    batch_size: images in a step.
    num_images: of the training split.
  """

  def __init__(
    self, path: str, *, first_step: int, batch_size: int, num_images: int
  ):
    self.session = 1
    self._first_step, self._num_images = first_step, num_images
    self._batch_size = batch_size
    self._seconds, self._images = 0.0, first_step * batch_size
    newest = (-1, False)
    # A damaged line is named where the curves are read.
    for values in reports.read_valid_lines(path):
      step = values["step"]
      self.session = max(self.session + ("session" in values), 2)
      # A checkpoint is reported when it is on disk, after later steps.
      age = (step, "checkpoint_seconds" not in values)
      place = [values.get(name) for name in reports.PLACE]
      if not all(isinstance(value, int | float) for value in place):
        continue
      if step <= first_step and age >= newest:
        newest = age
        self._seconds = float(values["elapsed_seconds"])
        self._images = values["images_seen"] + (first_step - step) * batch_size
    self._began = time.monotonic()

  def find(self, step: int, now: float) -> dict[str, float]:
    """Returns the values of `reports.PLACE`; `now` is as of time.monotonic."""
    images = self._images + (step - self._first_step) * self._batch_size
    return {
      "epoch": round(images / self._num_images, 6),
      "elapsed_seconds": round(self._seconds + now - self._began, 3),
      "images_seen": images,
    }


class LossNotFinite(FloatingPointError):
  """The loss of a step, or of a validation, is not finite.

  Attributes:
    step: the first such step, from 1, or the one before the validation.
    index: of the run whose loss it is, if there are several; else None.
    loss: the value, NaN or infinite.
    name: of the loss, for messages.
    in_validation: whether it is that of a validation.
  """

  def __init__(
    self,
    step: int,
    index: int | None,
    loss: float,
    run_name: str,
    *,
    in_validation: bool = False,
  ):
    self.step, self.index, self.loss = step, index, loss
    self.in_validation = in_validation
    name = _name_loss(run_name, index)
    self.name = (
      f"{name} of the validation after step {step}"
      if in_validation
      else f"{name} of step {step}"
    )
    super().__init__(f"{self.name} is {loss}, expected a finite number.")


class WorkdirGone(OSError):
  """The workdir is no longer where it was."""


class Reporter:
  """Writes the reports of a run to its workdir and to the console.

  Values of the training are read from the devices one report late, so that no
  step waits for the host.

  Args:
    workdir: for `metrics.jsonl` and TensorBoard events; None: nothing is
      written, as in all processes of a run but the first.
    console: a terminal gets a progress bar, anything else plain lines.
    first_step: the step that this start resumes after.
    batch_size: images in a step.
    num_images: of the training split, for epochs.
    fields: of the config, by full name, for TensorBoard.
    tracker: gets the values of all reports; the caller closes it. None: there
      is none.
    monitor: warns of a loss at chance level; None: no such warning.
    run_name: what one of several runs is called in reports.
    top_k: the k of the top-k errors that lines show.

  Attributes:
    error: of the first report that could not be written; no other is written
      after it. The caller has to raise it once the state is saved.
  """

  def __init__(
    self,
    workdir: str | None,
    console: rich.console.Console,
    *,
    first_step: int,
    num_steps: int,
    batch_size: int,
    num_images: int,
    fields: Mapping[str, Any] | None = None,
    tracker: tracker_lib.Tracking | None = None,
    monitor: loss_monitor.LossMonitor | None = None,
    run_name: str = "run",
    top_k: Sequence[int] = metrics.TOP_K,
  ):
    self.error: OSError | None = None
    self._console = console
    self._top_k = top_k
    self._monitor = monitor
    self._num_steps = num_steps
    self._run_name = run_name
    self._file = self._events = self._folder = None
    self._workdir, self._first_step = workdir, first_step
    self._fields, self._tracker = fields, tracker
    if workdir is not None:
      with self._writing():
        self._file = self._open()
        self._events = self._make_events(first_step)
        self._folder = _Folder(workdir)
        self._place = _Progress(
          os.path.join(workdir, reports.FILE),
          first_step=first_step,
          batch_size=batch_size,
          num_images=num_images,
        )
        self._writes_session = self._place.session > 1
    # Arguments of `training`, seconds since the report before, and now.
    self._due: tuple | None = None
    self._began = self._since = time.monotonic()
    self._saved: list[writer.Saved] = []
    self._progress = rich.progress.Progress(
      rich.progress.TextColumn("step"),
      rich.progress.MofNCompleteColumn(),
      rich.progress.BarColumn(),
      rich.progress.TimeRemainingColumn(),
      rich.progress.TextColumn("left {task.fields[shown]}", markup=False),
      console=console,
      disable=not console.is_terminal or console.quiet,
      transient=True,
    )
    self._task = self._progress.add_task(
      "train", total=num_steps, completed=first_step, shown=""
    )
    self._progress.start()

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
    """Reports on the steps since the last report, once the next one is due.

    Args:
      totals: of each step since the last report, still on the devices.
      learning_rate: of the last of these steps.
      replaced: returns the number of images whose own record could not be
        read; called one report late.

    Raises:
      LossNotFinite: of a step of the report before.
    """
    self.flush()
    now = time.monotonic()
    seconds = now - self._since
    self._due = (step, list(totals), learning_rate, replaced, seconds, now)
    self._since = now

  def check(self) -> None:
    """Raises LossNotFinite for a step of the report that is due."""
    if self._due is not None:
      step, totals, *_ = self._due
      self.read_totals(step, totals)

  def flush(self) -> None:
    """Writes the report that is due, or raises LossNotFinite."""
    if self._due is None:
      return
    step, totals, learning_rate, replaced, seconds, now = self._due
    self._due = None
    sums = self.read_totals(step, totals)
    if self._file is None:
      return
    replaced = replaced()
    totals = sums.sum(axis=0)
    means = _to_means(totals)
    rate = means.pop("images") / seconds
    values = {f"training_{name}": value for name, value in means.items()}
    values |= {"learning_rate": learning_rate, "images_per_second": rate}
    values["training_replaced_images"] = replaced
    values |= self._values_of_runs("training", totals)
    shown = f"{rate:,.0f} images/s, loss {means['loss']:.3f}"
    self._progress.update(self._task, shown=shown)
    self._write(step, values, now)
    if not self._console.is_terminal:
      self.say(
        step,
        f"{self._describe(totals, means)}, {rate:,.0f} images/s, learning rate "
        f"{learning_rate:g}{_describe_replaced(replaced)}",
      )
    if self._monitor is not None:
      losses = {
        _name_loss(self._run_name, *index): metrics.to_means(totals[index])[
          "loss"
        ]
        for index in np.ndindex(totals.shape[:-1])
      }
      for line in self._monitor.check(step, losses):
        self.say(step, line)

  def validation(
    self, step: int, totals: np.ndarray, replaced: Callable[[], int]
  ) -> None:
    """Reports on a validation; `replaced` is as for `training`.

    Raises:
      LossNotFinite: the loss of the validation is not finite.
    """
    for index in np.ndindex(totals.shape[:-1]):
      if not math.isfinite(totals[index][0]):
        raise LossNotFinite(
          step,
          *(index or (None,)),
          float(totals[index][0]),
          self._run_name,
          in_validation=True,
        )
    if self._file is None:
      return
    now = time.monotonic()
    replaced = replaced()
    means = _to_means(totals)
    values = {f"validation_{name}": value for name, value in means.items()}
    values["validation_replaced_images"] = replaced
    values |= (of_runs := self._values_of_runs("validation", totals))
    self._write(step, values, now)
    self.say(
      step,
      f"validation {self._describe(totals, means)}, {means['images']:,} images"
      f"{_describe_replaced(replaced)}",
    )
    for k in self._top_k if of_runs else ():
      errors = of_runs[f"validation_{self._run_name}_top{k}_error"]
      listed = ", ".join(f"{error:.2%}" for error in errors)
      self.say(
        step, f"validation top-{k} error of each {self._run_name}: {listed}"
      )

  @property
  def has_events(self) -> bool:
    """Whether `images` writes: in process 0, until a report fails."""
    return self._events is not None and self.error is None

  def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Adds images to TensorBoard, {name: u8[height, width, channels]}.

    After the report of the same step, which writes the file again if it is
    gone.
    """
    if not self.has_events:
      return
    try:
      with self._writing():
        for name, pixels in images.items():
          self._events.add_image(name, pixels, step)
    except OSError as error:
      self.error = error

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
        time.monotonic(),
      )

  def resume_clock(self) -> None:
    """Excludes the time since the last report from the next rate."""
    self._since = time.monotonic()

  def close(self) -> None:
    """Prints what the checkpoints have cost, and closes the files."""
    self._progress.stop()
    if self._saved:
      taken = sum(one.blocked_seconds for one in self._saved)
      print_lines(
        self._console,
        f"checkpoints: {len(self._saved)} saved, {taken:.1f} s of "
        f"{time.monotonic() - self._began:.0f} s taken from training",
      )
    # After an error, what is left in a buffer raises it once more.
    known = () if self.error is None else (OSError,)
    with contextlib.suppress(*known), self._writing():
      with contextlib.ExitStack() as closed:
        for opened in filter(None, (self._folder, self._events, self._file)):
          closed.callback(opened.close)

  def read_totals(self, step: int, totals: Sequence[jax.Array]) -> np.ndarray:
    """Reads the totals of some steps, the last of which is `step`.

    Returns:
      f32[steps, 4], or f32[steps, runs, 4].

    Raises:
      LossNotFinite: names the first step whose loss is not finite.
    """
    sums = np.stack(jax.device_get(totals))
    for (row, *index), loss in np.ndenumerate(sums[..., 0]):
      if not math.isfinite(loss):
        raise LossNotFinite(
          step - len(totals) + row + 1,
          index[0] if index else None,
          float(loss),
          self._run_name,
        )
    return sums

  def _values_of_runs(
    self, prefix: str, totals: np.ndarray
  ) -> dict[str, list[float]]:
    """Lists the values of each run; {} for a single run."""
    if totals.ndim == 1:
      return {}
    means = list(map(metrics.to_means, totals))
    return {
      f"{prefix}_{self._run_name}_{name}": [one[name] for one in means]
      for name in metrics.NAMES
      if name != "images"
    }

  def _describe(self, totals: np.ndarray, means: Mapping[str, float]) -> str:
    mean = f"mean of {len(totals)} {self._run_name}s: "
    errors = (
      f"top-{k} error {means[f'top{k}_error']:.2%}" for k in self._top_k
    )
    text = f"loss {means['loss']:.4g}, {', '.join(errors)}"
    return mean + text if totals.ndim > 1 else text

  def _open(self):
    path = os.path.join(self._workdir, reports.FILE)
    if cut := cut_partial_line(path):
      print_lines(
        self._console,
        f"the last line of {path} was cut off; its {cut:,} bytes are removed",
      )
    return open(path, "a+")

  def _make_events(self, first_step: int) -> events.Events:
    errors = (f"top{k}_error" for k in self._top_k)
    return events.Events(
      self._workdir,
      first_step=first_step,
      fields=self._fields,
      compared=("loss", *errors),
    )

  def check_workdir(self) -> None:
    """Notes in `error` if the workdir is no longer where it was."""
    if self.is_in_place:
      return
    now = self.find_workdir()
    place = "" if now is None else f" It is now {now!r}: rename it back."
    self.error = WorkdirGone(
      f"the workdir {self._workdir!r} is gone: it has been renamed or removed, "
      f"or its volume is no longer mounted.{place} The same command resumes "
      "from the last checkpoint in it."
    )

  @property
  def is_in_place(self) -> bool:
    """Whether the workdir, if this writes one, is where it was."""
    return self._folder is None or self._folder.find() == self._workdir

  def find_workdir(self) -> str | None:
    """Returns where the workdir is now; None: it is gone."""
    return self._folder.find()

  def _keep_files(self, step: int) -> None:
    """Writes the files again if another program has removed them."""
    path = os.path.join(self._workdir, reports.FILE)
    if self._folder.is_reliable and not _is_at(path, self._file.fileno()):
      old, self._file = self._file, self._open()
      # Another name of the old one has its lines, or another file is here.
      lost = not os.fstat(old.fileno()).st_nlink and not self._file.tell()
      if lost:
        old.seek(0)
        self._file.write(old.read())
      old.close()
      print_lines(
        self._console,
        f"{path} has been removed or replaced; it is "
        f"{'written again' if lost else 'continued'}",
      )
    if not os.path.exists(self._events.path):
      self._events.close()
      self._events = self._make_events(step - 1)
      print_lines(
        self._console,
        f"the TensorBoard events in {self._workdir} have been removed; those "
        f"from step {step} on are in a new file",
      )

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Adds to an error what could not be written."""
    try:
      yield
    except OSError as error:
      raise OSError(
        f"the reports in {self._workdir!r} cannot be written: "
        f"{error.strerror}. Make room there or set --workdir; the same command "
        "resumes from the last checkpoint."
      ) from error

  def _write(
    self, step: int, values: Mapping[str, float | list[float]], now: float
  ) -> None:
    """Writes a line; `now` is when its step was taken, by time.monotonic."""
    place = self._place.find(step, now)
    flat = _flatten(values)
    if self.error is None:
      self.check_workdir()
    # A folder that was renamed still gets the reports up to the end.
    if not isinstance(self.error, WorkdirGone | None):
      return
    try:
      with self._writing():
        if self.error is None:
          self._keep_files(step)
        if self._writes_session:
          session = {"step": self._first_step, "session": self._place.session}
          self._file.write(f"{json.dumps(session)}\n")
          self._writes_session = False
        line = json.dumps({"step": step, **place, **values}, allow_nan=False)
        self._file.write(f"{line}\n")
        self._file.flush()
        for name, value in flat.items():
          self._events.add(name, value, step)
    except OSError as error:
      self.error = self.error or error
    if self._tracker is not None:
      problem = self._tracker.log(step, place | flat)
      if problem is not None:
        self.say(step, problem)

  def say(self, step: int, text: str) -> None:
    """Prints a line on a step."""
    width = len(str(self._num_steps))
    print_lines(self._console, f"step {step:{width}}/{self._num_steps}: {text}")


def _flatten(values: Mapping[str, float | list[float]]) -> dict[str, float]:
  """Names each value of a list: by the list's name and its index."""
  flat = {}
  for name, value in values.items():
    if isinstance(value, list):
      flat |= {f"{name}/{index}": one for index, one in enumerate(value)}
    else:
      flat[name] = value
  return flat


def _name_loss(run_name: str, index: int | None = None) -> str:
  return "the loss" if index is None else f"the loss of {run_name} {index}"


def _to_means(totals: np.ndarray) -> dict[str, float]:
  """As `metrics.to_means`; the mean of several runs, images counted once."""
  runs = np.atleast_2d(totals)
  return metrics.to_means(runs.mean(axis=0, dtype=np.float64))


def _describe_replaced(images: int) -> str:
  return f", {images:,} replaced" if images else ""


class _Folder:
  """Finds a folder again that is renamed while the run writes to it."""

  def __init__(self, path: str):
    self._path = path
    self._descriptor = os.open(path, os.O_RDONLY)
    # Some network file systems give a file another number each time.
    self.is_reliable = _is_at(path, self._descriptor)

  def find(self) -> str | None:
    """Returns the present path; None: there is none, or it is not known."""
    if not self.is_reliable or _is_at(self._path, self._descriptor):
      return self._path
    try:  # of Linux
      path = os.readlink(f"/proc/self/fd/{self._descriptor}")
    except OSError:
      return None
    return path if _is_at(path, self._descriptor) else None

  def close(self) -> None:
    os.close(self._descriptor)


def _is_at(path: str, descriptor: int) -> bool:
  """Whether an open file or folder is the one of this path."""
  try:
    return os.path.samestat(os.stat(path), os.fstat(descriptor))
  except OSError:
    return False


def cut_partial_line(path: str) -> int:
  """Cuts a last line that has no end off a file, so that one can follow it.

  A killed process or a full disk can leave one. Returns the bytes cut off.
  """
  if not os.path.isfile(path):
    return 0
  with open(path, "rb+") as file:
    content = file.read()
    end = content.rfind(b"\n") + 1
    if end < len(content):
      file.truncate(end)
  return len(content) - end
