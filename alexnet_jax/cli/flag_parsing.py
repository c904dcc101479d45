"""Flags and configs, parsed: whatever is wrong with them is an error in words.

ml_collections sets the fields of a config while absl parses the flags, and runs
the file of the config: an error of any type may come out of that.
"""

from __future__ import annotations

import contextlib
import os
import re
import traceback
from collections.abc import Iterator, Sequence

from absl import flags, logging

# As `--config.network.width`.
_FIELD_FLAG = re.compile(r"--?(no)?config\.(?P<name>[^=]*)", re.DOTALL)
_FIELD_NAME = re.compile(r"[a-zA-Z]\w*(\.[a-zA-Z]\w*)*")
_LONGEST_VALUE = 1000
# In what ml_collections says of a field that a group lacks.
_PLACE = re.compile(r"\(in: (.+)\)")


def parse(argv: list[str]) -> list[str]:
  """Parses all flags that are defined.

  Args:
    argv: with the name of the program.

  Returns:
    What is no flag, with the name of the program.

  Raises:
    ValueError, TypeError, OSError, ImportError, flags.Error: names the flag,
      the field or the line of the config file.
  """
  try:
    _check_field_names(argv)
    with _mute_absl():
      unused = flags.FLAGS(argv)
  except (flags.Error, ValueError, TypeError, OSError) as error:
    raise _without_traceback(error) from error
  except ImportError as error:
    raise ImportError(
      f"{error}. Start from the folder that holds configs/."
    ) from error
  except Exception as error:  # of a config file, any
    if place := _find_place(error, argv):
      raise ValueError(f"{place} Change it, or set --config.") from error
    if not isinstance(error, AttributeError | KeyError):
      raise
    raise _name_field(error, argv) from error
  _check_not_empty()
  return unused


@contextlib.contextmanager
def _mute_absl() -> Iterator[None]:
  """What is wrong becomes an error; ml_collections warns of it besides."""
  logger = logging.get_absl_logger()
  logger.disabled = True
  try:
    yield
  finally:
    logger.disabled = False


def _check_field_names(argv: Sequence[str]) -> None:
  """Refuses --config.NAME where NAME cannot be that of a field.

  And what is too long for a value: of that, Python's parser may give up.
  """
  for flag in argv[1:]:
    given = _FIELD_FLAG.match(flag)
    if given and len(flag) > _LONGEST_VALUE:
      raise ValueError(
        f"{given[0][:100]} has a value of {len(flag) - given.end():,} "
        f"characters, expected {_LONGEST_VALUE:,} or fewer. Set it in the file "
        "of --config."
      )
    if given and not _FIELD_NAME.fullmatch(given["name"]):
      raise ValueError(
        f"{given[0]!r} names no field, expected --config.GROUP.FIELD=VALUE, as "
        "--config.network.width=0.5; configs/default.py lists all fields."
      )


def _check_not_empty() -> None:
  """Refuses flags of text that are given without any."""
  for name in flags.FLAGS:
    flag = flags.FLAGS[name]
    if flag.present and flag.value in ("", [""]):
      raise ValueError(
        f"--{name} is empty, expected a value. Set --{name}, or leave it out."
      )


def _find_place(error: Exception, argv: Sequence[str]) -> str | None:
  """The line of the config file that raised an error; None: another did."""
  given = [flag.partition("=") for flag in argv]
  paths = [
    os.path.abspath(value.partition(":")[0])
    for name, _, value in given
    if name.lstrip("-") == "config"
  ]
  what = f"{type(error).__name__}: {error}"
  lines = [
    place.lineno
    for place in traceback.extract_tb(error.__traceback__)
    if os.path.abspath(place.filename) in paths
  ]
  if isinstance(error, SyntaxError):  # in that file, or in what it imports
    what = f"{type(error).__name__}: {error.msg}"
    paths = [error.filename or ", ".join(paths)]
    lines = [error.lineno or 1]
  if not lines:
    return None
  return f"line {lines[-1]} of {paths[-1]} cannot be run ({what})."


def _without_traceback(error: Exception) -> Exception:
  """What a config says itself, of the error that the flag makes of it."""
  if "Traceback (most recent call last)" not in str(error):
    return error
  last = str(error).strip().splitlines()[-1]
  return ValueError(last.split("Error: ", 1)[-1])


def _name_field(error: Exception, argv: list[str]) -> Exception:
  """The error of ml_collections for a misspelled field, with its whole name."""
  while error.args and isinstance(error.args[0], Exception):
    error = error.args[0]
  if "get_config" in str(error):
    return ValueError(
      "the file of --config has no function get_config, expected one that "
      "returns a config. Set --config=configs/NAME.py."
    )
  said = str(error.args[0]) if error.args else type(error).__name__
  name, _, hint = said.partition("\n")
  if place := _PLACE.search(name):
    name = f"config.{place[1]}"
  given = [flag.split("=")[0].lstrip("-") for flag in argv]
  fields = [flag for flag in given if name.strip("'") in flag.split(".")]
  return ValueError(
    f"the config has no field {' or '.join(fields) or name}. "
    f"{hint or 'configs/default.py lists all fields.'}"
  )
