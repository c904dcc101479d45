"""Checkpoints: saved in the background, atomic, restored onto any layout."""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax
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

  def save(self, step: int, state: step_lib.TrainState) -> None:
    """Starts to save a state; returns once it may be changed.

    Args:
      step: of the state, not before the newest; a checkpoint that exists is
        left as it is.
      state: global arrays.
    """
    if step not in self.steps():
      self._checkpointer.save_async(step, state._asdict())

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


def check_fits(
  workdir: str, step: int, like: step_lib.TrainState, *, changes: Sequence[str]
) -> None:
  """Refuses a checkpoint whose arrays are not those of a state.

  Args:
    workdir: of the run.
    step: of `find_steps`.
    like: `jax.ShapeDtypeStruct`s.
    changes: of the config, a line for each.

  Raises:
    ValueError: names an array and both of its shapes.
  """
  folder = os.path.join(_find_folder(workdir), str(step))
  try:
    arrays = ocp.metadata(folder).metadata
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise ValueError(
      f"the checkpoint {folder!r} does not say what it holds "
      f"({type(error).__name__}), so a changed config cannot be held against "
      "it. Go on with the config of before first."
    ) from error
  there, here = map(_find_shapes, (arrays, like._asdict()))
  differing = [
    f"{name}: {there.get(name, 'nothing')} there, {here.get(name, 'nothing')} "
    "here"
    for name in sorted({**here, **there}, key=_put_parameters_first)
    if here.get(name) != there.get(name)
  ]
  if differing:
    more = f"; and {len(differing) - 2} more" if len(differing) > 2 else ""
    raise ValueError(
      f"the checkpoint of step {step} in {workdir!r} does not fit the changed "
      f"config: {'; '.join(differing[:2])}{more}. What has changed is "
      f"{'; '.join(changes)}. Set back what makes these sizes, or --workdir to "
      "start another run."
    )


def _put_parameters_first(name: str) -> tuple[bool, str]:
  return not name.startswith("parameters."), name


def _find_shapes(tree) -> dict[str, str]:
  """Array by array, under one name whatever holds it: {"a.b": "3 x 4"}."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): (
      " x ".join(map(str, leaf.shape)) or "one number"
    )
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def _find_folder(workdir: str) -> str:
  return os.path.abspath(os.path.join(workdir, "checkpoints"))
