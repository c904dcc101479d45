"""The console of a run: it outlasts whoever reads it."""

from __future__ import annotations

import os
import sys

import rich.console


class Lasting(rich.console.Console):
  """A console whose reader may go away, as `| tee` does with Ctrl-C."""

  def on_broken_pipe(self) -> None:
    """Goes on without a reader, where rich's own ends the process."""
    with open(os.devnull, "w") as nowhere:
      os.dup2(nowhere.fileno(), sys.stdout.fileno())
    print(
      "nobody reads standard output any longer: the run goes on, and what it "
      "reports is in metrics.jsonl",
      file=sys.stderr,
    )
