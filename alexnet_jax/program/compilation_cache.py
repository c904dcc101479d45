"""Compiled programs, kept from one start to the next, and said so.

JAX keeps them, in one file each, and finds them by everything that they depend
on: the traced program, the compiler's options and flags, the versions of jaxlib
and of the platform, the devices, and of a CPU its instruction set: what another
kind of machine has compiled is not found. Source: jax/_src/cache_key.py.

Names of layers are no part of that key. After a change of nothing but a
`jax.named_scope` a program comes with the names of before, and the audit, which
goes by them, may refuse it; removing the folder helps.

Nothing is ever deleted but damaged entries: the step of a config takes 0.2 MB,
for CPUs and for GPUs. JAX can bound a folder (JAX_COMPILATION_CACHE_MAX_SIZE),
but needs the package filelock, and before 0.12 a bound folder takes no more
once a process was killed while it wrote (github.com/jax-ml/jax/issues/39880).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import pathlib
import re
import stat
import tempfile
import warnings
import zlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

OFF = "off"
_FLAG = "--compilation_cache"

# Of JAX's monitoring.
_HIT = "/jax/compilation_cache/cache_hits"
_WRITTEN = "/jax/compilation_cache/cache_misses"  # counted when it writes
_SAVED = "/jax/compilation_cache/compile_time_saved_sec"
_COMPILED = "/jax/core/compile/backend_compile_duration"  # or read

# JAX warns of an entry that it cannot read or write, and compiles.
_WARNING = re.compile(
  r"Error (?P<verb>reading|writing) persistent compilation cache entry "
  r"for '(?P<program>[^']*)': (?P<reason>.*)",
  re.DOTALL,
)
_ZSTANDARD = b"\x28\xb5\x2f\xfd"  # how such an entry begins; it has no checksum


@dataclasses.dataclass(kw_only=True)
class Compilation:
  """What came of compiling something, from the cache or not.

  Attributes:
    what: was compiled.
    cache: that was asked.
    seconds: until it could be used; compiled, or read.
    read: programs that came from the cache.
    written: programs that the cache took.
    saved_seconds: at least, of `seconds` without the cache. JAX keeps whole
      seconds only.
    damaged: entries that were not whole, and are removed.
    problem: "read" or "written", and why an entry could not be.
  """

  what: str
  cache: Cache
  seconds: float = 0.0
  read: int = 0
  written: int = 0
  saved_seconds: float = 0.0
  damaged: int = 0
  problem: str | None = None

  def lines(self) -> list[str]:
    """In words, once it is compiled; nothing where the cache is off."""
    path = self.cache.path
    if path is None and self.cache.reason is None:
      return []
    if self.read and not self.written:
      saved = self.saved_seconds
      rest = f", which saves {saved:.1f} s or more" if saved >= 0.1 else ""
      return [f"{self.what} came from {path} in {self.seconds:.1f} s{rest}"]
    if path is None:
      rest = f"nothing is kept: {self.cache.reason}"
    elif self.problem:
      rest = f"its entry in {path} cannot be {self.problem}"
    elif self.damaged:
      rest = f"its entry in {path} was damaged, the next start makes it anew"
    elif self.written:
      rest = f"it is kept in {path} for the next start"
    elif jax.process_index():
      rest = f"process 0 keeps it in {path}"
    else:
      rest = f"JAX does not keep it in {path}"
    return [f"{self.what} compiled in {self.seconds:.1f} s; {rest}"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
  """Where compiled programs are kept.

  Attributes:
    path: a folder, or an address as gs://...; None: nothing is kept.
    reason: why nothing is, other than that the user wants it so.
  """

  path: str | None
  reason: str | None = None

  @contextlib.contextmanager
  def watch(self, what: str) -> Iterator[Compilation]:
    """Watches what is compiled within, and keeps JAX's warnings to one line.

    Args:
      what: is compiled, as "the training step"; no other thread compiles.
    """
    found = Compilation(what=what, cache=self)

    def count(event: str, **_) -> None:
      found.read += event == _HIT
      found.written += event == _WRITTEN

    def add(event: str, seconds: float, **_) -> None:
      found.seconds += seconds * (event == _COMPILED)
      found.saved_seconds += seconds * (event == _SAVED)

    jax.monitoring.register_event_listener(count)
    jax.monitoring.register_event_duration_secs_listener(add)
    try:
      with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    finally:
      jax.monitoring.unregister_event_listener(count)
      jax.monitoring.unregister_event_duration_listener(add)
      for warning in caught:
        self._take(warning, found)

  def _take(self, warning: warnings.WarningMessage, found: Compilation) -> None:
    match = _WARNING.match(str(warning.message))
    if not match:
      warnings.warn_explicit(
        warning.message, warning.category, warning.filename, warning.lineno
      )
      return
    reading = match["verb"] == "reading"
    removed = _remove_damaged(self.path, match["program"]) if reading else 0
    found.damaged += removed
    if not removed:
      reason = " ".join(match["reason"].split())
      found.problem = f"{'read' if reading else 'written'}: {reason}"


def open_cache(choice: str | None, *, attached: bool = True) -> Cache:
  """Lets JAX keep what it compiles; once the processes have found each other.

  Only the first of several processes writes. Where one then reads a program and
  another compiles it, they wait for each other: with gloo for 30 s, and GPUs,
  which share the search for the fastest kernels, for ever. So several processes
  keep nothing unless the user names a folder, which all of them must see.

  Args:
    choice: of --compilation_cache: a folder, `OFF`, or None: the folder of
      JAX_COMPILATION_CACHE_DIR, else one among the user's caches. If that last
      one cannot be used, nothing is kept.
    attached: whether the devices to compile for are here.

  Raises:
    OSError: the folder that the user has named cannot be used.
  """
  if choice == OFF or not jax.config.jax_enable_compilation_cache:
    return _close(None)
  if not attached:
    # Seen with libtpu 0.0.42: written, and "PjRtCompiler must be constructed
    # with a Client" when read.
    return _close("JAX cannot read it back for devices that are not here")
  several = jax.process_count() > 1
  if several and jax.default_backend() == "cpu":
    # Keys have the process in them there: seen with jax 0.10.2 and 0.12.0.
    return _close("of several CPU processes JAX finds the first's only")
  named = choice or os.environ.get("JAX_COMPILATION_CACHE_DIR")
  if several and not named:
    return _close(f"for several processes, set {_FLAG} to a folder all see")
  path = named or default_path()
  if path is None:
    return _close(f"there is no home for it (set {_FLAG})")
  if "://" not in path:  # of an address, JAX finds out
    path = os.path.abspath(os.path.expanduser(path))
    try:
      _make(path)
    except OSError as error:
      can = "used" if _find_others(path) else "written"
      message = f"{path} cannot be {can}: {error.strerror}"
      if not named:
        return _close(f"{message} (set {_FLAG})")
      flag = _FLAG if choice else "JAX_COMPILATION_CACHE_DIR"
      raise OSError(
        f"the compilation cache {message}. Set {flag} to a folder of yours, or "
        f"{_FLAG}=off."
      ) from error
  _use(path)
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    # Not from a second on, as by default: a run has ten small programs too,
    # which take a second together.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  # Outside of `watch`, a lost entry costs a second and no word.
  warnings.filterwarnings("ignore", message=_WARNING.pattern)
  return Cache(path=path)


def default_path() -> str | None:
  """The folder where the user has named none; None: the user has no home.

  Source: XDG Base Directory Specification, XDG_CACHE_HOME.
  """
  caches = os.environ.get("XDG_CACHE_HOME", "")
  if not os.path.isabs(caches):  # to be ignored then, and where it is empty
    caches = os.path.expanduser("~/.cache")
  return os.path.join(caches, "alexnet_jax") if os.path.isabs(caches) else None


def _close(reason: str | None) -> Cache:
  _use(None)
  return Cache(path=None, reason=reason)


def _use(path: str | None) -> None:
  jax.config.update("jax_compilation_cache_dir", path)
  compilation_cache.reset_cache()  # whichever JAX has opened by now


def _make(path: str) -> None:
  """Makes a folder for this user alone, and tries to write there."""
  os.makedirs(path, mode=0o700, exist_ok=True)
  if others := _find_others(path):
    # An entry is machine code, which JAX loads and runs.
    who, remedy = others
    raise PermissionError(
      errno.EPERM,
      f"{who} may write there, and what is there is run as you ({remedy})",
    )
  with tempfile.TemporaryFile(dir=path):
    pass


def _find_others(path: str) -> tuple[str, str] | None:
  """Who else may write to a folder, and what helps; None: nobody.

  The group that is this user's own primary one is taken for this user's alone,
  as most systems have it.
  """
  if not os.path.isdir(path):
    return None
  found = os.stat(path)
  if found.st_uid not in (0, os.getuid()):
    return f"its owner, user {found.st_uid},", "take a folder of yours"
  if found.st_mode & stat.S_IWOTH:
    return "everybody", "chmod o-w"
  if found.st_mode & stat.S_IWGRP and found.st_gid != os.getgid():
    return f"group {found.st_gid}", "chmod g-w"
  return None


def _remove_damaged(path: str, program: str) -> int:
  """Removes a program's entries that were cut off; JAX writes over none.

  Returns:
    How many there were.
  """
  removed = 0
  for entry in pathlib.Path(path).glob(f"{program}-*-cache"):
    with contextlib.suppress(OSError):  # another process removes it too
      data = entry.read_bytes()
      if not data.startswith(_ZSTANDARD) and not _is_whole(data):
        entry.unlink()
        removed += 1
  return removed


def _is_whole(data: bytes) -> bool:
  try:
    zlib.decompress(data)
  except zlib.error:
    return False
  return True
