"""The files that pictures go to."""

import os


def check_path(path: str, *, flag: str) -> None:
  """Refuses a file that cannot be drawn to, before anything is computed.

  Args:
    path: of the file.
    flag: that it was given by, for the error.

  Raises:
    ValueError: it is neither SVG nor PNG, or its folder is not there.
  """
  if not path.endswith((".svg", ".png")):
    raise ValueError(
      f"the picture {path!r} is neither .svg nor .png. "
      f"Set --{flag} to a name that ends in one of these."
    )
  folder = os.path.dirname(path) or "."
  if not os.access(folder, os.W_OK):
    raise ValueError(
      f"the picture {path!r} cannot be written: {folder!r} is no folder, or "
      f"not yours. Set --{flag}."
    )
