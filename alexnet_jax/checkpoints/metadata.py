"""The record of a checkpoint, and the checks of a read against it.

The record is in Orbax's metadata of the checkpoint, which is written before the
folder gets its name: a checkpoint that exists has its record.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import tomllib
import zlib
from collections.abc import Mapping
from typing import Any

import jax

from alexnet_jax.checkpoints import checksum

# Orbax's file, in the folder of each checkpoint.
_FILE = "_CHECKPOINT_METADATA"
_ROOT = pathlib.Path(__file__).parents[2]

# TensorStore writes "... [os_error_code='28']", and begins with a status.
_OS_ERROR = re.compile(r"\[os_error_code='(\d+)'")
_STATUS = re.compile(
  r"\b(?:RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|DEADLINE_EXCEEDED)\b"
)
# The file does not exist or is of another kind: a second try changes nothing.
_ABSENT = {
  errno.ENOENT,
  errno.ENOTDIR,
  errno.EISDIR,
  errno.ELOOP,
  errno.EINVAL,
  errno.ENAMETOOLONG,
}


class CheckpointError(OSError):
  """A checkpoint cannot be written, cannot be read now, or does not fit."""


class DamagedError(CheckpointError):
  """A checkpoint is not what was saved; another one may be intact."""


def make(
  step: int,
  fields: Mapping[str, Any],
  facts: Mapping[str, Any],
  arrays: Mapping[str, checksum.Checksum],
  *,
  code: Mapping[str, str | None],
) -> dict[str, Any]:
  """Returns the record of a checkpoint, as JSON has it.

  Args:
    step: of the state.
    fields: the content of `config.json`.
    facts: other values to record with this state.
    arrays: the checksums of the state.
    code: from `find_code_versions`.
  """
  record = {
    "step": step,
    "fields": dict(fields),
    "facts": dict(facts),
    "code": dict(code),
    "arrays": {
      name: [one.dtype, list(one.shape), one.sums]
      for name, one in arrays.items()
    },
  }
  return {**record, "sum": _sum(record)}


def read(folder: str) -> dict[str, Any]:
  """Returns the record of a checkpoint.

  Raises:
    DamagedError: it is not what was written.
    CheckpointError: it cannot be read now, its folder has the name of another
      step, or an earlier version wrote the checkpoint without a record.
  """
  file = os.path.join(folder, _FILE)
  try:
    with open(file, "rb") as opened:
      content = json.loads(opened.read().decode())
  except FileNotFoundError:
    raise make_damaged_error(folder, f"it has no {_FILE}") from None
  except OSError as error:
    raise make_read_error(folder, error, f"{_FILE}: {error.strerror}") from (
      error
    )
  except ValueError as error:
    raise make_damaged_error(folder, f"{_FILE} is no JSON: {error}") from error
  if (
    not isinstance(content, dict)
    or not isinstance(content.get("custom_metadata"), dict)
    # Orbax reads them from all checkpoints before it saves another.
    or not isinstance(content.get("commit_timestamp_nsecs"), int)
    or not isinstance(content.get("init_timestamp_nsecs"), int)
  ):
    raise make_damaged_error(folder, f"{_FILE} lacks what Orbax writes there")
  record = content["custom_metadata"]
  if not record:
    raise _make_version_error(folder, "it has no checksums")
  rest = {name: value for name, value in record.items() if name != "sum"}
  if "arrays" not in rest or record.get("sum") != _sum(rest):
    raise make_damaged_error(folder, f"{_FILE} is not as it was written")
  check_step(folder, record.get("step"))
  return record


def check_step(folder: str, step: int | None) -> None:
  """Refuses a checkpoint whose folder has the name of another step.

  Args:
    folder: of the checkpoint.
    step: of the state; None: not known, as in records of earlier versions.

  Raises:
    CheckpointError: names both.
  """
  place, name = os.path.split(folder)
  if step is not None and name != str(step):
    raise CheckpointError(
      f"the checkpoint {folder!r} is that of step {step}, not of step {name}. "
      f"Rename it to {os.path.join(place, str(step))!r}, or move it away."
    )


def check_shapes(folder: str, record: Mapping[str, Any], like: Any) -> None:
  """Refuses a checkpoint of other arrays; it may be intact.

  Args:
    folder: of the checkpoint.
    record: of the checkpoint.
    like: the expected shapes and types.

  Raises:
    CheckpointError: names the first that differs.
  """
  expected = {
    jax.tree_util.keystr(path, simple=True, separator="."): _describe(
      str(leaf.dtype), leaf.shape
    )
    for path, leaf in jax.tree.leaves_with_path(like)
  }
  found = {
    name: _describe(dtype, shape)
    for name, (dtype, shape, _) in record["arrays"].items()
  }
  names = sorted(
    expected.keys() | found.keys(),
    key=lambda name: (not name.startswith("parameters."), name),
  )
  # Arrays beside parameters, optimizer and statistics are in every state.
  for name in names:
    if "." not in name and (name in expected) != (name in found):
      whose = "an array" if name in found else "no array"
      raise _make_version_error(folder, f"it has {whose} {name!r}")
  for name in names:
    if expected.get(name) != found.get(name):
      raise CheckpointError(
        f"the checkpoint {folder!r} is of another state: {name} is "
        f"{found.get(name, 'missing')} in it, and "
        f"{expected.get(name, 'missing')} with this config. Set --workdir, or "
        "the config back to that of the run."
      )


def check_checksums(folder: str, record: Mapping[str, Any], state: Any) -> None:
  """Refuses a state, as it was read, that is not what was saved.

  Raises:
    DamagedError: names the first array that differs.
  """
  found = checksum.compute(state)
  differing = [
    name
    for name, (_, _, sums) in record["arrays"].items()
    if found[name].sums != sums
  ]
  if differing:
    more = f" and {len(differing) - 1} more arrays" if differing[1:] else ""
    raise make_damaged_error(
      folder, f"{differing[0]}{more} are not what was saved"
    )


def check_finite(step: int, arrays: Mapping[str, checksum.Checksum]) -> None:
  """Refuses to save a state that no training could resume from.

  Single numbers may be infinite, as the best error before there is any.

  Raises:
    FloatingPointError: names the step and the array.
  """
  for name, one in arrays.items():
    if one.not_finite and one.shape:
      raise FloatingPointError(
        f"{one.not_finite:,} elements of {name} are not finite after step "
        f"{step}, so it is not saved. Lower config.optimizer.learning_rate, "
        "with --allow_config_changes; the run resumes from its last checkpoint."
      )


def _describe(dtype: str, shape) -> str:
  return f"{dtype}[{','.join(map(str, shape))}]"


def _sum(record: Mapping[str, Any]) -> str:
  """Returns a checksum of a record, whatever the order of its fields."""
  return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def make_damaged_error(folder: str, what: str) -> DamagedError:
  """Returns the error, in one line."""
  return DamagedError(
    f"the checkpoint {folder!r} is damaged: {' '.join(what.split())[:300]}."
  )


def make_read_error(
  folder: str, error: Exception, what: str
) -> CheckpointError:
  """Returns the error for a checkpoint that was not read, in one line.

  Args:
    folder: of the checkpoint.
    error: of reading.
    what: is wrong with the checkpoint if the system is not to blame.

  Returns:
    A `DamagedError` if the system is not. Else nothing is known about the
    files, and the checkpoint has to stay where it is.
  """
  reason = find_system_error(error)
  if reason is None:
    return make_damaged_error(folder, what)
  return CheckpointError(
    f"the checkpoint {folder!r} cannot be read now: {reason}. It is left in "
    "its place. Start again once that is repaired, or set --workdir."
  )


def _make_version_error(folder: str, reason: str) -> CheckpointError:
  return CheckpointError(
    f"the checkpoint {folder!r} was written by an earlier version of "
    f"alexnet_jax: {reason}. Set another --workdir, or use that version."
  )


def find_system_error(error: BaseException) -> str | None:
  """Returns why the system refused to read or write a file, in its own words.

  Too many open files, no permission, a disk that is full, or a server that does
  not answer say nothing about the content of the file.

  Args:
    error: of reading or writing; its causes are searched too.

  Returns:
    As "Too many open files"; None: the file was read or does not exist.
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


def summarize_error(error: BaseException) -> str:
  """Returns the cause of an error of Orbax or TensorStore, in one line."""
  while error.__cause__ is not None:
    error = error.__cause__
  text = " ".join(str(error).split())
  for details in ("[tensorstore_spec", "See full TensorStore details"):
    text = text.split(details)[0].strip()
  return text if len(text) < 200 else f"... {text[-200:]}"


def find_code_versions() -> dict[str, str | None]:
  """Returns the versions of this package and of JAX, and the git commit.

  Returns:
    {"alexnet_jax", "revision", "jax"}; the revision is None where the package
    does not run from a git checkout.

  Raises:
    ValueError: the project file has no version.
  """
  return {
    "alexnet_jax": _find_version(),
    "revision": find_revision(_ROOT),
    "jax": jax.__version__,
  }


def _find_version() -> str | None:
  project = _ROOT / "pyproject.toml"
  if project.exists():  # before any older version that is installed too
    try:
      return tomllib.loads(project.read_text())["project"]["version"]
    except (ValueError, KeyError) as error:
      raise ValueError(
        f"{str(project)!r} has no version: {error}. Restore it."
      ) from error
  try:
    return importlib.metadata.version("alexnet_jax")
  except importlib.metadata.PackageNotFoundError:
    return None


def find_revision(root: pathlib.Path) -> str | None:
  """Returns the commit of a git checkout; None if `root` is not its top."""
  git = root / ".git"
  if not git.exists():
    return None
  try:
    done = subprocess.run(
      # Not the repository of a folder above, nor that of GIT_DIR.
      ["git", f"--git-dir={git}", "rev-parse", "--verify", "--quiet", "HEAD"],
      capture_output=True,
      text=True,
      timeout=10,
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout.strip() if done.returncode == 0 else None
