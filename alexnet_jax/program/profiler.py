"""Records a trace of some steps, and of nothing else, by `jax.profiler`.

A recorder replaces the compiled step of a loop by one that counts its calls.
Before the first step of the trace it waits until the steps before have ended,
and after the last one until that has ended. A loop without a recorder calls
the compiled step itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import re
import shutil
from collections.abc import Callable
from typing import Any

import jax

from alexnet_jax.program import program as program_lib
from alexnet_jax.program import timeline

# Without --profile_steps: so many steps, after so many others.
NUM_STEPS, _STEPS_BEFORE = 5, 10
# A trace of more steps has millions of events.
MOST_STEPS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """What to trace, and where to write it.

  Attributes:
    folder: is made; has no files yet.
    steps: numbers of the steps, from 1; None: five after the start.
  """

  folder: str
  steps: range | None = None

  def choose_steps(self, first_step: int, num_steps: int) -> range:
    """Returns the numbers of the steps to trace.

    Args:
      first_step: the step that the run starts after.
      num_steps: the last step of the run.

    Raises:
      ValueError: the run does not take all of them.
    """
    steps = self.steps
    if steps is None:
      begin = first_step + 1 + _STEPS_BEFORE
      steps = range(begin, begin + NUM_STEPS)
    if first_step < steps.start and steps.stop <= num_steps + 1:
      return steps
    left = f"takes steps {first_step + 1} to {num_steps}"
    if first_step >= num_steps:
      left = f"has taken all of its {num_steps} steps"
    raise ValueError(
      f"--profile traces steps {steps.start}:{steps.stop}, which are "
      f"{steps.start} to {steps[-1]}, but the run {left}. Set --profile_steps "
      "to steps that it takes, or leave --profile out."
    )


def make_request(folder: str | None, steps: str | None) -> Request | None:
  """Checks the flags of a trace.

  Args:
    folder: --profile; None: there is no trace.
    steps: --profile_steps: `A:B`, from step A to step B - 1.

  Raises:
    ValueError: the folder has files, or cannot be made; or the steps are none.
  """
  if folder is None:
    if steps is not None:
      raise ValueError(
        f"--profile_steps is {steps!r}, but no folder is named. Set "
        "--profile=DIR, or leave --profile_steps out."
      )
    return None
  _check_folder(folder)
  return Request(folder=folder, steps=steps and _parse_steps(steps))


def describe_files(folder: str, *, process: int) -> str:
  """Returns a line on how to look at a trace."""
  return (
    f"the trace is in {folder}: open process{process}.trace.json.gz in "
    f"https://ui.perfetto.dev, or run tensorboard --logdir={folder}"
  )


def _check_folder(folder: str) -> None:
  if os.path.lexists(folder):
    if not os.path.isdir(folder) or os.listdir(folder):
      raise ValueError(
        f"{folder!r} exists already, expected a new or an empty folder for the "
        "trace. Set --profile, or remove it."
      )
  place = os.path.abspath(folder)
  while not os.path.lexists(place):
    place = os.path.dirname(place)
  if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
    raise ValueError(
      f"the folder {folder!r} cannot be made: {place!r} is not a folder that "
      "you may write to. Set --profile."
    )


def _parse_steps(text: str) -> range:
  match = re.fullmatch(r"(\d{1,15}):(\d{1,15})", text)
  steps = range(*map(int, match.groups())) if match else range(0)
  if not steps or not steps.start or len(steps) > MOST_STEPS:
    raise ValueError(
      f"--profile_steps is {text!r}, expected A:B for steps A to B - 1, with "
      f"1 <= A < B and at most {MOST_STEPS:,} steps. Set --profile_steps, for "
      "example --profile_steps=100:105 for steps 100 to 104."
    )
  return steps


class Recorder:
  """Traces some of the steps that one process takes.

  Args:
    folder: of the trace, see `Request`.
    steps: numbers of the steps of the trace.
    first_step: the step before the first call.
    process: index of this process.
    show: is called with the timeline, once its files are written.
  """

  def __init__(
    self,
    folder: str,
    *,
    steps: range,
    program: program_lib.Program,
    first_step: int,
    process: int = 0,
    show: Callable[[timeline.Timeline], None],
  ):
    self._folder, self._steps, self._program = folder, steps, program
    self._process, self._show = process, show
    self._step = first_step  # that was taken last
    self._parts = os.path.join(folder, f".process{process}")
    self._open: contextlib.ExitStack | None = None  # while it records
    self._annotation: contextlib.ExitStack = contextlib.ExitStack()

  def wrap(self, train_step: jax.stages.Compiled) -> Callable[..., Any]:
    """Returns a step that computes what `train_step` does, and is traced."""

    def take(state, key, images, labels):
      self._step += 1
      if self._step == self._steps.start:
        jax.block_until_ready((state, images, labels))
        self._start()
      if self._open is None:
        return train_step(state, key, images, labels)
      # A step of the host ends where the next one begins.
      self._annotation.close()
      self._annotation.enter_context(
        jax.profiler.StepTraceAnnotation(timeline.STEP, step_num=self._step)
      )
      with jax.profiler.TraceAnnotation(timeline.START):
        result = train_step(state, key, images, labels)
      if self._step == self._steps[-1]:
        with jax.profiler.TraceAnnotation(timeline.WAIT):
          jax.block_until_ready(result)
        self._stop()
        self._write(train_step)
      return result

    return take

  def close(self) -> bool:
    """Ends a trace that is incomplete, and removes it.

    Returns:
      Whether the trace is complete.
    """
    if self._open is not None:
      self._stop()
    shutil.rmtree(self._parts, ignore_errors=True)
    return self._step >= self._steps[-1]

  def _start(self) -> None:
    os.makedirs(self._parts)
    options = jax.profiler.ProfileOptions()
    # Python's calls would be most of the events, and slow down the host.
    options.python_tracer_level = 0
    jax.profiler.start_trace(self._parts, profiler_options=options)
    self._open = contextlib.ExitStack()
    self._open.callback(jax.profiler.stop_trace)

  def _stop(self) -> None:
    self._annotation.close()
    opened, self._open = self._open, None
    opened.close()

  def _write(self, train_step: jax.stages.Compiled) -> None:
    """Writes the files of this process; each is complete or not there."""
    pattern = os.path.join(
      glob.escape(self._parts), "plugins/profile/*/*.xplane.pb"
    )
    found = glob.glob(pattern)
    if len(found) != 1:
      raise OSError(
        f"jax.profiler wrote {len(found)} traces to {self._parts!r}, expected "
        "one. Set another --profile."
      )
    read = timeline.read(
      found[0],
      hlo=train_step.as_text(),
      program=self._program,
      steps=self._steps,
      process=self._process,
    )
    name = f"process{self._process}"
    new = os.path.join(self._parts, name)
    read.write_trace(f"{new}.trace.json.gz")
    with open(f"{new}.txt", "w", encoding="utf-8") as opened:
      opened.write(read.to_text())
    # Where TensorBoard looks for the parts of one trace.
    steps = f"steps_{self._steps.start}_to_{self._steps[-1]}"
    shared = os.path.join(self._folder, "plugins", "profile", steps)
    os.makedirs(shared, exist_ok=True)
    os.replace(found[0], os.path.join(shared, f"{name}.xplane.pb"))
    for ending in ("trace.json.gz", "txt"):
      place = os.path.join(self._folder, f"{name}.{ending}")
      os.replace(f"{new}.{ending}", place)
    shutil.rmtree(self._parts)
    self._show(read)
