"""Parses flags and configs, and turns every error of theirs into one line.

ml_collections runs the config file and sets its fields while absl parses the
flags, so that parsing can raise an error of any type.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import itertools
import os
import re
import reprlib
import sys
import traceback
import typing
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from absl import flags, logging
from ml_collections import ConfigDict, config_dict, config_flags
from ml_collections.config_flags import config_path

import alexnet_jax
from alexnet_jax.cli import help_text
from alexnet_jax.network import wiring
from alexnet_jax.partition import layout as layout_lib

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
  "optimizer.conv1_rates": "optimizer.layers.conv1.rates",
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
  "manual_dir": "from",
  "dataset": "name",
}
_RENAMED_VALUES = {
  ("what", "forms"): "implementations",
  ("config", "no_colour_noise"): "no_color_noise",
}
# The fields of config.optimizer.layers.LAYER, and the types of their values.
_LAYER_RULE = {"lr_multiplier": float, "rates": tuple, "weight_decay": float}
# In the workdir of a run, and the config file that reads it.
_STORED, _STORED_CONFIG = "config.json", "configs/stored.py"
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
# How ml_collections begins the text of an error in a config file.
_IN_CONFIG = "Error whilst parsing config file"
# What Python before 3.11.4 says in a ValueError; later, in a SyntaxError.
_NULL_BYTES = "source code string cannot contain null bytes"
# A field in a line of a config file, and what ml_collections says where its
# value is of another type.
_NAMED_FIELD = re.compile(r"\bconfig\.((?:[a-zA-Z]\w*\.)+\w+)")
_OTHER_TYPE = re.compile(
  r"Could not override field '(?P<field>\w+)' \(reference\)\. "
  r"(?P<value>.*) is of original type <class '(?P<given>.*)'> and cannot be "
  r"casted to type <class '(?P<expected>.*)'>",
  re.DOTALL,
)
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
# The arguments that ml_collections reads, in place of those of `sys.argv`.
ARGUMENTS: list[str] = []
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
    ARGUMENTS[:] = argv
    _add_groups(argv)
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


def _is_workdir(path: str) -> bool:
  return path != "" and os.path.isfile(os.path.join(path, _STORED))


def find_config(path: str, *, flag: str = "config") -> str:
  """Finds a config, PATH or PATH:VARIANT, here or in the installed package.

  The workdir of a run stands for the config that is stored in it.

  Args:
    flag: whose value it is, for an error.

  Raises:
    FileNotFoundError: it is in neither.
    ValueError: see `to_local_path`; or a workdir has a variant.
  """
  path = to_local_path(path, remedy="Copy the file here.")
  if _is_workdir(path):
    return find_config(f"{_STORED_CONFIG}:{path}")
  file, colon, variant = path.partition(":")
  if _is_workdir(file):
    raise ValueError(
      f"--{flag} is {path!r}, but {file!r} is the workdir of a run, which has "
      f"no variants. Set --{flag}={file}."
    )
  if os.path.exists(file) and not os.path.isdir(file):
    return path
  if os.path.normpath(file).split(os.sep)[0] == "configs":
    package = os.path.dirname(os.path.dirname(alexnet_jax.__file__))
    if os.path.isfile(packaged := os.path.join(package, file)):
      return f"{packaged}{colon}{variant}"
  raise FileNotFoundError(
    f"there is no config file {file[:500]!r}, in this folder or in the "
    "installed configs/. Set --config to a file with a function get_config, "
    "e.g. configs/two_device.py, or to the workdir of a run."
  )


class _Loader(importlib.abc.FileLoader, importlib.abc.SourceLoader):
  """Runs a file without leaving a __pycache__ beside it."""


def load_config(path: str, *, flag: str) -> ConfigDict:
  """Returns the config of a file that another flag than --config names.

  Args:
    path: as of `find_config`.
    flag: the flag's name, for an error.

  Raises:
    ValueError, FileNotFoundError: there is no such file, or it has no config;
      names the line that cannot be run.
  """
  try:
    file, _, variant = find_config(path, flag=flag).partition(":")
    if not file.endswith(".py"):
      raise FileNotFoundError
  except FileNotFoundError:
    raise FileNotFoundError(
      f"there is no config file {path[:500]!r}, NAME.py, in this folder or in "
      f"the installed configs/, and no workdir of a run. Set --{flag}."
    ) from None
  loader = _Loader(f"config_of_{flag}", file)
  module = importlib.util.module_from_spec(
    importlib.util.spec_from_loader(loader.name, loader)
  )
  try:
    loader.exec_module(module)
    if not hasattr(module, "get_config"):
      raise ValueError(
        f"{file!r} has no function get_config, expected one that returns a "
        f"config. Set --{flag}."
      )
    config = module.get_config(*([variant] if variant else []))
  except Exception as error:  # a config file may raise any
    place = _find_place(error, [f"--config={file}"])
    if place is None:
      raise ValueError(f"{file!r} has no config: {error}") from error
    raise ValueError(f"{place} Change it, or set --{flag}.") from error
  if not isinstance(config, ConfigDict):
    raise ValueError(
      f"get_config in {file!r} returns {reprlib.repr(config)}, expected an "
      f"ml_collections.ConfigDict. Return one, or set --{flag}."
    )
  return config


def _resolve_config(argv: Sequence[str]) -> list[str]:
  """Joins `--config PATH` to one argument and finds the file of PATH.

  Where it is not given, adds it: the default, if a field is set, or else the
  run in --workdir.
  """
  resolved: list[str] = []
  arguments = iter(argv)
  for argument in arguments:
    name, equals, value = argument.partition("=")
    if argument == "--":
      resolved += [argument, *arguments]
      break
    if name in ("--config", "-config"):
      if not equals:
        value = next(arguments, "")
      argument = f"--config={find_config(value)}"
    resolved.append(argument)
  given = resolved[: resolved.index("--")] if "--" in resolved else resolved
  if "config" in flags.FLAGS and not any(
    one.startswith("--config=") for one in given
  ):
    path = _find_default_config(given)
    resolved[1:1] = [] if path is None else [f"--config={path}"]
  return resolved


def _find_default_config(argv: Sequence[str]) -> str | None:
  """Returns the config for arguments without --config; None: there is none."""
  flag = flags.FLAGS["config"]
  if flag.default is not None:
    # ml_collections sets fields of a config only while it parses one.
    is_changed = any(map(_FIELD_FLAG.match, argv))
    return config_flags.get_config_filename(flag) if is_changed else None
  for argument, following in itertools.pairwise([*argv, ""]):
    flag, equals, value = argument.lstrip("-").partition("=")
    if argument.startswith("-") and flag == "workdir" and flag in flags.FLAGS:
      path = to_local_path(value if equals else following, remedy="")
      if os.path.isfile(os.path.join(path, _STORED)):
        return find_config(path)
  return None


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


def _add_groups(argv: Sequence[str]) -> None:
  """Makes the config have the fields of single layers that flags set.

  Raises:
    ValueError: a layer has no such field.
  """
  if "config" in flags.FLAGS:
    found = [_FIELD_FLAG.match(argument) for argument in argv[1:]]
    named = [_find_layer_field(one["name"]) for one in found if one]
    flag = flags.FLAGS["config"]
    flag.parser = _LayerParser(flag.parser, [one for one in named if one])


class _LayerField(NamedTuple):
  """Words of the group's full name, the field, and its values' type."""

  group: list[str]
  name: str
  type: type


def _find_layer_field(name: str) -> _LayerField | None:
  """Finds a field of a layer by its full name; None for all other fields."""
  match name.split("."):
    case ["layout", layer, _] if layer != "mesh":
      types = typing.get_type_hints(layout_lib.Placement)
    case ["network", "layers", layer, _]:
      types = typing.get_type_hints(wiring.Layer)
      del types["name"]  # that of its group
    case ["network", "layers", layer, part, _] if part in wiring.PARTS:
      types = typing.get_type_hints(type(wiring.PARTS[part]))
    case ["optimizer", "layers", layer, _]:
      types = _LAYER_RULE
    case _:
      return None
  if hasattr(ConfigDict, layer):
    raise ValueError(
      f"--config.{name} names a layer {layer!r}, expected a name that is none "
      "of a config's own, such as keys or update. Rename the layer."
    )
  *group, field = name.split(".")
  if field not in types:
    raise ValueError(
      f"the config has no field config.{name}, expected one of "
      f"{', '.join(types)}. Set config.{'.'.join(group)}.FIELD."
    )
  is_group = field in wiring.PARTS
  return _LayerField(
    group, field, ConfigDict if is_group else _find_type(types[field])
  )


class _LayerParser(flags.ArgumentParser):
  """Adds to a config the fields of single layers, which any layer may have.

  ml_collections refuses to set a field that the config does not have.
  """

  def __init__(
    self, parser: flags.ArgumentParser, fields: Sequence[_LayerField]
  ):
    self._parser, self._fields = parser, fields

  def parse(self, argument: str) -> ConfigDict:
    config = self._parser.parse(argument)
    if isinstance(config, ConfigDict):
      with config.unlocked():
        for field in self._fields:
          _add_field(config, field)
    return config

  def flag_type(self) -> str:
    return self._parser.flag_type()


def _add_field(group: ConfigDict, field: _LayerField) -> None:
  for word in field.group:
    if word not in group:
      group[word] = ConfigDict()
    group = group[word]
    if not isinstance(group, ConfigDict):
      return  # ml_collections refuses the flag
  # A field that was saved as None has lost its type.
  if field.name not in group or group.get_type(field.name) is type(None):
    is_group = field.type is ConfigDict
    group[field.name] = (
      ConfigDict() if is_group else config_dict.placeholder(field.type)
    )
  elif field.type is float and group.get_type(field.name) is int:
    with group.ignore_type():  # a file may say 0 for 0.0
      group[field.name] = float(group[field.name])


def _find_type(hint: Any) -> type:
  """The type of a field's values: float of `float | None`, or tuple."""
  if type(None) in typing.get_args(hint):
    hint = typing.get_args(hint)[0]
  return typing.get_origin(hint) or hint


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
  """Refuses old names, what names no field, and very long values.

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
      _check_no_group(field["name"], value if equals else following)


def _check_no_group(name: str, value: str) -> None:
  """Refuses a value of a layer, whose group the config need not have.

  ml_collections would say that there is no such field.
  """
  match name.split("."):
    case ["layout", layer] if layer not in layout_lib.FIELDS:
      raise ValueError(
        f"the config has no field config.{name}, expected name, axes or "
        "allow_unplanned. A layer is a group of fields: set them one by one, "
        f"such as --config.{name}.{_find_example(name)}."
      )
    case ["network" | "optimizer", "layers", _]:
      pass
    case ["network", "layers", _, part] if part in wiring.PARTS:
      pass
    case _:
      return
  raise _make_group_error(f"config.{name}", value)


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
  if renamed := _describe_renamed(name):
    raise ValueError(renamed)


def _describe_renamed(name: str) -> str | None:
  """Says what has replaced a field, by its full name; None for no old name."""
  group, _, rest = name.partition(".")
  layer, _, field = rest.partition(".")
  is_layer = group == "layout" and field
  new = _RENAMED_FIELDS.get(f"layout.LAYER.{field}" if is_layer else name)
  if new is None:
    return layout_lib.describe_removed_field(name)
  new = new.replace("LAYER", layer)
  return f"the field {name} is now called {new}. Set config.{new}."


def _check_renamed_fields() -> None:
  """Refuses old names that a config file has added to a config."""
  config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
  # Neither None nor the error of a file that could not be read.
  if hasattr(type(config), "to_dict"):
    from flax import traverse_util  # imports JAX

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
        import jax  # takes a second, and not every command uses it

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
  places = [
    place
    for place in traceback.extract_tb(error.__traceback__)
    if os.path.abspath(place.filename) in paths
  ]
  lines = [place.lineno for place in places]
  if isinstance(error, SyntaxError):  # in that file, or in one it imports
    what = f"{type(error).__name__}: {error.msg}"
    paths = [error.filename or ", ".join(paths)]
    lines = [error.lineno or 1]
  elif str(error) == _NULL_BYTES:
    lines = [1]
  if not lines:
    return None
  line = f"line {lines[-1]} of {paths[-1]}"
  if places and (reason := _find_reason(error, places[-1].line or "")):
    return f"{line}: {reason}"
  if isinstance(error, AttributeError | KeyError):
    for old, new in _RENAMED_FIELDS.items():
      old, new = old.rpartition(".")[2], new.rpartition(".")[2]
      if re.search(rf"\b{old}\b", what.partition("\n")[0]):
        return f"{line} reads the field {old}, which is now called {new}."
  return f"{line} cannot be run ({what})."


def _find_reason(error: Exception, line: str) -> str | None:
  """Says what is wrong with a line that sets a field; None: not known."""
  field = _NAMED_FIELD.search(line)
  if isinstance(error, AttributeError) and field:
    if renamed := _describe_renamed(field[1]):
      return renamed
    group, _, name = field[1].rpartition(".")
    layer = group.rpartition(".")[2]
    if group in (
      f"{groups}.{layer}"
      for groups in ("layout", "network.layers", "optimizer.layers")
    ):
      return (
        f"no field of layer {layer} is set yet. Write config.{group} = "
        f"{{{name!r}: ...}}."
      )
  if "unexpected keyword argument 'arrive'" in str(error):
    return (
      "a Placement has no arrive: write outputs (for gather), inputs (for sum) "
      "or features (for fewest)."
    )
  if not (other := _OTHER_TYPE.match(str(error))):
    return None
  name = field[1] if field else other["field"]
  expected = other["expected"].rpartition(".")[2]
  if expected == "ConfigDict":
    return (
      f"{name} is {other['value']!r}, but it is a group of fields. Set them "
      "one by one; configs/default.py lists them."
    )
  reason = f"{name} is {other['value']!r}, expected a {expected}."
  if (other["given"], expected) == ("str", "tuple"):
    words = tuple(word.strip() for word in other["value"].split(","))
    reason += f" Write {words!r}: a comma makes the tuple."
  return reason


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
    resumes = ", or --workdir to a run" if "workdir" in flags.FLAGS else ""
    return ValueError(
      "--config is not given. Set --config=configs/NAME.py, e.g. "
      f"--config=configs/two_device.py{resumes}."
    )
  if found := re.match(r"Found (\S+) in argv before", said):
    return ValueError(f"{found[1]} stands before --config. Put it after.")
  if _IN_CONFIG in said:
    # ml_collections and absl have put its text in errors of their own.
    while error.__context__ is not None and _IN_CONFIG in str(error):
      error = error.__context__
    is_own = isinstance(error, ValueError) and str(error) != _NULL_BYTES
    place = None if is_own else _find_place(error, argv)
    return ValueError(
      f"{place} Change it, or set --config." if place else f"{error}"
    )
  if isinstance(error, flags.IllegalFlagValueError):
    return _name_value(error)
  return error


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
  return _make_group_error(name, said["value"])


def _make_group_error(name: str, value: str) -> Exception:
  """Makes the error for a value of a group of fields, a flag by its name."""
  shown = value if value == "None" else reprlib.repr(value)
  reason = f"--{name} is {shown}, but it is a group of fields."
  layer, _, part = name.rpartition(".")
  if part in wiring.PARTS and value.lower() in ("none", "false", "0", "()"):
    for field, none in (wiring.NO_PART[part] or {}).items():
      return ValueError(f"{reason} For none set --{name}.{field}={none}.")
    return ValueError(f"{reason} For none set --{layer}.normalize=none.")
  return ValueError(
    f"{reason} Set them one by one, such as --{name}."
    f"{_find_example(name.removeprefix('config.'))}."
  )


def _find_example(group: str) -> str:
  """Returns how a field of a group is set, after the group's full name."""
  match group.split("."):
    case ["layout", "mesh"]:
      return "data=2"
    case ["layout", _]:
      return "outputs=\"('model',)\""
    case ["network", "layers"]:
      return "conv4.features=192"
    case ["network", "layers", _]:
      return "features=192"
    case ["optimizer", "layers"]:
      return "conv1.lr_multiplier=0"
    case ["optimizer", "layers", _]:
      return "lr_multiplier=0"
    case [*_, "pool"]:
      return "kind=average"
    case [*_, "lrn" | "map_lrn"]:
      return "size=5"
  return "FIELD=VALUE; configs/default.py lists all fields"


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
