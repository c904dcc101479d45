"""AlexNet (2012), split across devices as its authors did, in JAX."""

import re
import sys


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


if sys.argv[:1] == ["-m"]:  # a command, whose other modules come after this one
  sys.excepthook = _report_import_error
