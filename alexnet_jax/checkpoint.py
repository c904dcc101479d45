"""Checkpoints: saved in the background, atomic, restored onto any layout."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from orbax.checkpoint import v1 as ocp

from alexnet_jax import step as step_lib


class Checkpoints:
  """The checkpoints of one run, `<workdir>/checkpoints/<step>`.

  Args:
    workdir: of the run.
    keep: how many of the newest are kept.
  """

  def __init__(self, workdir: str, *, keep: int):
    training = ocp.training
    self._checkpointer = training.Checkpointer(
      _find_folder(workdir),
      save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(
        1
      ),
      preservation_policy=training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True,
    )

  def latest_step(self) -> int | None:
    """The step of the newest complete checkpoint; None if there is none."""
    latest = self._checkpointer.latest
    return None if latest is None else latest.step

  def steps(self) -> list[int]:
    """The steps of the complete checkpoints, the oldest first."""
    return [found.step for found in self._checkpointer.checkpoints]

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
      facts: kept with it; of the kinds that JSON has.
    """
    if step not in self.steps():
      self._checkpointer.save_async(
        step, state._asdict(), custom_metadata=dict(facts or {})
      )

  def facts(self, step: int) -> dict[str, Any]:
    """What `save` was told of a checkpoint."""
    return self._checkpointer.metadata(step).custom_metadata or {}

  def remove_after(self, step: int) -> None:
    """Removes the checkpoints of later steps; none of them could be followed.

    Orbax saves no step before its newest, and says nothing.
    """
    for later in [found for found in self.steps() if found > step]:
      self._checkpointer.delete(later)

  def restore(
    self, like: step_lib.TrainState, *, step: int | None = None
  ) -> step_lib.TrainState:
    """Reads a checkpoint.

    Args:
      like: `jax.ShapeDtypeStruct`s with the shardings to restore onto, which
        need not be those that the checkpoint was written under.
      step: of the checkpoint; None: the newest.
    """
    restored = self._checkpointer.load(step, abstract_state=like._asdict())
    return step_lib.TrainState(**restored)

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._checkpointer.close()


def find_latest_step(workdir: str) -> int | None:
  """As `Checkpoints.latest_step`, of a run that is not open; writes nothing."""
  return max(find_steps(workdir), default=None)


def find_steps(workdir: str) -> list[int]:
  """Of the complete checkpoints of a run, rising; writes nothing."""
  names = ocp.path.step.standard_name_format()
  found = names.find_all(_find_folder(workdir))
  return sorted(checkpoint.step for checkpoint in found)


def load(
  workdir: str, step: int, like: step_lib.TrainState
) -> step_lib.TrainState:
  """As `Checkpoints.restore`, of a run that is not open; writes nothing.

  Args:
    workdir: of the run, which may be training meanwhile.
    step: of `find_steps`.
    like: as for `Checkpoints.restore`.
  """
  folder = os.path.join(_find_folder(workdir), str(step))
  return step_lib.TrainState(**ocp.load(folder, like._asdict()))


def _find_folder(workdir: str) -> str:
  return os.path.abspath(os.path.join(workdir, "checkpoints"))
