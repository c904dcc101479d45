"""Reports of a run: metrics.jsonl, TensorBoard events, progress lines.

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

import jax
import numpy as np
import rich.console
import rich.progress
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from alexnet_jax.checkpoints import writer
from alexnet_jax.program import metrics
from alexnet_jax.training import loss_monitor

# Seconds between two times that TensorBoard events are synced to disk.
_FLUSH_SECONDS = 10.0


def print_lines(console: rich.console.Console, *lines: str) -> None:
  """Prints lines as they are: neither wrapped nor highlighted."""
  for line in lines:
    console.print(line, soft_wrap=True, highlight=False)


class LossNotFinite(FloatingPointError):
  """The loss of a step is not finite.

  Attributes:
    step: the first such step, from 1.
    index: of the run whose loss it is, if there are several; else None.
    loss: the value, NaN or infinite.
    name: of the loss, for messages.
  """

  def __init__(self, step: int, index: int | None, loss: float, run_name: str):
    self.step, self.index, self.loss = step, index, loss
    self.name = f"{_name_loss(run_name, index)} of step {step}"
    super().__init__(f"{self.name} is {loss}, expected a finite number.")


class Reporter:
  """Writes the reports of a run to its workdir and to the console.

  Values of the training are read from the devices one report late, so that no
  step waits for the host.

  Args:
    workdir: for `metrics.jsonl` and TensorBoard events; None: nothing is
      written, as in all processes of a run but the first.
    console: a terminal gets a progress bar, anything else plain lines.
    first_step: the step that this start resumes after.
    monitor: warns of a loss at chance level; None: no such warning.
    run_name: what one of several runs is called in reports.
  """

  def __init__(
    self,
    workdir: str | None,
    console: rich.console.Console,
    *,
    first_step: int,
    num_steps: int,
    monitor: loss_monitor.LossMonitor | None = None,
    run_name: str = "run",
  ):
    self._console = console
    self._monitor = monitor
    self._num_steps = num_steps
    self._run_name = run_name
    self._file = self._events = None
    self._workdir = workdir
    if workdir is not None:
      with self._writing():
        self._file = self._open(os.path.join(workdir, "metrics.jsonl"))
        self._events = Events(workdir)
    self._due: tuple | None = None  # arguments of `training`, and seconds
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
    self._due = (step, list(totals), learning_rate, replaced, seconds)
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
    step, totals, learning_rate, replaced, seconds = self._due
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
    self._write(step, values)
    if not self._console.is_terminal:
      self._print(
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
        self._print(step, line)

  def validation(
    self, step: int, totals: np.ndarray, replaced: Callable[[], int]
  ) -> None:
    """Reports on a validation; `replaced` is as for `training`."""
    if self._file is None:
      return
    replaced = replaced()
    means = _to_means(totals)
    values = {f"validation_{name}": value for name, value in means.items()}
    values["validation_replaced_images"] = replaced
    values |= (of_runs := self._values_of_runs("validation", totals))
    self._write(step, values)
    self._print(
      step,
      f"validation {self._describe(totals, means)}, {means['images']:,} images"
      f"{_describe_replaced(replaced)}",
    )
    for k in metrics.TOP_K if of_runs else ():
      errors = of_runs[f"validation_{self._run_name}_top{k}_error"]
      listed = ", ".join(f"{error:.2%}" for error in errors)
      self._print(
        step, f"validation top-{k} error of each {self._run_name}: {listed}"
      )

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
    with self._writing(), contextlib.ExitStack() as closed:
      for opened in filter(None, (self._events, self._file)):
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
      f"top-{k} error {means[f'top{k}_error']:.2%}" for k in metrics.TOP_K
    )
    text = f"loss {means['loss']:.4g}, {', '.join(errors)}"
    return mean + text if totals.ndim > 1 else text

  def _open(self, path: str):
    if cut := cut_partial_line(path):
      print_lines(
        self._console,
        f"the last line of {path} was cut off; its {cut:,} bytes are removed",
      )
    return open(path, "a")

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
    self, step: int, values: Mapping[str, float | list[float]]
  ) -> None:
    with self._writing():
      self._file.write(json.dumps({"step": step, **values}) + "\n")
      self._file.flush()
      for name, value in values.items():
        if isinstance(value, list):
          for index, one in enumerate(value):
            self._events.add(f"{name}/{index}", one, step)
        else:
          self._events.add(name, value, step)

  def _print(self, step: int, text: str) -> None:
    width = len(str(self._num_steps))
    print_lines(self._console, f"step {step:{width}}/{self._num_steps}: {text}")


def _name_loss(run_name: str, index: int | None = None) -> str:
  return "the loss" if index is None else f"the loss of {run_name} {index}"


def _to_means(totals: np.ndarray) -> dict[str, float]:
  """As `metrics.to_means`; the mean of several runs, images counted once."""
  runs = np.atleast_2d(totals)
  return metrics.to_means(runs.mean(axis=0, dtype=np.float64))


def _describe_replaced(images: int) -> str:
  return f", {images:,} replaced" if images else ""


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


class Events:
  """A TensorBoard event file, written in the thread that reports.

  tensorboardX's own writer has a thread for that. On a full disk that thread
  ends with a traceback, and the run then waits for it forever. Here every
  method raises OSError.
  """

  def __init__(self, folder: str):
    # With the process id: two starts within a second would share a name.
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
