"""What a checkpoint says of itself, and whether that is what was read.

Kept in Orbax's metadata of the checkpoint, which is written before the folder
gets its name: a checkpoint that is there has its record.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import pathlib
import re
import tomllib
import zlib
from collections.abc import Mapping
from typing import Any

import jax

from alexnet_jax.checkpoints import checksum

# Of Orbax, in the folder of each checkpoint.
_FILE = "_CHECKPOINT_METADATA"


class CheckpointError(OSError):
  """A checkpoint cannot be written, or not be read as what it is."""


class DamagedError(CheckpointError):
  """A checkpoint is not what was saved; another one may be."""


def make(
  fields: Mapping[str, Any],
  facts: Mapping[str, Any],
  arrays: Mapping[str, checksum.Checksum],
  *,
  code: Mapping[str, str | None],
) -> dict[str, Any]:
  """The record of a checkpoint, as JSON has it.

  Args:
    fields: what the directory keeps of its run; see `workdir.to_fields`.
    facts: what else there is to say of this state.
    arrays: of the state.
    code: that made it; see `metadata.find`.
  """
  record = {
    "fields": dict(fields),
    "facts": dict(facts),
    "code": dict(code),
    "arrays": {
      name: [one.dtype, list(one.shape), one.sums]
      for name, one in arrays.items()
    },
  }
  return {**record, "sum": _sum(record)}


def read(folder: str) -> dict[str, Any] | None:
  """The record of a checkpoint; None of one that an earlier version wrote.

  Raises:
    DamagedError: it is not what was written.
    CheckpointError: it cannot be read now.
  """
  file = os.path.join(folder, _FILE)
  try:
    with open(file, "rb") as found:
      content = json.loads(found.read().decode())
  except FileNotFoundError:
    raise damaged(folder, f"it has no {_FILE}") from None
  except OSError as error:
    raise unread(folder, error, f"{_FILE}: {error.strerror}") from error
  except ValueError as error:
    raise damaged(folder, f"{_FILE} is no JSON: {error}") from error
  if (
    not isinstance(content, dict)
    or not isinstance(content.get("custom_metadata"), dict)
    # Orbax reads them of all checkpoints before it saves another.
    or not isinstance(content.get("commit_timestamp_nsecs"), int)
    or not isinstance(content.get("init_timestamp_nsecs"), int)
  ):
    raise damaged(folder, f"{_FILE} lacks what Orbax writes there")
  record = content["custom_metadata"]
  if not record:
    return None
  kept = {name: value for name, value in record.items() if name != "sum"}
  if "arrays" not in kept or record.get("sum") != _sum(kept):
    raise damaged(folder, f"{_FILE} is not as it was written")
  return record


def check_fits(folder: str, record: Mapping[str, Any], like: Any) -> None:
  """Refuses a checkpoint of other arrays; it may be sound.

  Args:
    folder: of the checkpoint.
    record: of it.
    like: the shapes and types that are asked for.

  Raises:
    CheckpointError: names the first that differs.
  """
  wanted = {
    jax.tree_util.keystr(path, simple=True, separator="."): _shown(
      str(leaf.dtype), leaf.shape
    )
    for path, leaf in jax.tree.leaves_with_path(like)
  }
  there = {
    name: _shown(dtype, shape)
    for name, (dtype, shape, _) in record["arrays"].items()
  }
  names = sorted(
    wanted.keys() | there.keys(),
    key=lambda name: (not name.startswith("parameters."), name),
  )
  for name in names:
    if wanted.get(name) != there.get(name):
      raise CheckpointError(
        f"the checkpoint {folder!r} is of another state: {name} is "
        f"{there.get(name, 'not')} there, and {wanted.get(name, 'not')} here. "
        "Set --workdir, or the config back to that of the run."
      )


def check(folder: str, record: Mapping[str, Any], state: Any) -> None:
  """Refuses what is not what was saved.

  Args:
    folder: of the checkpoint.
    record: of it.
    state: as it was read.

  Raises:
    DamagedError: names the first array that differs.
  """
  found = checksum.take(state)
  other = [
    name
    for name, (_, _, sums) in record["arrays"].items()
    if found[name].sums != sums
  ]
  if other:
    more = f" and {len(other) - 1} more arrays" if other[1:] else ""
    raise damaged(folder, f"{other[0]}{more} are not what was saved")


def check_finite(step: int, arrays: Mapping[str, checksum.Checksum]) -> None:
  """Refuses to save a state from which nothing could go on.

  Single numbers may be infinite, as the best error before there is any.

  Raises:
    FloatingPointError: names the step and the array.
  """
  for name, one in arrays.items():
    if one.not_finite and one.shape:
      raise FloatingPointError(
        f"{one.not_finite:,} elements of {name} are not finite after step "
        f"{step}, so it is not saved. Lower config.optimizer.learning_rate, "
        "with --allow_config_changes; the run goes on from its last checkpoint."
      )


def damaged(folder: str, what: str) -> DamagedError:
  """The error, in one line."""
  return DamagedError(
    f"the checkpoint {folder!r} is damaged: {' '.join(what.split())[:300]}."
  )


def unread(folder: str, error: Exception, what: str) -> CheckpointError:
  """The error for a checkpoint that was not read, in one line.

  Args:
    folder: of the checkpoint.
    error: of reading.
    what: is wrong with the checkpoint if the system is not to blame.

  Returns:
    A `DamagedError` only if it is not: any other one says nothing of what is
    there, so the checkpoint has to stay where it is.
  """
  refusal = find_refusal(error)
  if refusal is None:
    return damaged(folder, what)
  return CheckpointError(
    f"the checkpoint {folder!r} cannot be read now: {refusal}. It stays as it "
    "is. Start again once that is put right, or set --workdir."
  )


def _shown(dtype: str, shape) -> str:
  return f"{dtype}[{','.join(map(str, shape))}]"


def _sum(record: Mapping[str, Any]) -> str:
  """Of the text of a record, whatever the order of its fields."""
  return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


_ROOT = pathlib.Path(__file__).parents[2]


def find() -> dict[str, str | None]:
  """Versions of this package and of JAX; starts no program.

  Returns:
    {"alexnet_jax", "revision", "jax"}; the revision is the commit that the
    files were checked out at, None where they are in no checkout.

  Raises:
    ValueError: the project file does not say it.
  """
  return {
    "alexnet_jax": _find_version(),
    "revision": find_revision(_ROOT),
    "jax": jax.__version__,
  }


def _find_version() -> str | None:
  project = _ROOT / "pyproject.toml"
  if project.exists():  # before any older one that is installed too
    try:
      return tomllib.loads(project.read_text())["project"]["version"]
    except (ValueError, KeyError) as error:
      raise ValueError(
        f"{str(project)!r} says no version: {error}. Restore it."
      ) from error
  try:
    return importlib.metadata.version("alexnet_jax")
  except importlib.metadata.PackageNotFoundError:
    return None


def find_revision(root: pathlib.Path) -> str | None:
  """The commit that a checkout is at; None where there is none."""
  folder = root / ".git"
  try:
    if folder.is_file():  # of a worktree: "gitdir: PATH"
      folder = pathlib.Path(folder.read_text().split(":", 1)[1].strip())
    head = (folder / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
      return head
    name = head.split(":", 1)[1].strip()
    common = folder / "commondir"
    if common.exists():
      folder = folder / common.read_text().strip()
    if (folder / name).exists():
      return (folder / name).read_text().strip()
    for line in (folder / "packed-refs").read_text().splitlines():
      if line.endswith(f" {name}"):
        return line.split()[0]
  except (OSError, ValueError, IndexError):
    pass  # no checkout, or one of a kind that git alone can read
  return None


# Of TensorStore: "... [os_error_code='28']", and the status it begins with.
_OS_ERROR = re.compile(r"\[os_error_code='(\d+)'")
_STATUS = re.compile(
  r"\b(?:RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|DEADLINE_EXCEEDED)\b"
)
# What is asked for is not there, or of another kind: true tomorrow as well.
_ABSENT = {
  errno.ENOENT,
  errno.ENOTDIR,
  errno.EISDIR,
  errno.ELOOP,
  errno.EINVAL,
  errno.ENAMETOOLONG,
}


def find_refusal(error: BaseException) -> str | None:
  """Why the system did not let a file be read, in its own words.

  Too many open files, no right, a disk or server that does not answer: nothing
  is known then of what is in the file.

  Args:
    error: of reading; its causes are asked too.

  Returns:
    As "Too many open files"; None: the file was read or is not there.
  """
  seen: list[BaseException] = []
  while error is not None and error not in seen:
    seen.append(error)
    if isinstance(error, MemoryError):
      return os.strerror(errno.ENOMEM)
    text = str(error)
    numbers = [int(number) for number in _OS_ERROR.findall(text)]
    if isinstance(error, OSError) and error.errno is not None:
      numbers.append(error.errno)
    for number in numbers:
      if number not in _ABSENT:
        return os.strerror(number)
    if not numbers and (status := _STATUS.search(text)):
      return status[0]
    error = error.__cause__ or error.__context__
  return None
