"""Parses flags and configs, and turns every error of theirs into one line.

ml_collections runs the config file and sets its fields while absl parses the
flags, so that parsing can raise an error of any type.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import reprlib
import sys
import traceback
import urllib.request
from collections.abc import Iterator, Sequence

import jax
from absl import flags, logging
from flax import traverse_util
from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

import alexnet_jax
from alexnet_jax.cli import help_text

# Old name -> new name, of fields, flags and values.
_RENAMED_FIELDS = {
  "accumulate_batches": "grad_accumulation_steps",
  "report_every_steps": "log_every_steps",
  "validate_every_steps": "eval_every_steps",
  "keep_checkpoints": "max_to_keep",
  "compute_precision": "compute_dtype",
  "exchange_precision": "exchange_dtype",
  "optimizer.average_decay": "optimizer.ema_decay",
  "optimizer.bias_rate": "optimizer.bias_lr_multiplier",
  "layout.LAYER.stored": "layout.LAYER.fsdp",
  "layout.LAYER.own_first": "layout.LAYER.overlap_gather",
  "network.normalisation": "network.normalization",
  "augment.colour_noise": "augment.color_noise",
  "augment.colour_noise_until_epoch": "augment.color_noise_until_epoch",
  "augment.colour_divisor": "augment.color_divisor",
}
_RENAMED_FLAGS = {
  "stuck_seconds": "hang_timeout_seconds",
  "accept_changes": "allow_config_changes",
  "forms": "implementations",
}
_RENAMED_VALUES = {
  ("what", "forms"): "implementations",
  ("config", "no_colour_noise"): "no_color_noise",
}
# A field on the command line, such as `--config.network.width`.
_FIELD_FLAG = re.compile(r"--?(no)?config\.(?P<name>[^=]*)", re.DOTALL)
_FIELD_NAME = re.compile(r"[a-zA-Z]\w*(\.[a-zA-Z]\w*)*")
_LONGEST_VALUE = 1000
# A value that is not of a flag's type, in messages of absl and ml_collections.
_ILLEGAL_VALUE = re.compile(
  r"flag --(?P<name>[^=]+)=(?P<value>.*): (invalid literal|could not convert|"
  r"int too large|\('Non-boolean|Failed to parse)",
  re.DOTALL,
)
_TYPE_NAMES = {
  flags.IntegerParser: "an integer, such as 128",
  flags.FloatParser: "a number",
  flags.BooleanParser: "true or false",
}
# The group that lacks a field, in a message of ml_collections.
_GROUP = re.compile(r"\(in: (.+)\)")
# gs://bucket, also with one slash; host:/folder; of common ones also gs:bucket.
_ADDRESS = re.compile(
  r"\s*([a-z][a-z0-9+.-]+:/|(gcs|gs|s3[an]?|hdfs|https?|memory):)",
  re.IGNORECASE,
)
_WINDOWS = re.compile(r"\s*[a-z]:([\\/]|$)|\\\\", re.IGNORECASE)
# file:///folder, file://localhost/folder and file:/folder.
_FILE_ADDRESS = re.compile(
  r"file:(//(localhost)?(?=/)|(?=/[^/]))", re.IGNORECASE
)
# What JAX accepts as a compilation cache, for `PathParser`.
CACHE_PATHS = {
  "remedy": "Set a folder, or an address that JAX reads: gs://, s3://, az://.",
  "accepted": ("gs://", "s3://", "az://"),
}
# Environment variable that stands for a flag that is not given.
_VARIABLES = {
  "data_dir": "TFDS_DATA_DIR",
  "compilation_cache": "JAX_COMPILATION_CACHE_DIR",
}
_HELP_FLAGS = {"--help", "-help", "--helpshort", "-helpshort", "-?"}


def parse(argv: list[str]) -> list[str]:
  """Parses all defined flags; prints the help and exits if that is asked for.

  Returns:
    The arguments that are no flags, after the name of the program.

  Raises:
    ValueError, TypeError, OSError, ImportError, flags.Error: names the flag,
      the field or the line of the config file.
  """
  given = argv[: argv.index("--")] if "--" in argv else argv
  if not _HELP_FLAGS.isdisjoint(given[1:]):
    print(help_text.make_help())
    sys.exit(0)
  try:
    argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
    argv = _resolve_config(argv)
    _check_flags(argv)
    others, unset = _take_unset_fields(argv)
    with _mute_absl():
      unused = flags.FLAGS(others)
    for field in unset:
      _unset(field)
  except (flags.Error, ValueError, TypeError, OSError) as error:
    raise _simplify(error, argv) from error
  except ImportError as error:
    raise ImportError(
      f"{error}. Start from the folder that contains configs/."
    ) from error
  except Exception as error:  # a config file may raise any
    if place := _find_place(error, argv):
      raise ValueError(f"{place} Change it, or set --config.") from error
    if not isinstance(error, AttributeError | KeyError):
      raise
    raise _name_field(error, argv) from error
  _check_not_empty()
  _check_renamed_fields()
  _read_variables()
  return unused


class ListFlag(flags.Flag):
  """A list, to which a flag that is given again adds."""

  def _parse(self, argument: str | list[str]) -> list[str]:
    words = super()._parse(argument)
    return [*self.value, *words] if self.present else words


class PathParser(flags.ArgumentParser):
  """Parses a path of this machine's file system; see `to_local_path`.

  Args:
    remedy: what to do about an address such as gs://bucket, in a sentence.
    accepted: beginnings of addresses that are returned as they are.
  """

  def __init__(self, *, remedy: str, accepted: Sequence[str] = ()):
    self._remedy, self._accepted = remedy, tuple(accepted)

  def parse(self, argument: str) -> str:
    if argument.startswith(self._accepted):
      return argument
    return to_local_path(argument, remedy=self._remedy)

  def flag_type(self) -> str:
    return "path"


def to_local_path(path: str, *, remedy: str) -> str:
  """Expands ~ and ~user, and makes a path of file:///folder.

  Raises:
    ValueError: it is an address of another machine or of an object store, a
      path of Windows, or there is no such user.
  """
  if file := _FILE_ADDRESS.match(path):
    return urllib.request.url2pathname(path[file.end() :])
  if _WINDOWS.match(path):
    raise ValueError(
      f"{path!r} is a path of Windows, expected one of this system, such as "
      f"/mnt/c/data. Write ./{path} for a name that begins like this."
    )
  if _ADDRESS.match(path):
    as_name = f" Write ./{path} for a name that begins like this."
    raise ValueError(
      f"{path!r} is an address, expected a path of this machine's file system. "
      f"{remedy}{'' if '://' in path else as_name}"
    )
  expanded = os.path.expanduser(path)
  if path.startswith("~") and expanded == path:
    user = path[1:].partition("/")[0]
    problem = f"there is no user {user!r}" if user else "you have no home"
    raise ValueError(
      f"~ in {path!r} cannot be expanded: {problem}. Write ./{path} for a name "
      "that begins with it."
    )
  return expanded


def find_config(path: str) -> str:
  """Finds a config, PATH or PATH:VARIANT, here or in the installed package.

  Raises:
    FileNotFoundError: it is in neither.
    ValueError: see `to_local_path`.
  """
  path = to_local_path(path, remedy="Copy the file here.")
  file, colon, variant = path.partition(":")
  if os.path.exists(file) and not os.path.isdir(file):
    return path
  if os.path.normpath(file).split(os.sep)[0] == "configs":
    package = os.path.dirname(os.path.dirname(alexnet_jax.__file__))
    if os.path.isfile(packaged := os.path.join(package, file)):
      return f"{packaged}{colon}{variant}"
  raise FileNotFoundError(
    f"there is no config file {file[:500]!r}, in this folder or in the "
    "installed configs/. Set --config to a file with a function get_config, "
    "e.g. configs/two_device.py."
  )


def _resolve_config(argv: Sequence[str]) -> list[str]:
  """Joins `--config PATH` to one argument and finds the file of PATH."""
  resolved: list[str] = []
  arguments = iter(argv)
  for argument in arguments:
    name, equals, value = argument.partition("=")
    if argument == "--":
      return [*resolved, argument, *arguments]
    if name in ("--config", "-config"):
      if not equals:
        value = next(arguments, "")
      argument = f"--config={find_config(value)}"
    resolved.append(argument)
  return resolved


def _take_unset_fields(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Takes out `--config.FIELD=None`, which ml_collections reads as text.

  Also in two words, `--config.FIELD None`.

  Returns:
    The other arguments, and the fields whose last value is None.
  """
  others: list[str] = []
  unset: dict[str, None] = {}
  end = argv.index("--") if "--" in argv else len(argv)
  pairs = itertools.pairwise([*argv[:end], ""])
  for argument, following in pairs:
    if not (field := _FIELD_FLAG.match(argument)):
      others.append(argument)
      continue
    value = argument[field.end() :]
    if (value or f"={following}") == "=None":
      unset[field["name"]] = None
      if not value:
        next(pairs)  # begins with the second word
    else:
      unset.pop(field["name"], None)
      others.append(argument)
  return [*others, *argv[end:]], list(unset)


def _unset(field: str) -> None:
  flag = flags.FLAGS["config"]
  if isinstance(config_path.get_value(field, flag.value), ConfigDict):
    raise _make_group_error(f"config.{field}", "None")
  config_path.set_value(field, flag.value, None)
  flag.override_values[field] = None


@contextlib.contextmanager
def _mute_absl() -> Iterator[None]:
  """Silences the warnings that ml_collections logs besides its errors."""
  logger = logging.get_absl_logger()
  logger.disabled = True
  try:
    yield
  finally:
    logger.disabled = False


def _check_flags(argv: Sequence[str]) -> None:
  """Refuses old names, names that no field can have, and very long values.

  Python's parser may fail on a very long value.
  """
  for argument, following in itertools.pairwise([*argv[1:], ""]):
    if argument == "--":
      return
    if not argument.startswith("-"):
      continue
    flag, equals, value = argument.lstrip("-").partition("=")
    _check_renamed_flag(flag, value if equals else following)
    field = _FIELD_FLAG.match(argument)
    if field and len(argument) > _LONGEST_VALUE:
      raise ValueError(
        f"{field[0][:100]} has a value of {len(argument) - field.end():,} "
        f"characters, expected {_LONGEST_VALUE:,} or fewer. Set it in the file "
        "of --config."
      )
    if field and not _FIELD_NAME.fullmatch(field["name"]):
      raise ValueError(
        f"{field[0]!r} names no field, expected --config.GROUP.FIELD=VALUE, "
        "e.g. --config.network.width=0.5; configs/default.py lists all fields."
      )
    if field:
      _check_renamed_field(field["name"])


def _check_renamed_flag(flag: str, value: str) -> None:
  for old in (flag, flag.removeprefix("no")):
    new = _RENAMED_FLAGS.get(old)
    if new in flags.FLAGS:
      raise ValueError(f"--{old} is now called --{new}. Set --{new}.")
  for word in re.split("[:,]", value):
    if new := _RENAMED_VALUES.get((flag, word)):
      raise ValueError(
        f"{word!r} in --{flag} is now called {new!r}. Set --{flag}="
        f"{value.replace(word, new)}."
      )


def _check_renamed_field(name: str) -> None:
  group, _, rest = name.partition(".")
  layer = rest.partition(".")[0]
  is_layer = group == "layout" and "." in rest
  new = _RENAMED_FIELDS.get(
    f"layout.LAYER.{rest.partition('.')[2]}" if is_layer else name
  )
  if new is not None:
    new = new.replace("LAYER", layer)
    raise ValueError(f"the field {name} is now called {new}. Set config.{new}.")


def _check_renamed_fields() -> None:
  """Refuses old names that a config file has added to a config."""
  config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
  # Neither None nor the error of a file that could not be read.
  if hasattr(type(config), "to_dict"):
    for name in traverse_util.flatten_dict(config.to_dict(), sep="."):
      _check_renamed_field(name)


def _check_not_empty() -> None:
  """Refuses text flags without a value."""
  for name in flags.FLAGS:
    flag = flags.FLAGS[name]
    if flag.present and flag.value in ("", [""]):
      raise ValueError(
        f"--{name} is empty, expected a value. Set --{name}, or leave it out."
      )


def _read_variables() -> None:
  """Sets flags that are not given from their environment variables."""
  for name, variable in _VARIABLES.items():
    value = os.environ.get(variable)
    try:
      if value and name in flags.FLAGS:
        if flags.FLAGS[name].value is None:
          flags.FLAGS[name].value = flags.FLAGS[name].parser.parse(value)
      elif value and name == "compilation_cache":  # JAX has read it already
        path = PathParser(**CACHE_PATHS).parse(value)
        jax.config.update("jax_compilation_cache_dir", path)
    except ValueError as error:
      raise ValueError(f"{variable}: {error}") from error


def _find_place(error: Exception, argv: Sequence[str]) -> str | None:
  """Describes the line of the config file that raised; None: another did."""
  paths = [
    os.path.abspath(value.partition(":")[0])
    for name, _, value in (argument.partition("=") for argument in argv)
    if name == "--config"
  ]
  what = f"{type(error).__name__}: {error}"
  lines = [
    place.lineno
    for place in traceback.extract_tb(error.__traceback__)
    if os.path.abspath(place.filename) in paths
  ]
  if isinstance(error, SyntaxError):  # in that file, or in one it imports
    what = f"{type(error).__name__}: {error.msg}"
    paths = [error.filename or ", ".join(paths)]
    lines = [error.lineno or 1]
  if not lines:
    return None
  line = f"line {lines[-1]} of {paths[-1]}"
  if isinstance(error, AttributeError | KeyError):
    for old, new in _RENAMED_FIELDS.items():
      old, new = old.rpartition(".")[2], new.rpartition(".")[2]
      if re.search(rf"\b{old}\b", what.partition("\n")[0]):
        return f"{line} reads the field {old}, which is now called {new}."
  return f"{line} cannot be run ({what})."


def _simplify(error: Exception, argv: Sequence[str]) -> Exception:
  """Rewords the errors of --config that absl and ml_collections word badly."""
  said = str(error)
  if "Flag --config must have a value other than None" in said:
    given = [one for one in argv if one.startswith("--config=")]
    if given:
      return ValueError(
        f"get_config in the file of {given[-1]} returns None, expected a "
        "config. Return an ml_collections.ConfigDict."
      )
    return ValueError(
      "--config is not given. Set --config=configs/NAME.py, e.g. "
      "--config=configs/two_device.py."
    )
  if found := re.match(r"Found (\S+) in argv before", said):
    return ValueError(f"{found[1]} stands before --config. Put it after.")
  if isinstance(error, flags.IllegalFlagValueError):
    return _name_value(error)
  if "Traceback (most recent call last)" not in said:
    return error
  # A config's own error is at the end of the traceback.
  return ValueError(said.strip().splitlines()[-1].split("Error: ", 1)[-1])


def _name_value(error: flags.IllegalFlagValueError) -> Exception:
  """Makes the error for text that is no value of a flag's type."""
  said = _ILLEGAL_VALUE.match(str(error))
  if said is None or said["name"] not in flags.FLAGS:
    return error
  name, value = said["name"], reprlib.repr(said["value"])
  for kind, expected in _TYPE_NAMES.items():
    if isinstance(flags.FLAGS[name].parser, kind):
      return ValueError(
        f"--{name} is {value}, expected {expected}. Set --{name}."
      )
  return _make_group_error(name, value)


def _make_group_error(name: str, value: str) -> Exception:
  return ValueError(
    f"--{name} is {value}, but it is a group of fields. Set its fields one by "
    f"one, as --{name}.FIELD=VALUE; configs/default.py lists all fields."
  )


def _name_field(error: Exception, argv: Sequence[str]) -> Exception:
  """Makes the error for a misspelled field, with its full name."""
  while error.args and isinstance(error.args[0], Exception):
    error = error.args[0]
  if "get_config" in str(error):
    return ValueError(
      "the file of --config has no function get_config, expected one that "
      "returns a config. Set --config=configs/NAME.py."
    )
  said = str(error.args[0]) if error.args else type(error).__name__
  name, _, hint = said.partition("\n")
  if group := _GROUP.search(name):
    name = f"config.{group[1]}"
  given = [flag.split("=")[0].lstrip("-") for flag in argv]
  fields = [flag for flag in given if name.strip("'") in flag.split(".")]
  return ValueError(
    f"the config has no field {' or '.join(fields) or name}. "
    f"{hint or 'configs/default.py lists all fields.'}"
  )
