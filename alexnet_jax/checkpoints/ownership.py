"""Whose directory it is: one process's at a time, and of one config.

That of an ensemble with those of its members, which can go on alone too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from alexnet_jax.checkpoints import lock, metadata, reader
from alexnet_jax.checkpoints import members as members_lib
from alexnet_jax.checkpoints import workdir as workdir_lib
from alexnet_jax.program import program as program_lib
from alexnet_jax.program import step as step_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
  """The directories of a run belong to this process.

  Attributes:
    locks: of the directories, as long as they are referred to.
    changes: of the config, a line for each that is accepted.
  """

  locks: tuple[lock.Lock, ...]
  changes: tuple[str, ...]


def claim(
  workdir: str,
  config: Mapping[str, Any],
  found: Mapping[str, Any],
  *,
  accept_for: program_lib.Program | None = None,
) -> Claim:
  """Makes and locks the directories of a run, if they are of this run.

  Args:
    workdir: of the run.
    config: all fields of the run; kept as `config.json`, with `found`.
    found: what the run has found of its data.
    accept_for: the program of the run, which goes on with whatever fields have
      changed as long as its checkpoints fit; None: changes are refused.

  Raises:
    OSError: another run holds one of them, or it cannot be locked or written.
    ValueError: one is of a run whose fields or data give other results, or
      whose checkpoints do not fit or would not be found. No directory is made
      and no config is kept then.
  """
  folders = members_lib.find_folders(workdir, config)
  # What is there is locked before it is read, what is not is made after that.
  there = [path for path in folders if path == workdir or os.path.isdir(path)]
  with contextlib.ExitStack() as held:
    locks = [_hold(path, held) for path in there]
    _check_members(workdir, config["ensemble"], accepts=accept_for is not None)
    changes, writes = _check(workdir, folders, found, accept_for)
    locks += [_hold(path, held) for path in folders if path not in there]
    for path, fields, aside in writes:
      workdir_lib.keep(path, fields, aside=aside)
    held.pop_all()
  return Claim(locks=tuple(locks), changes=tuple(changes))


def _hold(path: str, held: contextlib.ExitStack) -> lock.Lock:
  workdir_lib.make(path)
  made = lock.Lock(path)
  held.callback(made.release)
  return made


def _check_members(workdir: str, members: int, *, accepts: bool) -> None:
  """Refuses another number of members, which is no change of one run.

  Its checkpoints would not be found, and it would start over.

  Args:
    workdir: of the run.
    members: of the ensemble, now.
    accepts: whether changes are accepted; `_find_changes` refuses them else.

  Raises:
    ValueError: names the number, or a folder whose checkpoints are not of it.
  """
  try:
    earlier = workdir_lib.read(workdir)
  except ValueError:
    earlier = None
  there = members if earlier is None else earlier.get("ensemble", 1)
  if accepts and there != members:
    raise ValueError(
      f"the workdir {workdir!r} belongs to a run of ensemble={there}, which "
      f"cannot go on as one of {members}, with --accept_changes neither. Set "
      f"config.ensemble={there}, or --workdir to start another run."
    )
  if earlier is not None:
    return
  own = [members_lib.find_folder(workdir, member) for member in range(members)]
  other = {str(path) for path in pathlib.Path(workdir).glob("member_*")}
  if members > 1:
    other = other - {*own} | {workdir}
  for folder in sorted(other):
    if (step := reader.find_latest_step(folder)) is not None:
      raise ValueError(
        f"{folder!r} has a checkpoint of step {step}, which is not of a run of "
        f"ensemble={members}, and {workdir!r} has no config.json that can be "
        "read. Restore it, set config.ensemble, or --workdir to start another "
        "run."
      )


def _check(
  workdir: str,
  folders: Mapping[str, Mapping[str, Any]],
  found: Mapping[str, Any],
  accept_for: program_lib.Program | None,
) -> tuple[list[str], list[tuple[str, dict[str, Any], str | None]]]:
  """Holds the directories of a run against what they keep; as `claim`.

  Args:
    folders: the directories, the workdir first, each with its config.

  Returns:
    A line for each change, and of each directory its path, what it is to keep,
    and the name under which what it keeps is put aside.
  """
  several = len(folders) > 1
  step = members_lib.find_latest_step(workdir, len(folders) - several)
  changes: dict[str, None] = {}
  writes = []
  for index, (path, config) in enumerate(folders.items()):
    fields = workdir_lib.to_fields(config, found)
    saved = step if path == workdir else reader.find_latest_step(path)
    lines = _find_changes(path, fields, saved, accepts=accept_for is not None)
    if lines and saved is not None and not (several and path == workdir):
      like = accept_for.members[max(index - 1, 0)].abstract_state
      _check_fits(path, like, changes=lines)
    aside = f"config.step_{step or 0}.json" if lines else None
    writes.append((path, fields, aside))
    changes |= dict.fromkeys(
      f"changed after step {step or 0}, as --accept_changes says: {line}"
      for line in lines
    )
  return list(changes), writes


def _check_fits(
  path: str, like: step_lib.TrainState, *, changes: Sequence[str]
) -> None:
  """Refuses changes under which the newest checkpoint no longer fits.

  Args:
    path: of the directory.
    like: the shapes and types of the state, with the changes.
    changes: a line for each.

  Raises:
    ValueError: names an array with both of its shapes, and the changes.
  """
  try:
    reader.check_fits(path, like)
  except metadata.CheckpointError as error:
    raise ValueError(
      f"{error} What has changed is {'; '.join(changes)}."
    ) from error


def _find_changes(
  path: str, fields: Mapping[str, Any], saved: int | None, *, accepts: bool
) -> list[str]:
  """What differs from the config that a directory keeps; refused or accepted.

  Args:
    path: of the directory.
    fields: of the run, now.
    saved: the step of its newest checkpoint; None: there is none.
    accepts: whether changes are accepted.

  Raises:
    OSError, ValueError: they are not.
  """
  try:
    earlier = workdir_lib.read(path)
    if earlier is None:
      if saved is None:
        return []
      raise ValueError(
        f"the workdir {path!r} has a checkpoint of step {saved}, but no "
        "config.json that says of what run. Restore it, set --workdir, or go "
        "on with the config as it is given now: --accept_changes."
      )
    if not accepts:
      workdir_lib.check_same(path, earlier, fields)
    return workdir_lib.find_differences(earlier, fields)
  except ValueError as error:
    if not accepts:
      raise
    return [str(error)]
