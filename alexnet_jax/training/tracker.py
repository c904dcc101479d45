"""Hands the scalars of a run to another tracker, such as wandb or mlflow.

A tracker is a function of the user's, `function(config, workdir)`, called once
at each start of a run, in its first process. `config` is {full name: value} as
in config.json. What it returns has `log(values, step)`, called with the numbers
of each line of metrics.jsonl, and may have `close()`.

A tracker that cannot start ends the run before it compiles. Later the run is
worth more than its tracker: a failure is printed, and training continues.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol


class Tracker(Protocol):
  """What a tracker's function returns; `close()` is optional."""

  def log(self, values: dict[str, float], step: int) -> None:
    """Takes the values of one step; several calls may have the same step."""


# (config, workdir) -> Tracker
MakeTracker = Callable[[dict[str, Any], str], Tracker]


class TrackerError(RuntimeError):
  """A tracker cannot start."""


def find(name: str) -> MakeTracker:
  """Imports a tracker's function.

  Args:
    name: MODULE:FUNCTION.

  Raises:
    ValueError: it has another form, or the module has no such function.
    TrackerError: the module cannot be imported.
  """
  module_name, _, function_name = name.partition(":")
  if not module_name or not function_name.isidentifier():
    raise ValueError(
      f"the tracker is {name!r}, expected MODULE:FUNCTION, such as "
      "trackers:make_tracker. Set --tracker."
    )
  try:
    module = importlib.import_module(module_name)
  except Exception as error:  # whatever the user's module raises
    raise TrackerError(
      f"the module {module_name!r} of the tracker cannot be imported: "
      f"{_describe(error)}. Run from the folder that has it, or set --tracker."
    ) from error
  function = getattr(module, function_name, None)
  if not callable(function):
    raise ValueError(
      f"the module {module_name!r} has no function {function_name!r}. Set "
      "--tracker."
    )
  return function


class Tracking:
  """A tracker whose failures do not end the run.

  Args:
    make: the tracker's function.
    config: {full name: value}, as in config.json.
    workdir: of the run.

  Raises:
    TrackerError: the function fails, or what it returns has no `log`.
  """

  def __init__(
    self, make: MakeTracker, config: Mapping[str, Any], workdir: str
  ):
    try:
      self._tracker = make(dict(config), workdir)
    except Exception as error:
      raise TrackerError(
        f"the tracker cannot start: {_describe(error)}. Start the run without "
        "--tracker to train without it."
      ) from error
    if not callable(getattr(self._tracker, "log", None)):
      raise TrackerError(
        f"the tracker is a {type(self._tracker).__name__} without a method "
        "log(values, step). Return an object that has it, or leave out "
        "--tracker."
      )
    self._failures = 0

  def log(self, step: int, values: Mapping[str, float]) -> str | None:
    """Logs the values of a step.

    Returns:
      A line on the first failure of all; else None.
    """
    try:
      self._tracker.log(dict(values), step)
    except Exception as error:
      self._failures += 1
      if self._failures == 1:
        return (
          f"the tracker has not taken step {step}: {_describe(error)}; "
          "training continues, and metrics.jsonl has all values"
        )
    return None

  def close(self) -> list[str]:
    """Closes the tracker; returns lines on what has failed."""
    lines = []
    if self._failures:
      lines.append(f"the tracker lacks {self._failures:,} reports that failed")
    try:
      getattr(self._tracker, "close", _do_nothing)()
    except Exception as error:
      lines.append(f"the tracker could not be closed: {_describe(error)}")
    return lines


def _do_nothing() -> None:
  pass


def _describe(error: Exception) -> str:
  """Describes an error of a program that we do not know, in one line."""
  text = " ".join(str(error).split())[:300].rstrip(".")
  kind = type(error).__name__
  return f"{kind}: {text}" if text else kind
