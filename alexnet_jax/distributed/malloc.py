"""Memory that a CPU computes in, kept by the process from step to step.

A step takes its temporary arrays, a gigabyte at full size, in one piece, and
gives them back at its end. The C library then hands such a piece to the kernel
and asks for it anew, empty, in the next step: a fifth of a step went into
200,000 page faults. Here it is told to keep what it has, all in one heap, and
the kernel to make the part that a step works in of large pages.

For processes with glibc and no accelerator; elsewhere, and where the user has
settings of their own for the C library, nothing is changed. No result depends
on it. Standard library only: `main.py` calls this before there are threads,
each of which would have a heap of its own.
"""

from __future__ import annotations

import ctypes
import glob
import os
import platform
from collections.abc import Sequence

# <malloc.h>
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
# <sys/mman.h>
_HUGE_PAGES = 14
_HUGE_PAGE = 2 << 20
# Grown by so much at a time, so that what lies behind a piece is free as well.
_MORE = 64 << 20
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/*")

_kept = False  # by `keep`, once in a process


def keep(arguments: Sequence[str]) -> bool:
  """Tells the C library to keep freed memory, in one heap.

  Not where the step is small: its memory is soon there again, and threads that
  share a heap wait for each other. How large it is, a config says; it is not
  loaded yet, so this goes by its name, as it stands among the arguments: full
  size is `imagenet`, or a recipe. A wrong guess costs a little time.

  Args:
    arguments: of the command.

  Returns:
    Whether it does.
  """
  global _kept
  if not _kept and _is_wanted() and any(map(_is_full_size, arguments)):
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    settings = (
      (_ARENA_MAX, 1),
      (_MMAP_MAX, 0),
      (_TRIM_THRESHOLD, -1),  # as unsigned: never
      (_TOP_PAD, _MORE),
    )
    _kept = all([mallopt(*setting) == 1 for setting in settings])
  return _kept


def is_kept() -> bool:
  """Whether `keep` was heeded."""
  return _kept


def reserve(size: int) -> bool:
  """Has the heap hold a free piece of so many bytes, of large pages.

  Pages are not touched, so that none is taken before a step needs it.

  Returns:
    Whether there is one; False: `keep` was not heeded, or there is not enough.
  """
  if not _kept:
    return False
  library = ctypes.CDLL(None)
  library.malloc.restype = ctypes.c_void_p
  library.malloc.argtypes = [ctypes.c_size_t]
  library.free.argtypes = [ctypes.c_void_p]
  library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
  size += 2 * _HUGE_PAGE
  piece = library.malloc(size)
  if not piece:
    return False
  start = -(-piece // _HUGE_PAGE) * _HUGE_PAGE
  end = (piece + size) // _HUGE_PAGE * _HUGE_PAGE
  library.madvise(start, end - start, _HUGE_PAGES)  # a kernel may have none
  library.free(piece)
  return True


def _is_full_size(argument: str) -> bool:
  if argument.endswith(":imagenet"):
    return True
  return "recipes/" in argument and not argument.endswith(":digits")


def _is_wanted() -> bool:
  if platform.libc_ver()[0] != "glibc":
    return False
  if any(map(glob.glob, _ACCELERATORS)):
    return False
  return not any(
    name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"
    for name in os.environ
  )
