"""What the system said, in an error that Orbax or TensorStore made of it."""

from __future__ import annotations

import errno
import os
import re

# Of TensorStore: "... [os_error_code='28']", and the status it begins with.
_OS_ERROR = re.compile(r"\[os_error_code='(\d+)'")
_STATUS = re.compile(
  r"\b(?:RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|DEADLINE_EXCEEDED)\b"
)
# What is asked for is not there, or of another kind: true tomorrow as well.
_ABSENT = {
  errno.ENOENT,
  errno.ENOTDIR,
  errno.EISDIR,
  errno.ELOOP,
  errno.EINVAL,
  errno.ENAMETOOLONG,
}


def find_refusal(error: BaseException) -> str | None:
  """Why the system did not let a file be read, in its own words.

  Too many open files, no right, a disk or server that does not answer: nothing
  is known then of what is in the file.

  Args:
    error: of reading; its causes are asked too.

  Returns:
    As "Too many open files"; None: the file was read or is not there.
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
