"""The members of an ensemble as runs of their own, in `WORKDIR/member_M`.

Each has the config of the single run that it equals, and checkpoints as that
run writes them: any command takes such a folder for its --workdir. The workdir
itself keeps the config of the ensemble and what was reported of all members.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alexnet_jax.checkpoints import checkpoint, metadata, reader, writer
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.partition import ensemble as ensemble_lib
from alexnet_jax.program import program as program_lib
from alexnet_jax.program import step as step_lib


def find_folder(workdir: str, member: int) -> str:
  """The folder of one member of several."""
  return os.path.join(workdir, f"member_{member}")


def find_folders(
  workdir: str, config: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
  """The directories of a run and of its members, each with its config."""
  members = range(config["ensemble"]) if config["ensemble"] > 1 else ()
  return {workdir: config} | {
    find_folder(workdir, member): find_config(config, member)
    for member in members
  }


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
  workdir: str,
  program: program_lib.Program,
  *,
  keep: int,
  best: int = 0,
  every: int | None = None,
  group: group_lib.Group | None = None,
) -> checkpoint.Checkpoints | MemberCheckpoints:
  """The checkpoints of a single run, or of the members of an ensemble.

  Args:
    workdir: of the run.
    program: of it.
    keep, best, every, group: see `checkpoint.Checkpoints`.
  """
  if program.ensemble.members == 1:
    return checkpoint.Checkpoints(
      workdir, keep=keep, best=best, every=every, group=group
    )
  return MemberCheckpoints(workdir, program, keep=keep, best=best, every=every)


def find_latest_step(workdir: str, members: int) -> int | None:
  """As `reader.find_latest_step`, of one member or of several.

  Returns:
    The newest step that all members have; None if there is none.
  """
  if members == 1:
    return reader.find_latest_step(workdir)
  folders = [find_folder(workdir, member) for member in range(members)]
  return max(find_common_steps(folders), default=None)


def find_common_steps(folders: Sequence[str]) -> set[int]:
  """The steps that all members of an ensemble have a checkpoint of.

  Args:
    folders: of the members.
  """
  return set.intersection(*({*reader.find_steps(folder)} for folder in folders))


class MemberCheckpoints:
  """As `checkpoint.Checkpoints`, for all members of an ensemble.

  Args:
    workdir: of the ensemble.
    program: of the ensemble.
    keep, best, every: as for `checkpoint.Checkpoints`, of each member by
      itself. The two that are kept at least matter here besides: a run that is
      killed while it saves leaves some members with a newer one than others.
  """

  def __init__(
    self,
    workdir: str,
    program: program_lib.Program,
    *,
    keep: int,
    best: int = 0,
    every: int | None = None,
  ):
    self._workdir = workdir
    self._likes = [member.abstract_state for member in program.members]
    self._checkpoints = [
      checkpoint.Checkpoints(
        find_folder(workdir, member), keep=keep, best=best, every=every
      )
      for member in range(len(self._likes))
    ]
    self._saved: dict[int, list[writer.Saved]] = {}  # step -> of its members

  def latest_step(self) -> int | None:
    """The newest step that all members have; None if there is none yet.

    Also where a run was killed during its first save: some members have that
    one, and the others never had any.

    Raises:
      OSError: they have checkpoints, but none of one step.
    """
    steps = [{*of_member.steps()} for of_member in self._checkpoints]
    if common := set.intersection(*steps):
      return max(common)
    if not any(steps) or self._is_first_save(steps):
      return None
    newest = ", ".join(str(max(found, default=None)) for found in steps)
    raise OSError(
      f"the members in {self._workdir!r} have no checkpoint of one step (the "
      f"newest are {newest}). Set --workdir to start another run, or to the "
      "folder of one member to go on with it alone."
    )

  def _is_first_save(self, steps: Sequence[set[int]]) -> bool:
    """Whether members have one checkpoint of one step, and others never one.

    One that was moved aside as later may be of a first save too, of which
    there can be several: each start from the beginning has its own.

    Args:
      steps: of the checkpoints of each.
    """
    return len(set.union(*steps)) == 1 and not any(
      reader.has_damaged(reader.find_folder(folder))
      for folder, found in zip(self._folders, steps, strict=True)
      if not found
    )

  def save(
    self,
    step: int,
    state: step_lib.TrainState,
    facts: Mapping[str, Any] | None = None,
  ) -> None:
    """As `checkpoint.Checkpoints.save`; lists of facts have one of each."""
    # Before any begins: it takes away older ones when it ends, and a kill then
    # is to leave one step that all have.
    for of_member in self._checkpoints:
      of_member.finish()
    for member, (like, of_member) in enumerate(
      zip(self._likes, self._checkpoints, strict=True)
    ):
      mine = {
        name: value[member] if isinstance(value, list) else value
        for name, value in (facts or {}).items()
      }
      try:
        of_member.save(step, ensemble_lib.take(state, like), mine)
      except FloatingPointError as error:
        raise FloatingPointError(f"member {member}: {error}") from error

  def facts(self, step: int) -> dict[str, Any]:
    """As `checkpoint.Checkpoints.facts`, of the first member."""
    return self._checkpoints[0].facts(step)

  def check(self) -> list[writer.Saved]:
    """As `checkpoint.Checkpoints.check`: what all members have saved."""
    return self._add_up([one.check() for one in self._checkpoints])

  def _add_up(
    self, new: Sequence[Sequence[writer.Saved]]
  ) -> list[writer.Saved]:
    for saved in itertools.chain(*new):
      self._saved.setdefault(saved.step, []).append(saved)
    whole = [
      step
      for step, of_members in self._saved.items()
      if len(of_members) == len(self._checkpoints)
    ]
    return [writer.add_up(self._saved.pop(step)) for step in whole]

  def resume(
    self, like: step_lib.TrainState, say: Callable[[str], None]
  ) -> tuple[int, step_lib.TrainState] | None:
    """As `checkpoint.Checkpoints.resume`, the newest that all members have.

    What single members have of later steps is moved aside: nothing could be
    saved below it.
    """
    damaged: list[tuple[int, int]] = []  # member, step

    def read(step: int) -> step_lib.TrainState:
      states, problems = [], []
      for member, of_one in enumerate(self._likes):
        try:
          states.append(self._checkpoints[member].restore(of_one, step=step))
        except metadata.DamagedError as error:
          damaged.append((member, step))
          problems.append(str(error))
      if problems:
        raise metadata.DamagedError(" ".join(problems))
      return ensemble_lib.join(states, like)

    def move_aside(step: int) -> str:
      places = [
        self._checkpoints[member].move_aside(step)
        for member, of_step in damaged
        if of_step == step
      ]
      return ", ".join(places)

    self.latest_step()  # refuses members of no common step
    steps = sorted(find_common_steps(self._folders))
    found = reader.find_sound(self._workdir, steps, read, move_aside, say)
    first_step = 0 if found is None else found[0]
    for folder, of_member in zip(self._folders, self._checkpoints, strict=True):
      for step in of_member.steps():
        if step > first_step:
          place = of_member.move_aside(step, why="later")
          say(
            f"the checkpoint of step {step} in {folder} is now {place!r}: not "
            "all members have a sound one"
          )
      of_member.prepare(say)
      if found is not None:
        of_member.tell_version(first_step, say)
    return found

  @property
  def _folders(self) -> list[str]:
    members = range(len(self._checkpoints))
    return [find_folder(self._workdir, member) for member in members]

  def close(self) -> list[writer.Saved]:
    """As `checkpoint.Checkpoints.close`, of all members."""
    with contextlib.ExitStack() as closed:
      saved = []
      for of_member in self._checkpoints:
        closed.callback(lambda one=of_member: saved.append(one.close()))
    return self._add_up(saved)
