"""AlexNet (2012), split across devices as its authors did, in JAX."""

from __future__ import annotations

import os
import re
import resource
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from alexnet_jax.training import loaded_run

# Address space of a command, bytes. Small runs on 8 simulated devices fit; with
# 2 GB a run hangs, since libraries cannot start their threads, and with 0.6 GB
# they cannot be imported.
_ADDRESS_SPACE = 3_000_000_000


def load(
  workdir: str | os.PathLike, step: int | None = None, *, layout: Any = None
) -> loaded_run.LoadedRun:
  """Loads a trained run; see `alexnet_jax.training.loaded_run.load`."""
  from alexnet_jax.training import loaded_run  # JAX takes a second to import

  return loaded_run.load(workdir, step, layout=layout)


def _report_import_error(kind, error, trace) -> None:
  """Prints one line for a variable that JAX cannot read when it is imported."""
  last = trace
  while last is not None and last.tb_next is not None:
    last = last.tb_next
  name = last.tb_frame.f_globals.get("__name__") if last else None
  if kind is ValueError and name == "jax._src.config":
    named = re.search(r"jax[._](\w+)", str(error), re.IGNORECASE)
    variable = f"JAX_{named[1].upper()}" if named else "that variable"
    print(f"error: {error}. Correct or unset {variable}.", file=sys.stderr)
  else:
    sys.__excepthook__(kind, error, trace)


def _open_standard_streams() -> None:
  """Opens /dev/null as each standard stream that is closed, as after `2>&-`.

  Otherwise a file that a library or a run opens gets its number, and what C++
  prints to standard error is written into that file.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      # Gets the lowest free number: this one. Child processes have it, too.
      os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
  sys.stdin = sys.stdin or open(0, closefd=False)
  sys.stdout = sys.stdout or open(1, "w", closefd=False)
  sys.stderr = sys.stderr or open(2, "w", closefd=False)


def _check_address_space() -> None:
  limit, _ = resource.getrlimit(resource.RLIMIT_AS)
  if limit != resource.RLIM_INFINITY and limit < _ADDRESS_SPACE:
    sys.exit(
      f"error: address space is limited to {limit / 1e9:.3g} GB, expected "
      f"{_ADDRESS_SPACE / 1e9:.3g} GB or more. Set ulimit -v unlimited."
    )


# At import, because some libraries cannot be imported without the streams. It
# changes nothing where they are open.
_open_standard_streams()

if sys.argv[:1] == ["-m"]:  # a command, whose other modules come after this one
  _check_address_space()
  sys.excepthook = _report_import_error
