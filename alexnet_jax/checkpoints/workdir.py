"""The directory of a run: it can be written, and it belongs to one config."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from flax import traverse_util

from alexnet_jax.checkpoints import members as members_lib
from alexnet_jax.checkpoints import metadata, reader
from alexnet_jax.program import program as program_lib
from alexnet_jax.program import step as step_lib

# Fields that may differ between two starts of one run: where it is computed,
# how long it goes on, what it says meanwhile, and what becomes of records that
# are lost. All others change results.
FREE = (
  "layout",
  "num_epochs",
  "data.threads",
  "data.unreadable",
  "data.batches_ahead",
  "log_every_steps",
  "eval_every_steps",
  "validation_views",
  "checkpoint_every_steps",
  "max_to_keep",
  "keep_best",
  "keep_every_steps",
)

# Those of them that change results under a schedule of the learning rate: it
# ends with the run, or goes by the validations.
BOUND = {
  "exponential": ("num_epochs",),
  "polynomial": ("num_epochs",),
  "cosine": ("num_epochs",),
  "plateau": ("eval_every_steps", "validation_views"),
}

_FILE = "config.json"
# Systems take four times as much, and what lies in it has longer names.
_LONGEST_PATH = 1000

# What a run has where its directory is older than the field.
_EARLIER = {"ensemble": 1}


def check(path: str) -> None:
  """Refuses a directory that cannot be written; writes nothing.

  Raises:
    OSError: says why.
  """
  if len(path) > _LONGEST_PATH:
    raise _cannot_write(
      f"{path[:20]}...",
      f"its name has {len(path)} characters, expected {_LONGEST_PATH} or fewer",
    )
  try:
    os.lstat(path)
  except (FileNotFoundError, NotADirectoryError):
    pass  # what is above it says more
  except OSError as error:
    raise _cannot_write(path, error.strerror) from error
  above = find_existing(path)
  if not os.path.isdir(above):
    raise _cannot_write(path, f"{above} is no directory")
  if not os.access(above, os.W_OK | os.X_OK):
    raise _cannot_write(path, f"{above} is not yours to write to")


def find_existing(path: str) -> str:
  """The path itself, or the nearest above it that there is."""
  above = os.path.abspath(path)
  while not os.path.lexists(above):
    above = os.path.dirname(above)
  return above


def to_fields(
  config: Mapping[str, Any], found: Mapping[str, Any]
) -> dict[str, Any]:
  """What a directory keeps of its run; as JSON has it: tuples are lists."""
  fields = traverse_util.flatten_dict({**config, "found": found}, sep=".")
  return json.loads(json.dumps(fields))


def read(path: str) -> dict[str, Any] | None:
  """What a directory keeps of its run; None where it holds none.

  Raises:
    OSError, ValueError: it cannot be read.
  """
  file = os.path.join(path, _FILE)
  if not os.path.exists(file):
    return None
  with open(file, "rb") as kept:
    try:
      fields = json.load(kept)
    except ValueError as error:  # also of bytes that are no text
      raise ValueError(
        f"{file!r} is no JSON: {error}. Restore it, set --workdir, or go on "
        "with the config as it is given now: --allow_config_changes."
      ) from error
  if not isinstance(fields, dict):
    raise ValueError(
      f"{file!r} holds no fields, expected those of a run by name. Restore it, "
      "or set --workdir."
    )
  return fields


def make(path: str) -> None:
  """Makes the directory if it is not there.

  Raises:
    OSError: it cannot be made.
  """
  try:
    os.makedirs(path, exist_ok=True)
  except OSError as error:
    raise _cannot_write(path, error.strerror) from error


def keep(
  path: str, fields: Mapping[str, Any], *, aside: str | None = None
) -> None:
  """Keeps the fields of a run in its directory, from one moment to the next.

  Args:
    path: of the directory.
    fields: from `to_fields`.
    aside: the name that the file of before gets, unless there is one of that
      name; None: it is replaced.

  Raises:
    OSError: the directory cannot be written.
  """
  file = os.path.join(path, _FILE)
  try:
    if aside is not None and os.path.exists(file):
      earlier = os.path.join(path, aside)
      if not os.path.exists(earlier):
        _write(earlier, pathlib.Path(file).read_bytes())
    _write(file, json.dumps(fields, indent=2).encode())
  except OSError as error:
    raise _cannot_write(path, error.strerror) from error


def _write(file: str, contents: bytes) -> None:
  """Writes a file, from one moment to the next."""
  with open(f"{file}.partial", "wb") as now:
    now.write(contents)
    now.flush()
    # Before the name is given: else a crash of the machine could leave a file
    # that has its name, and nothing in it.
    os.fsync(now.fileno())
  os.replace(f"{file}.partial", file)


def _cannot_write(path: str, reason: str) -> OSError:
  return OSError(
    f"the workdir {path!r} cannot be written: {reason}. Set --workdir."
  )


def check_same(
  path: str, earlier: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
  """Refuses the directory of a run whose fields give other results.

  Args:
    path: of the directory.
    earlier: what it keeps, from `read`.
    now: of this run, from `to_fields`.

  Raises:
    ValueError: names the fields.
  """
  differences = find_differences(earlier, now)
  if differences:
    raise ValueError(
      f"the workdir {path!r} belongs to a run of another config "
      f"({'; '.join(differences)}). Set --workdir to start another run, or "
      "these fields back to go on with that one, or --allow_config_changes to "
      "go on with them as they are."
    )


def find_differences(
  earlier: Mapping[str, Any], now: Mapping[str, Any]
) -> list[str]:
  """A line for each field that gives other results; as of `check_same`."""
  bound = BOUND.get(now.get("optimizer.schedule"), ())
  free = [name for name in FREE if name not in bound]
  earlier, now = _EARLIER | earlier, _EARLIER | now
  if earlier.get("data.seed") != now.get("data.seed"):
    # Unset, it is that of the run: the order may be the same one.
    earlier, now = map(_name_order_seed, (earlier, now))
  return [
    f"{name}: {earlier.get(name)} there, {now.get(name)} here"
    for name in sorted(earlier.keys() | now.keys())
    if earlier.get(name) != now.get(name)
    and not any(name == each or name.startswith(f"{each}.") for each in free)
  ]


def _name_order_seed(fields: Mapping[str, Any]) -> dict[str, Any]:
  seed = fields.get("data.seed")
  return {**fields, "data.seed": fields.get("seed") if seed is None else seed}


# One writer: a run holds its directory until its process has ended.
#
# The kernel keeps the lock and releases it with the process, however that ends.
# What stands in the file is for people; a file that is left over locks nothing.

FILE = "lock"

# What a file system answers that has no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class Lock:
  """Holds a directory until the process ends, or nothing refers to this.

  Args:
    path: of the directory; it is there.

  Raises:
    OSError: another process holds it, or its file system has no locks.
  """

  def __init__(self, path: str):
    file = os.path.join(path, FILE)
    descriptor = -1
    try:
      # Not inherited by programs that this process starts.
      descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      _write_holder(descriptor)
    except OSError as error:
      if descriptor >= 0:
        os.close(descriptor)
      raise OSError(_describe(error, path, file)) from error
    self._release = weakref.finalize(self, os.close, descriptor)

  def release(self) -> None:
    """Lets others write."""
    self._release()


def _describe(error: OSError, path: str, file: str) -> str:
  """Why a directory cannot be held, and what to do."""
  if isinstance(error, BlockingIOError):
    return (
      f"the workdir {path!r} is in use by {_read_holder(file)}. Wait until "
      "that run has ended, or set --workdir to start another."
    )
  if error.errno in _NO_LOCKS:
    return (
      f"the workdir {path!r} cannot be locked, so that a second run in it "
      f"would not be noticed: {error.strerror}. Set --workdir to a folder of "
      "another file system, or mount this one with locks (Lustre: flock)."
    )
  return (
    f"the workdir {path!r} cannot be written: {error.strerror}. Set --workdir."
  )


def _write_holder(descriptor: int) -> None:
  now = datetime.datetime.now(datetime.UTC)
  holder = {
    "host": socket.gethostname(),
    "pid": os.getpid(),
    "since": now.strftime("%Y-%m-%d %H:%M:%S UTC"),
  }
  os.ftruncate(descriptor, 0)
  os.pwrite(descriptor, f"{json.dumps(holder)}\n".encode(), 0)


def _read_holder(file: str) -> str:
  """Who holds a lock, in words; it may have been taken just now."""
  try:
    with open(file) as kept:
      holder = json.load(kept)
    return (
      f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    )
  except (OSError, ValueError, LookupError, TypeError):
    return "a process that has not given its name yet"


# Whose directory it is: one process's at a time, and of one config.
#
# That of an ensemble with those of its members, which can go on alone too.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
  """The directories of a run belong to this process.

  Attributes:
    locks: of the directories, as long as they are referred to.
    changes: of the config, a line for each that is accepted.
  """

  locks: tuple[Lock, ...]
  changes: tuple[str, ...]


def acquire(
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
      keep(path, fields, aside=aside)
    held.pop_all()
  return Claim(locks=tuple(locks), changes=tuple(changes))


def _hold(path: str, held: contextlib.ExitStack) -> Lock:
  make(path)
  made = Lock(path)
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
    earlier = read(workdir)
  except ValueError:
    earlier = None
  there = members if earlier is None else earlier.get("ensemble", 1)
  if accepts and there != members:
    raise ValueError(
      f"the workdir {workdir!r} belongs to a run of ensemble={there}, which "
      f"cannot go on as one of {members}, with --allow_config_changes neither. "
      f"Set config.ensemble={there}, or --workdir to start another run."
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
  """Holds the directories of a run against what they keep; as `acquire`.

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
    fields = to_fields(config, found)
    saved = step if path == workdir else reader.find_latest_step(path)
    lines = _find_changes(path, fields, saved, accepts=accept_for is not None)
    if lines and saved is not None and not (several and path == workdir):
      like = accept_for.members[max(index - 1, 0)].abstract_state
      _check_fits(path, like, changes=lines)
    aside = f"config.step_{step or 0}.json" if lines else None
    writes.append((path, fields, aside))
    changes |= dict.fromkeys(
      f"changed after step {step or 0}, as --allow_config_changes says: {line}"
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
    earlier = read(path)
    if earlier is None:
      if saved is None:
        return []
      raise ValueError(
        f"the workdir {path!r} has a checkpoint of step {saved}, but no "
        "config.json that says of what run. Restore it, set --workdir, or go "
        "on with the config as it is given now: --allow_config_changes."
      )
    if not accepts:
      check_same(path, earlier, fields)
    return find_differences(earlier, fields)
  except ValueError as error:
    if not accepts:
      raise
    return [str(error)]
