"""The console of a run: it outlasts whoever reads it."""

from __future__ import annotations

import os
import sys

import rich.console

_NO_READER = (
  b"nobody reads standard output any longer: the run goes on, and what it "
  b"reports is in metrics.jsonl\n"
)


class Lasting(rich.console.Console):
  """A console whose reader may go away, as `| tee` does with Ctrl-C."""

  def on_broken_pipe(self) -> None:
    """Goes on without a reader, where rich's own ends the process."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    try:
      os.write(sys.stderr.fileno(), _NO_READER)
    except OSError:  # `2>&1 | tee`: it was the same pipe
      os.dup2(nowhere, sys.stderr.fileno())
    os.close(nowhere)
