"""Sets up JAX's cache of compiled programs, and reports what it did.

JAX writes one file per program. The key has everything that the program depends
on: the traced program, the compiler's options and flags, the versions of jaxlib
and of the platform, the devices and, for a CPU, its instruction set. Source:
jax/_src/cache_key.py.

The key does not have the names of layers. If only a `jax.named_scope` changes,
the cached program still has the old names, and the audit, which needs them, may
refuse it; remove the folder then.

Only damaged entries are ever deleted: the step of a config takes 0.2 MB, for
CPUs and for GPUs. JAX can limit the size of a folder
(JAX_COMPILATION_CACHE_MAX_SIZE), but needs the package filelock for it, and
before 0.12 such a folder takes no new entries once a process was killed while
it wrote (github.com/jax-ml/jax/issues/39880).
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

# Events of JAX's monitoring.
_HIT = "/jax/compilation_cache/cache_hits"
_WRITTEN = "/jax/compilation_cache/cache_misses"  # counted when it writes
_SAVED = "/jax/compilation_cache/compile_time_saved_sec"
_COMPILED = "/jax/core/compile/backend_compile_duration"  # or read

# If JAX cannot read or write an entry, it warns and compiles.
_WARNING = re.compile(
  r"Error (?P<verb>reading|writing) persistent compilation cache entry "
  r"for '(?P<program>[^']*)': (?P<reason>.*)",
  re.DOTALL,
)
# The first bytes of an entry compressed by zstandard; it has no checksum.
_ZSTANDARD = b"\x28\xb5\x2f\xfd"


@dataclasses.dataclass(kw_only=True)
class Compilation:
  """What happened while something was compiled or read from the cache.

  Attributes:
    what: what was compiled, as "the training step".
    cache: the cache that was used.
    seconds: to compile it or to read it.
    read: number of programs read from the cache.
    written: number of programs written to the cache.
    saved_seconds: lower bound of the time the cache saved: JAX records full
      seconds only.
    damaged: number of incomplete entries, which are removed.
    problem: "read: ..." or "written: ...", why an entry could not be.
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
    """Returns a line for the user; [] if the user has turned the cache off."""
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
      rest = f"its entry in {path} was damaged, the next start makes a new one"
    elif self.written:
      rest = f"it is kept in {path} for the next start"
    elif jax.process_index():
      rest = f"process 0 keeps it in {path}"
    else:
      rest = f"JAX does not keep it in {path}"
    return [f"{self.what} compiled in {self.seconds:.1f} s; {rest}"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
  """The place where JAX caches compiled programs.

  Attributes:
    path: a folder, or an address as gs://...; None: nothing is cached.
    reason: why nothing is cached, if the user has not turned it off.
  """

  path: str | None
  reason: str | None = None

  @contextlib.contextmanager
  def watch(self, what: str) -> Iterator[Compilation]:
    """Records what is compiled in a `with` block, and JAX's warnings on it.

    No other thread may compile meanwhile.
    """
    compilation = Compilation(what=what, cache=self)

    def count(event: str, **_) -> None:
      compilation.read += event == _HIT
      compilation.written += event == _WRITTEN

    def add(event: str, seconds: float, **_) -> None:
      compilation.seconds += seconds * (event == _COMPILED)
      compilation.saved_seconds += seconds * (event == _SAVED)

    jax.monitoring.register_event_listener(count)
    jax.monitoring.register_event_duration_secs_listener(add)
    try:
      with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield compilation
    finally:
      jax.monitoring.unregister_event_listener(count)
      jax.monitoring.unregister_event_duration_listener(add)
      for warning in caught:
        self._record(warning, compilation)

  def _record(
    self, warning: warnings.WarningMessage, compilation: Compilation
  ) -> None:
    match = _WARNING.match(str(warning.message))
    if not match:
      warnings.warn_explicit(
        warning.message, warning.category, warning.filename, warning.lineno
      )
      return
    reading = match["verb"] == "reading"
    removed = _remove_damaged(self.path, match["program"]) if reading else 0
    compilation.damaged += removed
    if not removed:
      reason = " ".join(match["reason"].split())
      compilation.problem = f"{'read' if reading else 'written'}: {reason}"


def open_cache(choice: str | None, *, attached: bool = True) -> Cache:
  """Turns JAX's cache on, or off with a reason.

  Call it once the processes are connected. Only the first of several processes
  writes. If one then reads a program that another compiles, they wait for each
  other: with gloo for 30 s, and on GPUs, which share the search for the fastest
  kernels, forever. So several processes cache nothing unless the user names a
  folder, which all of them must see.

  Args:
    choice: of --compilation_cache: a folder, `OFF`, or None: the folder of
      JAX_COMPILATION_CACHE_DIR, else the user's cache folder. If that last one
      cannot be used, nothing is cached.
    attached: whether this machine has the devices to compile for.

  Raises:
    OSError: the folder that the user has named cannot be used.
  """
  if choice == OFF or not jax.config.jax_enable_compilation_cache:
    return _use(None)
  if not attached:
    # Seen with libtpu 0.0.42: written, and "PjRtCompiler must be constructed
    # with a Client" when read.
    return _use(None, "JAX cannot read it back for devices of another machine")
  several = jax.process_count() > 1
  if several and jax.default_backend() == "cpu":
    # There the key has the process in it: seen with jax 0.10.2 and 0.12.0.
    reason = "of several CPU processes only the first can read the cache"
    return _use(None, reason)
  named = choice or os.environ.get("JAX_COMPILATION_CACHE_DIR")
  if several and not named:
    reason = f"several processes need {_FLAG}, a folder that all see"
    return _use(None, reason)
  path = named or default_path()
  if path is None:
    return _use(None, f"there is no home folder for it (set {_FLAG})")
  if "://" not in path:  # an address is checked by JAX
    path = os.path.abspath(os.path.expanduser(path))
    try:
      _make(path)
    except OSError as error:
      can = "used" if _find_others(path) else "written"
      message = f"{path} cannot be {can}: {error.strerror}"
      if not named:
        return _use(None, f"{message} (set {_FLAG})")
      flag = _FLAG if choice else "JAX_COMPILATION_CACHE_DIR"
      raise OSError(
        f"the compilation cache {message}. Set {flag} to a folder of yours, or "
        f"{_FLAG}=off."
      ) from error
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    # By default a second: a run also has ten small programs, which take a
    # second together.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  # Outside `watch`, a lost entry costs a second and needs no warning.
  warnings.filterwarnings("ignore", message=_WARNING.pattern)
  return _use(path)


def default_path() -> str | None:
  """Returns the user's cache folder for this program; None without a home.

  Source: XDG Base Directory Specification, XDG_CACHE_HOME.
  """
  caches = os.environ.get("XDG_CACHE_HOME", "")
  if not os.path.isabs(caches):  # to be ignored, by the specification
    caches = os.path.expanduser("~/.cache")
  return os.path.join(caches, "alexnet_jax") if os.path.isabs(caches) else None


def _use(path: str | None, reason: str | None = None) -> Cache:
  jax.config.update("jax_compilation_cache_dir", path)
  compilation_cache.reset_cache()  # closes the one that JAX has open
  return Cache(path=path, reason=reason)


def _make(path: str) -> None:
  """Makes a folder for this user only, and tries to write to it."""
  os.makedirs(path, mode=0o700, exist_ok=True)
  if others := _find_others(path):
    # An entry is machine code, which JAX loads and runs.
    reason = "{} may write there, and its programs run as you ({})"
    raise PermissionError(errno.EPERM, reason.format(*others))
  with tempfile.TemporaryFile(dir=path):
    pass


def _find_others(path: str) -> tuple[str, str] | None:
  """Returns who else may write to a folder, and the remedy; None: no one.

  The user's primary group is assumed to have no other users, as on most
  systems.
  """
  if not os.path.isdir(path):
    return None
  status = os.stat(path)
  if status.st_uid not in (0, os.getuid()):
    return f"its owner, user {status.st_uid},", "take a folder of yours"
  if status.st_mode & stat.S_IWOTH:
    return "everybody", "chmod o-w"
  if status.st_mode & stat.S_IWGRP and status.st_gid != os.getgid():
    return f"group {status.st_gid}", "chmod g-w"
  return None


def _remove_damaged(path: str, program: str) -> int:
  """Removes, and counts, incomplete entries of a program: JAX keeps them."""
  removed = 0
  for entry in pathlib.Path(path).glob(f"{program}-*-cache"):
    with contextlib.suppress(OSError):  # another process removes it too
      data = entry.read_bytes()
      try:
        if not data.startswith(_ZSTANDARD):
          zlib.decompress(data)
      except zlib.error:
        entry.unlink()
        removed += 1
  return removed
