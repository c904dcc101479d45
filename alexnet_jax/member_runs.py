"""The members of an ensemble as runs of their own, in `WORKDIR/member_M`.

Each has the config of the single run that it equals, and checkpoints as that
run writes them: any command takes such a folder for its --workdir. The workdir
itself keeps the config of the ensemble and what was reported of all members.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from alexnet_jax import checkpoint
from alexnet_jax import program as program_lib
from alexnet_jax import step as step_lib
from alexnet_jax import workdir as workdir_lib
from alexnet_jax.partition import ensemble as ensemble_lib


def find_folder(workdir: str, member: int) -> str:
  """The folder of one member of several."""
  return os.path.join(workdir, f"member_{member}")


def claim(
  workdir: str, config: Mapping[str, Any], found: Mapping[str, Any]
) -> None:
  """As `workdir.claim`, for an ensemble and for each of its members."""
  workdir_lib.claim(workdir, config, found)
  if config["ensemble"] == 1:
    return
  for member in range(config["ensemble"]):
    workdir_lib.claim(
      find_folder(workdir, member), find_config(config, member), found
    )


def find_config(config: Mapping[str, Any], member: int) -> dict[str, Any]:
  """The config of the single run that a member equals.

  Args:
    config: of the ensemble, all fields.
    member: 0 or more.
  """
  data = config["data"]
  order_seed = config["seed"] if data["seed"] is None else data["seed"]
  return {
    **config,
    "ensemble": 1,
    "seed": config["seed"] + member,
    "data": {**data, "seed": order_seed},
  }


def open_checkpoints(
  workdir: str, program: program_lib.Program, *, keep: int
) -> checkpoint.Checkpoints | MemberCheckpoints:
  """The checkpoints of a single run, or of the members of an ensemble."""
  if program.ensemble.members == 1:
    return checkpoint.Checkpoints(workdir, keep=keep)
  return MemberCheckpoints(workdir, program, keep=keep)


def find_latest_step(workdir: str, members: int) -> int | None:
  """As `checkpoint.find_latest_step`, of one member or of several.

  Returns:
    The newest step that no member lacks but by having newer ones only.
  """
  if members == 1:
    return checkpoint.find_latest_step(workdir)
  found = [
    checkpoint.find_latest_step(find_folder(workdir, member))
    for member in range(members)
  ]
  return None if None in found else min(found)


class MemberCheckpoints:
  """As `checkpoint.Checkpoints`, for all members of an ensemble.

  Args:
    workdir: of the ensemble.
    program: of the ensemble.
    keep: how many of the newest are kept, but two at least: a run that is
      killed while it saves leaves some members with a newer one than others.
  """

  def __init__(self, workdir: str, program: program_lib.Program, *, keep: int):
    self._workdir = workdir
    self._likes = [member.abstract_state for member in program.members]
    self._checkpoints = [
      checkpoint.Checkpoints(find_folder(workdir, member), keep=max(keep, 2))
      for member in range(len(self._likes))
    ]

  def latest_step(self) -> int | None:
    """The newest step that all members have; None if none has any.

    Raises:
      OSError: they have checkpoints, but none of one step.
    """
    steps = [{*of_member.steps()} for of_member in self._checkpoints]
    if not any(steps):
      return None
    if common := set.intersection(*steps):
      return max(common)
    newest = ", ".join(str(max(found, default=None)) for found in steps)
    raise OSError(
      f"the members in {self._workdir!r} have no checkpoint of one step (the "
      f"newest are {newest}). Set --workdir to start another run, or to the "
      "folder of one member to go on with it alone."
    )

  def save(
    self,
    step: int,
    state: step_lib.TrainState,
    facts: Mapping[str, Any] | None = None,
  ) -> None:
    """As `checkpoint.Checkpoints.save`."""
    for like, of_member in zip(self._likes, self._checkpoints, strict=True):
      of_member.save(step, ensemble_lib.take(state, like), facts)

  def facts(self, step: int) -> dict[str, Any]:
    """As `checkpoint.Checkpoints.facts`, the same of all members."""
    return self._checkpoints[0].facts(step)

  def restore(self, like: step_lib.TrainState) -> step_lib.TrainState:
    """As `checkpoint.Checkpoints.restore`, the newest that all members have."""
    step = self.latest_step()
    for of_member in self._checkpoints:
      of_member.remove_after(step)
    states = [
      of_member.restore(of_one, step=step)
      for of_one, of_member in zip(self._likes, self._checkpoints, strict=True)
    ]
    return ensemble_lib.join(states, like)

  def close(self) -> None:
    """Waits until everything is on disk."""
    for of_member in self._checkpoints:
      of_member.close()
