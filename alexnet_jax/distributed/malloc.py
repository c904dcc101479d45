"""Keeps the memory of a step on CPUs in the process from step to step.

A step allocates its temporary arrays in one piece, a gigabyte at full size, and
frees them at its end. The C library then returns the piece to the kernel, and
gets it anew and empty in the next step: a fifth of a step went into 200,000
page faults. Settings of `mallopt` keep all freed memory in one heap, and
`madvise` asks for large pages.

Only with glibc and without an accelerator, and unless the user has settings of
their own for malloc. No result depends on it. Standard library only: `main.py`
calls this before there are threads, each of which would have its own heap.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Sequence

from alexnet_jax.distributed import machine

# <malloc.h>
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
# <sys/mman.h>
_HUGE_PAGES = 14
_HUGE_PAGE = 2 << 20
# The heap grows by so much at a time, so that the memory behind a piece is free
# as well.
_GROWTH = 64 << 20

_keeps = False  # set once in a process


def keep_freed_memory(arguments: Sequence[str]) -> bool:
  """Tells the C library to keep freed memory, in one heap, at full size.

  A small step gains nothing, and threads that share a heap wait for each other.
  The config is not loaded yet, so its name decides: `imagenet` and recipes are
  full size. A wrong guess costs a little time.

  Args:
    arguments: of the command.

  Returns:
    Whether freed memory is kept.
  """
  global _keeps
  if not _keeps and _is_wanted() and any(map(_is_full_size, arguments)):
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    settings = (
      (_ARENA_MAX, 1),
      (_MMAP_MAX, 0),
      (_TRIM_THRESHOLD, -1),  # as unsigned: never
      (_TOP_PAD, _GROWTH),
    )
    _keeps = all([mallopt(*setting) == 1 for setting in settings])
  return _keeps


def keeps_freed_memory() -> bool:
  """Whether `keep_freed_memory` has succeeded."""
  return _keeps


def reserve_heap(size: int) -> bool:
  """Grows the heap by a free piece of so many bytes, in large pages.

  Its pages are not touched: the kernel provides each when a step first uses it.

  Returns:
    Whether it has; False if freed memory is not kept, or memory is short.
  """
  if not _keeps:
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
  if machine.has_accelerator():
    return False
  return not any(
    name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"
    for name in os.environ
  )
