"""Saves checkpoints in the background, and restores them onto any layout.

Orbax renames a folder to its final name once it is complete. TensorStore syncs
the arrays to disk (fsync), but not the small files beside them and the name:
after a loss of power the newest checkpoint may be damaged. This is detected,
and the one before it is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from orbax.checkpoint import multihost
from orbax.checkpoint import v1 as ocp

from alexnet_jax.checkpoints import checksum, metadata, reader, writer
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.program import step as step_lib


class _AsyncOptions(ocp.options.AsyncOptions):
  """Options with which the error of a failed save is known at once.

  By default, a process whose save has failed first waits for the others, which
  wait for it.
  """

  def v0(self):
    return dataclasses.replace(super().v0(), barrier_sync_fn=_wait_at_barrier)


def _wait_at_barrier(*, key: str, timeout_ms: int) -> None:
  """Waits for the other processes, except in a save that has failed.

  A background thread that cleans up after an error would wait for processes
  that do not come; it raises that error again.
  """
  error = sys.exception()
  if error is not None and threading.current_thread() != (
    threading.main_thread()  # which may save on its way out after an error
  ):
    raise error
  multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


class Checkpoints:
  """The checkpoints of one run, `<workdir>/checkpoints/<step>`.

  Args:
    workdir: of the run; each checkpoint records its `config.json` as it is
      now, and the version of the code.
    keep: how many of the newest are kept, but at least two, in case a loss of
      power damages the newest.
    best: how many of the lowest validation error are kept too.
    every: steps whose multiples are all kept too; None: none are for that.
    group: the processes of the run; None: this one.

  Raises:
    OSError, ValueError: `config.json` or the project file cannot be read.
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
    # Read once: files may be edited, or another commit checked out, before a
    # save hours later.
    self._fields = workdir_lib.read_config(workdir) or {}
    self._code = metadata.find_code_versions()
    self._group = group or group_lib.alone()
    self._policy = writer.PreservationPolicy(
      newest=max(keep, 2), best=best, every=every
    )
    self._pending: writer.PendingSave | None = None
    self._saved: list[writer.Saved] = []
    self._failed = False

  @functools.cached_property
  def _checkpointer(self) -> ocp.training.Checkpointer:
    """Opened at first use: it reads a little of each checkpoint."""
    training = ocp.training
    for step in self.steps():
      with contextlib.suppress(metadata.DamagedError):
        self._note_error(step, self.facts(step))
    reader.mute_orbax()
    # A folder that could not be made in the background would leave threads that
    # wait for it for 5 minutes, and the process waits for them.
    context = ocp.Context(
      async_options=_AsyncOptions(create_directories_asynchronously=False)
    )
    # Compression saves a tenth of float32, and takes most of a save's time.
    context.array.saving.use_compression = False
    return training.Checkpointer(
      reader.find_folder(self._workdir),
      context=context,
      save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(
        1
      ),
      preservation_policy=self._policy,
      cleanup_tmp_directories=True,
    )

  def latest_step(self) -> int | None:
    """Returns the step of the newest complete checkpoint; None without one."""
    return reader.find_latest_step(self._workdir)

  def steps(self) -> list[int]:
    """Returns the steps of the complete checkpoints, rising."""
    return reader.find_steps(self._workdir)

  def facts(self, step: int) -> dict[str, Any]:
    """Returns the facts that a checkpoint was saved with.

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
    """Starts to save a state; returns once the state may be changed.

    Args:
      step: of the state, not before the newest; an existing checkpoint of this
        step stays unchanged.
      state: global arrays.
      facts: values to record with it, as JSON has them; `validation_error`,
        the top-1 error, decides whether it is one of the best.

    Raises:
      FloatingPointError: the state has elements that are not finite.
      CheckpointError: it cannot be written, or the one before could not.
    """
    began = time.monotonic()
    self.wait()
    if any(found.step == step for found in self._checkpointer.checkpoints):
      return
    arrays = checksum.compute(state)
    metadata.check_finite(step, arrays)
    facts = dict(facts or {})
    self._note_error(step, facts)
    with self._writing(step):
      response = self._checkpointer.save_async(
        step,
        state._asdict(),
        custom_metadata=metadata.make(
          step, self._fields, facts, arrays, code=self._code
        ),
      )
    if response is None:
      raise metadata.CheckpointError(
        f"the checkpoint of step {step} would be saved after that of step "
        f"{self.latest_step()} in {self._workdir!r}, expected a later step. "
        "Set --workdir."
      )
    # The other processes may see the files later.
    check = reader.check_complete if self._group.is_first else None
    self._pending = writer.PendingSave(
      self._folder(step), step, began, response, check
    )

  def _note_error(self, step: int, facts: Mapping[str, Any]) -> None:
    if "validation_error" in facts:
      self._policy.errors[step] = facts["validation_error"]

  def collect_saved(self) -> list[writer.Saved]:
    """Returns what has been saved since the last call; does not wait.

    Raises:
      CheckpointError: the save in the background has failed.
    """
    self.wait(0.0)
    saved, self._saved = self._saved, []
    return saved

  def wait(self, timeout_seconds: float | None = None) -> None:
    """Waits until the save that is under way is on disk.

    Args:
      timeout_seconds: to wait at most; None: until its end.

    Raises:
      CheckpointError: it has failed.
    """
    if self._pending is not None:
      with self._writing(self._pending.step):
        saved = self._pending.finish(timeout_seconds)
      if saved is not None:
        self._saved.append(saved)
        self._pending = None

  @contextlib.contextmanager
  def _writing(self, step: int) -> Iterator[None]:
    """Turns any error of Orbax into one that names the checkpoint."""
    try:
      yield
    except Exception as error:
      self._pending, self._failed = None, True
      if self._group.count > 1:
        # Neither says anything about the place of checkpoints.
        if (lost := group_lib.find_lost_connection(error)) is not None:
          raise lost from None
        if isinstance(error, TimeoutError) and error.errno is None:
          # Only waits for other processes end so; asyncio raises such an error
          # anew, without its cause.
          raise jax.errors.JaxRuntimeError(
            f"DEADLINE_EXCEEDED: at a barrier of the save of step {step}: "
            f"{error}"
          ) from None
      if isinstance(error, metadata.CheckpointError):  # of reading it back
        raise metadata.CheckpointError(
          f"the checkpoint of step {step} is not stored as it was written: "
          f"{error} Set --workdir to a folder of another file system; the same "
          "command resumes from the last intact checkpoint."
        ) from error
      if (old := self._find_undeleted(step)) is not None:
        raise writer.make_deletion_error(error, old, step) from error
      raise writer.make_save_error(
        error, self._folder(step), step, self.latest_step()
      ) from error

  def _find_undeleted(self, step: int) -> str | None:
    """Returns the folder that a save could not delete at its end, if any."""
    steps = self.steps()
    kept = self._policy.find_steps_to_keep(steps)
    old = [one for one in steps if one not in kept]
    return self._folder(old[0]) if step in steps and old else None

  def restore(
    self, like: step_lib.TrainState, *, step: int | None = None
  ) -> step_lib.TrainState:
    """Reads the checkpoint of a step, or the newest; see `reader.load`."""
    step = self.latest_step() if step is None else step
    return reader.load(self._workdir, step, like)

  def resume(
    self, like: step_lib.TrainState, log: Callable[[str], None]
  ) -> tuple[int, step_lib.TrainState] | None:
    """Reads the newest intact checkpoint; all processes read the same.

    Damaged ones that are newer are moved aside: no earlier step could be saved
    beside them. Nothing is moved before an intact one is found.

    Args:
      like: as for `reader.load`.
      log: prints a line.

    Returns:
      Its step, and the state; None where there is no checkpoint.

    Raises:
      CheckpointError: there are checkpoints, but none is intact, or one, which
        may be intact, cannot be read now.
    """
    found = reader.read_newest_intact(
      reader.find_folder(self._workdir),
      self.steps(),
      lambda step: self._restore_together(like, step),
      self.move_aside,
      log,
    )
    self.open_for_saving(log)
    return found

  def open_for_saving(self, log: Callable[[str], None]) -> None:
    """Removes the leftovers of an interrupted save, and opens Orbax.

    Args:
      log: prints a line on each checkpoint whose record is damaged, which is
        moved aside.
    """
    problems = self._group.run_in_first(
      "checkpoints/records", self._find_problems
    )
    for step, problem in problems:
      log(f"{problem} It is now {self.move_aside(step)!r}.")
    try:
      _ = self._checkpointer
    except OSError as error:
      if isinstance(error, metadata.CheckpointError):
        raise
      raise metadata.CheckpointError(
        f"the folder {self._folder()!r} cannot be opened for checkpoints: "
        f"{error.strerror or error}. Set --workdir."
      ) from error

  def _restore_together(self, like, step: int) -> step_lib.TrainState:
    """As `restore`; either all processes raise DamagedError or none does."""
    if self._group.count == 1:
      return self.restore(like, step=step)
    # In a common read all processes wait for all, also for one that failed.
    problem = reader.find_damage(self._workdir, step, like)
    for damage in self._group.gather(f"checkpoints/{step}", problem):
      if damage is not None:
        raise metadata.DamagedError(damage)
    try:
      return self.restore(like, step=step)
    except metadata.DamagedError as error:
      raise metadata.CheckpointError(
        f"{error} Each process alone could read it. Start again."
      ) from error

  def _find_problems(self) -> list[tuple[int, str]]:
    """Returns (step, message) for each damaged record: Orbax reads them all."""
    problems = []
    for step in self.steps():
      try:
        self.facts(step)
      except metadata.DamagedError as error:
        problems.append((step, str(error)))
    return problems

  def move_aside(self, step: int, *, why: str = "broken") -> str:
    """Renames the checkpoint of a step; as `reader.move_aside`."""
    return self._group.run_in_first(
      f"checkpoints/{step}/aside",
      lambda: reader.move_aside(self._folder(step), why=why),
    )

  def _folder(self, step: int | None = None) -> str:
    return reader.find_folder(self._workdir, step)

  def close(self) -> list[writer.Saved]:
    """Waits until everything is on disk; as `collect_saved`.

    Raises:
      CheckpointError: the last save has failed.
    """
    if "_checkpointer" in self.__dict__:
      try:
        self.wait()
      finally:
        # Orbax raises the error of a failed save once more.
        known = (Exception,) if self._failed else ()
        with contextlib.suppress(*known):
          self._checkpointer.close()
    return self.collect_saved()
