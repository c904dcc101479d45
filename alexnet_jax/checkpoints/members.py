"""Keeps the members of an ensemble as runs of their own, `WORKDIR/member_M`.

Each has the config of the single run that it equals, and checkpoints as that
run writes them: any command takes such a folder for its --workdir. The workdir
itself has the config of the ensemble and the reports on all members. For a
single run, everything here does what its namesake elsewhere does.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from alexnet_jax.checkpoints import checkpoint, metadata, reader, writer
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.distributed import group as group_lib
from alexnet_jax.partition import ensemble as ensemble_lib
from alexnet_jax.program import program as program_lib
from alexnet_jax.program import step as step_lib

_FOLDER = re.compile(r"member_(\d+)")


def find_folder(workdir: str, member: int) -> str:
  """Returns the workdir of one of several members."""
  return os.path.join(workdir, f"member_{member}")


def _find_run_folders(workdir: str, members: int) -> list[str]:
  """Returns the workdirs that have the checkpoints."""
  if members == 1:
    return [workdir]
  return [find_folder(workdir, member) for member in range(members)]


def find_config(config: Mapping[str, Any], member: int) -> dict[str, Any]:
  """Returns all fields of the single run that a member equals."""
  data = config["data"]
  order_seed = config["seed"] if data["seed"] is None else data["seed"]
  return {
    **config,
    "ensemble": 1,
    "seed": config["seed"] + member,
    "data": {**data, "seed": order_seed},
  }


def acquire(
  workdir: str,
  config: Mapping[str, Any],
  found: Mapping[str, Any],
  *,
  may_change: Collection[str],
  accept_for: program_lib.Program | None = None,
) -> workdir_lib.Acquired:
  """Makes and locks the workdirs of a run and its members.

  Args:
    workdir, config: of the run; all fields.
    found, may_change: see `workdir.acquire`.
    accept_for: the program of the run, which may resume with any changed field
      as long as its checkpoints fit; None: changes are refused.

  Raises:
    OSError, ValueError: see `workdir.acquire`; also for a workdir of a run with
      another number of members.
  """
  members = config["ensemble"]
  run_folders = _find_run_folders(workdir, members)
  folders = {workdir: config}
  if members > 1:
    for member, path in enumerate(run_folders):
      folders[path] = find_config(config, member)
  programs = None
  if accept_for is not None:
    programs = {
      path: accept_for.members[member]
      for member, path in enumerate(run_folders)
    }

  def find_step() -> int | None:
    _check_number(workdir, members, accepts=accept_for is not None)
    return find_latest_step(workdir, members)

  return workdir_lib.acquire(
    folders,
    found,
    find_step=find_step,
    may_change=may_change,
    accept_for=programs,
  )


def _check_number(workdir: str, members: int, *, accepts: bool) -> None:
  """Refuses a workdir of another number of members.

  Its checkpoints would not be found, and the run would start over. Where
  changes are not accepted, `workdir.acquire` refuses the number.
  """
  try:
    earlier = workdir_lib.read_config(workdir)
  except ValueError:
    earlier = None
  if earlier is not None:
    found = earlier.get("ensemble", members)
    if accepts and found != members:
      raise ValueError(
        f"the workdir {workdir!r} belongs to a run of ensemble={found}, which "
        f"cannot resume with {members}, even with --allow_config_changes. Set "
        f"config.ensemble={found}, or --workdir to start another run."
      )
    return
  folders = {str(path) for path in pathlib.Path(workdir).glob("member_*")}
  others = (folders | {workdir}) - {*_find_run_folders(workdir, members)}
  for folder in sorted(others):
    if (step := reader.find_latest_step(folder)) is not None:
      raise ValueError(
        f"{folder!r} has a checkpoint of step {step}, which is not of a run of "
        f"ensemble={members}, and {workdir!r} has no config.json that can be "
        "read. Restore it, set config.ensemble, or --workdir to start another "
        "run."
      )


def find_latest_step(workdir: str, members: int) -> int | None:
  """Returns the newest step that all members have; None if there is none."""
  folders = _find_run_folders(workdir, members)
  return max(_find_common_steps(folders), default=None)


def _find_common_steps(folders: Sequence[str]) -> set[int]:
  return set.intersection(*({*reader.find_steps(folder)} for folder in folders))


def find_workdirs(paths: Sequence[str]) -> list[str]:
  """Returns the workdirs of single runs.

  Args:
    paths: of runs; the workdir of an ensemble stands for all its members.

  Raises:
    ValueError: a workdir is given twice, or a member is missing.
  """
  workdirs = []
  for path in paths:
    members = _find_members(path)
    is_single = not members or reader.find_steps(path)
    workdirs += [path] if is_single else members
  real = [os.path.realpath(path) for path in workdirs]
  for path, one in zip(workdirs, real, strict=True):
    if real.count(one) > 1:
      raise ValueError(
        f"the workdir {path!r} is given twice, expected different runs. Set "
        "--workdir."
      )
  return workdirs


def find_common_steps(paths: Sequence[str]) -> dict[str, int]:
  """Returns the newest common step of the members of each ensemble.

  A run that is killed while it saves leaves some members with a newer one.

  Args:
    paths: as for `find_workdirs`.

  Returns:
    {workdir of a member: step}; single runs are left out.

  Raises:
    ValueError: there is no such step.
  """
  common = {}
  for path in paths:
    members = find_workdirs([path])
    if members in ([], [path]):
      continue
    steps = _find_common_steps(members)
    if not steps and any(map(reader.find_steps, members)):
      raise ValueError(
        f"the members in {path!r} have no checkpoint of one step. Set "
        "--workdir to one of them."
      )
    common |= dict.fromkeys(members, max(steps)) if steps else {}
  return common


def _find_members(path: str) -> list[str]:
  numbers = sorted(
    int(match[1])
    for name in reader.list_names(path)
    if (match := _FOLDER.fullmatch(name))
  )
  if numbers != list(range(len(numbers))):
    missing = min({*range(len(numbers))} - {*numbers})
    raise ValueError(
      f"the workdir {path!r} has {len(numbers)} members of an ensemble, but "
      f"not member_{missing}. Set --workdir to the members that exist."
    )
  return [find_folder(path, number) for number in numbers]


def open_checkpoints(
  workdir: str,
  program: program_lib.Program,
  *,
  group: group_lib.Group | None = None,
  **options,
) -> checkpoint.Checkpoints | MemberCheckpoints:
  """Opens the checkpoints of a run or of its members.

  The other arguments are those of `checkpoint.Checkpoints`.
  """
  if program.ensemble.members == 1:
    return checkpoint.Checkpoints(workdir, group=group, **options)
  return MemberCheckpoints(workdir, program, **options)


class MemberCheckpoints:
  """Does what `checkpoint.Checkpoints` does, for all members of an ensemble.

  A run that is killed while it saves leaves some members with a newer
  checkpoint than others; each keeps at least two, so that one step is common.
  """

  def __init__(self, workdir: str, program: program_lib.Program, **options):
    self._workdir = workdir
    self._likes = [member.abstract_state for member in program.members]
    self._folders = _find_run_folders(workdir, len(self._likes))
    self._checkpoints = [
      checkpoint.Checkpoints(folder, **options) for folder in self._folders
    ]
    self._saved: dict[int, list[writer.Saved]] = {}  # step -> of its members

  def latest_step(self) -> int | None:
    """Returns the newest step that all members have; None if there is none.

    That is also so after a kill during the first save: some members have that
    checkpoint, and the others never had any.

    Raises:
      OSError: they have checkpoints, but none of one step.
    """
    steps = [{*member.steps()} for member in self._checkpoints]
    if common := set.intersection(*steps):
      return max(common)
    if not any(steps) or self._is_first_save(steps):
      return None
    newest = ", ".join(str(max(found, default=None)) for found in steps)
    raise OSError(
      f"the members in {self._workdir!r} have no checkpoint of one step (the "
      f"newest are {newest}). Set --workdir to start another run, or to the "
      "folder of one member to resume that one alone."
    )

  def _is_first_save(self, steps: Sequence[set[int]]) -> bool:
    """Whether some members have one step, all the same, and others never any.

    A checkpoint that was moved aside as later does not count: it may be of a
    first save too, of an earlier start.
    """
    return len(set.union(*steps)) == 1 and not any(
      reader.has_moved_damaged(reader.find_folder(folder))
      for folder, found in zip(self._folders, steps, strict=True)
      if not found
    )

  def save(
    self,
    step: int,
    state: step_lib.TrainState,
    facts: Mapping[str, Any] | None = None,
  ) -> None:
    """As `checkpoint.Checkpoints.save`; lists in `facts` have one for each."""
    # All saves end before any begins: the end of one deletes older checkpoints,
    # and a kill must leave one step that all members have.
    self.wait()
    for index, (like, member) in enumerate(
      zip(self._likes, self._checkpoints, strict=True)
    ):
      own_facts = {
        name: value[index] if isinstance(value, list) else value
        for name, value in (facts or {}).items()
      }
      try:
        member.save(step, ensemble_lib.take_member(state, like), own_facts)
      except FloatingPointError as error:
        raise FloatingPointError(f"member {index}: {error}") from error

  def wait(self) -> None:
    """As `checkpoint.Checkpoints.wait`, for all members, even if one fails."""
    with contextlib.ExitStack() as waited:
      for member in reversed(self._checkpoints):  # the last one is called first
        waited.callback(member.wait)

  def facts(self, step: int) -> dict[str, Any]:
    """As `checkpoint.Checkpoints.facts`, of the first member."""
    return self._checkpoints[0].facts(step)

  def collect_saved(self) -> list[writer.Saved]:
    """As `checkpoint.Checkpoints.collect_saved`: steps that all have saved."""
    return self._combine([one.collect_saved() for one in self._checkpoints])

  def _combine(
    self, new: Sequence[Sequence[writer.Saved]]
  ) -> list[writer.Saved]:
    for saved in itertools.chain(*new):
      self._saved.setdefault(saved.step, []).append(saved)
    complete = [
      step
      for step, of_members in self._saved.items()
      if len(of_members) == len(self._checkpoints)
    ]
    return [writer.combine_saves(self._saved.pop(step)) for step in complete]

  def resume(
    self, like: step_lib.TrainState, log: Callable[[str], None]
  ) -> tuple[int, step_lib.TrainState] | None:
    """As `checkpoint.Checkpoints.resume`, from the newest that all have.

    Later checkpoints of single members are moved aside: no earlier step could
    be saved beside them.
    """
    damaged: list[tuple[int, int]] = []  # member, step

    def read(step: int) -> step_lib.TrainState:
      states, problems = [], []
      for member, like_one in enumerate(self._likes):
        try:
          states.append(self._checkpoints[member].restore(like_one, step=step))
        except metadata.DamagedError as error:
          damaged.append((member, step))
          problems.append(str(error))
      if problems:
        raise metadata.DamagedError(" ".join(problems))
      return ensemble_lib.stack_members(states, like)

    def move_aside(step: int) -> str:
      places = [
        self._checkpoints[member].move_aside(step)
        for member, of_step in damaged
        if of_step == step
      ]
      return ", ".join(places)

    self.latest_step()  # refuses members of no common step
    steps = sorted(_find_common_steps(self._folders))
    resumed = reader.read_newest_intact(
      self._workdir, steps, read, move_aside, log
    )
    first_step = 0 if resumed is None else resumed[0]
    for folder, member in zip(self._folders, self._checkpoints, strict=True):
      for step in member.steps():
        if step > first_step:
          place = member.move_aside(step, why="later")
          log(
            f"the checkpoint of step {step} in {folder} is now {place!r}: not "
            "all members have an intact one"
          )
      member.open_for_saving(log)
    return resumed

  def close(self) -> list[writer.Saved]:
    """As `checkpoint.Checkpoints.close`, of all members."""
    with contextlib.ExitStack() as closed:
      saved = []
      for member in self._checkpoints:
        closed.callback(lambda one=member: saved.append(one.close()))
    return self._combine(saved)
