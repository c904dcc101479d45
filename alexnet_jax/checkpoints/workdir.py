"""Locks a workdir for one process and one config.

`config.json` has every field of the run by its full name, and under `found.`
what the run has read from its data set. A start with other values is refused,
unless the field does not change results (`may_change`), or the user passes
--allow_config_changes. A run can have several workdirs, which are all locked.

The kernel keeps a lock and releases it with the process, however that ends. The
text in the file is for people; a file that is left over locks nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import pathlib
import re
import reprlib
import shutil
import socket
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from flax import traverse_util

from alexnet_jax.checkpoints import metadata, reader
from alexnet_jax.network import catalog, wiring
from alexnet_jax.program import program as program_lib

# The rows of networks, and how their layers are trained; runs have different
# ones.
_ROWS, _LAYER_RULES = "network.layers.", "optimizer.layers."
# Before these rules, one layer could have learning rates of its own.
_CONV1_RATES = "optimizer.conv1_rates"
# A version before had no rows, and placed these layers for every wiring; what
# its wirings lacked of them; and its `arrive` -> the field that has the axes.
_PLACED = re.compile(r"layout\.(conv[1-5]|fc[678])\.(\w+)")
_LACKED = {
  "without_conv3": ("conv3",),
  "without_conv4": ("conv4",),
  "without_conv5": ("conv5",),
  "lenet5": ("conv3", "conv4", "conv5"),
  "four_layer": ("conv4", "conv5", "fc6", "fc7"),
}
_ARRIVALS = {"gather": "outputs", "sum": "inputs", "fewest": "features"}
_PLACEMENT = (*("batch", "fsdp", "overlap_gather"), *_ARRIVALS.values())
# Fields that earlier versions lacked -> the value that means what they did.
_ADDED = {
  "augment.channel_scale": None,
  "augment.color_order": "rgb",
  "init_from.workdir": None,
  "init_from.step": None,
  "init_from.leave_out": [],
  "init_from.optimizer": "new",
}
CONFIG_FILE, LOCK_FILE = "config.json", "lock"
# The flag of the commands that write a whole run.
_NEW = "new_workdir"
# What an imported run says of its file; a trained one has no such fact.
_IMPORTED = "found.imported"
_RESTORE = (
  "Restore it, set --workdir, or pass --allow_config_changes to resume with "
  "the config given now."
)
# Systems allow four times as much; the files inside have longer names.
_LONGEST_PATH = 1000
# The errors of a file system that has no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def check_writable(path: str, *, flag: str = "workdir") -> None:
  """Refuses a directory that cannot be written; writes nothing.

  Args:
    flag: that names it, for errors.

  Raises:
    OSError: says why.
  """
  if len(path) > _LONGEST_PATH:
    raise _cannot_write(
      f"{path[:20]}...",
      f"its name has {len(path)} characters, expected {_LONGEST_PATH} or fewer",
      flag,
    )
  try:
    os.lstat(path)
  except (FileNotFoundError, NotADirectoryError):
    pass  # the checks of the parent below have the better message
  except OSError as error:
    raise _cannot_write(path, error.strerror, flag) from error
  # Orbax finds the files of a save by a pattern that begins with the path.
  if found := re.search(r"[][*?\\]", os.path.abspath(path)):
    raise _cannot_write(
      path,
      f"its path {os.path.abspath(path)} has {found[0]!r}, and a checkpoint in "
      "it could not be found again; expected a path without [ ] * ? \\",
      flag,
    )
  parent = find_existing_parent(path)
  if not os.path.isdir(parent):
    raise _cannot_write(path, f"{parent} is no directory", flag)
  if not os.access(parent, os.W_OK | os.X_OK):
    raise _cannot_write(path, f"{parent} is not yours to write to", flag)


def check_new(path: str) -> str:
  """Refuses a new workdir that exists or cannot be written; writes nothing.

  Returns:
    The folder to write it in until it is complete.

  Raises:
    ValueError, OSError: says why.
  """
  check_writable(path, flag=_NEW)
  unfinished = f"{path.rstrip(os.sep)}.unfinished"
  for folder in (path, unfinished):
    if os.path.lexists(folder):
      raise ValueError(
        f"{folder!r} exists already, expected a new folder. Remove it, or set "
        f"--{_NEW}."
      )
  return unfinished


@contextlib.contextmanager
def create(
  path: str, config: Mapping[str, Any], found: Mapping[str, Any]
) -> Iterator[str]:
  """Makes a workdir that gets its name when it is complete, or leaves nothing.

  A run without its checkpoint would start from the beginning.

  Args:
    path: accepted by `check_new`.
    config: all fields of the run.
    found: see `acquire`.

  Yields:
    The folder to write to, which is locked.

  Raises:
    ValueError, OSError: it exists, or cannot be written.
  """
  unfinished = check_new(path)
  try:
    os.makedirs(unfinished)  # by this process, which may remove it therefore
  except OSError as error:
    raise _cannot_write(unfinished, error.strerror, _NEW) from error
  locks: tuple[Lock, ...] = ()
  try:
    locks = acquire({unfinished: config}, found, may_change=()).locks
    yield unfinished
    os.rename(unfinished, path)
  except BaseException:
    shutil.rmtree(unfinished, ignore_errors=True)
    raise
  finally:
    for lock in locks:
      lock.release()


def find_existing_parent(path: str) -> str:
  """Returns the path itself, or the nearest folder above it that exists."""
  parent = os.path.abspath(path)
  while not os.path.lexists(parent):
    parent = os.path.dirname(parent)
  return parent


def flatten_config(
  config: Mapping[str, Any], found: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the content of `config.json`: flat, tuples as lists.

  Args:
    config: all fields of the run.
    found: what the run has read from its data set.
  """
  fields = traverse_util.flatten_dict({**config, "found": found}, sep=".")
  return json.loads(json.dumps(fields))


def read_config(path: str) -> dict[str, Any] | None:
  """Returns the content of `config.json` in a workdir; None without one.

  Raises:
    OSError, ValueError: it cannot be read.
  """
  file = os.path.join(path, CONFIG_FILE)
  if not os.path.exists(file):
    return None
  try:
    with open(file, "rb") as opened:
      fields = json.load(opened)
  except ValueError as error:  # also for bytes that are no text
    raise ValueError(f"{file!r} is no JSON: {error}. {_RESTORE}") from error
  except OSError as error:
    raise OSError(
      f"{file!r} cannot be read: {error.strerror}. Make it readable, or set "
      "--workdir."
    ) from error
  if not isinstance(fields, dict):
    raise ValueError(
      f"{file!r} has no fields, expected those of a run by name. Restore it, "
      "or set --workdir."
    )
  try:
    return upgrade(fields)
  except ValueError as error:
    raise ValueError(f"{file!r} is damaged: {error}. {_RESTORE}") from error


def check_not_imported(path: str) -> None:
  """Refuses to train in the workdir of imported weights.

  Raises:
    ValueError: it is one.
  """
  try:
    kind = (read_config(path) or {}).get(_IMPORTED)
  except (ValueError, OSError):
    return  # `acquire` raises it, or accepts it
  if kind is not None:
    raise ValueError(
      f"the workdir {path!r} has imported weights ({kind}), and stays as it "
      "is. To train from them, set --workdir to a new folder and "
      f"--config.init_from.workdir={path}."
    )


def upgrade(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Rewrites the fields of a run that an earlier version saved.

  The version before networks of rows had eight layers, each with its placement
  in all configs, and `arrive` in place of `outputs`, `inputs` and `features`.
  The one after it accepted, and ignored, a dropout rate of a layer without
  dropout, and initial values of rows that `network.init` replaces; and
  `optimizer.conv1_rates` were the rates of the only layer that could have some.
  What later versions added is in `_ADDED`.

  Args:
    fields: of any version, by their full names.

  Returns:
    Fields of the same network, and of the same layout if it is the run's own;
    a layout of the catalog loses changes of single layers, which change no
    numbers.

  Raises:
    ValueError: a placement has values that no version wrote.
  """
  fields = {**_ADDED, **fields}
  if _CONV1_RATES in fields:
    fields = dict(fields)
    if rates := fields.pop(_CONV1_RATES):
      fields[f"{_LAYER_RULES}conv1.rates"] = rates
  if "layout.conv1.arrive" not in fields:
    return {**fields, **dict.fromkeys(_find_idle_fields(fields))}
  kept: dict[str, Any] = {"network.order": None, "network.image_channels": None}
  placements: dict[str, dict[str, Any]] = {}
  for name, value in fields.items():
    if found := _PLACED.fullmatch(name):
      placements.setdefault(found[1], {})[found[2]] = value
    else:
      kept[name] = value
  # What all wirings of then have.
  for name, value in (("network.lrn_k", 2.0), ("network.lrn_alpha", 2e-5)):
    if kept.get(name) == value:
      kept[name] = None
  is_own = all(None not in one.values() for one in placements.values())
  lacked = _LACKED.get(str(fields.get("network.wiring")), ())
  upgraded = {
    layer: _upgrade_placement(layer, old)
    if is_own
    else dict.fromkeys(_PLACEMENT)
    for layer, old in placements.items()
    if layer not in lacked
  }
  groups = {}
  for kind in ("conv", "fc"):
    of_kind = {k: v for k, v in upgraded.items() if k.startswith(kind)}
    # The first of those that occur most often.
    groups[kind] = max(
      of_kind.values(), key=[*of_kind.values()].count, default={}
    )
    groups |= {k: v for k, v in of_kind.items() if v != groups[kind]}
  return kept | {
    f"layout.{group}.{name}": value
    for group, placement in groups.items()
    for name, value in placement.items()
  }


def _find_idle_fields(fields: Mapping[str, Any]) -> list[str]:
  """Names the fields of rows that a version before accepted and ignored.

  These are the dropout rates of layers that have no dropout, and initial values
  of rows of the catalog that `network.init` replaces.
  """
  have_dropout = {
    row.name
    for table in catalog.WIRINGS
    for row in table.layers
    if table.name == fields.get("network.wiring") and row.dropout
  }
  replaced = ()
  if fields.get("network.order") is None:
    replaced = wiring.INIT_CHANGES.get(fields.get("network.init"), ())
  idle = []
  for name in fields:
    group, _, field = name.rpartition(".")
    if group.startswith(_ROWS) and field in replaced:
      idle.append(name)
    elif group.startswith(_ROWS) and field == "dropout_rate":
      dropout = fields.get(f"{group}.dropout")
      if dropout is None:  # as in the wiring
        dropout = group.removeprefix(_ROWS) in have_dropout
      idle += [] if dropout else [name]
  return idle


def _upgrade_placement(layer: str, old: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a placement for those of `upgrade`'s version."""
  arrive = str(old.get("arrive"))
  if arrive not in _ARRIVALS:
    raise ValueError(
      f"layout.{layer}.arrive is {reprlib.repr(old.get('arrive'))}, expected "
      f"one of {', '.join(_ARRIVALS)}"
    )
  new = {name: old.get(name, []) for name in _PLACEMENT}
  return new | {"features": [], _ARRIVALS[arrive]: old.get("features", [])}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Acquired:
  """The workdirs of a run that this process has locked.

  Attributes:
    folders: their paths, that of the whole run first.
    locks: held for as long as something refers to them.
    changes: of the config, a line for each that is accepted.
  """

  folders: tuple[str, ...]
  locks: tuple[Lock, ...]
  changes: tuple[str, ...]


def acquire(
  folders: Mapping[str, Mapping[str, Any]],
  found: Mapping[str, Any],
  *,
  may_change: Collection[str],
  find_step: Callable[[], int | None] | None = None,
  accept_for: Mapping[str, program_lib.Program] | None = None,
) -> Acquired:
  """Makes and locks the workdirs of a run, if they belong to this run.

  Args:
    folders: {workdir: all fields of the run}, that of the whole run first.
    found: what the run has read from its data set.
    may_change: fields, or prefixes of fields, that do not change results.
    find_step: returns the step that the run resumes after, or None; called when
      all existing workdirs are locked. It may raise ValueError. Default: the
      newest checkpoint in the first workdir.
    accept_for: {workdir: program of its checkpoints}; the run may resume with
      any changed field as long as its checkpoints fit; None: changes are
      refused.

  Raises:
    OSError: another process has locked one of them, or it cannot be locked or
      written.
    ValueError: one belongs to a run with other fields or data, or was written
      by an earlier version, or its checkpoints do not fit or would not be
      found. No directory is made and no config is written then.
  """
  first = next(iter(folders))
  # Existing folders are locked before they are read, new ones made after that.
  existing = [path for path in folders if path == first or os.path.isdir(path)]
  for path in folders:
    check_writable(reader.find_folder(path))
  with contextlib.ExitStack() as stack:
    locks = [_make_and_lock(path, stack) for path in existing]
    accepts = accept_for is not None
    step = find_step() if find_step else reader.find_latest_step(first)
    changes: dict[str, None] = {}
    writes = []
    for path, fields in folders.items():
      fields = flatten_config(fields, found)
      saved = step if path == first else reader.find_latest_step(path)
      lines = _find_changes(path, fields, saved, may_change, accepts=accepts)
      foreign = _find_foreign(path, fields, may_change)
      if foreign and not accepts:
        raise ValueError(
          f"{next(iter(foreign))}. Move it away or set --workdir, or pass "
          "--allow_config_changes to resume the run that this workdir then is."
        )
      lines += foreign
      if lines and saved is not None and path in accept_for:
        _check_fits(path, accept_for[path], changes=lines)
      backup = f"config.step_{step or 0}.json" if lines else None
      writes.append((path, fields, backup, foreign.values()))
      changes |= dict.fromkeys(
        f"changed after step {step or 0}, as --allow_config_changes says: "
        f"{line}"
        for line in lines
      )
    locks += [
      _make_and_lock(path, stack) for path in folders if path not in existing
    ]
    for path, fields, backup, foreign_steps in writes:
      write_config(path, fields, backup=backup)
      for one in foreign_steps:
        _accept_foreign(path, one)
    stack.pop_all()
  return Acquired(
    folders=tuple(folders), locks=tuple(locks), changes=tuple(changes)
  )


def _make_and_lock(path: str, stack: contextlib.ExitStack) -> Lock:
  try:
    os.makedirs(path, exist_ok=True)
  except OSError as error:
    raise _cannot_write(path, error.strerror) from error
  lock = Lock(path)
  stack.callback(lock.release)
  return lock


def _find_changes(
  path: str,
  fields: Mapping[str, Any],
  saved: int | None,
  may_change: Collection[str],
  *,
  accepts: bool,
) -> list[str]:
  """Returns a line for each difference from the config in a workdir.

  Args:
    path: the workdir.
    fields: of the run, now.
    saved: the step of its newest checkpoint; None without one.
    may_change: see `acquire`.
    accepts: whether to return differences rather than raise ValueError.
  """
  earlier, problem = None, None
  try:
    earlier = read_config(path)
  except ValueError as error:
    problem = str(error)
  if earlier is not None:
    if not accepts:
      check_same_config(path, earlier, fields, may_change=may_change)
    check_version(path, earlier, fields)
    return find_differences(earlier, fields, may_change=may_change)
  if problem is None and saved is not None:
    problem = (
      f"the workdir {path!r} has a checkpoint of step {saved}, but no "
      f"config.json that says of what run. {_RESTORE}"
    )
  if problem is not None and not accepts:
    raise ValueError(problem)
  return [] if problem is None else [problem]


def _find_foreign(
  path: str, fields: Mapping[str, Any], may_change: Collection[str]
) -> dict[str, int]:
  """Returns {sentence: step} for checkpoints that are not of this run.

  The config that a checkpoint was saved with is the present one, or one that
  --allow_config_changes has replaced and kept.

  Raises:
    CheckpointError: a checkpoint cannot be read now, or is of another step.
  """
  configs = [fields]
  for file in pathlib.Path(path).glob("config*.json"):
    with contextlib.suppress(ValueError, OSError):
      config = json.loads(file.read_bytes())
      configs += [upgrade(config)] if isinstance(config, dict) else []
  found = {}
  for step in reader.find_steps(path):
    folder = reader.find_folder(path, step)
    try:
      saved = upgrade(metadata.read(folder)["fields"])
    except metadata.DamagedError:
      continue  # moved aside at the resume
    differences = [
      find_differences(
        # A version that has more fields records more of them.
        {name: value for name, value in saved.items() if is_common(name)},
        {name: value for name, value in config.items() if is_common(name)},
        may_change=may_change,
        place="the checkpoint",
      )
      for config in configs
      for is_common in [_make_filter(saved, config)]
    ]
    if all(differences):
      found[
        f"the checkpoint {folder!r} is of another run "
        f"({'; '.join(differences[0])})"
      ] = step
  return found


def _make_filter(
  one: Mapping[str, Any], other: Mapping[str, Any]
) -> Callable[[str], bool]:
  """Makes a test for the fields that two configs must have in common.

  A row of a network, or a rule of a layer, that only one of them has is a
  difference.
  """
  names = one.keys() & other.keys()
  return lambda name: name in names or name.startswith((_ROWS, _LAYER_RULES))


def _accept_foreign(path: str, step: int) -> None:
  """Keeps the config of a checkpoint of another run as one of this run."""
  saved = metadata.read(reader.find_folder(path, step))["fields"]
  file = os.path.join(path, f"config.checkpoint_{step}.json")
  try:
    _write_atomically(file, json.dumps(saved, indent=2).encode())
  except OSError as error:
    raise _cannot_write(path, error.strerror) from error


def _check_fits(
  path: str, program: program_lib.Program, *, changes: Sequence[str]
) -> None:
  """Refuses changes with which the newest checkpoint no longer fits."""
  try:
    reader.check_newest_fits(path, program.abstract_state)
  except metadata.CheckpointError as error:
    listed = "; ".join(changes).rstrip(".")
    raise ValueError(f"{error} Changed fields: {listed}.") from error


def check_same_config(
  path: str,
  earlier: Mapping[str, Any],
  now: Mapping[str, Any],
  *,
  may_change: Collection[str],
) -> None:
  """Refuses the workdir of a run whose fields give other results.

  Args:
    path: the workdir.
    earlier: its fields, from `read_config`.
    now: the fields of this run, from `flatten_config`.
    may_change: see `acquire`.

  Raises:
    ValueError: names the fields.
  """
  check_version(path, earlier, now)
  differences = find_differences(earlier, now, may_change=may_change)
  if differences:
    raise ValueError(
      f"the workdir {path!r} belongs to a run of another config "
      f"({'; '.join(differences)}). Set --workdir to start another run, set "
      "these fields back to resume that one, or pass --allow_config_changes to "
      "resume it with them."
    )


def check_version(
  path: str, earlier: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
  """Refuses a workdir with fields that this version does not have.

  Args:
    path: the workdir.
    earlier: its fields, from `read_config`.
    now: the fields of this version, by their full names.

  Raises:
    ValueError: names the first of them.
  """
  unknown = [
    name
    for name in sorted(earlier.keys() - now.keys())
    # These names differ between runs of one version.
    if not name.startswith(("found.", "layout.", _ROWS, _LAYER_RULES))
  ]
  if unknown:
    more = f" and {len(unknown) - 3} more" if unknown[3:] else ""
    raise ValueError(
      f"the workdir {path!r} was written by an earlier version of alexnet_jax: "
      f"this one has no field {', '.join(unknown[:3])}{more}. Set another "
      "--workdir, or use that version."
    )


def find_differences(
  earlier: Mapping[str, Any],
  now: Mapping[str, Any],
  *,
  may_change: Collection[str],
  place: str = "the workdir",
) -> list[str]:
  """Returns a line for each field that gives other results.

  What was found by only one of the two starts is not compared.
  """
  if earlier.get("data.seed") != now.get("data.seed"):
    # Unset, it is that of the run: the order may be the same one.
    earlier, now = map(_fill_data_seed, (earlier, now))
  return [
    f"{name}: {earlier.get(name)} in {place}, {now.get(name)} now"
    for name in sorted(earlier.keys() | now.keys())
    if earlier.get(name) != now.get(name)
    and not (
      name.startswith("found.") and None in (earlier.get(name), now.get(name))
    )
    and not any(name == one or name.startswith(f"{one}.") for one in may_change)
  ]


def _fill_data_seed(fields: Mapping[str, Any]) -> dict[str, Any]:
  seed = fields.get("data.seed")
  return {**fields, "data.seed": fields.get("seed") if seed is None else seed}


def write_config(
  path: str, fields: Mapping[str, Any], *, backup: str | None = None
) -> None:
  """Writes the fields of a run to its workdir, atomically.

  Args:
    path: the workdir.
    fields: from `flatten_config`.
    backup: the name that the present file is copied to first, unless that name
      exists; None: it is replaced.

  Raises:
    OSError: the workdir cannot be written.
  """
  file = os.path.join(path, CONFIG_FILE)
  try:
    if backup is not None and os.path.exists(file):
      copy = os.path.join(path, backup)
      if not os.path.exists(copy):
        _write_atomically(copy, pathlib.Path(file).read_bytes())
    _write_atomically(file, json.dumps(fields, indent=2).encode())
  except OSError as error:
    raise _cannot_write(path, error.strerror) from error


def _write_atomically(file: str, contents: bytes) -> None:
  with open(f"{file}.partial", "wb") as opened:
    opened.write(contents)
    opened.flush()
    # Before the rename: else a crash of the machine could leave an empty file
    # under the final name.
    os.fsync(opened.fileno())
  os.replace(f"{file}.partial", file)


def _cannot_write(path: str, reason: str, flag: str = "workdir") -> OSError:
  return OSError(
    f"the workdir {path!r} cannot be written: {reason}. Set --{flag}."
  )


class Lock:
  """Locks a directory until the process ends, or nothing refers to this.

  Args:
    path: of the directory, which exists.

  Raises:
    OSError: another process has locked it, or its file system has no locks.
  """

  def __init__(self, path: str):
    file = os.path.join(path, LOCK_FILE)
    descriptor = -1
    try:
      # Not inherited by programs that this process starts.
      descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      _write_owner(descriptor)
    except OSError as error:
      if descriptor >= 0:
        os.close(descriptor)
      raise _cannot_lock(error, path, file) from error
    self._release = weakref.finalize(self, os.close, descriptor)

  def release(self) -> None:
    """Lets another process lock the directory."""
    self._release()


def _cannot_lock(error: OSError, path: str, file: str) -> OSError:
  if isinstance(error, BlockingIOError):
    who = "a process that has not written its name yet"  # only just locked
    if owner := _read_owner(file):
      who = "process {pid} on {host}, since {since}".format(**owner)
    return OSError(
      f"the workdir {path!r} is in use by {who}. Wait until "
      "that run has ended, or set --workdir to start another."
    )
  if error.errno in _NO_LOCKS:
    return OSError(
      f"the workdir {path!r} cannot be locked, so that a second run in it "
      f"would not be noticed: {error.strerror}. Set --workdir to a folder of "
      "another file system, or mount this one with locks (Lustre: flock)."
    )
  return _cannot_write(path, error.strerror)


def _write_owner(descriptor: int) -> None:
  now = datetime.datetime.now(datetime.UTC)
  owner = {
    "host": socket.gethostname(),
    "pid": os.getpid(),
    "since": now.strftime("%Y-%m-%d %H:%M:%S UTC"),
  }
  os.ftruncate(descriptor, 0)
  os.pwrite(descriptor, f"{json.dumps(owner)}\n".encode(), 0)


def read_start(path: str) -> str | None:
  """Returns when, and on which machine, a run was last started.

  Returns:
    Such as "2012-12-03 10:00:00 UTC on vm"; None: the workdir does not say.
  """
  owner = _read_owner(os.path.join(path, LOCK_FILE))
  return None if owner is None else "{since} on {host}".format(**owner)


def _read_owner(file: str) -> dict[str, Any] | None:
  """Returns what `_write_owner` wrote; None: it cannot be read."""
  try:
    with open(file) as opened:
      owner = json.load(opened)
    return {name: owner[name] for name in ("host", "pid", "since")}
  except (OSError, ValueError, LookupError, TypeError):
    return None
