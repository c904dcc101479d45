"""Checkpoints: saved in the background, atomic, restored onto any layout.

A folder gets its name once all is in it, so what is there is complete. Arrays
are synced to disk (fsync, by TensorStore); the small files beside them and the
name are not: after a loss of power the newest may be damaged, which is found,
and the one before it is used.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from orbax.checkpoint import v1 as ocp

from alexnet_jax.checkpoints import checksum, metadata, reader, writer
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.program import step as step_lib


class Checkpoints:
  """The checkpoints of one run, `<workdir>/checkpoints/<step>`.

  Args:
    workdir: of the run; each checkpoint keeps the fields it has now, and what
      code this is.
    keep: how many of the newest are kept, but two at least: one that is
      damaged by a loss of power leaves the one before it.
    best: how many of the lowest validation error are kept too.
    every: of which steps each multiple is kept too; None: of none.
    group: the processes of the run; None: this one.

  Raises:
    OSError, ValueError: what the directory keeps of its run cannot be read, or
      the project file of this code.
  """

  def __init__(
    self,
    workdir: str,
    *,
    keep: int,
    best: int = 0,
    every: int | None = None,
    group: group_lib.Group | None = None,
  ):
    self._workdir = workdir
    # Once: a save hours later is of this run and of this code, whatever has
    # been edited or checked out by then.
    self._fields = workdir_lib.read(workdir) or {}
    self._code = metadata.find()
    self._group = group or group_lib.alone()
    self._kept = writer.Policy(newest=max(keep, 2), best=best, every=every)
    self._saving: writer.Saving | None = None
    self._saved: list[writer.Saved] = []
    self._failed = False

  @functools.cached_property
  def _checkpointer(self) -> ocp.training.Checkpointer:
    """Opened when it is first needed: it reads a little of each checkpoint."""
    training = ocp.training
    for step in self.steps():
      with contextlib.suppress(metadata.DamagedError):  # it has no error then
        self._note_error(step, self.facts(step))
    reader.mute()
    # Of float32 it takes a tenth away, and most of the time of a save.
    context = ocp.Context()
    context.array.saving.use_compression = False
    return training.Checkpointer(
      reader.find_folder(self._workdir),
      context=context,
      save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(
        1
      ),
      preservation_policy=self._kept,
      cleanup_tmp_directories=True,
    )

  def latest_step(self) -> int | None:
    """The step of the newest complete checkpoint; None if there is none."""
    return reader.find_latest_step(self._workdir)

  def steps(self) -> list[int]:
    """The steps of the complete checkpoints, the oldest first."""
    return reader.find_steps(self._workdir)

  def facts(self, step: int) -> dict[str, Any]:
    """What was said of a checkpoint when it was saved.

    Raises:
      CheckpointError: it is damaged, or cannot be read now.
    """
    return reader.read_facts(self._workdir, step)

  def save(
    self,
    step: int,
    state: step_lib.TrainState,
    facts: Mapping[str, Any] | None = None,
  ) -> None:
    """Starts to save a state; returns once it may be changed.

    Args:
      step: of the state, not before the newest; a checkpoint that exists is
        left as it is.
      state: global arrays.
      facts: of this state, as JSON has it; `validation_error`, its top-1
        error, decides whether it is one of the best.

    Raises:
      FloatingPointError: the state has elements that are not finite.
      CheckpointError: it cannot be written, or the one before could not.
    """
    began = time.monotonic()
    self.finish()
    if any(found.step == step for found in self._checkpointer.checkpoints):
      return
    arrays = checksum.take(state)
    metadata.check_finite(step, arrays)
    facts = dict(facts or {})
    self._note_error(step, facts)
    with self._writing(step):
      response = self._checkpointer.save_async(
        step,
        state._asdict(),
        custom_metadata=metadata.make(
          self._fields, facts, arrays, code=self._code
        ),
      )
    if response is None:
      raise metadata.CheckpointError(
        f"the checkpoint of step {step} would come after that of step "
        f"{self.latest_step()} in {self._workdir!r}, expected a later step. "
        "Set --workdir."
      )
    self._saving = writer.Saving(self._folder(step), step, began, response)

  def _note_error(self, step: int, facts: Mapping[str, Any]) -> None:
    if "validation_error" in facts:
      self._kept.errors[step] = facts["validation_error"]

  def check(self) -> list[writer.Saved]:
    """What has been saved since the last call; waits for nothing.

    Raises:
      CheckpointError: the save in the background has failed.
    """
    self.finish(0.0)
    saved, self._saved = self._saved, []
    return saved

  def finish(self, timeout_seconds: float | None = None) -> None:
    """Waits until the save that is under way is on disk.

    Args:
      timeout_seconds: after which it may go on; None: until its end.

    Raises:
      CheckpointError: it has failed.
    """
    if self._saving is not None:
      with self._writing(self._saving.step):
        saved = self._saving.finish(timeout_seconds)
      if saved is not None:
        self._saved.append(saved)
        self._saving = None

  @contextlib.contextmanager
  def _writing(self, step: int) -> Iterator[None]:
    """Says of any error of Orbax which checkpoint it is about."""
    try:
      yield
    except Exception as error:
      self._saving, self._failed = None, True
      raise writer.failure(
        error, self._folder(step), step, self.latest_step()
      ) from error

  def restore(
    self, like: step_lib.TrainState, *, step: int | None = None
  ) -> step_lib.TrainState:
    """Reads a checkpoint; as `load`.

    Args:
      like: `jax.ShapeDtypeStruct`s with the shardings to restore onto, which
        need not be those that the checkpoint was written under.
      step: of the checkpoint; None: the newest.
    """
    step = self.latest_step() if step is None else step
    return reader.load(self._workdir, step, like)

  def resume(
    self, like: step_lib.TrainState, say: Callable[[str], None]
  ) -> tuple[int, step_lib.TrainState] | None:
    """Reads the newest sound checkpoint, in all processes alike.

    Damaged ones that are newer are moved aside: nothing could be saved below
    them. Nothing is moved before a sound one is found.

    Args:
      like: as for `restore`.
      say: prints a line.

    Returns:
      Its step, and the state; None where there is no checkpoint.

    Raises:
      CheckpointError: there are checkpoints, but none is sound, or one cannot
        be read now: it may be.
    """
    found = reader.find_sound(
      reader.find_folder(self._workdir),
      self.steps(),
      lambda step: self._restore_together(like, step),
      self.move_aside,
      say,
    )
    self.prepare(say)
    if found is not None:
      self.tell_version(found[0], say)
    return found

  def prepare(self, say: Callable[[str], None]) -> None:
    """Removes what a save has left that was cut off, and opens the rest.

    Args:
      say: prints a line on each checkpoint whose record is damaged, which is
        moved aside.
    """
    problems = self._group.first("checkpoints/records", self._find_problems)
    for step, problem in problems:
      say(f"{problem} It is now {self.move_aside(step)!r}.")
    _ = self._checkpointer

  def tell_version(self, step: int, say: Callable[[str], None]) -> None:
    """Says so where a checkpoint cannot be held against its record."""
    if metadata.read(self._folder(step)) is None:
      say(
        f"the checkpoint of step {step} in {self._workdir} is of an earlier "
        "version: nothing tells whether it is what was saved"
      )

  def _restore_together(self, like, step: int) -> step_lib.TrainState:
    """As `restore`; no process raises DamagedError without the others."""
    if self._group.count == 1:
      return self.restore(like, step=step)
    # In a read together all wait for all, also for one that has failed.
    problem = reader.find_problem(self._workdir, step, like)
    for found in self._group.gather(f"checkpoints/{step}", problem):
      if found is not None:
        raise metadata.DamagedError(found)
    try:
      return self.restore(like, step=step)
    except metadata.DamagedError as error:
      raise metadata.CheckpointError(
        f"{error} Each process by itself could read it. Start again."
      ) from error

  def _find_problems(self) -> list[tuple[int, str]]:
    """Of the records of all checkpoints, which Orbax reads when it opens."""
    problems = []
    for step in self.steps():
      try:
        self.facts(step)
      except metadata.DamagedError as error:
        problems.append((step, str(error)))
    return problems

  def move_aside(self, step: int, *, why: str = "broken") -> str:
    """Takes away the checkpoint of a step; returns where it is now.

    Args:
      step: of the checkpoint.
      why: see `reader.move_aside`.
    """
    return self._group.first(
      f"checkpoints/{step}/aside",
      lambda: reader.move_aside(self._folder(step), why=why),
    )

  def _folder(self, step: int) -> str:
    return reader.find_folder(self._workdir, step)

  def close(self) -> list[writer.Saved]:
    """Waits until everything is on disk; as `check`.

    Raises:
      CheckpointError: the last save has failed.
    """
    if "_checkpointer" in self.__dict__:
      try:
        self.finish()
      finally:
        # Orbax says once more of a save that has failed what is said by then.
        known = (Exception,) if self._failed else ()
        with contextlib.suppress(*known):
          self._checkpointer.close()
    return self.check()
